"""How well objects were found: COCO's figures of boxes and masks, by pycocotools."""

from __future__ import annotations

import contextlib
import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lambdanets.data import DataError
from lambdanets.detection.results import Entry, of_boxes, of_masks

COCO_DETECTIONS = 100  # of an image, the likeliest ones, that COCO looks at
FEWER = (1, 10)  # and of which it gives the recall as well
SIZES = ("small", "medium", "large")
IOUS = (0.5, 0.75)


@dataclass(frozen=True, kw_only=True, eq=False)
class KindScores:
    """How well boxes, or masks, were found; what is undefined is NaN.

    Attributes:
        values: COCO's twelve figures, fractions: average precision over the IoUs 0.5, 0.55, ... 0.95 (`ap`),
            at 0.5 and 0.75 (`ap50`, `ap75`) and of objects below 32x32 pixels, up to 96x96, and above
            (`ap_small`, `ap_medium`, `ap_large`); average recall with 1, 10 and all detections per image
            (`ar1`, `ar10`, `ar100`, or another number where COCO's 100 was changed), and with all by size
            (`ar_small`, `ar_medium`, `ar_large`).
        class_ap: AP of each class, float64 of shape (classes,); NaN for a class without objects.
        class_ap50: at IoU 0.5.
        precision: precision at the recalls 0, 0.01, ... 1, float64 of shape (3, classes, 101): at IoU 0.5,
            at 0.75, and the mean over all ten.
    """

    values: dict[str, float]
    class_ap: np.ndarray
    class_ap50: np.ndarray
    precision: np.ndarray

    @property
    def mean_precision(self) -> np.ndarray:
        """The mean over the classes that have objects, of shape (3, 101); NaN where none has any."""
        defined = ~np.isnan(self.class_ap)
        if not defined.any():
            return np.full_like(self.precision[:, 0], np.nan)
        return self.precision[:, defined].mean(1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """How well the objects of a set were found.

    Attributes:
        classes: their names.
        objects: number of objects of each class, crowds not counted, int64 of shape (classes,).
        images: number of images.
        max_detections: of an image, the likeliest ones, that count.
        box: the figures of boxes.
        mask: those of masks, None where there are none.
    """

    classes: tuple[str, ...]
    objects: np.ndarray
    images: int
    max_detections: int
    box: KindScores
    mask: KindScores | None

    @property
    def kinds(self) -> dict[str, KindScores]:
        """ "box", and "mask" where there are masks."""
        return {"box": self.box} | ({"mask": self.mask} if self.mask else {})

    def figures(self) -> dict[str, float]:
        """Return all figures by name, such as `box_ap` and `mask_ap50`; what is undefined is NaN."""
        return {
            f"{kind}_{name}": value
            for kind, scores in self.kinds.items()
            for name, value in scores.values.items()
        }

    def to_plain(self) -> dict[str, Any]:
        """Return all but the curves as plain types, for JSON, with None for what is undefined."""
        plain: dict[str, Any] = {"images": self.images, "max_detections": self.max_detections}
        plain |= {name: _or_none(value) for name, value in self.figures().items()}
        plain["classes"] = [
            {name: _or_none(value) if isinstance(value, float) else value for name, value in row.items()}
            for row in self.per_class()
        ]
        return plain

    def per_class(self) -> list[dict[str, Any]]:
        """Return for each class its `class`, `objects`, `box_ap`, `box_ap50`, and the same of masks."""
        rows = []
        for index, (name, objects) in enumerate(zip(self.classes, self.objects.tolist(), strict=True)):
            row: dict[str, Any] = {"class": name, "objects": objects}
            for kind, scores in self.kinds.items():
                row[f"{kind}_ap"] = float(scores.class_ap[index])
                row[f"{kind}_ap50"] = float(scores.class_ap50[index])
            rows.append(row)
        return rows


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def score(
    ground_truth: dict[str, list[Entry]],
    results: Sequence[Entry],
    *,
    masks: bool,
    max_detections: int = COCO_DETECTIONS,
) -> Scores:
    """Compare what was found with what is there.

    The figures are those that pycocotools gives of files of the same content, to the last digit: kind "bbox"
    of `of_boxes(results)`, kind "segm" of `of_masks(results)`. An annotation whose id is 0, which pycocotools
    never takes for found, is treated like all others.

    Args:
        ground_truth: as from `CocoSet.ground_truth`; it stays as it is, and so do the results.
        results: entries from `to_results`; with equal scores, earlier ones are ranked higher. No entries at
            all are a result, too: everything was missed.
        masks: whether masks are compared as well as boxes.
        max_detections: of an image and a class, the likeliest ones, that count; more than 10. COCO's figures
            are for 100; an image with more objects can then not be found as a whole.

    Raises:
        DataError: an entry is of an image or a category that the ground truth does not list, or lacks its box
            or mask, or its mask is of another size than the image.
        ValueError: `max_detections` is not above 10.

    Example:
        >>> truth = coco_set.ground_truth()
        >>> round(score(truth, ground_truth_as_results(truth), masks=True).figures()["mask_ap"], 9)
        1.0
    """
    if max_detections <= FEWER[-1]:
        raise ValueError(f"max_detections must be more than {FEWER[-1]}, got {max_detections}.")
    _check(ground_truth, results, masks=masks)
    categories = ground_truth["categories"]
    counts = Counter(each["category_id"] for each in ground_truth["annotations"] if not each["iscrowd"])
    return Scores(
        classes=tuple(each["name"] for each in categories),
        objects=np.array([counts[each["id"]] for each in categories], dtype=np.int64),
        images=len(ground_truth["images"]),
        max_detections=max_detections,
        box=_score(ground_truth, of_boxes(results), "bbox", max_detections),
        mask=_score(ground_truth, of_masks(results), "segm", max_detections) if masks else None,
    )


def _check(ground_truth: dict[str, list[Entry]], results: Sequence[Entry], *, masks: bool) -> None:
    sizes = {image["id"]: [image["height"], image["width"]] for image in ground_truth["images"]}
    categories = {each["id"] for each in ground_truth["categories"]}
    needed = ("bbox", "segmentation") if masks else ("bbox",)
    for place, entry in enumerate(results):
        number, size = entry["image_id"], sizes.get(entry["image_id"])
        missing = next((name for name in needed if name not in entry), None)
        if size is None:
            fault = f"is of image {number}, which the ground truth does not list"
        elif entry["category_id"] not in categories:
            fault = f"is of category {entry['category_id']}, which the ground truth does not list"
        elif missing:
            fault = f"has no {missing}"
        elif masks and (found := entry["segmentation"]["size"]) != size:
            fault = f"has a mask of [height, width] {found}, and image {number} is {size}"
        else:
            continue
        raise DataError(f"result {place} {fault}.")


def _score(
    ground_truth: dict[str, list[Entry]],
    results: list[Entry],
    kind: Literal["bbox", "segm"],
    max_detections: int,
) -> KindScores:
    """Run pycocotools, which changes what it is given and prints, on copies and silently."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth: Any = COCO()  # a package without complete types
    found: Any = COCO()
    annotations = [each | {"id": n} for n, each in enumerate(ground_truth["annotations"], start=1)]
    truth.dataset = ground_truth | {"annotations": annotations}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        if results:  # of an empty list pycocotools cannot tell the kind
            found = truth.loadRes(results)
        evaluation = COCOeval(truth, found, kind)
        evaluation.params.maxDets = [*FEWER, max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
    return _summary(evaluation, [each["id"] for each in ground_truth["categories"]])


def _summary(evaluation: Any, category_ids: Sequence[int]) -> KindScores:
    """COCO's figures of what pycocotools has accumulated, whose own summary is for 100 detections alone."""
    params = evaluation.params
    precision = evaluation.eval["precision"]  # of shape (10, 101, classes, 4 sizes, 3 numbers of detections)
    recall = evaluation.eval["recall"]  # of shape (10, classes, 4, 3)
    at = [int(np.argmin(np.abs(params.iouThrs - iou))) for iou in IOUS]
    values = {"ap": _mean(precision[..., 0, -1])}
    values |= {
        f"ap{round(100 * iou)}": _mean(precision[t, ..., 0, -1]) for iou, t in zip(IOUS, at, strict=True)
    }
    values |= {f"ap_{size}": _mean(precision[..., n, -1]) for n, size in enumerate(SIZES, start=1)}
    values |= {f"ar{count}": _mean(recall[..., 0, n]) for n, count in enumerate(params.maxDets)}
    values |= {f"ar_{size}": _mean(recall[..., n, -1]) for n, size in enumerate(SIZES, start=1)}
    # pycocotools sorts the categories by their ids; here they keep the order of the labels.
    order = {number: place for place, number in enumerate(params.catIds)}
    own = precision[:, :, [order[number] for number in category_ids], 0, -1]
    own = np.where(own < 0, np.nan, own).transpose(0, 2, 1)
    return KindScores(
        values=values,
        class_ap=own.mean((0, 2)),
        class_ap50=own[at[0]].mean(1),
        precision=np.stack([*own[at], own.mean(0)]),
    )


def _mean(values: np.ndarray) -> float:
    """The mean of what is defined, as pycocotools takes it."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else math.nan
