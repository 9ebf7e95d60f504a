"""Detection of objects in image files with a trained run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from lambdanets.data import IMAGE_SUFFIXES, DataError, open_coco_split, read_image
from lambdanets.data.coco.transforms import eval_transform_coco
from lambdanets.data.files import find_files
from lambdanets.data.images import stored_size
from lambdanets.data.slides import Slide
from lambdanets.detection.comparison_sheet import Pair, evenly_spaced, make_pair
from lambdanets.detection.config import DetectionConfig
from lambdanets.detection.duplicates import without_duplicates
from lambdanets.detection.mask_rcnn import Detector
from lambdanets.detection.masks import Objects, decode_masks, encode_regions
from lambdanets.detection.tiling import (
    Picture,
    Tile,
    TileOption,
    TrainingSizes,
    WholeImage,
    check_tile,
    detect_in_tiles,
)
from lambdanets.evaluate.prediction import error_reason, prepare_network
from lambdanets.ops.hardware import available_memory
from lambdanets.train import Run

# Memory of an image: decoded, converted to RGB, as an array, in its drawing, and in its label image.
BYTES_PER_PIXEL = 16
# Longer side of the drawing of an image that is read in parts, in pixels.
LONGEST_DRAWING = 4096
# pycocotools counts the pixels of an image with 32 bits.
MAX_MASK_PIXELS = 2**32 - 1


@dataclass(frozen=True, kw_only=True)
class Detections:
    """Detected objects of one image file, or the reason why it could not be read.

    Attributes:
        path: The file.
        image: The image, rotated upright, or a smaller version of an image that was read in parts; None if it
            could not be read.
        size: (height, width) of the image.
        objects: `boxes` [n, 4], left, top, right and bottom in pixels of the image; `labels` [n], from 1;
            `scores` [n] in descending order; and, if the run has masks, `masks`, as
            `lambdanets.data.coco.masks.Masks` of run lengths. Empty if the image could not be read.
        tiles: Number of tiles into which the image was split; 1 for the whole image.
        error: One sentence on the fault of the file, None if it was read.
    """

    path: str
    image: Image.Image | None = field(default=None, repr=False, compare=False)
    size: tuple[int, int] = (0, 0)
    objects: Objects = field(default_factory=dict, repr=False, compare=False)
    tiles: int = 1
    error: str | None = None

    @property
    def found(self) -> dict[str, Tensor]:
        """The same objects with boolean masks [n, 1, height, width], which take n times the image's memory.

        The masks are decoded on each access.
        """
        return decode_masks(self.objects)


def predict(
    run: Run[DetectionConfig],
    paths: Iterable[str | os.PathLike[str]],
    *,
    threshold: float = 0.5,
    weights: Literal["best", "last"] = "best",
    tile: TileOption = "auto",
    max_pixels: int | None = None,
    device: torch.device | None = None,
) -> Iterator[Detections]:
    """Detect objects in image files, and in the images inside folders, with a trained run.

    Images are rotated upright by their EXIF tag, converted to RGB, and resized as in the run's validation;
    objects are in pixels of the stored image. Images are processed lazily, one by one. A file that cannot be
    read, or does not fit into the memory, does not stop the others: its entry has the reason in `error`.
    A TIFF that is stored in tiles or strips and is too large for the memory, or for `max_pixels`, is read in
    parts, if it is to be split into tiles and the extra `slides` is installed.

    Of two objects of a class whose masks share more than half of the smaller one, only the better is returned
    (`lambdanets.detection.duplicates`): neighbouring tiles, and the network itself, find objects twice.

    An image that would be shrunk far more than any training image is split into overlapping tiles of the
    training images' median size, and objects are joined across tiles. Objects larger than a tile may then be
    found in parts or missed.

    Args:
        run: From `load_run`.
        paths: Files and folders; folders are searched recursively, in the order of their names.
        threshold: Least score of the returned objects.
        weights: The best weights by validation, or those of the last epoch.
        tile: "auto"; the side of the tiles in pixels of the images, for all larger images; or "off", to
            process every image as a whole.
        max_pixels: Larger images are not decoded as a whole; None takes the limit of the run's training.
        device: Device of the computation; None takes the best.

    Raises:
        ValueError: `threshold` is not from 0 to 1, or `tile` is not one of the options above.
        RunError: The run has no such weights yet.

    Example:
        >>> for each in predict(load_run("runs/nuclei"), ["slide.png"]):
        ...     print(each.path, len(each.found["boxes"]))
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is from 0 to 1, got {threshold}")
    limit = run.config.data.max_pixels if max_pixels is None else max_pixels
    predictor = Predictor(run, weights, tile, device=device)
    return _predict_files(predictor, find_files(paths, IMAGE_SUFFIXES), threshold, limit)


def _predict_files(
    predictor: Predictor, paths: Iterable[Path], threshold: float, max_pixels: int
) -> Iterator[Detections]:
    for path in paths:
        if path.is_dir():
            yield Detections(path=str(path), error="there are no images in this folder")
            continue
        try:
            slide = _open_slide(path, max_pixels, predictor)
            if slide is None:
                image = read_image(path, max_pixels=max_pixels)
                whole = WholeImage(torch.from_numpy(np.array(image)).permute(2, 0, 1))
                objects, tiles = predictor(whole, threshold=threshold)
            else:
                with slide:
                    objects, tiles = predictor(slide, threshold=threshold)
                    image = slide.shrunk(LONGEST_DRAWING)
        except (DataError, OSError) as error:
            yield Detections(path=str(path), error=error_reason(error, path))
            continue
        size = (image.height, image.width) if slide is None else slide.size
        objects = without_duplicates(objects)
        yield Detections(path=str(path), image=image, size=size, objects=objects, tiles=tiles)


def _open_slide(path: Path, max_pixels: int, predictor: Predictor) -> Slide | None:
    """Open an image to be read in parts if it is too large to be decoded as a whole; else return None.

    Raises:
        DataError: The file is no image, or is too large and cannot be read in parts.
    """
    try:
        _check_memory(path, max_pixels)
    except DataError as error:
        width, height = stored_size(path, max_pixels=sys.maxsize)
        if predictor.side((height, width)) is None or not _is_tiff(path):
            raise
        if width * height > MAX_MASK_PIXELS:
            raise DataError(
                f"its {width:,} x {height:,} pixels are more than the {MAX_MASK_PIXELS:,} that run lengths "
                "of masks can count; cut it into parts"
            ) from error
        try:
            return Slide(path)
        except DataError as fault:
            raise DataError(f"{error_reason(error, path)}; {fault}") from error
    return None


def _is_tiff(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) in (b"II", b"MM")


def _check_memory(path: Path, max_pixels: int) -> None:
    """Raise DataError, before an image is decoded, if it does not fit into the memory."""
    width, height = stored_size(path, max_pixels=max_pixels)
    needed, limit = width * height * BYTES_PER_PIXEL, available_memory("cpu")
    if limit is not None and needed > limit:
        raise DataError(
            f"its {width:,} x {height:,} pixels need about {needed / 2**30:.1f} GiB of memory, and "
            f"{limit / 2**30:.1f} GiB are available; cut it into parts"
        )


class Predictor:
    """Detects objects in images, in their pixels, whole or in tiles.

    Args:
        run: From `load_run`.
        weights: The best weights by validation, or those of the last epoch.
        tile: As for `predict`.
        max_detections: Least value of the network's limit of detections per image or tile; None keeps it.
        device: Device of the computation; None takes the best.
    """

    def __init__(
        self,
        run: Run[DetectionConfig],
        weights: Literal["best", "last"],
        tile: TileOption,
        *,
        max_detections: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.tile: TileOption = check_tile(tile)
        self.data = run.config.data
        self.sizes = TrainingSizes.read(run.files.image_sizes, self.data)
        network, self.device = prepare_network(run.model(weights), run.config.engine, device)
        self.network: Detector = network  # pyright: ignore[reportAttributeAccessIssue]
        if max_detections is not None:
            heads = self.network.roi_heads
            heads.detections_per_img = max(heads.detections_per_img, max_detections)
        self.resize = eval_transform_coco(self.data)
        self.bfloat16 = run.config.engine.precision == "bf16-mixed"

    def side(self, size: Sequence[int]) -> int | None:
        """Return the side of the tiles of an image of (height, width), or None if it is processed whole."""
        return self.sizes.tile(size, self.data, self.tile)

    def __call__(self, image: Picture, *, threshold: float = 0.0) -> tuple[Objects, int]:
        """Return the objects of an image, and the number of tiles into which it was split."""
        side = self.side(image.size)
        if side is None:
            return self._detect(image, threshold, Tile(0, 0, *image.size)), 1
        return detect_in_tiles(lambda tile: self._detect(image, threshold, tile), image.size, side)

    @torch.no_grad()
    def _detect(self, image: Picture, threshold: float, tile: Tile) -> Objects:
        """Return the objects of a tile of an image, in pixels of the image."""
        part = image.region(*tile.edges)
        resized = self.resize(tv_tensors.Image(part)).as_subclass(Tensor).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            [regions] = self.network.regions([resized])
            confident = regions["scores"] >= threshold
            selected = {name: value[confident] for name, value in regions.items()}
            sizes = resized.shape[-2:], part.shape[-2:]
            return encode_regions(selected, *sizes, offset=(tile.top, tile.left), image_size=image.size)


def predict_samples(
    run: Run[DetectionConfig],
    count: int,
    *,
    weights: Literal["best", "last"] = "best",
    tile: TileOption = "auto",
    device: torch.device | None = None,
) -> Iterator[Pair]:
    """Detect objects in images of the run's validation set, for a comparison with the annotated ones.

    The images are evenly spaced in the set.

    Args:
        run: From `load_run`.
        count: Number of images; a smaller set is used whole.
        weights: The best weights by validation, or those of the last epoch.
        tile: As for `predict`.
        device: Device of the computation; None takes the best.

    Raises:
        ValueError: `count` is not positive, or `tile` is not one of the options of `predict`.
        RunError: The run has no such weights yet.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    config = run.config
    images = open_coco_split(config.data, "val", seed=config.seed, classes=run.classes)
    predictor = Predictor(run, weights, tile, device=device)
    indices = evenly_spaced(len(images), count)
    return (
        make_pair(images, index, lambda image, _: without_duplicates(predictor(WholeImage(image))[0]))
        for index in indices
    )
