"""Detections at a score threshold against the annotated objects: precision, recall, F1, counts and errors."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lambdanets.data.coco.masks import coco_tool
from lambdanets.detection.masks import encode_segmentation
from lambdanets.detection.results import Entry, of_boxes, of_masks
from lambdanets.detection.scores import IOUS, cocoeval

# Thresholds among which the best one is searched.
THRESHOLDS = np.arange(5, 100) / 100
ERROR_COLUMNS = ("file", "kind", "class", "score", "x0", "y0", "x1", "y1", "best_iou", "best_class")


@dataclass(frozen=True, kw_only=True, eq=False)
class KindMatches:
    """The matches of boxes, or of masks, at several IoUs.

    pycocotools matches detections by descending score, each to the annotated object of its class with which
    it overlaps most. So leaving out detections of low scores does not change the matches of the others.

    Attributes:
        correct: Whether each detection matches an annotated object, bool [2, n], at IoU 0.5 and 0.75.
        ignored: Whether it matches a crowd, or is beyond the number that is scored: neither correct nor false
            [2, n].
        found_by: Score of the detection that matches each annotated object, -inf if there is none [2, m].
    """

    correct: np.ndarray
    ignored: np.ndarray
    found_by: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Matches:
    """Detections and annotated objects of a set of images, matched.

    Attributes:
        ground_truth: From `CocoSet.ground_truth`.
        results: The detections, entries of COCO's results format.
        kinds: Matches by kind: "box", and "mask" where there are masks.
    """

    ground_truth: dict[str, list[Entry]]
    results: Sequence[Entry]
    kinds: dict[str, KindMatches]

    @property
    def main_kind(self) -> str:
        """The kind by which objects count as found: "mask" where there are masks."""
        return "mask" if "mask" in self.kinds else "box"

    @property
    def scores(self) -> np.ndarray:
        """Scores of the detections [n]."""
        return np.array([entry["score"] for entry in self.results])

    @property
    def objects(self) -> np.ndarray:
        """Whether each annotation is an object, no crowd [m]."""
        return np.array([not entry["iscrowd"] for entry in self.ground_truth["annotations"]], bool)

    def figures(self, threshold: float) -> dict[str, Any]:
        """Return precision, recall and F1 at a threshold as plain types, and how far counts are off.

        Args:
            threshold: Least score of a detection.

        Returns:
            `threshold`; `found` and `annotated`, the numbers of objects; `count_error`, by how much both
            differ in an image on average, over the classes in sum; and for each kind `precision`, `recall`
            and `f1` at IoU 0.5 and 0.75, such as `f1_50`; 0 where there is nothing to count.
        """
        images, categories = (
            {each["id"]: index for index, each in enumerate(self.ground_truth[name])}
            for name in ("images", "categories")
        )
        counts = np.zeros((2, len(images), len(categories)), np.int64)
        truth = [each for each in self.ground_truth["annotations"] if not each["iscrowd"]]
        found = np.flatnonzero((self.scores >= threshold) & ~self.kinds[self.main_kind].ignored[0])
        for side, entries in enumerate((truth, [self.results[index] for index in found.tolist()])):
            for entry in entries:
                counts[side, images[entry["image_id"]], categories[entry["category_id"]]] += 1
        plain: dict[str, Any] = {
            "threshold": threshold,
            "found": len(found),
            "annotated": len(truth),
            "count_error": float(np.abs(counts[1] - counts[0]).sum(1).mean()) if len(images) else 0.0,
        }
        for kind, matches in self.kinds.items():
            plain[kind] = {}
            for iou, correct, ignored in zip(IOUS, matches.correct, matches.ignored, strict=True):
                chosen = (self.scores >= threshold) & ~ignored
                hits = int((chosen & correct).sum())
                total = int(chosen.sum()) + len(truth)
                plain[kind] |= {
                    f"precision_{round(100 * iou)}": hits / max(1, int(chosen.sum())),
                    f"recall_{round(100 * iou)}": hits / max(1, len(truth)),
                    f"f1_{round(100 * iou)}": 2 * hits / max(1, total),
                }
        return plain

    def class_figures(self, threshold: float) -> list[dict[str, float]]:
        """Return `found`, `precision_50`, `recall_50` and `f1_50` of each class, by masks if there are any.

        The classes are in the order of the ground truth. A precision without detections and a recall without
        annotated objects are NaN, and so is an F1 without both.

        Args:
            threshold: Least score of a detection.
        """
        matches = self.kinds[self.main_kind]
        chosen = (self.scores >= threshold) & ~matches.ignored[0]
        found_as, objects_of = (
            np.array([entry["category_id"] for entry in entries], np.int64)
            for entries in (self.results, self.ground_truth["annotations"])
        )
        rows = []
        for category in self.ground_truth["categories"]:
            own = chosen & (found_as == category["id"])
            found, hits = int(own.sum()), int((own & matches.correct[0]).sum())
            objects = int((self.objects & (objects_of == category["id"])).sum())
            rows.append(
                {"found": found}
                | {"precision_50": hits / found if found else math.nan}
                | {"recall_50": hits / objects if objects else math.nan}
                | {"f1_50": 2 * hits / (found + objects) if found + objects else math.nan}
            )
        return rows

    def best_threshold(self) -> tuple[float, float]:
        """Return the threshold with the highest F1 at IoU 0.5, of masks where there are any, and this F1."""
        matches = self.kinds[self.main_kind]
        counted = ~matches.ignored[0]
        scores = np.sort(self.scores[counted])
        hits = np.sort(self.scores[counted & matches.correct[0]])
        # The number of scores from each threshold on.
        found, correct = (len(each) - np.searchsorted(each, THRESHOLDS) for each in (scores, hits))
        f1 = 2 * correct / np.maximum(1, found + int(self.objects.sum()))
        best = int(f1.argmax())
        return float(THRESHOLDS[best]), float(f1[best])

    def errors(self, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """Return whether each annotation was missed [m], and whether each detection is false [n], at IoU 0.5.

        Args:
            threshold: Least score of a detection.
        """
        matches = self.kinds[self.main_kind]
        false = (self.scores >= threshold) & ~matches.correct[0] & ~matches.ignored[0]
        return self.objects & (matches.found_by[0] < threshold), false

    def error_rows(self, threshold: float, paths: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield a row for each missed and each false object, those of images with the most errors first.

        Args:
            threshold: Least score of a detection.
            paths: File of each image, in the order of the ground truth.

        Yields:
            `file`; `kind`, "missed" or "false"; `class`; `score`, empty if missed; `x0`, `y0`, `x1` and `y1`,
            the edges of the box in pixels; `best_iou` and `best_class`: the largest overlap with a detection
            of at least this score (of a false object: with an annotated object) of any class, and its class.
        """
        names = {each["id"]: each["name"] for each in self.ground_truth["categories"]}
        by_image = self.by_image(threshold)
        for index in self.worst(threshold):
            truth, found, missed, false = by_image[index]
            overlaps = self._overlaps(index, truth, found)
            missed_rows = (("missed", truth, found, n, overlaps[:, n]) for n in np.flatnonzero(missed))
            ranked = sorted(np.flatnonzero(false), key=lambda n: -found[n]["score"])
            false_rows = (("false", found, truth, n, overlaps[n]) for n in ranked)
            for kind, own, others, n, overlap in (*missed_rows, *false_rows):
                left, top, width, height = own[n]["bbox"]
                box = {"x0": left, "y0": top, "x1": left + width, "y1": top + height}
                best = int(overlap.argmax()) if overlap.any() else None
                yield {
                    "file": paths[index],
                    "kind": kind,
                    "class": names[own[n]["category_id"]],
                    "score": round(own[n]["score"], 4) if kind == "false" else "",
                    **{name: round(float(value), 2) for name, value in box.items()},
                    "best_iou": 0.0 if best is None else round(float(overlap[best]), 4),
                    "best_class": "" if best is None else names[others[best]["category_id"]],
                }

    def worst(self, threshold: float) -> list[int]:
        """Return the indices of the images with errors, those with the most errors first."""
        errors = [int(missed.sum() + false.sum()) for _, _, missed, false in self.by_image(threshold)]
        return [index for index in sorted(range(len(errors)), key=lambda n: -errors[n]) if errors[index]]

    def by_image(self, threshold: float) -> list[tuple[list[Entry], list[Entry], np.ndarray, np.ndarray]]:
        """Return for each image its annotations, its detections, and which are missed and false.

        Args:
            threshold: Least score of a detection.
        """
        position = {each["id"]: index for index, each in enumerate(self.ground_truth["images"])}
        missed, false = self.errors(threshold)
        sides: list[list[list[int]]] = [[[] for _ in position] for _ in range(2)]
        for side, entries in enumerate((self.ground_truth["annotations"], self.results)):
            for n, entry in enumerate(entries):
                if side == 0 or entry["score"] >= threshold:
                    sides[side][position[entry["image_id"]]].append(n)
        return [
            (
                [self.ground_truth["annotations"][n] for n in truth],
                [self.results[n] for n in found],
                missed[truth],
                false[found],
            )
            for truth, found in zip(*sides, strict=True)
        ]

    def _overlaps(self, index: int, truth: Sequence[Entry], found: Sequence[Entry]) -> np.ndarray:
        """Return the IoU of each detection with each annotation of an image [n, m]."""
        if not truth or not found:
            return np.zeros((len(found), len(truth)))
        crowds = [int(entry["iscrowd"]) for entry in truth]
        if self.main_kind == "box":
            first, second = ([entry["bbox"] for entry in side] for side in (found, truth))
        else:
            image = self.ground_truth["images"][index]
            size = image["height"], image["width"]
            first, second = (
                [encode_segmentation(entry["segmentation"], *size) for entry in side]
                for side in (found, truth)
            )
        return np.asarray(coco_tool().iou(first, second, crowds))


def match(
    ground_truth: dict[str, list[Entry]], results: Sequence[Entry], *, masks: bool, max_detections: int
) -> Matches:
    """Match detections to annotated objects of the same class at IoU 0.5 and 0.75, by pycocotools.

    Args:
        ground_truth: From `CocoSet.ground_truth`.
        results: Entries from `to_results`.
        masks: Match masks as well as boxes.
        max_detections: Most detections of an image and a class that are scored, by descending score.

    Example:
        >>> truth = coco_set.ground_truth()
        >>> matches = match(truth, ground_truth_as_results(truth), masks=True, max_detections=100)
        >>> matches.figures(0.5)["mask"]["f1_50"]
        1.0
    """
    kinds = {"box": _match(ground_truth, of_boxes(results), "bbox", max_detections)}
    if masks:
        kinds["mask"] = _match(ground_truth, of_masks(results), "segm", max_detections)
    return Matches(ground_truth=ground_truth, results=results, kinds=kinds)


def _match(
    ground_truth: dict[str, list[Entry]], results: list[Entry], kind: Any, max_detections: int
) -> KindMatches:
    evaluation = cocoeval(ground_truth, results, kind)
    params = evaluation.params
    params.iouThrs, params.maxDets = np.array(IOUS), [max_detections]
    params.areaRng, params.areaRngLbl = params.areaRng[:1], params.areaRngLbl[:1]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
    correct = np.zeros((len(IOUS), len(results)), bool)
    # A detection beyond the limit is in no evaluation.
    ignored = np.ones((len(IOUS), len(results)), bool)
    found_by = np.full((len(IOUS), len(ground_truth["annotations"])), -np.inf)
    scores = np.array([entry["score"] for entry in results])
    for each in evaluation.evalImgs:
        if each is None:  # neither objects nor detections of this class in this image
            continue
        found, truth = (np.array(each[name], np.int64) - 1 for name in ("dtIds", "gtIds"))
        ignored[:, found] = each["dtIgnore"]
        correct[:, found] = (each["dtMatches"] > 0) & ~ignored[:, found]
        by = np.asarray(each["gtMatches"], np.int64) - 1
        if len(truth) and len(scores):
            found_by[:, truth] = np.where(by >= 0, scores[by], -np.inf)
    return KindMatches(correct=correct, ignored=ignored, found_by=found_by)
