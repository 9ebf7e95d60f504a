"""COCO's figures of boxes and masks, by pycocotools, with precision-recall curves and a table of classes."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lambdanets.data import DataError
from lambdanets.detection.results import Entry, of_boxes, of_masks
from lambdanets.train.checkpoint import replacing, write_text
from lambdanets.utils.fonts import legible, plain_text
from lambdanets.viz.figures import INK, TRAIN, VAL, plain_axes, save_figure

# Detections per image that COCO scores, and the smaller numbers for which it computes the recall, too.
COCO_MAX_DETECTIONS = 100
RECALL_DETECTIONS = (1, 10)
SIZES = ("small", "medium", "large")
IOUS = (0.5, 0.75)
# Figure, label and colour of each precision-recall curve.
CURVES = (("ap50", "IoU 0.50", TRAIN), ("ap75", "IoU 0.75", INK), ("ap", "mean of 0.50 to 0.95", VAL))
CocoKind = Literal["bbox", "segm"]
KIND_LABELS = {"box": "boxes", "mask": "masks"}


@dataclass(frozen=True, kw_only=True, eq=False)
class KindScores:
    """COCO's figures of boxes, or of masks; undefined figures are NaN.

    Attributes:
        values: COCO's twelve figures, as fractions: average precision over the IoUs 0.5, 0.55, ... 0.95
            (`ap`), at 0.5 and 0.75 (`ap50`, `ap75`) and of objects below 32x32 pixels, up to 96x96, and above
            (`ap_small`, `ap_medium`, `ap_large`); average recall with 1, 10 and all detections per image
            (`ar1`, `ar10`, `ar100`, or another number than COCO's 100), and with all by size (`ar_small`,
            `ar_medium`, `ar_large`).
        class_ap: AP of each class, float64 [classes]; NaN for a class without objects.
        class_ap50: The same at IoU 0.5.
        precision: Precision at the recalls 0, 0.01, ... 1, float64 [3, classes, 101]: at IoU 0.5, at 0.75,
            and the mean over all ten IoUs.
    """

    values: dict[str, float]
    class_ap: np.ndarray
    class_ap50: np.ndarray
    precision: np.ndarray

    @property
    def mean_precision(self) -> np.ndarray:
        """Mean precision over the classes with objects [3, 101]; NaN if there are none."""
        defined = ~np.isnan(self.class_ap)
        if not defined.any():
            return np.full_like(self.precision[:, 0], np.nan)
        return self.precision[:, defined].mean(1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """COCO's figures of the detections in a set of images.

    Attributes:
        classes: Names of the classes.
        objects: Number of objects of each class without crowds, int64 [classes].
        images: Number of images.
        max_detections: Most detections of an image that are scored.
        box: Figures of boxes.
        mask: Figures of masks, or None.
    """

    classes: tuple[str, ...]
    objects: np.ndarray
    images: int
    max_detections: int
    box: KindScores
    mask: KindScores | None

    @property
    def kinds(self) -> dict[str, KindScores]:
        """Figures by kind: "box", and "mask" where there are masks."""
        return {"box": self.box} | ({"mask": self.mask} if self.mask else {})

    def figures(self) -> dict[str, float]:
        """Return all figures by name, such as `box_ap` and `mask_ap50`; undefined ones are NaN."""
        return {
            f"{kind}_{name}": value
            for kind, scores in self.kinds.items()
            for name, value in scores.values.items()
        }

    def to_plain(self) -> dict[str, Any]:
        """Return all but the curves as plain types, for JSON, with None for undefined figures."""
        plain: dict[str, Any] = {"images": self.images, "max_detections": self.max_detections}
        plain |= {name: _or_none(value) for name, value in self.figures().items()}
        plain["classes"] = [
            {name: _or_none(value) if isinstance(value, float) else value for name, value in row.items()}
            for row in self.per_class()
        ]
        return plain

    def per_class(self) -> list[dict[str, Any]]:
        """Return a row for each class: `class`, `objects`, `box_ap`, `box_ap50`, `mask_ap`, `mask_ap50`."""
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
    max_detections: int = COCO_MAX_DETECTIONS,
) -> Scores:
    """Compare detections with the ground truth.

    The figures equal those of pycocotools on files of the same content, to the last digit: kind "bbox" of
    `of_boxes(results)`, kind "segm" of `of_masks(results)`. One exception: pycocotools never matches an
    annotation whose id is 0; here it is treated like all others.

    Args:
        ground_truth: From `CocoSet.ground_truth`; neither it nor the results are changed.
        results: Entries from `to_results`; among equal scores, earlier entries are ranked higher. An empty
            list stands for no detections.
        masks: Compare masks as well as boxes.
        max_detections: Most detections of an image and a class that are scored, by descending score; more
            than 10. COCO's figures are for 100, which limits the recall of images with more objects.

    Raises:
        DataError: An entry has an image or a category that the ground truth does not list, lacks its box or
            mask, or has a mask of another size than the image.
        ValueError: `max_detections` is not above 10.

    Example:
        >>> truth = coco_set.ground_truth()
        >>> round(score(truth, ground_truth_as_results(truth), masks=True).figures()["mask_ap"], 9)
        1.0
    """
    if max_detections <= RECALL_DETECTIONS[-1]:
        raise ValueError(f"max_detections must be more than {RECALL_DETECTIONS[-1]}, got {max_detections}.")
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
    required = ("bbox", "segmentation") if masks else ("bbox",)
    for index, entry in enumerate(results):
        image_id, size = entry["image_id"], sizes.get(entry["image_id"])
        missing = next((name for name in required if name not in entry), None)
        if size is None:
            fault = f"is of image {image_id}, which the ground truth does not list"
        elif entry["category_id"] not in categories:
            fault = f"is of category {entry['category_id']}, which the ground truth does not list"
        elif missing:
            fault = f"has no {missing}"
        elif masks and (mask_size := entry["segmentation"]["size"]) != size:
            fault = f"has a mask of [height, width] {mask_size}, and image {image_id} is {size}"
        else:
            continue
        raise DataError(f"result {index} {fault}.")


def _score(
    ground_truth: dict[str, list[Entry]], results: list[Entry], kind: CocoKind, max_detections: int
) -> KindScores:
    evaluation = cocoeval(ground_truth, results, kind)
    evaluation.params.maxDets = [*RECALL_DETECTIONS, max_detections]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    return _summary(evaluation, [each["id"] for each in ground_truth["categories"]])


def cocoeval(ground_truth: dict[str, list[Entry]], results: list[Entry], kind: CocoKind) -> Any:
    """Return pycocotools' COCOeval of copies, which it changes, and without its printed output.

    Annotations have the ids 1, 2, ... in their order, and so have the results.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    # pycocotools has no complete types.
    truth: Any = COCO()
    detections: Any = COCO()
    annotations = [each | {"id": n} for n, each in enumerate(ground_truth["annotations"], start=1)]
    truth.dataset = ground_truth | {"annotations": annotations}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        # pycocotools infers the kind from the first entry.
        if results:
            detections = truth.loadRes(results)
        return COCOeval(truth, detections, kind)


def _summary(evaluation: Any, category_ids: Sequence[int]) -> KindScores:
    """Return COCO's figures of an evaluation; pycocotools' own summary requires 100 detections per image."""
    params = evaluation.params
    precision = evaluation.eval["precision"]  # [10 IoUs, 101 recalls, classes, 4 sizes, 3 max detections]
    recall = evaluation.eval["recall"]  # [10, classes, 4, 3]
    iou_indices = [int(np.argmin(np.abs(params.iouThrs - iou))) for iou in IOUS]
    values = {"ap": _mean(precision[..., 0, -1])}
    values |= {
        f"ap{round(100 * iou)}": _mean(precision[t, ..., 0, -1])
        for iou, t in zip(IOUS, iou_indices, strict=True)
    }
    values |= {f"ap_{size}": _mean(precision[..., n, -1]) for n, size in enumerate(SIZES, start=1)}
    values |= {f"ar{count}": _mean(recall[..., 0, n]) for n, count in enumerate(params.maxDets)}
    values |= {f"ar_{size}": _mean(recall[..., n, -1]) for n, size in enumerate(SIZES, start=1)}
    # pycocotools sorts the categories by their ids; here they keep the order of the labels.
    order = {category_id: index for index, category_id in enumerate(params.catIds)}
    curves = precision[:, :, [order[category_id] for category_id in category_ids], 0, -1]
    curves = np.where(curves < 0, np.nan, curves).transpose(0, 2, 1)  # [10, classes, 101]
    return KindScores(
        values=values,
        class_ap=curves.mean((0, 2)),
        class_ap50=curves[iou_indices[0]].mean(1),
        precision=np.stack([*curves[iou_indices], curves.mean(0)]),
    )


def _mean(values: np.ndarray) -> float:
    """Return the mean of the defined values; pycocotools marks others with -1."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else math.nan


def draw_precision_recall(scores: Scores, path: str | os.PathLike[str], title: str = "") -> None:
    """Draw precision against recall of boxes and masks side by side, as the mean over classes with objects.

    Args:
        scores: From `score`.
        path: The PNG file.
        title: Title above the panels.
    """
    with plain_text(title), replacing(Path(path)) as temporary:
        save_figure(_precision_recall(scores, legible(title)), temporary)


def _precision_recall(scores: Scores, title: str) -> Any:
    from matplotlib.figure import Figure

    kinds = scores.kinds
    figure = Figure(figsize=(0.8 + 4.6 * len(kinds), 4.6), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(kinds), squeeze=False)[0]
    for axes, (kind, kind_scores) in zip(panels, kinds.items(), strict=True):
        _draw_curves(axes, kind_scores)
        plain_axes(axes, f"precision of {KIND_LABELS[kind]} (%)")
        axes.set_xlabel("recall (%)")
    if title:
        figure.suptitle(title, x=0.012, ha="left", fontsize=11, color=INK)
    return figure


def _draw_curves(axes: Any, scores: KindScores) -> None:
    recall = np.linspace(0, 100, scores.precision.shape[-1])
    for (figure, label, colour), curve in zip(CURVES, scores.mean_precision, strict=True):
        value = scores.values[figure]
        average = "no objects" if math.isnan(value) else f"AP {100 * value:.1f} %"
        axes.plot(recall, 100 * curve, color=colour, linewidth=1.8, label=f"{label}   {average}")
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 102)
    axes.legend(frameon=False, loc="best", labelcolor="linecolor", fontsize=9)


def write_per_class(
    scores: Scores, path: str | os.PathLike[str], more: Sequence[dict[str, float]] | None = None
) -> None:
    """Write a CSV file with a row for each class: class, objects, box_ap, box_ap50, mask_ap, mask_ap50.

    Values are fractions; those of a class without objects are empty.

    Args:
        scores: From `score`.
        path: The file.
        more: Further columns, from `Matches.class_figures`.
    """
    rows = scores.per_class()
    if more is not None:
        rows = [row | further for row, further in zip(rows, more, strict=True)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(rows[0])
    for row in rows:
        writer.writerow(
            value if not isinstance(value, float) else "" if math.isnan(value) else f"{value:.6g}"
            for value in row.values()
        )
    write_text(Path(path), text.getvalue())
