"""Objects in photos, found by a trained run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from lambdanets.data import DataError, read_image
from lambdanets.data.coco_transforms import eval_transform_coco
from lambdanets.train import Run
from lambdanets.train.prediction import ready, reason, search

from .run_config import DetectionConfig


@dataclass(frozen=True, kw_only=True)
class Detections:
    """What a run finds in one image, or why it could not look.

    Attributes:
        path: the file.
        image: the picture, upright; None when it could not be read.
        found: `boxes` of shape (n, 4), left, top, right and bottom in pixels of the picture; `labels` of
            shape (n,), from 1 on; `scores` of shape (n,), the best first; and, where the run has masks,
            `masks`, boolean of shape (n, 1, height, width). Empty when it could not be read.
        error: one sentence on what is wrong with the image, None when it was read.
    """

    path: str
    image: Image.Image | None = field(default=None, repr=False, compare=False)
    found: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)
    error: str | None = None


def predict(
    run: Run[DetectionConfig],
    paths: Iterable[str | os.PathLike[str]],
    *,
    threshold: float = 0.5,
    weights: Literal["best", "last"] = "best",
) -> Iterator[Detections]:
    """Find objects in image files, and in the images inside folders, with a trained run.

    Images are turned upright by their EXIF tag, made RGB, and resized as in the run's own validation; what is
    found is in pixels of the picture itself. They come one by one, as masks are large. A file that cannot be
    read does not stop the others: its entry carries the reason.

    Args:
        run: from `load_run`.
        paths: files and folders; folders are searched recursively, in the order of their names.
        threshold: least score of what is kept.
        weights: the best ones by validation, or those of the last epoch.

    Raises:
        ValueError: `threshold` is not from 0 to 1.
        RunError: the run has no such weights yet.

    Example:
        >>> for each in predict(load_run("runs/nuclei"), ["slide.png"]):
        ...     print(each.path, len(each.found["boxes"]))
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is from 0 to 1, got {threshold}")
    network, device = ready(run, weights)
    resize = eval_transform_coco(run.config.data)
    half = "bf16" in run.config.engine.precision
    return _found(network, device, resize, half, search(paths), threshold)


def _found(
    network: Any, device: torch.device, resize: Any, half: bool, paths: Iterable[Path], threshold: float
) -> Iterator[Detections]:
    for path in paths:
        if path.is_dir():
            yield Detections(path=str(path), error="there are no images in this folder")
            continue
        try:
            picture = read_image(path)
        except (DataError, OSError) as error:
            yield Detections(path=str(path), error=reason(error, path))
            continue
        pixels = tv_tensors.Image(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
        image = resize(pixels).as_subclass(Tensor).to(device)
        with torch.autocast(device.type, torch.bfloat16) if half else nullcontext():
            [found] = network.detect([image], [(picture.height, picture.width)])
        kept = found["scores"] >= threshold
        yield Detections(
            path=str(path), image=picture, found={name: value[kept].cpu() for name, value in found.items()}
        )
