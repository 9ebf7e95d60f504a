"""Objects in photos, found by a trained run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from lambdanets.data import DataError, open_coco_split, read_image
from lambdanets.data.coco.transforms import eval_transform_coco
from lambdanets.evaluate.prediction import error_reason, find_image_files, prepare_network
from lambdanets.train import Run

from .network import Detector, outlined
from .pairs import Pair, pair, spread
from .results import Objects, drawn
from .run_config import DetectionConfig
from .tiling import TileOption, TrainingSizes, check_tile, find_in_tiles


@dataclass(frozen=True, kw_only=True)
class Detections:
    """What a run finds in one image, or why it could not look.

    Attributes:
        path: the file.
        image: the picture, upright; None when it could not be read.
        objects: `boxes` of shape (n, 4), left, top, right and bottom in pixels of the picture; `labels` of
            shape (n,), from 1 on; `scores` of shape (n,), the best first; and, where the run has masks,
            `masks`, as `lambdanets.data.coco.masks.Masks` of run lengths. Empty when it could not be read.
        tiles: in how many tiles it was looked at; 1 is as a whole.
        error: one sentence on what is wrong with the image, None when it was read.
    """

    path: str
    image: Image.Image | None = field(default=None, repr=False, compare=False)
    objects: Objects = field(default_factory=dict, repr=False, compare=False)
    tiles: int = 1
    error: str | None = None

    @property
    def found(self) -> dict[str, Tensor]:
        """The same objects with their masks drawn, boolean of shape (n, 1, height, width): n times the image.

        They are drawn each time this is asked for.
        """
        return drawn(self.objects)


def predict(
    run: Run[DetectionConfig],
    paths: Iterable[str | os.PathLike[str]],
    *,
    threshold: float = 0.5,
    weights: Literal["best", "last"] = "best",
    tile: TileOption = "auto",
    max_pixels: int | None = None,
) -> Iterator[Detections]:
    """Find objects in image files, and in the images inside folders, with a trained run.

    Images are turned upright by their EXIF tag, made RGB, and resized as in the run's own validation; what is
    found is in pixels of the picture itself. They come one by one. A file that cannot be read does not stop
    the others: its entry carries the reason.

    An image that would be shrunk far more than any image in training is looked at in overlapping tiles, each
    as large as most training images, and objects are joined across tiles. Objects larger than a tile are then
    found in parts, if at all.

    Args:
        run: from `load_run`.
        paths: files and folders; folders are searched recursively, in the order of their names.
        threshold: least score of what is kept.
        weights: the best ones by validation, or those of the last epoch.
        tile: "auto"; the side of the tiles in pixels of the images, for all that are larger; or "off", to see
            every image as a whole.
        max_pixels: a larger image is not read; None takes what the run was trained with.

    Raises:
        ValueError: `threshold` is not from 0 to 1, or `tile` is none of these.
        RunError: the run has no such weights yet.

    Example:
        >>> for each in predict(load_run("runs/nuclei"), ["slide.png"]):
        ...     print(each.path, len(each.found["boxes"]))
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is from 0 to 1, got {threshold}")
    limit = run.config.data.max_pixels if max_pixels is None else max_pixels
    return _predicted(Finder(run, weights, tile), find_image_files(paths), threshold, limit)


def _predicted(
    find: Finder, paths: Iterable[Path], threshold: float, max_pixels: int
) -> Iterator[Detections]:
    for path in paths:
        if path.is_dir():
            yield Detections(path=str(path), error="there are no images in this folder")
            continue
        try:
            picture = read_image(path, max_pixels=max_pixels)
        except (DataError, OSError) as error:
            yield Detections(path=str(path), error=error_reason(error, path))
            continue
        objects, tiles = find(torch.from_numpy(np.array(picture)).permute(2, 0, 1), threshold=threshold)
        yield Detections(path=str(path), image=picture, objects=objects, tiles=tiles)


class Finder:
    """Finds objects in images, uint8 of shape (3, height, width), in their pixels.

    Args:
        run: from `load_run`.
        weights: the best ones by validation, or those of the last epoch.
        tile: as for `predict`.
        most: detections of an image, or of a tile, where the network would give fewer.
    """

    def __init__(
        self,
        run: Run[DetectionConfig],
        weights: Literal["best", "last"],
        tile: TileOption,
        *,
        most: int | None = None,
    ) -> None:
        self.tile: TileOption = check_tile(tile)
        self.data = run.config.data
        self.sizes = TrainingSizes.read(run.files.image_sizes, self.data)
        network, self.device = prepare_network(run, weights)
        self.network: Detector = network  # pyright: ignore[reportAttributeAccessIssue]
        if most is not None:
            heads = self.network.roi_heads
            heads.detections_per_img = max(heads.detections_per_img, most)
        self.resize = eval_transform_coco(self.data)
        self.half = run.config.engine.precision == "bf16-mixed"

    def __call__(self, image: Tensor, *, threshold: float = 0.0) -> tuple[Objects, int]:
        """Return the objects of an image, and the number of tiles in which it was looked at."""
        side = self.sizes.tile(image.shape[-2:], self.data, self.tile)
        if side is None:
            return self._whole(image, threshold), 1
        return find_in_tiles(lambda part: self._whole(part, threshold), image, side)

    @torch.no_grad()
    def _whole(self, image: Tensor, threshold: float) -> Objects:
        resized = self.resize(tv_tensors.Image(image)).as_subclass(Tensor).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            [found] = self.network.regions([resized])
            likely = {name: value[found["scores"] >= threshold] for name, value in found.items()}
            return outlined(likely, resized.shape[-2:], image.shape[-2:])


def predict_samples(
    run: Run[DetectionConfig],
    count: int,
    *,
    weights: Literal["best", "last"] = "best",
    tile: TileOption = "auto",
) -> Iterator[Pair]:
    """Find objects in images of the run's own validation set, with what is there beside them.

    The images are spread evenly over the set.

    Args:
        run: from `load_run`.
        count: how many; the whole set when it holds fewer.
        weights: the best ones by validation, or those of the last epoch.
        tile: as for `predict`.

    Raises:
        ValueError: `count` is not positive, or `tile` is none of those of `predict`.
        RunError: the run has no such weights yet.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    config = run.config
    images = open_coco_split(config.data, "val", seed=config.seed, classes=run.classes)
    find = Finder(run, weights, tile)
    return (pair(images, index, lambda image, _: find(image)[0]) for index in spread(len(images), count))
