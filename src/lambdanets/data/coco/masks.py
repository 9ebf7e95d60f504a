"""The three encodings of a mask in COCO: polygons, run lengths as a list, and run lengths as text."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul
from typing import Any

import numpy as np

from ..errors import DataError

MAX_RUN_CHARACTERS = 7  # of one run length: 32 bits, five in each character
MAX_COORDINATE = 1_000_000  # limit of the coordinates of a polygon, in pixels
MAX_OUTLINE = 2_000_000  # pixels of the outline of an object; pycocotools needs some 120 bytes for each
# A polygon whose bounding box has at least this width and height in pixels, and which fills a quarter of it,
# covers at least one pixel: it need not be rasterised to know that it is not empty.
MIN_SOLID_SIDE = 4.0
# A mask fits its box if all edges are within this number of pixels, or if their IoU is at least this value.
MAX_EDGE_DISTANCE, MIN_IOU = 5.0, 0.5
NUMBER = re.compile(r"\s*[-+]?[0-9]{1,15}(\.[0-9]*)?([eE][-+]?[0-9]{1,2})?\s*", re.ASCII)
Extent = tuple[float, float, float, float]  # left, top, right and bottom, in pixels
# Polygons [x, y, x, y, ...] in pixels, or run lengths: {"size": [height, width], "counts": list or text}.
Segmentation = list[list[float]] | dict[str, Any]


def coco_tool() -> Any:
    """Return the module pycocotools.mask.

    Raises:
        DataError: pycocotools is not installed; the message has the command that installs it.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise DataError(
            "COCO's annotations need the package pycocotools: pip install 'lambdanets[detection]'"
        ) from error
    return mask


@dataclass(frozen=True)
class Masks:
    """The masks of an image before rasterisation, in the encodings of their json.

    Args:
        segmentations: segmentations of any encoding, without fault.
        height: height of the image, in pixels.
        width: width of the image, in pixels.
    """

    segmentations: Sequence[Segmentation]
    height: int
    width: int

    def __len__(self) -> int:
        return len(self.segmentations)

    def __getitem__(self, chosen: np.ndarray) -> Masks:
        """Return some of the masks, by indices or by a boolean mask."""
        indices = np.arange(len(self))[np.asarray(chosen)]
        return Masks([self.segmentations[index] for index in indices], self.height, self.width)


def rasterise(segmentations: Sequence[Segmentation], height: int, width: int) -> np.ndarray:
    """Rasterise masks, pixel for pixel as pycocotools does.

    Args:
        segmentations: n of them, of any encoding, without fault.
        height: height of the image, in pixels.
        width: width of the image, in pixels.

    Returns:
        uint8 of shape [n, height, width], 1 inside.
    """
    drawn = np.zeros((len(segmentations), height, width), np.uint8)
    for own, segmentation in zip(drawn, segmentations, strict=True):
        top, left, part = rasterise_at(segmentation, height, width, np.arange(height), np.arange(width))
        own[top : top + part.shape[0], left : left + part.shape[1]] = part
    return drawn


def rasterise_at(
    segmentation: Segmentation, height: int, width: int, rows: np.ndarray, columns: np.ndarray
) -> tuple[int, int, np.ndarray]:
    """Rasterise a mask at some rows and columns of its image only.

    Args:
        segmentation: segmentation of any encoding, without fault.
        height: height of the image, in pixels.
        width: width of the image, in pixels.
        rows: indices of rows, ascending, of shape [h]; one may occur several times.
        columns: indices of columns, the same, of shape [w].

    Returns:
        (top, left, part): the first index into `rows` and into `columns` at which the mask has a pixel, and
        the mask from there to the last such index of both, uint8, 1 inside. If it has no pixel at these rows
        and columns, `part` has the shape [0, 0].
    """
    nothing = 0, 0, np.zeros((0, 0), np.uint8)
    edges = _edges(_runs(segmentation, height, width))
    if not len(edges):
        return nothing
    left, right = np.searchsorted(columns, [edges[0, 0] // height, (edges[-1, 1] - 1) // height + 1])
    if left == right:
        return nothing
    columns = columns[left:right]
    first, last = columns[0] * height, (columns[-1] + 1) * height
    lengths = np.diff(edges.clip(first, last).ravel(), prepend=first, append=last)
    strip = np.repeat(np.arange(len(lengths)).astype(np.uint8) & 1, lengths).reshape(-1, height)
    held = np.flatnonzero(np.any(strip, axis=0)[rows])
    if not len(held):
        return nothing
    top, rows = int(held[0]), rows[held[0] : held[-1] + 1]
    low, high = rows[0], rows[-1] + 1
    part = np.ascontiguousarray(strip[:, low:high].T)
    part = part.take(columns - columns[0], axis=1).take(rows - low, axis=0)
    within = [np.flatnonzero(part.any(axis)) for axis in (1, 0)]
    if not len(within[0]):
        return nothing
    (y, x), (bottom, right) = (tuple(int(each[end]) for each in within) for end in (0, -1))
    return top + y, int(left) + x, part[y : bottom + 1, x : right + 1]


def _runs(segmentation: Segmentation, height: int, width: int) -> np.ndarray:
    """Return run lengths of background and mask in turn, int64, from any encoding."""
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], list):
        return np.array(segmentation["counts"], np.int64)
    counts = run_lengths(segmentation, height, width)["counts"]
    return read_counts(counts if isinstance(counts, str) else counts.decode())


def _edges(runs: np.ndarray) -> np.ndarray:
    """Return begin and end of each run of the mask, [n, 2], as indices of pixels in column-major order."""
    ends = np.cumsum(runs)
    edges = ends[: len(ends) // 2 * 2].reshape(-1, 2)
    return edges[edges[:, 0] < edges[:, 1]]


def run_lengths(segmentation: Segmentation, height: int, width: int) -> dict[str, Any]:
    """Return a mask of any encoding as run lengths in text, the compressed encoding of COCO."""
    tool = coco_tool()
    if isinstance(segmentation, list):
        return tool.merge(tool.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return tool.frPyObjects(segmentation, height, width)
    return segmentation


def encode_uncompressed(part: np.ndarray, top: int, left: int, height: int, width: int) -> dict[str, Any]:
    """Return a mask that is 0 outside a part of its image as run lengths, the uncompressed encoding of COCO.

    Args:
        part: the mask inside that part, bool of shape [h, w].
        top: first row of the part in the image.
        left: first column of the part.
        height: height of the image, in pixels.
        width: width of the image, in pixels.
    """
    columns = np.zeros((part.shape[1], height), np.int8)
    columns[:, top : top + part.shape[0]] = part.T
    edges = np.flatnonzero(np.diff(columns.ravel(), prepend=0, append=0)) + left * height
    counts = np.diff(edges, prepend=0, append=width * height).tolist()
    return {"size": [height, width], "counts": counts if counts[-1] else counts[:-1]}


def clip_polygons(segmentation: Any, height: int, width: int) -> Any:
    """Return polygons with numbers instead of text, clipped where they reach far outside the image.

    pycocotools stores every pixel of the outline of a polygon, and overflows for long ones. So polygons are
    clipped to the image with a margin of its own size. All else is unchanged, faults included.

    Args:
        segmentation: any value from a json.
        height: height of the image, in pixels.
        width: width of the image, in pixels.
    """
    if not isinstance(segmentation, list):
        return segmentation
    near, far = -min(height, width), 2 * min(height, width)
    polygons = []
    for polygon in segmentation:
        if isinstance(polygon, list) and str in set(map(type, polygon)):
            polygon = [as_number(value) for value in polygon]
        if isinstance(polygon, list) and len(polygon) >= 6 and set(map(type, polygon)) <= {int, float}:
            least, most = min(polygon), max(polygon)
            if (
                (least < near or most > far)
                and least > -MAX_COORDINATE
                and most < MAX_COORDINATE
                and len(polygon) % 2 == 0
            ):
                # The edges of the window are outside the image: an outline along them is invisible.
                polygon = _clipped(polygon, (-width, -height, 2 * width, 2 * height))
        polygons.append(polygon)
    return polygons


def as_number(value: Any) -> Any:
    """Return the number in a text, such as 3 for "3"; any other value unchanged."""
    if type(value) is not str or not NUMBER.fullmatch(value):
        return value
    number = float(value)
    return int(number) if number.is_integer() else number


def _clipped(polygon: list[float], window: Extent) -> list[float]:
    """Clip a polygon to a window, by the algorithm of Sutherland and Hodgman.

    The result may have parts of zero width along the edge of the window. A polygon outside the window becomes
    a single point, a corner of the window; one that is not finite is unchanged.
    """
    points = np.array(polygon, np.float64).reshape(-1, 2)
    if not np.isfinite(points).all():
        return polygon
    for side, limit in enumerate(window):
        axis, sign = side % 2, 1 if side < 2 else -1
        depth = sign * (points[:, axis] - limit)  # distance to the edge, positive inside
        within, following = depth >= 0, np.roll(depth >= 0, -1)
        to = np.roll(points, -1, axis=0)
        part = depth / np.where(within != following, depth - np.roll(depth, -1), 1)
        crossings = points + part[:, None] * (to - points)
        crossings[:, axis] = limit
        both = np.stack([points, crossings], axis=1)
        points = both[np.stack([within, within != following], axis=1)]
    return points.ravel().tolist() if len(points) >= 3 else [window[0], window[1]] * 3


def segmentation_fault(
    segmentation: object, height: int, width: int, box: Sequence[float] | None = None
) -> str | None:
    """Return the fault of a mask, None if there is none; it is rasterised only if it may be empty.

    Args:
        segmentation: any value from a json.
        height: height of the image, in pixels.
        width: width of the image, in pixels.
        box: left, top, width and height, which the mask must fit roughly; None skips this check.
    """
    if isinstance(segmentation, dict):
        extent = _runs_extent(segmentation, height, width)
    else:
        extent = _polygons_extent(segmentation, height, width)
    if isinstance(extent, str) or box is None:
        return extent if isinstance(extent, str) else None
    own = _clip_extent(extent, height, width)
    boxed = _clip_extent((box[0], box[1], box[0] + box[2], box[1] + box[3]), height, width)
    if max(abs(a - b) for a, b in zip(own, boxed, strict=True)) <= MAX_EDGE_DISTANCE:
        return None
    common = _area((*map(max, own[:2], boxed[:2]), *map(min, own[2:], boxed[2:])))
    if common >= MIN_IOU * (_area(own) + _area(boxed) - common):
        return None
    mask_edges, box_edges = ("from ({:g}, {:g}) to ({:g}, {:g})".format(*each) for each in (own, boxed))
    return f"its mask reaches {mask_edges} and its box {box_edges}"


def _clip_extent(extent: Extent, height: int, width: int) -> Extent:
    """Return an extent clipped to the image."""
    left, top, right, bottom = extent
    return max(0, left), max(0, top), min(width, right), min(height, bottom)


def _area(extent: Sequence[float]) -> float:
    left, top, right, bottom = extent
    return max(0, right - left) * max(0, bottom - top)


def _polygons_extent(segmentation: object, height: int, width: int) -> Extent | str:
    """Return the bounding box of polygons in pixels, or their fault."""
    if not isinstance(segmentation, list) or not segmentation:
        return "it has no segmentation (boxes alone are learnt with data.masks=False)"
    extents = []
    longest = 0.0
    solid = False
    for polygon in segmentation:
        if not isinstance(polygon, list) or not set(map(type, polygon)) <= {int, float}:
            return "its polygon is not a list of numbers x, y, x, y, ..."
        if len(polygon) % 2:
            return f"its polygon has {len(polygon)} coordinates, an odd number"
        if len(polygon) < 6:
            return f"its polygon has fewer than 3 points ({len(polygon) // 2})"
        x, y = polygon[::2], polygon[1::2]
        left, top, right, bottom = extent = min(x), min(y), max(x), max(y)
        if not (
            min(left, top) > -MAX_COORDINATE
            and max(right, bottom) < MAX_COORDINATE
            and math.isfinite(sum(polygon))
        ):
            return f"its polygon has coordinates that are not finite, or beyond {MAX_COORDINATE:,} pixels"
        longest += len(x) * max(right - left, bottom - top)
        extents.append(extent)
        within = left >= -1 and top >= -1 and right <= width + 1 and bottom <= height + 1
        if within and min(right - left, bottom - top) >= MIN_SOLID_SIDE:
            double_area = sum(map(mul, x, [*y[1:], y[0]])) - sum(map(mul, y, [*x[1:], x[0]]))
            solid = solid or abs(double_area) >= (right - left) * (bottom - top) / 2
    if longest > MAX_OUTLINE and sum(map(_outline, segmentation)) > MAX_OUTLINE:
        return f"the outline of its polygons is longer than {MAX_OUTLINE:,} pixels"
    if not solid and not coco_tool().area(run_lengths(segmentation, height, width)):
        outlines = "polygon covers" if len(segmentation) == 1 else "polygons cover"
        return f"its {outlines} no pixel of the image, which is {width} pixels wide and {height} high"
    lefts, tops, rights, bottoms = zip(*extents, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def _outline(polygon: list[float]) -> float:
    """Return the pixels of an outline in pycocotools: for each edge, its longer extent along an axis."""
    points = np.array(polygon, np.float64).reshape(-1, 2)
    return float(np.abs(points - np.roll(points, -1, axis=0)).max(axis=1).sum())


def _runs_extent(segmentation: dict[str, Any], height: int, width: int) -> Extent | str:
    """Return the bounding box of a mask of run lengths in pixels, or their fault."""
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, list) or len(size) != 2:
        return f"its mask has no size [height, width] but {size!r}"
    if size != [height, width]:
        return (
            f"its mask is {size[1]} pixels wide and {size[0]} high, the image {width} wide and {height} high"
        )
    if isinstance(counts, str):
        try:
            runs = read_counts(counts)
        except ValueError as error:
            return f"the run lengths of its mask are damaged: {error}"
    elif isinstance(counts, list) and set(map(type, counts)) <= {int}:
        longest = height * width
        if counts and not -longest <= min(counts) <= max(counts) <= longest:
            return f"the run lengths of its mask are damaged: one is beyond the image's {longest} pixels"
        runs = np.array(counts, dtype=np.int64)
    else:
        return "the run lengths of its mask are neither text nor a list of whole numbers"
    if runs.size and runs.min() < 0:
        return "the run lengths of its mask are damaged: one is negative"
    if runs.sum() != height * width:
        return f"the run lengths of its mask cover {runs.sum()} pixels, the image has {height * width}"
    edges = _edges(runs)
    if not len(edges):
        return "its mask is empty"
    columns, rows = np.divmod(edges - [0, 1], height)  # of the first and the last pixel of each run
    left, right = int(columns[0, 0]), int(columns[-1, 1]) + 1
    if (columns[:, 0] < columns[:, 1]).any():
        return left, 0, right, height
    return left, int(rows.min()), right, int(rows.max()) + 1


def read_counts(text: str) -> np.ndarray:
    """Decode the run lengths of a compressed mask.

    Each number is written in groups of five bits, low ones first, one character for each group, from "0" on.
    From the fourth number on, the difference to the number two before it is written. pycocotools does not
    check that the runs cover the image: it would leave the rest of the mask uninitialised.

    Args:
        text: `counts` of a compressed mask.

    Returns:
        int64 run lengths, of background and mask in turn.

    Raises:
        ValueError: the text is no such encoding.
    """
    codes = np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int64) - ord("0")
    if not codes.size:
        return codes
    if codes.min() < 0 or codes.max() > 63:
        raise ValueError("there are characters that do not occur in them")
    ends = np.flatnonzero(codes & 32 == 0)
    if not ends.size or ends[-1] != codes.size - 1:
        raise ValueError("they are cut short")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > MAX_RUN_CHARACTERS:
        raise ValueError("a number is too long")
    groups = np.arange(codes.size) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & 31) << (5 * groups), starts)
    values -= (codes[ends] & 16 != 0) * (1 << (5 * lengths))
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
