"""Measures of detected objects: a table with a row for each object, and label images."""

from __future__ import annotations

import csv
import io
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from PIL import Image

from lambdanets.data.coco.masks import Masks, rasterise_at
from lambdanets.detection.masks import Objects
from lambdanets.train.checkpoint import replacing, write_text

if TYPE_CHECKING:
    from lambdanets.detection.prediction import Detections

Row = dict[str, Any]
OBJECT_COLUMNS = (
    *("file", "object", "class", "score", "x0", "y0", "x1", "y1", "x", "y", "area", "diameter"),
    *("area_um2", "diameter_um"),
)
# Side of the tiles of a label image that is written in parts, in pixels; a multiple of 16.
BLOCK = 1024
COUNT_COLUMNS = ("file", "class", "count")


def object_rows(
    each: Detections, classes: Sequence[str], *, pixel_size: float | None = None
) -> Iterator[Row]:
    """Yield the measures of each object of an image, in the order of the objects.

    Coordinates are in pixels from the upper left corner of the image, so that the centre of the first pixel
    is (0.5, 0.5).

    Args:
        each: An image and its objects; without masks, the measures are those of the boxes.
        classes: Names of the classes, in the order of the labels.
        pixel_size: Side of a pixel in micrometres, for area and diameter in micrometres too.

    Yields:
        `file`; `object`, the number of the object from 1, which is its value in a label image; `class`;
        `score`; `x0`, `y0`, `x1` and `y1`, the edges of the box; `x` and `y`, the centroid of the mask;
        `area`, its pixels; and `diameter`, that of a circle with the same area.
    """
    objects = each.objects
    if not objects:
        return
    boxes, labels, scores = (objects[name].tolist() for name in ("boxes", "labels", "scores"))
    measured = _measure_masks(objects["masks"]) if "masks" in objects else [(0, 0.0, 0.0)] * len(boxes)
    rows = zip(boxes, labels, scores, measured, strict=True)
    for number, (box, label, score, (area, x, y)) in enumerate(rows, start=1):
        x0, y0, x1, y1 = box
        # A mask may be empty; then, and without masks, the box stands for it.
        if not area:
            x, y = (x0 + x1) / 2, (y0 + y1) / 2
            area = 0 if "masks" in objects else (x1 - x0) * (y1 - y0)
        diameter = 2 * math.sqrt(area / math.pi)
        row: Row = {
            "file": each.path,
            "object": number,
            "class": classes[label - 1],
            "score": round(score, 4),
        }
        row |= {"x0": x0, "y0": y0, "x1": x1, "y1": y1, "x": x, "y": y, "area": area, "diameter": diameter}
        if pixel_size is not None:
            row |= {"area_um2": area * pixel_size**2, "diameter_um": diameter * pixel_size}
        yield {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}


def object_columns(pixel_size: float | None) -> tuple[str, ...]:
    """Return the columns of `object_rows`."""
    return OBJECT_COLUMNS if pixel_size is not None else OBJECT_COLUMNS[:-2]


def _measure_masks(masks: Masks) -> Iterator[tuple[int, float, float]]:
    """Yield the area in pixels and the centroid (x, y) of each mask."""
    for top, left, part in _parts(masks):
        rows, columns = np.nonzero(part)
        if len(rows):
            yield len(rows), left + float(columns.mean()) + 0.5, top + float(rows.mean()) + 0.5
        else:
            yield 0, 0.0, 0.0


def _parts(masks: Masks) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield the first row and column of each mask, and its pixels from there to the last ones."""
    rows, columns = np.arange(masks.height), np.arange(masks.width)
    for segmentation in masks.segmentations:
        yield rasterise_at(segmentation, masks.height, masks.width, rows, columns)


def count_rows(each: Detections, classes: Sequence[str]) -> list[Row]:
    """Return `file`, `class` and `count` for every class of an image, also for those without objects."""
    found = Counter(each.objects["labels"].tolist()) if each.objects else Counter()
    return [
        {"file": each.path, "class": name, "count": found[label]}
        for label, name in enumerate(classes, start=1)
    ]


def write_rows(rows: Iterable[Row], columns: Sequence[str], to: str | os.PathLike[str] | TextIO) -> None:
    """Write rows as CSV with a heading, also if there are no rows.

    Args:
        rows: The rows.
        columns: Their keys.
        to: The file, which is written as a whole, or an open text stream.

    Raises:
        CheckpointError: The disk is full, or the folder cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    if isinstance(to, str | os.PathLike):
        write_text(Path(to), text.getvalue())
    else:
        to.write(text.getvalue())


def label_image(objects: Objects, height: int, width: int, rows: range | None = None) -> np.ndarray:
    """Return an image whose pixels are the numbers of the objects, from 1; 0 is background.

    A pixel of several masks belongs to the object with the highest score.

    Args:
        objects: By descending score, with `masks` as `Masks`.
        height: Height of the image.
        width: Width of the image.
        rows: Return these rows only.

    Returns:
        uint16 [height, width], or int32 if there are more objects than uint16 has values.
    """
    indices = range(len(objects["scores"]))
    if rows is None:
        rows = range(height)
    else:
        # A mask may be larger than its box by a pixel.
        top, bottom = objects["boxes"][:, 1].numpy() - 1, objects["boxes"][:, 3].numpy() + 1
        indices = np.flatnonzero((top < rows.stop) & (bottom > rows.start)).tolist()
    labels = np.zeros((len(rows), width), _label_type(objects))
    own_rows, columns = np.arange(rows.start, rows.stop), np.arange(width)
    # The best object is drawn last.
    for index in reversed(indices):
        segmentation = objects["masks"].segmentations[index]
        top, left, part = rasterise_at(segmentation, height, width, own_rows, columns)
        labels[top : top + part.shape[0], left : left + part.shape[1]][part > 0] = index + 1
    return labels


def _label_type(objects: Objects) -> np.dtype[Any]:
    return np.dtype(np.uint16 if len(objects["scores"]) < 2**16 else np.int32)


def write_label_image(labels: np.ndarray, path: str | os.PathLike[str]) -> None:
    """Write a label image as a compressed TIFF of 16 or 32 bits.

    Raises:
        CheckpointError: The disk is full, or the folder cannot be written.
    """
    with replacing(Path(path)) as temporary:
        Image.fromarray(labels).save(temporary, format="TIFF", compression="tiff_adobe_deflate")


def write_label_image_in_parts(
    objects: Objects, height: int, width: int, path: str | os.PathLike[str]
) -> None:
    """Write the label image of an image larger than the memory, as a tiled and compressed TIFF.

    Raises:
        CheckpointError: The disk is full, or the folder cannot be written.
    """
    import tifffile  # pyright: ignore[reportMissingImports]

    dtype = _label_type(objects)

    def blocks() -> Iterator[np.ndarray]:
        for first in range(0, height, BLOCK):
            band = label_image(objects, height, width, range(first, min(first + BLOCK, height)))
            yield from (band[:, left : left + BLOCK] for left in range(0, width, BLOCK))

    with replacing(Path(path)) as temporary:
        tifffile.imwrite(
            temporary, blocks(), shape=(height, width), dtype=dtype, tile=(BLOCK, BLOCK), compression="zlib",
            photometric="minisblack", bigtiff=height * width * dtype.itemsize > 2**31,
        )  # fmt: skip
