"""Detections in COCO's results format: made from a network's output, and joined."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lambdanets.data.coco.masks import Masks, counted, raster, run_lengths

Entry = dict[str, Any]
# What is found in an image: boxes, labels and scores as tensors; masks as one, or as `Masks` of run lengths.
Objects = dict[str, Any]
INSIDE = 0.5  # a pixel with more than this belongs to the object, as in torchvision's reference


def to_results(
    detections: Sequence[Objects], image_ids: Sequence[int], category_ids: Sequence[int]
) -> list[Entry]:
    """Return what a network found in some images as entries of COCO's results format.

    Numbers keep the digits that a float32 has, as in detectron2 and torchvision's reference: rounded scores
    would tie, and what ties is ranked by chance.

    Args:
        detections: for each image `boxes` of shape (n, 4), left, top, right and bottom in pixels of the
            stored image; `labels` of shape (n,), from 1 on; `scores` of shape (n,); and, where there are
            masks, `masks` of shape (n, 1, height, width), from 0 to 1, in the size of the stored image, or
            `Masks` of run lengths in text.
        image_ids: of the images.
        category_ids: those of the set, in the order of the labels: `CocoSet.category_ids`.

    Returns:
        An entry for each object: `image_id`, `category_id`, `bbox` ([left, top, width, height]), `score`
        and, where there are masks, `segmentation`, run lengths as text.

    Raises:
        ValueError: there is not one image id for each image, a label is of no category, or a box or a score
            is not finite.
    """
    if len(detections) != len(image_ids):
        raise ValueError(
            f"there must be an image id for each image, got {len(image_ids)} for {len(detections)}."
        )
    return [
        entry
        for found, number in zip(detections, image_ids, strict=True)
        for entry in _of_image(found, int(number), category_ids)
    ]


def _of_image(found: Objects, image_id: int, category_ids: Sequence[int]) -> list[Entry]:
    boxes, scores = (found[name].detach().float().cpu().numpy() for name in ("boxes", "scores"))
    labels = found["labels"].tolist()
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise ValueError(f"boxes or scores of image {image_id} are not finite: the network has diverged.")
    if bad := [label for label in labels if not 1 <= label <= len(category_ids)]:
        raise ValueError(
            f"labels must be from 1 to {len(category_ids)}, the number of categories; image {image_id} "
            f"has the label {bad[0]}."
        )
    boxes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    entries: list[Entry] = [
        {
            "image_id": image_id,
            "category_id": category_ids[label - 1],
            "bbox": [_shortest(value) for value in box],
            "score": _shortest(score),
        }
        for box, label, score in zip(boxes, labels, scores, strict=True)
    ]
    if "masks" in found:
        for entry, runs in zip(entries, _encoded(found["masks"]), strict=True):
            entry["segmentation"] = runs
    return entries


def _shortest(value: np.float32) -> float:
    """The number with the fewest digits that is this one in float32: a file of half the size."""
    return float(str(value))


def _encoded(masks: Tensor | Masks) -> Sequence[Any]:
    if isinstance(masks, Masks):
        return masks.segmentations
    return [
        _whole((mask if mask.dtype == torch.bool else mask > INSIDE).cpu().numpy())
        for mask in masks.detach()[:, 0]
    ]


def _whole(inside: np.ndarray) -> Entry:
    """A mask of shape (height, width) as run lengths in text; columns without it are not looked through."""
    columns = np.flatnonzero(inside.any(axis=0))
    first, end = (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (0, 0)
    return as_runs(inside[:, first:end], 0, first, *inside.shape)


def as_runs(part: np.ndarray, top: int, left: int, height: int, width: int) -> Entry:
    """Return a mask that is 0 outside of a part of its image as run lengths in text; the arguments are those
    of `counted`.
    """
    return _as_text(run_lengths(counted(part, top, left, height, width), height, width))


def _as_text(runs: Entry) -> Entry:
    counts = runs["counts"]
    return {
        "size": [int(side) for side in runs["size"]],
        "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
    }


def to_detections(
    entries: Sequence[Entry], category_ids: Sequence[int], size: tuple[int, int]
) -> dict[str, Tensor]:
    """Return the entries of one image as a network gives them: what `to_results` was given, masks binary.

    Args:
        entries: in COCO's results format.
        category_ids: those of the set, in the order of the labels.
        size: (height, width) of the stored image.
    """
    return drawn(to_objects(entries, category_ids, size))


def to_objects(entries: Sequence[Entry], category_ids: Sequence[int], size: tuple[int, int]) -> Objects:
    """Return the same, with masks as `Masks` of run lengths."""
    label = {number: place for place, number in enumerate(category_ids, start=1)}
    boxes = torch.tensor([entry["bbox"] for entry in entries]).reshape(-1, 4)
    found: Objects = {
        "boxes": torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1),
        "labels": torch.tensor([label[entry["category_id"]] for entry in entries], dtype=torch.int64),
        "scores": torch.tensor([entry["score"] for entry in entries]),
    }
    if all("segmentation" in entry for entry in entries):
        found["masks"] = Masks([entry["segmentation"] for entry in entries], *size)
    return found


def drawn(found: Objects) -> dict[str, Tensor]:
    """Return objects with their masks drawn: boolean, of shape (n, 1, height, width)."""
    masks = found.get("masks")
    if not isinstance(masks, Masks):
        return found
    whole = raster(masks.segmentations, masks.height, masks.width)
    return found | {"masks": torch.from_numpy(whole)[:, None].bool()}


def ground_truth_as_results(ground_truth: dict[str, list[Entry]]) -> list[Entry]:
    """Return annotated objects as if they had been found, with score 1: these must be scored 1.0.

    Crowds are left out, as nobody has to find them; boxes have their masks where there are such.

    Args:
        ground_truth: as from `CocoSet.ground_truth`.
    """
    sizes = {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}
    entries = []
    for each in ground_truth["annotations"]:
        if each["iscrowd"]:
            continue
        entry: Entry = {name: each[name] for name in ("image_id", "category_id", "bbox")} | {"score": 1.0}
        if "segmentation" in each:
            entry["segmentation"] = _as_text(run_lengths(each["segmentation"], *sizes[each["image_id"]]))
        entries.append(entry)
    return entries


def merge(parts: Iterable[Sequence[Entry]]) -> list[Entry]:
    """Return what several processes have found, as if one had looked at all images.

    An image that several were given, to make their numbers even, is taken from the first of them; what one
    process found twice in the same place is one object. The order is by image, then by score, the highest
    first, and does not depend on how the images were dealt out.

    Args:
        parts: the entries of each process.
    """
    kept: dict[tuple[Any, ...], Entry] = {}
    owners: dict[int, int] = {}
    for number, part in enumerate(parts):
        for entry in part:
            if owners.setdefault(entry["image_id"], number) == number:
                kept.setdefault(_rank(entry), entry)
    return [kept[rank] for rank in sorted(kept)]


def _rank(entry: Entry) -> tuple[Any, ...]:
    return (entry["image_id"], -entry["score"], entry["category_id"], *entry["bbox"])


def of_boxes(entries: Sequence[Entry]) -> list[Entry]:
    """Return entries without their masks: what COCO takes as results of kind "bbox"."""
    return [{name: value for name, value in entry.items() if name != "segmentation"} for entry in entries]


def of_masks(entries: Sequence[Entry]) -> list[Entry]:
    """Return entries without their boxes: what COCO takes as results of kind "segm".

    Where both are there, pycocotools takes the box's area for that of the mask, which changes what counts as
    a small, medium or large object. So detectron2, mmdetection and torchvision's reference leave boxes out.
    """
    return [{name: value for name, value in entry.items() if name != "bbox"} for entry in entries]
