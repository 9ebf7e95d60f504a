"""Objects in photos, found by a trained run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from lambdanets.data import DataError, open_coco_split, read_image
from lambdanets.data.coco_transforms import eval_transform_coco
from lambdanets.train import Run
from lambdanets.train.prediction import ready, reason, search

from .pairs import Pair, pair, spread
from .run_config import DetectionConfig

Finder = Callable[..., dict[str, Tensor]]


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
    return _predicted(_finder(run, weights), search(paths), threshold)


def _predicted(find: Finder, paths: Iterable[Path], threshold: float) -> Iterator[Detections]:
    for path in paths:
        if path.is_dir():
            yield Detections(path=str(path), error="there are no images in this folder")
            continue
        try:
            picture = read_image(path)
        except (DataError, OSError) as error:
            yield Detections(path=str(path), error=reason(error, path))
            continue
        found = find(torch.from_numpy(np.array(picture)).permute(2, 0, 1), threshold=threshold)
        yield Detections(path=str(path), image=picture, found=found)


def _finder(run: Run[DetectionConfig], weights: Literal["best", "last"]) -> Finder:
    """From an image, uint8 of shape (3, height, width), to what is found in it, in its pixels."""
    network, device = ready(run, weights)
    detector: Any = network
    resize = eval_transform_coco(run.config.data)
    half = run.config.engine.precision == "bf16-mixed"

    def find(image: Tensor, *, threshold: float = 0.0) -> dict[str, Tensor]:
        resized = resize(tv_tensors.Image(image)).as_subclass(Tensor).to(device)
        height, width = image.shape[-2:]
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            [found] = detector.detect([resized], [(height, width)], threshold=threshold)
        return {name: value.cpu() for name, value in found.items()}

    return find


def predict_samples(
    run: Run[DetectionConfig], count: int, *, weights: Literal["best", "last"] = "best"
) -> Iterator[Pair]:
    """Find objects in images of the run's own validation set, with what is there beside them.

    The images are spread evenly over the set.

    Args:
        run: from `load_run`.
        count: how many; the whole set when it holds fewer.
        weights: the best ones by validation, or those of the last epoch.

    Raises:
        ValueError: `count` is not positive.
        RunError: the run has no such weights yet.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    config = run.config
    images = open_coco_split(config.data, "val", seed=config.seed, classes=run.classes)
    find = _finder(run, weights)
    return (pair(images, index, lambda image, _: find(image)) for index in spread(len(images), count))
