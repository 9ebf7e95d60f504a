"""Curves and the table of classes."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lambdanets.detection import (
    draw_precision_recall,
    ground_truth_as_results,
    of_boxes,
    score,
    write_per_class,
)

Entry = dict[str, Any]
GroundTruth = Callable[..., dict[str, list[Entry]]]
MEAN = (200, 71, 47)  # the colour of the curve over all IoUs


def drawn(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def coloured(pixels: np.ndarray) -> np.ndarray:
    return np.abs(pixels - MEAN).sum(-1) < 30


def test_curves_of_boxes_and_masks_stand_side_by_side(tmp_path: Path, ground_truth: GroundTruth) -> None:
    truth = ground_truth([(1, 3, 0, 0, 100, 100), (2, 7, 0, 0, 50, 50)])
    results = ground_truth_as_results(truth)
    path = tmp_path / "new" / "curves.png"
    draw_precision_recall(score(truth, results, masks=True), path, "a run")
    both = drawn(path)
    halves = np.array_split(coloured(both), 2, axis=1)
    assert all(half.sum() > 300 for half in halves)
    draw_precision_recall(score(truth, of_boxes(results), masks=False), path)
    assert drawn(path).shape[1] < 0.7 * both.shape[1]
    assert [file.name for file in path.parent.iterdir()] == ["curves.png"]


def test_a_curve_ends_where_nothing_more_is_found(tmp_path: Path, ground_truth: GroundTruth) -> None:
    """Half of the objects: the curve falls in the middle of the axes, and not for a perfect result."""
    truth = ground_truth([(1, 3, 0, 0, 100, 100), (2, 3, 0, 0, 50, 50)])
    results = of_boxes(ground_truth_as_results(truth))
    path = tmp_path / "curves.png"
    lengths = []
    for found in (results[:1], results):
        draw_precision_recall(score(truth, found, masks=False), path)
        pixels = coloured(drawn(path))
        lengths.append(pixels[: pixels.shape[0] // 3].sum(1).max())
    assert lengths[0] == pytest.approx(lengths[1] / 2, rel=0.05)


def test_a_set_without_objects_can_be_drawn(tmp_path: Path, ground_truth: GroundTruth) -> None:
    draw_precision_recall(score(ground_truth([]), [], masks=True), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_the_table_has_a_row_for_each_class(tmp_path: Path, ground_truth: GroundTruth) -> None:
    truth = ground_truth([(1, 3, 0, 0, 100, 100), (2, 3, 0, 0, 50, 50), (2, 7, 0, 0, 50, 50)])
    truth["categories"][2]["name"] = 'a "fish", salted'
    results = ground_truth_as_results(truth)[:1]
    path = tmp_path / "new" / "classes.csv"
    write_per_class(score(truth, results, masks=True), path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["cat", "dog", 'a "fish", salted']
    assert [row["objects"] for row in rows] == ["2", "1", "0"]
    for column in ("box_ap", "box_ap50", "mask_ap", "mask_ap50"):
        assert [row[column] for row in rows] == ["0.50495", "0", ""]
    write_per_class(score(truth, of_boxes(results), masks=False), path)
    assert path.read_text().splitlines()[0] == "class,objects,box_ap,box_ap50"
