"""Scores against pycocotools in a process of its own, and against figures worked out by hand."""

import copy
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lambdanets.data import DataError
from lambdanets.detection import (
    ground_truth_as_results,
    of_boxes,
    of_masks,
    score,
    to_results,
    write_results,
)

Entry = dict[str, Any]
GroundTruth = Callable[..., dict[str, list[Entry]]]
Found = Callable[..., Entry]

ORACLE = """
import json, sys
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
truth = COCO(sys.argv[1])
stats = {}
for kind, path in zip(("bbox", "segm"), sys.argv[2:]):
    evaluation = COCOeval(truth, truth.loadRes(path), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    stats[kind] = evaluation.stats.tolist()
print(json.dumps(stats))
"""


def oracle(folder: Path, truth: dict[str, list[Entry]], *results: list[Entry]) -> list[float]:
    """What pycocotools says of files, with its -1 as NaN: 12 figures of boxes, and 12 of masks."""
    paths = [folder / f"{number}.json" for number in range(len(results) + 1)]
    paths[0].write_text(json.dumps(truth))
    for path, entries in zip(paths[1:], results, strict=True):
        write_results(entries, path)
    done = subprocess.run(
        [sys.executable, "-c", ORACLE, *map(str, paths)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    stats = json.loads(done.stdout.splitlines()[-1])
    return [math.nan if value == -1 else value for kind in stats.values() for value in kind]


@pytest.mark.parametrize("seed", [0, 1])
def test_all_figures_are_those_of_pycocotools(
    tmp_path: Path, random_set: Callable[..., Any], seed: int
) -> None:
    truth, detections = random_set(seed)
    tensors = [{name: torch.from_numpy(value) for name, value in each.items()} for each in detections]
    results = to_results(tensors, [image["id"] for image in truth["images"]], [3, 7, 20])
    expected = oracle(tmp_path, truth, of_boxes(results), of_masks(results))
    figures = score(truth, results, masks=True).figures()
    assert list(figures) == [
        f"{kind}_{name}"
        for kind in ("box", "mask")
        for name in (
            *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
            *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
        )
    ]
    np.testing.assert_array_equal(list(figures.values()), expected)
    assert len({round(value, 6) for value in expected}) > 15, "the figures must differ, to tell them apart"
    boxes = score(truth, of_boxes(results), masks=False)
    np.testing.assert_array_equal(list(boxes.figures().values()), expected[:12])
    assert boxes.mask is None


def test_sizes_of_masks_are_not_those_of_their_boxes(tmp_path: Path, ground_truth: GroundTruth) -> None:
    """A thin mask in a large box: a file with both would be told to hold a large object."""
    thin = {"segmentation": [[0, 0, 120, 110, 120, 111, 0, 1]], "area": 120}
    truth = ground_truth([(1, 3, 0, 0, 120, 111, thin)])
    [right] = ground_truth_as_results(truth)
    [dot] = ground_truth_as_results(ground_truth([(1, 3, 150, 9, 1, 1)]))
    results = [right | {"segmentation": dot["segmentation"]}, right | {"score": 0.5}]
    figures = score(truth, results, masks=True).figures()
    assert figures["mask_ap_small"] == pytest.approx(0.5)
    np.testing.assert_array_equal(
        list(figures.values()), oracle(tmp_path, truth, of_boxes(results), of_masks(results))
    )


def test_ties_are_ranked_as_pycocotools_ranks_them(
    tmp_path: Path, ground_truth: GroundTruth, found: Found
) -> None:
    truth = ground_truth([(1, 3, 0, 0, 50, 50), (2, 3, 0, 0, 50, 50)])
    right, wrong = found(0.5, 1, 3, 0, 0, 50, 50), found(0.5, 1, 3, 100, 100, 50, 50)
    elsewhere = found(0.5, 2, 3, 100, 100, 50, 50)
    aps = []
    for results in ([right, wrong], [wrong, right], [elsewhere, right]):
        figures = score(truth, results, masks=False).figures()
        np.testing.assert_array_equal(list(figures.values()), oracle(tmp_path, truth, results))
        aps.append(figures["box_ap"])
    assert aps == pytest.approx([51 / 101, 51 / 202, 51 / 101])


def test_the_order_of_results_with_different_scores_does_not_matter(random_set: Callable[..., Any]) -> None:
    truth, detections = random_set(2)
    draw = np.random.default_rng(0)
    for each in detections:
        each["scores"] = draw.random(len(each["scores"]), np.float32)
    tensors = [{name: torch.from_numpy(value) for name, value in each.items()} for each in detections]
    results = to_results(tensors, [image["id"] for image in truth["images"]], [3, 7, 20])
    shuffled = [results[index] for index in draw.permutation(len(results))]
    figures, others = (score(truth, each, masks=True).figures() for each in (results, shuffled))
    np.testing.assert_array_equal(list(figures.values()), list(others.values()))


def test_what_is_annotated_is_a_perfect_result(random_set: Callable[..., Any]) -> None:
    truth, _ = random_set(0)
    scores = score(truth, ground_truth_as_results(truth), masks=True)
    assert any(entry["iscrowd"] for entry in truth["annotations"])
    for kind in scores.kinds.values():
        values = {name: value for name, value in kind.values.items() if name not in ("ar1", "ar10")}
        assert values == pytest.approx(dict.fromkeys(values, 1))
        assert kind.class_ap == pytest.approx([1, 1, math.nan], nan_ok=True)
        assert kind.class_ap50 == pytest.approx([1, 1, math.nan], nan_ok=True)


@pytest.mark.parametrize(
    ("results", "ap", "ap50", "ap75"),
    [
        ([], 0, 0, 0),
        ([(0.9, 1, 3, 0, 0, 100, 100)], 51 / 101, 51 / 101, 51 / 101),  # one of two: recall up to 0.5
        ([(0.9, 1, 3, 0, 0, 100, 62)], 0.3 * 51 / 101, 51 / 101, 0),  # an IoU of 0.62: right up to 0.6
        ([(0.9, 1, 7, 0, 0, 100, 100)], 0, 0, 0),  # of another class
        # Twice the same: the second is wrong, and comes before the last that is right.
        (
            [(0.9, 1, 3, 0, 0, 100, 100), (0.8, 1, 3, 0, 0, 100, 100), (0.7, 2, 3, 9, 9, 50, 50)],
            *[(51 + 50 * 2 / 3) / 101] * 3,
        ),
        # In an image without objects, ahead of all others.
        ([(0.9, 3, 3, 0, 0, 9, 9), (0.8, 1, 3, 0, 0, 100, 100)], *[51 / 202] * 3),
        # In a crowd nothing is wrong.
        ([(0.9, 2, 3, 150, 150, 9, 9), (0.8, 1, 3, 0, 0, 100, 100)], *[51 / 101] * 3),
    ],
)
def test_figures_worked_out_by_hand(
    ground_truth: GroundTruth,
    found: Found,
    results: list[tuple[Any, ...]],
    ap: float,
    ap50: float,
    ap75: float,
) -> None:
    crowd = (2, 3, 140, 140, 60, 60, {"iscrowd": 1})
    truth = ground_truth([(1, 3, 0, 0, 100, 100), (2, 3, 9, 9, 50, 50), crowd], images=3)
    scores = score(truth, [found(*each) for each in results], masks=False)
    figures = [scores.box.values[name] for name in ("ap", "ap50", "ap75")]
    assert figures == pytest.approx([ap, ap50, ap75])
    assert scores.box.class_ap == pytest.approx([ap, math.nan, math.nan], nan_ok=True)
    assert scores.box.class_ap50 == pytest.approx([ap50, math.nan, math.nan], nan_ok=True)
    assert scores.objects.tolist() == [2, 0, 0]
    assert scores.images == 3


def test_nothing_found_is_zero_and_what_is_not_there_is_undefined(ground_truth: GroundTruth) -> None:
    truth = ground_truth([(1, 3, 0, 0, 50, 50)])
    figures = score(truth, [], masks=True).figures()
    undefined = {f"{kind}_{name}" for kind in ("box", "mask") for name in UNDEFINED}
    assert {name for name, value in figures.items() if math.isnan(value)} == undefined
    assert {value for name, value in figures.items() if name not in undefined} == {0}


UNDEFINED = ("ap_small", "ap_large", "ar_small", "ar_large")  # where all objects are medium


def test_a_set_without_objects_has_no_figures(ground_truth: GroundTruth, found: Found) -> None:
    scores = score(ground_truth([]), [found(0.5, 1, 3, 0, 0, 9, 9)], masks=False)
    assert all(math.isnan(value) for value in scores.figures().values())
    assert np.isnan(scores.box.mean_precision).all()


def test_masks_are_judged_apart_from_boxes(ground_truth: GroundTruth) -> None:
    truth = ground_truth([(1, 3, 0, 0, 100, 100)])
    half = truth["annotations"][0] | {"segmentation": [[0, 0, 100, 0, 100, 62, 0, 62]]}
    results = ground_truth_as_results(truth | {"annotations": [half]})
    scores = score(truth, results, masks=True)
    assert scores.box.values["ap"] == pytest.approx(1)
    assert scores.mask is not None
    assert scores.mask.values["ap"] == pytest.approx(0.3)


def test_more_than_a_hundred_objects_need_more_detections(ground_truth: GroundTruth) -> None:
    truth = ground_truth([(1, 3, 15 * (n % 11), 15 * (n // 11), 10, 10) for n in range(110)])
    results = ground_truth_as_results(truth)
    coco = score(truth, results, masks=False).figures()
    assert coco["box_ar100"] == pytest.approx(100 / 110)
    assert coco["box_ap"] == pytest.approx(91 / 101)  # recalls 0, 0.01, ... 0.9
    assert coco["box_ar10"] == pytest.approx(10 / 110)
    more = score(truth, results, masks=False, max_detections=150).figures()
    assert [more["box_ap"], more["box_ar150"], more["box_ar10"]] == pytest.approx([1, 1, 10 / 110])
    assert "box_ar100" not in more
    with pytest.raises(ValueError, match="more than 10, got 10"):
        score(truth, results, masks=False, max_detections=10)


def test_curves_are_of_what_was_right_so_far(ground_truth: GroundTruth, found: Found) -> None:
    truth = ground_truth([(1, 3, 0, 0, 100, 100), (1, 7, 0, 0, 100, 100), (2, 7, 0, 0, 50, 50)])
    results = [
        found(0.9, 1, 3, 0, 0, 100, 62),
        found(0.9, 1, 7, 0, 0, 100, 100),
        found(0.8, 2, 7, 90, 90, 50, 50),
        found(0.7, 2, 7, 0, 0, 50, 50),
    ]
    box = score(truth, results, masks=False).box
    assert box.precision.shape == (3, 3, 101)
    cat, dog, fish = box.precision.transpose(1, 0, 2)
    assert cat == pytest.approx(np.repeat([[1], [0], [0.3]], 101, 1))
    assert dog == pytest.approx(np.tile([1] * 51 + [2 / 3] * 50, (3, 1)))
    assert np.isnan(fish).all()
    assert box.mean_precision == pytest.approx((cat + dog) / 2)
    values = [box.values[name] for name in ("ap50", "ap75", "ap")]
    assert values == pytest.approx(box.mean_precision.mean(1))


def test_classes_keep_the_order_of_their_labels(ground_truth: GroundTruth) -> None:
    """`open_coco_split(classes=...)` lists categories in the order of a run, whatever their ids are."""
    truth = ground_truth([(1, 3, 0, 0, 50, 50), (1, 20, 60, 60, 50, 50), (2, 20, 0, 0, 50, 50)])
    truth["categories"] = truth["categories"][::-1]
    results = [entry for entry in ground_truth_as_results(truth) if entry["category_id"] == 20]
    scores = score(truth, results, masks=True)
    expected = [("fish", 2, 1), ("dog", 0, math.nan), ("cat", 1, 0)]
    found = zip(scores.classes, scores.objects, scores.box.class_ap, strict=True)
    assert [(name, count) for name, count, _ in found] == [row[:2] for row in expected]
    np.testing.assert_array_equal(scores.box.class_ap, [row[2] for row in expected])
    np.testing.assert_array_equal(scores.box.precision[0, :, 0], [row[2] for row in expected])


def test_an_annotation_of_id_0_can_be_found(ground_truth: GroundTruth) -> None:
    truth = ground_truth([(1, 3, 0, 0, 50, 50, {"id": 0}), (1, 3, 90, 90, 50, 50, {"id": 1})])
    figures = score(truth, ground_truth_as_results(truth), masks=True).figures()
    assert figures["mask_ap"] == pytest.approx(1)


def test_nothing_is_printed_or_changed(
    random_set: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    truth, _ = random_set(1)
    results = ground_truth_as_results(truth)
    before = copy.deepcopy((truth, results))
    score(truth, results, masks=True)
    assert (truth, results) == before
    assert capfd.readouterr() == ("", "")


def test_figures_can_be_written_down(ground_truth: GroundTruth, found: Found) -> None:
    truth = ground_truth([(1, 3, 0, 0, 50, 50), (2, 3, 0, 0, 50, 50)])
    scores = score(truth, [found(0.9, 1, 3, 0, 0, 50, 50)], masks=False)
    plain = json.loads(json.dumps(scores.to_plain(), allow_nan=False))
    assert plain["images"] == 2
    assert plain["max_detections"] == 100
    assert plain["box_ap"] == scores.figures()["box_ap"] == pytest.approx(51 / 101)
    assert plain["box_ap_small"] is None
    cat, dog, _ = plain["classes"]
    assert cat == {"class": "cat", "objects": 2, "box_ap": plain["box_ap"], "box_ap50": plain["box_ap50"]}
    assert dog == {"class": "dog", "objects": 0, "box_ap": None, "box_ap50": None}


@pytest.mark.parametrize(
    ("change", "masks", "words"),
    [
        ({"image_id": 9}, False, "result 1 is of image 9"),
        ({"category_id": 4}, False, "result 1 is of category 4"),
        ({"segmentation": None}, True, "result 1 has no segmentation"),
        ({"bbox": None}, False, "result 1 has no bbox"),
        ({"segmentation": {"size": [100, 200], "counts": ""}}, True, "\\[100, 200\\], and image 1 is"),
    ],
)
def test_results_of_something_else_are_refused(
    ground_truth: GroundTruth, change: Entry, masks: bool, words: str
) -> None:
    truth = ground_truth([(1, 3, 0, 0, 50, 50), (1, 3, 60, 60, 50, 50)])
    results = ground_truth_as_results(truth)
    results[1] = {name: value for name, value in (results[1] | change).items() if value is not None}
    with pytest.raises(DataError, match=words):
        score(truth, results, masks=masks)
