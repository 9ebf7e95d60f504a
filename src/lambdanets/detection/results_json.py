"""Detections as a file: a COCO results json, refused where it is broken."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lambdanets.data import DataError
from lambdanets.data.coco_json import is_id
from lambdanets.data.coco_masks import read_counts
from lambdanets.data.images import reason
from lambdanets.detection.results import Entry, of_boxes, of_masks
from lambdanets.train.checkpoint import write_text


def write_results(entries: Sequence[Entry], path: str | os.PathLike[str]) -> None:
    """Write entries as a COCO results json, as a whole or not at all.

    Raises:
        CheckpointError: the disk is full, or the folder cannot be written.
    """
    lines = ",\n".join(json.dumps(entry, separators=(",", ":"), allow_nan=False) for entry in entries)
    write_text(Path(path), f"[{lines}]\n")


def write_kinds(entries: Sequence[Entry], folder: str | os.PathLike[str], *, masks: bool) -> list[Path]:
    """Write entries as boxes.json and, with masks, masks.json: pycocotools gives our figures of each of them.

    They are two files, as `of_masks` says why.

    Args:
        entries: from `to_results`.
        folder: where; made if it is not there.
        masks: whether the entries have masks.

    Returns:
        The files.

    Raises:
        CheckpointError: the disk is full, or the folder cannot be written.
    """
    kinds = {"boxes": of_boxes(entries)} | ({"masks": of_masks(entries)} if masks else {})
    files = {Path(folder) / f"{name}.json": own for name, own in kinds.items()}
    for file, own in files.items():
        write_results(own, file)
    return list(files)


def read_results(path: str | os.PathLike[str]) -> list[Entry]:
    """Read a COCO results json of boxes, masks (run lengths as text) or both.

    Raises:
        DataError: there is no such file, it is cut short or no json, it is another kind of json, or an entry
            is broken; one sentence names the entry and the fault.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        entries = json.loads(text)
    except OSError as error:
        raise DataError(f"cannot read {path}: {reason(error)}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no json: it holds bytes that are no text.") from error
    except json.JSONDecodeError as error:
        if not text.rstrip().endswith("]"):
            raise DataError(f"{path} is cut short, or no json: it ends at {text[-20:]!r}.") from error
        raise DataError(
            f"{path} is no json: line {error.lineno}, column {error.colno}: {error.msg}."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} holds no results: a number or a list is beyond all measure.") from error
    if not isinstance(entries, list):
        raise DataError(f"{path} holds no results: they are a list with an entry for each object.")
    for place, entry in enumerate(entries):
        if fault := _fault(entry):
            raise DataError(f"{path} is broken at entry {place}: {fault}.")
    return entries


def _fault(entry: object) -> str | None:
    if not isinstance(entry, dict):
        return f"it is no object but {entry!r}"
    for name in ("image_id", "category_id"):
        if not is_id(entry.get(name)):
            return f"its {name} is no whole number but {entry.get(name)!r}"
    if not _are_finite([entry.get("score")]):
        return f"its score is no finite number but {entry.get('score')!r}"
    if "bbox" not in entry and "segmentation" not in entry:
        return "it has neither a bbox nor a segmentation"
    box = entry.get("bbox", [0, 0, 0, 0])
    if not isinstance(box, list) or len(box) != 4 or not _are_finite(box) or min(box[2:]) < 0:
        return f"its bbox is not [x, y, width, height] but {box!r}"
    return _runs_fault(entry["segmentation"]) if "segmentation" in entry else None


def _runs_fault(mask: object) -> str | None:
    """What is wrong with a mask; unlike that of an annotated object, one that was found may be empty."""
    size, counts = (mask.get("size"), mask.get("counts")) if isinstance(mask, dict) else (None, None)
    if not (isinstance(size, list) and len(size) == 2 and all(is_id(side) and side > 0 for side in size)):
        size = None
    if size is None or not isinstance(counts, str):
        return 'its segmentation is not run lengths as text, {"size": [height, width], "counts": "..."}'
    try:
        runs = read_counts(counts)
    except ValueError as error:
        return f"the run lengths of its mask are damaged: {error}"
    if runs.size and runs.min() < 0:
        return "the run lengths of its mask are damaged: one is negative"
    if runs.sum() != size[0] * size[1]:
        return f"the run lengths of its mask cover {runs.sum()} pixels of {size[0] * size[1]}"
    return None


def _are_finite(values: Sequence[Any]) -> bool:
    return set(map(type, values)) <= {int, float} and all(map(math.isfinite, values))
