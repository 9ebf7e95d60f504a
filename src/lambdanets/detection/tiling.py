"""Detection in images much larger than the training images: in overlapping tiles whose objects are joined."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from lambdanets.data import CocoConfig
from lambdanets.data.coco.masks import Masks, coco_tool
from lambdanets.detection.masks import Objects, RunLengths, merge_masks
from lambdanets.train.checkpoint import write_text
from lambdanets.train.errors import RunError
from lambdanets.utils.files import parse_json

TileOption = int | Literal["auto", "off"]
# Images of more than this multiple of the training images' size are split into tiles.
MAX_SIZE_RATIO = 1.5
# Fraction of a tile's side that it shares with the next tile.
TILE_OVERLAP = 0.25
# A box nearer to an inner edge than this fraction of the tile's side may be cut by it.
EDGE_MARGIN = 1 / 64
# Two detections with a larger overlap (IoU) are one object.
SAME_OBJECT_IOU = 0.5


@dataclass(frozen=True)
class TrainingSizes:
    """Sizes of the images that a detector was trained on.

    Args:
        median: Median of their longer sides, in pixels.
        large: The 95th percentile of their longer sides, in pixels.
    """

    median: int
    large: int

    @classmethod
    def of(cls, sizes: np.ndarray) -> TrainingSizes:
        """Return the sizes of images, given as (height, width) [n, 2]."""
        longer = np.sort(sizes.max(axis=1))
        return cls(int(longer[len(longer) // 2]), int(longer[(len(longer) - 1) * 19 // 20]))

    @classmethod
    def read(cls, path: Path, config: CocoConfig) -> TrainingSizes:
        """Read the file of a run; a run without the file has the configured image size.

        Raises:
            RunError: The file is damaged: a default would select other tiles and find other objects.
        """
        try:
            stored = parse_json(path.read_bytes())
            return cls(max(1, int(stored["median"])), max(1, int(stored["large"])))
        except FileNotFoundError:
            return cls(config.image_size, config.image_size)
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise RunError(
                f"{path} is damaged, which holds the sizes of the training images; remove it to take "
                f"data.image_size={config.image_size} instead"
            ) from error

    def write(self, path: Path) -> None:
        """Write the file of a run."""
        write_text(path, json.dumps(asdict(self)) + "\n")

    def too_large(self, size: Sequence[int], config: CocoConfig) -> bool:
        """Return whether an image of (height, width) would be shrunk far more than any training image."""
        return config.resize and max(size) > MAX_SIZE_RATIO * self.large / min(1.0, config.scale[0])

    def tile(self, size: Sequence[int], config: CocoConfig, option: TileOption) -> int | None:
        """Return the side of the tiles of an image in pixels, or None if it is processed as a whole.

        Args:
            size: (height, width) of the image.
            config: Resizing of the images.
            option: The side; "auto" takes the median size of the training images for an image that is too
                large; "off" processes every image as a whole.
        """
        if option == "off" or (option == "auto" and not self.too_large(size, config)):
            return None
        side = self.median if option == "auto" else int(option)
        return side if max(size) > side else None


def check_tile(option: int | str) -> TileOption:
    """Return a tile option, given as a number or as text.

    Raises:
        ValueError: It is not a valid option.
    """
    if option in ("auto", "off"):
        return "auto" if option == "auto" else "off"
    try:
        side = int(str(option))
    except ValueError:
        side = 0
    if side < 16:
        raise ValueError(f"tile is auto, off, or the side of a tile in pixels, 16 or more; got {option!r}")
    return side


class Picture(Protocol):
    """An image that is read in parts: `WholeImage`, or a `lambdanets.data.slides.Slide`."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        ...

    def region(self, top: int, left: int, bottom: int, right: int) -> Tensor:
        """Return the part between two rows and two columns, uint8 [3, bottom - top, right - left]."""
        ...


@dataclass(frozen=True, eq=False)
class WholeImage:
    """An image in memory, uint8 [3, height, width]."""

    pixels: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.pixels.shape[-2], self.pixels.shape[-1]

    def region(self, top: int, left: int, bottom: int, right: int) -> Tensor:
        """Return the part between two rows and two columns, uint8 [3, bottom - top, right - left]."""
        return self.pixels[..., top:bottom, left:right]


@dataclass(frozen=True)
class Tile:
    """A rectangle of an image, in pixels; `bottom` and `right` are exclusive."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def edges(self) -> tuple[int, int, int, int]:
        """Top, left, bottom and right."""
        return self.top, self.left, self.bottom, self.right

    def intersection(self, other: Tile) -> Tile | None:
        """Return the rectangle that two tiles share, or None."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        bottom, right = min(self.bottom, other.bottom), min(self.right, other.right)
        return Tile(top, left, bottom, right) if top < bottom and left < right else None


def tiles(height: int, width: int, side: int) -> list[Tile]:
    """Return tiles of equal size that cover an image, each overlapping the next by a quarter or more."""
    rows, columns = _spans(height, side), _spans(width, side)
    return [Tile(top, left, bottom, right) for top, bottom in rows for left, right in columns]


def _spans(length: int, side: int) -> list[tuple[int, int]]:
    if length <= side:
        return [(0, length)]
    shared = round(TILE_OVERLAP * side)
    count = math.ceil((length - shared) / (side - shared))
    starts = np.linspace(0, length - side, count).round().astype(int).tolist()
    return [(start, start + side) for start in starts]


def detect_in_tiles(
    detect: Callable[[Tile], Objects], size: tuple[int, int], side: int
) -> tuple[Objects, int]:
    """Detect the objects of an image in overlapping tiles.

    An object smaller than the overlap is whole in at least one tile. Of detections of the same whole object
    in several tiles, the one with the highest score is kept; a detection cut by an inner edge of a tile is
    dropped if another tile has the whole object. Objects larger than the overlap are cut in all tiles: their
    parts are joined if they agree where two tiles overlap, and kept as separate objects otherwise.

    Args:
        detect: From a tile to the objects in this tile, in pixels of the image: `boxes`, `labels`, `scores`
            and, where there are masks, `masks` as `Masks`.
        size: (height, width) of the image.
        side: Side of the tiles, in pixels.

    Returns:
        The objects of the whole image by descending score, and the number of tiles.
    """
    height, width = size
    parts = tiles(height, width, side)
    found = [detect(tile) for tile in parts]
    margin = EDGE_MARGIN * side
    cut = [
        _cut_by_edge(each["boxes"], t, height, width, margin) for each, t in zip(found, parts, strict=True)
    ]
    return _TileMerger(parts, found, cut).objects(height, width), len(parts)


def _cut_by_edge(boxes: Tensor, tile: Tile, height: int, width: int, margin: float) -> np.ndarray:
    """Return whether each box touches an edge of its tile that is not an edge of the image [n]."""
    left, top, right, bottom = boxes.numpy().T
    return (
        ((left < tile.left + margin) & (tile.left > 0))
        | ((top < tile.top + margin) & (tile.top > 0))
        | ((right > tile.right - margin) & (tile.right < width))
        | ((bottom > tile.bottom - margin) & (tile.bottom < height))
    )


class _TileMerger:
    """Joins the objects of all tiles.

    Objects have indices in the concatenation over all tiles; `kept` marks those not dropped, and `parent` is
    a union-find forest of the parts of one object.

    Args:
        tiles: The tiles, row by row.
        found: The objects of each tile, in pixels of the image.
        cut: Whether each object of each tile is cut by an inner edge.
    """

    def __init__(self, tiles: Sequence[Tile], found: Sequence[Objects], cut: Sequence[np.ndarray]) -> None:
        self.boxes, self.labels, self.scores = (
            torch.cat([each[name] for each in found]) for name in ("boxes", "labels", "scores")
        )
        self.masks: list[RunLengths] | None = (
            [encoded for each in found for encoded in each["masks"].segmentations]
            if all("masks" in each for each in found)
            else None
        )
        self.tiles, self.cut = tiles, np.concatenate(cut)
        ends = np.cumsum([0, *map(len, cut)])
        # Indices of the objects of each tile.
        self.indices = [np.arange(first, end) for first, end in pairwise(ends)]
        self.kept = np.ones(len(self.cut), bool)
        self.parent = list(range(len(self.cut)))

    def objects(self, height: int, width: int) -> Objects:
        """Return the joined objects by descending score."""
        pairs = list(self._overlapping_tiles())
        self._drop_duplicates(pairs)
        self._drop_cut_duplicates(pairs)
        self._join_parts(pairs)
        members: dict[int, list[int]] = {}
        for index in np.flatnonzero(self.kept).tolist():
            members.setdefault(self._root(index), []).append(index)
        groups = sorted(members.values(), key=lambda group: -self.scores[group].max().item())
        # Label and score are those of the best part; box and mask are the unions of all parts.
        best = [group[int(self.scores[group].argmax())] for group in groups]
        boxes = [
            torch.cat([self.boxes[group, :2].amin(0), self.boxes[group, 2:].amax(0)]) for group in groups
        ]
        joined: Objects = {
            "boxes": torch.stack(boxes) if boxes else self.boxes[:0],
            "labels": self.labels[best],
            "scores": self.scores[best],
        }
        if self.masks is not None:
            merged = [
                self.masks[group[0]] if len(group) == 1 else merge_masks([self.masks[i] for i in group])
                for group in groups
            ]
            joined["masks"] = Masks(merged, height, width)
        return joined

    def _overlapping_tiles(self) -> Iterator[tuple[np.ndarray, np.ndarray, Tile]]:
        """Yield, for each pair of overlapping tiles, the objects of both and the shared rectangle."""
        # Tiles come row by row: those before `first` end above the current one.
        first = 0
        for later, tile in enumerate(self.tiles):
            while self.tiles[first].bottom <= tile.top:
                first += 1
            for earlier in range(first, later):
                shared = tile.intersection(self.tiles[earlier])
                if shared and len(self.indices[earlier]) and len(self.indices[later]):
                    yield self.indices[earlier], self.indices[later], shared

    def _drop_duplicates(self, pairs: Sequence[tuple[np.ndarray, np.ndarray, Tile]]) -> None:
        """Keep the best detection of each whole object that several tiles have found."""
        rivals: dict[int, list[int]] = {}
        for earlier, later, _ in pairs:
            earlier, later = earlier[~self.cut[earlier]], later[~self.cut[later]]
            same_label = self.labels[earlier][:, None] == self.labels[later]
            same = (self._overlap(earlier, later) > SAME_OBJECT_IOU) & same_label.numpy()
            for i, j in np.argwhere(same).tolist():
                rivals.setdefault(int(earlier[i]), []).append(int(later[j]))
                rivals.setdefault(int(later[j]), []).append(int(earlier[i]))
        chosen: set[int] = set()
        for index in sorted(rivals, key=lambda index: (-self.scores[index].item(), index)):
            self.kept[index] = chosen.isdisjoint(rivals[index])
            if self.kept[index]:
                chosen.add(index)

    def _drop_cut_duplicates(self, pairs: Sequence[tuple[np.ndarray, np.ndarray, Tile]]) -> None:
        """Drop parts of objects that another tile has found whole, of any label."""
        whole = self.kept & ~self.cut
        for earlier, later, _ in pairs:
            for these, those in ((earlier, later), (later, earlier)):
                these, those = these[self.cut[these]], those[whole[those]]
                if len(these) and len(those):
                    covered = (self._overlap(these, those, of_first=True) > SAME_OBJECT_IOU).any(1)
                    self.kept[these[covered]] = False

    def _join_parts(self, pairs: Sequence[tuple[np.ndarray, np.ndarray, Tile]]) -> None:
        """Join parts of one object: of the same label, and in agreement where their tiles overlap."""
        cut = self.kept & self.cut
        for earlier, later, shared in pairs:
            earlier, later = earlier[cut[earlier]], later[cut[later]]
            same_label = (self.labels[earlier][:, None] == self.labels[later]).numpy()
            for i, j in np.argwhere((self._overlap(earlier, later) > 0) & same_label).tolist():
                first, second = int(earlier[i]), int(later[j])
                if self._agree(first, second, shared):
                    self.parent[self._root(second)] = self._root(first)

    def _root(self, index: int) -> int:
        while self.parent[index] != index:
            self.parent[index] = index = self.parent[self.parent[index]]
        return index

    def _overlap(self, these: np.ndarray, those: np.ndarray, *, of_first: bool = False) -> np.ndarray:
        """Return the intersection of each pair of objects over their union, or over the area of the first."""
        if not (len(these) and len(those)):
            return np.zeros((len(these), len(those)))
        if self.masks is not None:
            first, second = ([self.masks[index] for index in indices] for indices in (these, those))
            return np.asarray(coco_tool().iou(first, second, [int(of_first)] * len(those)))
        if not of_first:
            return box_iou(self.boxes[these], self.boxes[those]).numpy()
        first, second = self.boxes[these][:, None], self.boxes[those]
        shared = torch.minimum(first[..., 2:], second[:, 2:]) - torch.maximum(first[..., :2], second[:, :2])
        areas = (first[..., 2:] - first[..., :2]).prod(-1)
        return (shared.clamp(min=0).prod(-1) / areas.clamp(min=1e-6)).numpy()

    def _agree(self, first: int, second: int, shared: Tile) -> bool:
        """Return whether two parts are the same object, judged in the rectangle that their tiles share."""
        window = self.boxes.new_tensor([shared.left, shared.top, shared.right, shared.bottom])
        if self.masks is None:
            boxes = self.boxes[[first, second]]
            clipped = torch.cat([boxes[:, :2].maximum(window[:2]), boxes[:, 2:].minimum(window[2:])], 1)
            return box_iou(clipped[:1], clipped[1:]).item() > SAME_OBJECT_IOU
        tool = coco_tool()
        masks = self.masks[first], self.masks[second]
        left, top, right, bottom = window.tolist()
        corners = [left, top, right, top, right, bottom, left, bottom]
        [area] = tool.frPyObjects([corners], *masks[0]["size"])
        clipped = [tool.merge([mask, area], intersect=True) for mask in masks]
        return tool.iou(clipped[:1], clipped[1:], [0]).item() > SAME_OBJECT_IOU
