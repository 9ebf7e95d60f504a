"""Matches at a threshold: by hand, and as a greedy search in plain Python finds them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from lambdanets.detection import ground_truth_as_results, match, of_boxes, to_results
from lambdanets.detection.matching import ERROR_COLUMNS, THRESHOLDS, Matches
from lambdanets.detection.results import Entry

GroundTruth = Callable[..., dict[str, list[Entry]]]
Found = Callable[..., Entry]


def greedy(truth: dict[str, list[Entry]], results: list[Entry], threshold: float, iou: float) -> list[int]:
    """Return hits, false and missed objects of masks; each detection in turn takes its best free object."""
    hits = false = missed = 0
    encoded = ground_truth_as_results(
        truth | {"annotations": [a | {"iscrowd": 0} for a in truth["annotations"]]}
    )
    for image in truth["images"]:
        for category in truth["categories"]:
            own = [
                (mask["segmentation"], entry["iscrowd"])
                for entry, mask in zip(truth["annotations"], encoded, strict=True)
                if (entry["image_id"], entry["category_id"]) == (image["id"], category["id"])
            ]
            found = [
                each
                for each in results
                if (each["image_id"], each["category_id"]) == (image["id"], category["id"])
                and each["score"] >= threshold
            ]
            free = [index for index, (_, crowd) in enumerate(own) if not crowd]
            for each in sorted(found, key=lambda entry: -entry["score"]):
                overlap = [
                    float(np.asarray(coco_mask.iou([each["segmentation"]], [mask], [crowd]))[0, 0])
                    for mask, crowd in own
                ]
                best = max(free, key=lambda index: overlap[index], default=None)
                if best is not None and overlap[best] >= iou:
                    hits += 1
                    free.remove(best)
                else:
                    crowded = any(crowd and overlap[n] >= iou for n, (_, crowd) in enumerate(own))
                    false += not crowded
            missed += len(free)
    return [hits, false, missed]


@pytest.mark.parametrize("seed", range(3))
def test_figures_are_those_of_a_greedy_search(random_set: Callable[..., Any], seed: int) -> None:
    truth, detections = random_set(seed)
    tensors = [{name: torch.from_numpy(value) for name, value in each.items()} for each in detections]
    results = to_results(tensors, [image["id"] for image in truth["images"]], [3, 7, 20])
    matches = match(truth, results, masks=True, max_detections=100)
    for threshold in (0.0, 0.35, 0.7, 1.1):
        figures = matches.figures(threshold)
        for iou in (0.5, 0.75):
            hits, false, missed = greedy(truth, results, threshold, iou)
            name = round(100 * iou)
            assert figures["mask"][f"precision_{name}"] == hits / max(1, hits + false)
            assert figures["mask"][f"recall_{name}"] == hits / max(1, hits + missed)
            assert figures["mask"][f"f1_{name}"] == pytest.approx(2 * hits / (2 * hits + false + missed))
            if iou == 0.5:
                missing, wrong = matches.errors(threshold)
                assert (figures["found"], figures["annotated"]) == (hits + false, hits + missed)
                assert (missing.sum(), wrong.sum()) == (missed, false)
    f1 = [matches.figures(each)["mask"]["f1_50"] for each in THRESHOLDS]
    assert matches.best_threshold() == (THRESHOLDS[int(np.argmax(f1))], pytest.approx(max(f1)))
    assert len(set(f1)) > 3


@pytest.fixture
def by_hand(ground_truth: GroundTruth, found: Found) -> Matches:
    """Three cats and a dog: a cat is found, one is taken for a dog, one only with a low score, a dog not."""
    truth = ground_truth(
        [(1, 3, 10, 10, 20, 20), (1, 3, 50, 50, 20, 20), (2, 3, 100, 100, 40, 40), (2, 7, 10, 150, 20, 20)],
        images=3,
    )
    results = [
        found(0.9, 1, 3, 10, 10, 20, 18),
        found(0.8, 1, 7, 50, 52, 20, 20),
        found(0.3, 2, 3, 100, 100, 40, 40),
        found(0.7, 3, 3, 0, 0, 5, 5),
    ]
    return match(truth, results, masks=False, max_detections=100)


def test_counts_are_compared_by_class_and_image(by_hand: Matches) -> None:
    figures = by_hand.figures(0.5)
    assert (figures["found"], figures["annotated"]) == (3, 4)
    # Image 1: a cat too few and a dog too many; image 2: a cat and a dog too few; image 3: a cat too many.
    assert figures["count_error"] == pytest.approx((2 + 2 + 1) / 3)
    assert (figures["box"]["precision_50"], figures["box"]["recall_50"]) == (1 / 3, 1 / 4)
    assert by_hand.best_threshold() == (0.05, 2 * 2 / (4 + 4))


def test_figures_of_each_class(by_hand: Matches) -> None:
    nan = pytest.approx(float("nan"), nan_ok=True)
    names = ("found", "precision_50", "recall_50", "f1_50")
    rows = [tuple(row[name] for name in names) for row in by_hand.class_figures(0.5)]
    # Of three cats one is found, and one that is none; the dog found is a cat; there are no fish.
    assert rows == [(2, 1 / 2, 1 / 3, 2 / 5), (1, 0, 0, 0), (0, nan, nan, nan)]
    assert [row["found"] for row in by_hand.class_figures(0.0)] == [3, 1, 0]


def test_errors_have_their_nearest_objects(by_hand: Matches) -> None:
    rows = list(by_hand.error_rows(0.5, ["a", "b", "c"]))
    assert all(tuple(row) == ERROR_COLUMNS for row in rows)
    short = [(row["file"], row["kind"], row["class"], row["score"], row["best_class"]) for row in rows]
    assert short == [
        ("a", "missed", "cat", "", "dog"),
        ("a", "false", "dog", 0.8, "cat"),
        ("b", "missed", "cat", "", ""),
        ("b", "missed", "dog", "", ""),
        ("c", "false", "cat", 0.7, ""),
    ]
    assert [rows[1][name] for name in ("x0", "y0", "x1", "y1")] == [50, 52, 70, 72]
    assert rows[0]["best_iou"] == rows[1]["best_iou"] == pytest.approx(18 / 22, abs=1e-4)
    assert by_hand.worst(0.5) == [0, 1, 2]
    assert [row["kind"] for row in by_hand.error_rows(0.2, ["a", "b", "c"]) if row["file"] == "b"] == [
        "missed"
    ]


def test_sets_without_objects_or_detections(ground_truth: GroundTruth, found: Found) -> None:
    nothing = match(ground_truth([]), [], masks=True, max_detections=100)
    assert nothing.figures(0.5)["mask"]["f1_50"] == 0
    assert list(nothing.error_rows(0.5, ["a", "b"])) == []
    missed = match(ground_truth([(1, 3, 10, 10, 20, 20)]), [], masks=False, max_detections=100)
    [row] = missed.error_rows(0.5, ["a", "b"])
    assert (row["kind"], row["best_iou"], row["best_class"]) == ("missed", 0, "")
    false = match(ground_truth([]), [found(0.9, 2, 3, 0, 0, 9, 9)], masks=False, max_detections=100)
    assert [row["file"] for row in false.error_rows(0.5, ["a", "b"])] == ["b"]
    assert false.figures(0.5)["box"] | {"found": 1} == {
        f"{name}_{iou}": 0 for iou in (50, 75) for name in ("precision", "recall", "f1")
    } | {"found": 1}


def test_detections_beyond_the_limit_are_not_false(ground_truth: GroundTruth, found: Found) -> None:
    results = [found(0.9 - n / 100, 1, 3, 5 * n, 0, 4, 4) for n in range(20)]
    matches = match(ground_truth([]), of_boxes(results), masks=False, max_detections=12)
    assert matches.figures(0.5)["found"] == 12
    assert len(list(matches.error_rows(0.5, ["a", "b"]))) == 12
