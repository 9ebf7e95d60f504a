"""Objects that were found twice, recognised by their masks.

The network compares boxes, and so do most detectors. Two boxes that overlap by less than half may still hold
masks of the same pixels: a nucleus, and the same nucleus with its neighbour. Where objects are counted, such
pairs are one object.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lambdanets.data.coco.masks import coco_tool
from lambdanets.detection.masks import Objects, RunLengths
from lambdanets.detection.results import Entry

# An object that shares a larger part of a mask with better objects of its class is a duplicate.
SHARED_PART = 0.5


def without_duplicates(objects: Objects) -> Objects:
    """Return the objects of an image without those found twice; without masks, return all.

    Of two objects of a class whose masks share more than half of the smaller one, the one with the higher
    score stays. An object whose mask lies by more than half in those of several better objects of its class
    is dropped as well, so that each object of a class keeps at least half of its pixels in a label image.

    Args:
        objects: Of one image, with `masks` as `Masks` of run lengths where there are masks.
    """
    if "masks" not in objects:
        return objects
    labels, scores = (objects[name].numpy() for name in ("labels", "scores"))
    chosen = np.flatnonzero(_distinct(objects["masks"].segmentations, labels, scores))
    return {name: value[chosen] for name, value in objects.items()}


def entries_without_duplicates(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries of COCO's results format, of any number of images, without objects found twice."""
    by_image: dict[int, list[int]] = {}
    for index, entry in enumerate(entries):
        if "segmentation" in entry:
            by_image.setdefault(entry["image_id"], []).append(index)
    kept = np.ones(len(entries), bool)
    for indices in by_image.values():
        own = [entries[index] for index in indices]
        labels, scores = (np.array([entry[name] for entry in own]) for name in ("category_id", "score"))
        kept[indices] = _distinct([entry["segmentation"] for entry in own], labels, scores)
    return [entry for entry, distinct in zip(entries, kept, strict=True) if distinct]


def _distinct(masks: Sequence[RunLengths], labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return which objects of an image are no duplicates of better ones [n]."""
    tool = coco_tool()
    rank = np.empty(len(masks), np.int64)
    rank[np.argsort(-scores, kind="stable")] = np.arange(len(masks))
    better: dict[int, list[int]] = {}
    for first, second in _touching(masks):
        if labels[first] == labels[second]:
            low, high = (first, second) if rank[first] > rank[second] else (second, first)
            better.setdefault(low, []).append(high)
    kept = np.ones(len(masks), bool)
    for index in sorted(better, key=lambda index: rank[index]):
        rivals = [masks[rival] for rival in better[index] if kept[rival]]
        if not rivals:
            continue
        own = [masks[index]]
        of_own = tool.iou(own, rivals, [1] * len(rivals))
        of_rivals = tool.iou(rivals, own, [1])
        hidden = tool.iou(own, [tool.merge(rivals)], [1])
        kept[index] = max(of_own.max(), of_rivals.max(), hidden.max()) <= SHARED_PART
    return kept


def _touching(masks: Sequence[RunLengths]) -> Iterator[tuple[int, int]]:
    """Yield the pairs of objects whose masks' boxes overlap, without comparing all objects of a slide."""
    if not len(masks):
        return
    left, top, width, height = np.asarray(coco_tool().toBbox(list(masks))).T
    right, bottom = left + width, top + height
    order = np.argsort(left, kind="stable")
    # In the order of their left edges, those that begin before an object ends follow it directly.
    ends = np.searchsorted(left[order], right[order])
    for position, end in enumerate(ends.tolist()):
        index, others = order[position], order[position + 1 : end]
        overlap = (top[others] < bottom[index]) & (bottom[others] > top[index])
        yield from ((int(index), int(other)) for other in others[overlap])
