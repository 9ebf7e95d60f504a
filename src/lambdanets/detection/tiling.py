"""Objects of images much larger than those of training: found in overlapping tiles, and joined."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from lambdanets.data import CocoConfig
from lambdanets.data.coco_masks import Masks, coco_tool, sampled
from lambdanets.detection.results import Objects, as_runs
from lambdanets.train.checkpoint import write_text
from lambdanets.train.errors import RunError
from lambdanets.utils.files import parse_json

TileOption = int | Literal["auto", "off"]
MUCH = 1.5  # times what the network has seen: larger images are looked at in tiles
OVERLAP = 0.25  # of a tile's side that it shares with the next one
CUT = 1 / 64  # of a tile's side: a box so near to an inner edge may be cut by it
SAME = 0.5  # overlap above which two finds are one object


@dataclass(frozen=True)
class TrainingSizes:
    """How large the images were that a detector was trained on.

    Args:
        median: of their longer sides, in pixels.
        large: the longer side that one in twenty exceeds.
    """

    median: int
    large: int

    @classmethod
    def of(cls, sizes: np.ndarray) -> TrainingSizes:
        """Return those of images of (height, width), of shape (n, 2)."""
        longer = np.sort(sizes.max(axis=1))
        return cls(int(longer[len(longer) // 2]), int(longer[(len(longer) - 1) * 19 // 20]))

    @classmethod
    def read(cls, path: Path, config: CocoConfig) -> TrainingSizes:
        """Return those that a run has written; of a run that has not, the size at which it was trained.

        Raises:
            RunError: the file is damaged: other tiles would find other objects.
        """
        try:
            stored = parse_json(path.read_bytes())
            return cls(max(1, int(stored["median"])), max(1, int(stored["large"])))
        except FileNotFoundError:
            return cls(config.image_size, config.image_size)
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise RunError(
                f"{path} is damaged, which says how large the training images were; remove it to take "
                f"data.image_size={config.image_size} instead"
            ) from error

    def write(self, path: Path) -> None:
        """Write them as a file of a run."""
        write_text(path, json.dumps(asdict(self)) + "\n")

    def too_large(self, size: Sequence[int], config: CocoConfig) -> bool:
        """Return whether an image of (height, width) would be shrunk far more than any image in training."""
        return config.resize and max(size) > MUCH * self.large / min(1.0, config.scale[0])

    def tile(self, size: Sequence[int], config: CocoConfig, option: TileOption) -> int | None:
        """Return the side of the tiles in which an image is looked at, or None where it is seen as a whole.

        Args:
            size: (height, width) of the image.
            config: how it is resized.
            option: the side; "auto" takes that of most training images for an image that is too large; "off"
                sees every image as a whole.
        """
        if option == "off" or (option == "auto" and not self.too_large(size, config)):
            return None
        side = self.median if option == "auto" else int(option)
        return side if max(size) > side else None


def check_tile(option: int | str) -> TileOption:
    """Return what a tile option is, given as a number or in words.

    Raises:
        ValueError: it is none.
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


@dataclass(frozen=True)
class Tile:
    """A part of an image, in its pixels."""

    top: int
    left: int
    bottom: int
    right: int

    def common(self, other: Tile) -> Tile | None:
        """Return what two tiles share, or None."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        bottom, right = min(self.bottom, other.bottom), min(self.right, other.right)
        return Tile(top, left, bottom, right) if top < bottom and left < right else None


def tiles(height: int, width: int, side: int) -> list[Tile]:
    """Return tiles of one size that cover an image, each overlapping the next by a quarter or more."""
    rows, columns = _spans(height, side), _spans(width, side)
    return [Tile(top, left, bottom, right) for top, bottom in rows for left, right in columns]


def _spans(length: int, side: int) -> list[tuple[int, int]]:
    if length <= side:
        return [(0, length)]
    shared = round(OVERLAP * side)
    number = math.ceil((length - shared) / (side - shared))
    starts = np.linspace(0, length - side, number).round().astype(int).tolist()
    return [(start, start + side) for start in starts]


def find_in_tiles(find: Callable[[Tensor], Objects], image: Tensor, side: int) -> tuple[Objects, int]:
    """Find the objects of an image in overlapping tiles.

    An object smaller than the overlap is seen whole in one tile at least. What is seen whole in several is
    kept once, the likeliest; what an inner edge of a tile has cut gives way to the whole object in another
    tile. Only objects larger than the overlap are cut in all tiles: parts that agree where two tiles overlap
    are joined. A part that nothing agrees with stays.

    Args:
        find: from a tile, uint8 of shape (3, height, width), to its objects, in its pixels: `boxes`,
            `labels`, `scores` and, where there are masks, `masks` as `Masks`.
        image: uint8 of shape (3, height, width).
        side: of the tiles, in pixels.

    Returns:
        The same of the whole image, in its pixels, the likeliest first; and the number of tiles.
    """
    height, width = image.shape[-2:]
    parts = tiles(height, width, side)
    found = [_moved(find(image[:, t.top : t.bottom, t.left : t.right]), t, height, width) for t in parts]
    cut = [_cut(each["boxes"], t, height, width, CUT * side) for each, t in zip(found, parts, strict=True)]
    return _Joined(parts, found, cut).objects(height, width), len(parts)


def _moved(found: Objects, tile: Tile, height: int, width: int) -> Objects:
    """Objects of a tile in the pixels of the image."""
    corner = found["boxes"].new_tensor([tile.left, tile.top] * 2)
    moved = found | {"boxes": found["boxes"] + corner}
    if "masks" in found:
        size = tile.bottom - tile.top, tile.right - tile.left
        rows, columns = (np.arange(length) for length in size)
        runs = []
        for each in found["masks"].segmentations:
            top, left, part = sampled(each, *size, rows, columns)
            runs.append(as_runs(part > 0, tile.top + top, tile.left + left, height, width))
        moved["masks"] = Masks(runs, height, width)
    return moved


def _cut(boxes: Tensor, tile: Tile, height: int, width: int, near: float) -> np.ndarray:
    """Whether each box is at an edge of its tile that is not one of the image."""
    left, top, right, bottom = boxes.numpy().T
    return (
        ((left < tile.left + near) & (tile.left > 0))
        | ((top < tile.top + near) & (tile.top > 0))
        | ((right > tile.right - near) & (tile.right < width))
        | ((bottom > tile.bottom - near) & (tile.bottom < height))
    )


class _Joined:
    """The objects of all tiles, those that are one object joined.

    Args:
        parts: the tiles.
        found: the objects of each, in the pixels of the image.
        cut: whether each object of each is at an inner edge.
    """

    def __init__(self, parts: Sequence[Tile], found: Sequence[Objects], cut: Sequence[np.ndarray]) -> None:
        self.boxes, self.labels, self.scores = (
            torch.cat([each[name] for each in found]) for name in ("boxes", "labels", "scores")
        )
        self.runs = (
            [runs for each in found for runs in each["masks"].segmentations]
            if all("masks" in each for each in found)
            else None
        )
        self.parts, self.cut = parts, np.concatenate(cut)
        ends = np.cumsum([0, *map(len, cut)])
        self.own = [np.arange(first, end) for first, end in pairwise(ends)]  # objects of each tile
        self.kept = np.ones(len(self.cut), bool)
        self.group = list(range(len(self.cut)))

    def objects(self, height: int, width: int) -> Objects:
        """Return what is left, the likeliest first."""
        pairs = list(self._neighbours())
        self._drop_repeated(pairs)
        self._drop_covered(pairs)
        self._join_parts(pairs)
        members: dict[int, list[int]] = {}
        for index in np.flatnonzero(self.kept).tolist():
            members.setdefault(self._root(index), []).append(index)
        groups = sorted(members.values(), key=lambda own: -self.scores[own].max().item())
        # Of a group the likeliest has the say, the others add what they have seen.
        first = [own[int(self.scores[own].argmax())] for own in groups]
        boxes = [torch.cat([self.boxes[own, :2].amin(0), self.boxes[own, 2:].amax(0)]) for own in groups]
        joined: Objects = {
            "boxes": torch.stack(boxes) if boxes else self.boxes[:0],
            "labels": self.labels[first],
            "scores": self.scores[first],
        }
        if self.runs is not None:
            joined["masks"] = Masks([self._union(own) for own in groups], height, width)
        return joined

    def _neighbours(self) -> Iterator[tuple[np.ndarray, np.ndarray, Tile]]:
        """The objects of each two tiles that overlap, and what these share."""
        above = 0  # tiles before this one end above: tiles come row by row
        for later, part in enumerate(self.parts):
            while self.parts[above].bottom <= part.top:
                above += 1
            for earlier in range(above, later):
                common = part.common(self.parts[earlier])
                if common and len(self.own[earlier]) and len(self.own[later]):
                    yield self.own[earlier], self.own[later], common

    def _drop_repeated(self, pairs: Sequence[tuple[np.ndarray, np.ndarray, Tile]]) -> None:
        """Keep the likeliest of whole objects that several tiles have found."""
        rivals: dict[int, list[int]] = {}
        for some, others, _ in pairs:
            some, others = some[~self.cut[some]], others[~self.cut[others]]
            same = self.labels[some][:, None] == self.labels[others]
            for i, j in np.argwhere((self._overlap(some, others) > SAME) & same.numpy()).tolist():
                rivals.setdefault(int(some[i]), []).append(int(others[j]))
                rivals.setdefault(int(others[j]), []).append(int(some[i]))
        chosen: set[int] = set()
        for index in sorted(rivals, key=lambda index: (-self.scores[index].item(), index)):
            self.kept[index] = chosen.isdisjoint(rivals[index])
            if self.kept[index]:
                chosen.add(index)

    def _drop_covered(self, pairs: Sequence[tuple[np.ndarray, np.ndarray, Tile]]) -> None:
        """Drop parts of objects that another tile has found whole."""
        whole = self.kept & ~self.cut
        for some, others, _ in pairs:
            for these, those in ((some, others), (others, some)):
                these, those = these[self.cut[these]], those[whole[those]]
                if len(these) and len(those):
                    self.kept[these[(self._overlap(these, those, of_first=True) > SAME).any(1)]] = False

    def _join_parts(self, pairs: Sequence[tuple[np.ndarray, np.ndarray, Tile]]) -> None:
        """Join parts of objects that agree where their tiles overlap."""
        cut = self.kept & self.cut
        for some, others, common in pairs:
            some, others = some[cut[some]], others[cut[others]]
            same = (self.labels[some][:, None] == self.labels[others]).numpy()
            for i, j in np.argwhere((self._overlap(some, others) > 0) & same).tolist():
                first, second = int(some[i]), int(others[j])
                if self._agree(first, second, common):
                    self.group[self._root(second)] = self._root(first)

    def _root(self, index: int) -> int:
        while self.group[index] != index:
            self.group[index] = index = self.group[self.group[index]]
        return index

    def _overlap(self, some: np.ndarray, others: np.ndarray, *, of_first: bool = False) -> np.ndarray:
        """The area that objects share with others, as a part of their union or of the first ones' own."""
        if not (len(some) and len(others)):
            return np.zeros((len(some), len(others)))
        if self.runs is not None:
            first, second = ([self.runs[index] for index in indices] for indices in (some, others))
            return np.asarray(coco_tool().iou(first, second, [int(of_first)] * len(others)))
        if not of_first:
            return box_iou(self.boxes[some], self.boxes[others]).numpy()
        first, second = self.boxes[some][:, None], self.boxes[others]
        shared = torch.minimum(first[..., 2:], second[:, 2:]) - torch.maximum(first[..., :2], second[:, :2])
        own = (first[..., 2:] - first[..., :2]).prod(-1)
        return (shared.clamp(min=0).prod(-1) / own.clamp(min=1e-6)).numpy()

    def _agree(self, first: int, second: int, common: Tile) -> bool:
        """Whether two parts are the same, for the most, in what their tiles share."""
        window = self.boxes.new_tensor([common.left, common.top, common.right, common.bottom])
        if self.runs is None:
            boxes = self.boxes[[first, second]]
            seen = torch.cat([boxes[:, :2].maximum(window[:2]), boxes[:, 2:].minimum(window[2:])], 1)
            return box_iou(seen[:1], seen[1:]).item() > SAME
        tool = coco_tool()
        runs = self.runs[first], self.runs[second]
        left, top, right, bottom = window.tolist()
        corners = [left, top, right, top, right, bottom, left, bottom]
        [area] = tool.frPyObjects([corners], *runs[0]["size"])
        seen = [tool.merge([each, area], intersect=True) for each in runs]
        return tool.iou(seen[:1], seen[1:], [0]).item() > SAME

    def _union(self, indices: Sequence[int]) -> dict[str, object]:
        if self.runs is None:
            raise RuntimeError("there are no masks to join")
        if len(indices) == 1:
            return self.runs[indices[0]]
        whole = coco_tool().merge([self.runs[index] for index in indices])
        return {"size": [*map(int, whole["size"])], "counts": whole["counts"].decode("ascii")}
