"""Detections in COCO's results format: from a network's output, merged, and as json files."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lambdanets.data import DataError
from lambdanets.data.coco.annotation_file import is_id, read_json
from lambdanets.data.coco.masks import Masks, read_counts
from lambdanets.detection.masks import Objects, decode_masks, encode_masks, encode_segmentation
from lambdanets.train.checkpoint import write_text

Entry = dict[str, Any]
"""One object in COCO's results format, or one entry of an annotation file."""


def to_results(
    detections: Sequence[Objects], image_ids: Sequence[int], category_ids: Sequence[int]
) -> list[Entry]:
    """Return the detections of images as entries of COCO's results format.

    Numbers keep the digits of a float32, as in detectron2 and torchvision's reference: rounded scores would
    tie, and ties are ranked arbitrarily.

    Args:
        detections: For each image `boxes` [n, 4], left, top, right and bottom in pixels of the stored image;
            `labels` [n], from 1; `scores` [n]; and, where there are masks, `masks`: a tensor
            [n, 1, height, width] in [0, 1], in the size of the stored image, or `Masks` of run lengths.
        image_ids: Ids of the images.
        category_ids: Ids of the categories in the order of the labels: `CocoSet.category_ids`.

    Returns:
        An entry for each object: `image_id`, `category_id`, `bbox` ([left, top, width, height]), `score`
        and, where there are masks, `segmentation`, compressed run lengths.

    Raises:
        ValueError: The numbers of images and ids differ, a label has no category, or a box or a score is not
            finite.
    """
    if len(detections) != len(image_ids):
        raise ValueError(
            f"there must be an image id for each image, got {len(image_ids)} for {len(detections)}."
        )
    return [
        entry
        for objects, image_id in zip(detections, image_ids, strict=True)
        for entry in _image_results(objects, int(image_id), category_ids)
    ]


def _image_results(objects: Objects, image_id: int, category_ids: Sequence[int]) -> list[Entry]:
    boxes, scores = (objects[name].detach().float().cpu().numpy() for name in ("boxes", "scores"))
    labels = objects["labels"].tolist()
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise ValueError(f"boxes or scores of image {image_id} are not finite: the network has diverged.")
    if invalid := [label for label in labels if not 1 <= label <= len(category_ids)]:
        raise ValueError(
            f"labels must be from 1 to {len(category_ids)}, the number of categories; image {image_id} "
            f"has the label {invalid[0]}."
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
    if "masks" in objects:
        masks = objects["masks"]
        encoded = masks.segmentations if isinstance(masks, Masks) else encode_masks(masks)
        for entry, run_lengths in zip(entries, encoded, strict=True):
            entry["segmentation"] = run_lengths
    return entries


def _shortest(value: np.float32) -> float:
    """Return the number with the fewest digits that rounds to this float32: files take half the size."""
    return float(str(value))


def to_detections(
    entries: Sequence[Entry], category_ids: Sequence[int], size: tuple[int, int]
) -> dict[str, Tensor]:
    """Return the entries of one image as a network's output, with boolean masks: the inverse of `to_results`.

    Args:
        entries: Of one image, in COCO's results format.
        category_ids: Ids of the categories in the order of the labels.
        size: (height, width) of the stored image.
    """
    return decode_masks(results_to_objects(entries, category_ids, size))


def results_to_objects(
    entries: Sequence[Entry], category_ids: Sequence[int], size: tuple[int, int]
) -> Objects:
    """Return the same as `to_detections`, with masks as `Masks` of run lengths."""
    label_of = {category_id: label for label, category_id in enumerate(category_ids, start=1)}
    boxes = torch.tensor([entry["bbox"] for entry in entries]).reshape(-1, 4)
    objects: Objects = {
        "boxes": torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1),
        "labels": torch.tensor([label_of[entry["category_id"]] for entry in entries], dtype=torch.int64),
        "scores": torch.tensor([entry["score"] for entry in entries]),
    }
    if all("segmentation" in entry for entry in entries):
        objects["masks"] = Masks([entry["segmentation"] for entry in entries], *size)
    return objects


def ground_truth_as_results(ground_truth: dict[str, list[Entry]]) -> list[Entry]:
    """Return annotated objects as detections with score 1, whose average precision must be 1.

    Crowds are left out, as detectors need not find them; masks are included where they are annotated.

    Args:
        ground_truth: From `CocoSet.ground_truth`.
    """
    sizes = {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}
    entries = []
    for annotation in ground_truth["annotations"]:
        if annotation["iscrowd"]:
            continue
        entry: Entry = {name: annotation[name] for name in ("image_id", "category_id", "bbox")}
        entry["score"] = 1.0
        if "segmentation" in annotation:
            size = sizes[annotation["image_id"]]
            entry["segmentation"] = encode_segmentation(annotation["segmentation"], *size)
        entries.append(entry)
    return entries


def merge(shards: Iterable[Sequence[Entry]]) -> list[Entry]:
    """Return the results of several processes as if one process had run on all images.

    A sampler may repeat images to give every process the same number: such an image is taken from the first
    process, and equal objects of one process count once. The order is by image, then by descending score, and
    does not depend on the assignment of images to processes.

    Args:
        shards: The entries of each process.
    """
    merged: dict[tuple[Any, ...], Entry] = {}
    first_process: dict[int, int] = {}
    for process, shard in enumerate(shards):
        for entry in shard:
            if first_process.setdefault(entry["image_id"], process) == process:
                merged.setdefault(_sort_key(entry), entry)
    return [merged[key] for key in sorted(merged)]


def _sort_key(entry: Entry) -> tuple[Any, ...]:
    return (entry["image_id"], -entry["score"], entry["category_id"], *entry["bbox"])


def of_boxes(entries: Sequence[Entry]) -> list[Entry]:
    """Return entries without their masks: COCO's results of kind "bbox"."""
    return [{name: value for name, value in entry.items() if name != "segmentation"} for entry in entries]


def of_masks(entries: Sequence[Entry]) -> list[Entry]:
    """Return entries without their boxes: COCO's results of kind "segm".

    If an entry has both, pycocotools takes the area of the box for that of the mask, which changes the
    division into small, medium and large objects. detectron2, mmdetection and torchvision's reference leave
    boxes out for the same reason.
    """
    return [{name: value for name, value in entry.items() if name != "bbox"} for entry in entries]


def write_results(entries: Sequence[Entry], path: str | os.PathLike[str]) -> None:
    """Write entries as a COCO results json, atomically.

    Raises:
        CheckpointError: The disk is full, or the folder cannot be written.
    """
    lines = ",\n".join(json.dumps(entry, separators=(",", ":"), allow_nan=False) for entry in entries)
    write_text(Path(path), f"[{lines}]\n")


def write_kinds(entries: Sequence[Entry], folder: str | os.PathLike[str], *, masks: bool) -> list[Path]:
    """Write entries as boxes.json and, with masks, masks.json.

    pycocotools computes the figures of `score` from each file; `of_masks` explains why there are two.

    Args:
        entries: From `to_results`.
        folder: Folder of the files; it is created if missing.
        masks: Write masks.json too.

    Returns:
        The files.

    Raises:
        CheckpointError: The disk is full, or the folder cannot be written.
    """
    kinds = {"boxes": of_boxes(entries)} | ({"masks": of_masks(entries)} if masks else {})
    files = {Path(folder) / f"{name}.json": results for name, results in kinds.items()}
    for file, results in files.items():
        write_results(results, file)
    return list(files)


def read_results(path: str | os.PathLike[str]) -> list[Entry]:
    """Read a COCO results json of boxes, masks (compressed run lengths) or both.

    Raises:
        DataError: The file is missing, truncated, not json or json of another kind, or an entry is invalid;
            the message names the entry and the fault.
    """
    path = Path(path)
    entries = read_json(path, "holds no results", ends=("]",))
    if not isinstance(entries, list):
        raise DataError(f"{path} holds no results: they are a list with an entry for each object.")
    for index, entry in enumerate(entries):
        if fault := _entry_fault(entry):
            raise DataError(f"{path} is broken at entry {index}: {fault}.")
    return entries


def _entry_fault(entry: object) -> str | None:
    """Return the first fault of an entry of a results json."""
    if not isinstance(entry, dict):
        return f"it is no object but {entry!r}"
    for name in ("image_id", "category_id"):
        if not is_id(entry.get(name)):
            return f"its {name} is no whole number but {entry.get(name)!r}"
    if not _all_finite([entry.get("score")]):
        return f"its score is no finite number but {entry.get('score')!r}"
    if "bbox" not in entry and "segmentation" not in entry:
        return "it has neither a bbox nor a segmentation"
    box = entry.get("bbox", [0, 0, 0, 0])
    if not isinstance(box, list) or len(box) != 4 or not _all_finite(box) or min(box[2:]) < 0:
        return f"its bbox is not [x, y, width, height] but {box!r}"
    return _run_lengths_fault(entry["segmentation"]) if "segmentation" in entry else None


def _run_lengths_fault(mask: object) -> str | None:
    """Return the fault of a detected mask; unlike an annotated one, it may be empty."""
    size, counts = (mask.get("size"), mask.get("counts")) if isinstance(mask, dict) else (None, None)
    if not (isinstance(size, list) and len(size) == 2 and all(is_id(side) and side > 0 for side in size)):
        size = None
    if size is None or not isinstance(counts, str):
        return 'its segmentation is not run lengths as text, {"size": [height, width], "counts": "..."}'
    try:
        lengths = read_counts(counts)
    except ValueError as error:
        return f"the run lengths of its mask are damaged: {error}"
    if lengths.size and lengths.min() < 0:
        return "the run lengths of its mask are damaged: one is negative"
    if lengths.sum() != size[0] * size[1]:
        return f"the run lengths of its mask cover {lengths.sum()} pixels of {size[0] * size[1]}"
    return None


def _all_finite(values: Sequence[Any]) -> bool:
    return set(map(type, values)) <= {int, float} and all(map(math.isfinite, values))
