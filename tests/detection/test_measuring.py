"""Measures of objects are those of their pixels, drawn by hand; label images can be read as masks."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lambdanets.data.coco.masks import Masks
from lambdanets.data.images import read_values
from lambdanets.detection.masks import Objects, encode_mask
from lambdanets.detection.measuring import (
    COUNT_COLUMNS,
    count_rows,
    label_image,
    object_columns,
    object_rows,
    write_label_image,
    write_rows,
)
from lambdanets.detection.prediction import Detections

CLASSES = ("cell", "dirt")


def objects(masks: list[np.ndarray], labels: list[int]) -> Objects:
    """Objects with these masks, by descending score, and boxes that are not those of the masks."""
    height, width = masks[0].shape
    count = len(masks)
    return {
        "boxes": torch.tensor([[1.5, 2.0, 4.5, 8.0]] * count),
        "labels": torch.tensor(labels),
        "scores": torch.linspace(0.9, 0.5, count),
        "masks": Masks([encode_mask(mask, 0, 0, height, width) for mask in masks], height, width),
    }


def drawn() -> list[np.ndarray]:
    masks = [np.zeros((9, 14), bool) for _ in range(3)]
    masks[0][2:5, 3:9] = True
    masks[1][4:8, 7:10] = True
    return masks  # the last one is empty


def test_rows_measure_the_masks() -> None:
    each = Detections(path="a.png", objects=objects(drawn(), [1, 2, 1]))
    first, second, empty = object_rows(each, CLASSES, pixel_size=0.5)
    assert tuple(first) == object_columns(0.5)
    assert (first["file"], first["object"], first["class"], first["score"]) == ("a.png", 1, "cell", 0.9)
    assert [first[name] for name in ("x0", "y0", "x1", "y1", "x", "y", "area")] == [
        1.5,
        2,
        4.5,
        8,
        6,
        3.5,
        18,
    ]
    assert first["diameter"] == pytest.approx(math.sqrt(18 * 4 / math.pi), abs=1e-4)
    assert (first["area_um2"], first["diameter_um"]) == (4.5, pytest.approx(first["diameter"] / 2, abs=1e-4))
    assert [second[name] for name in ("object", "class", "x", "y", "area")] == [2, "dirt", 8.5, 6, 12]
    assert [empty[name] for name in ("x", "y", "area", "diameter")] == [3, 5, 0, 0]
    assert tuple(next(object_rows(each, CLASSES))) == object_columns(None)


def test_rows_without_masks_measure_the_boxes() -> None:
    own = objects(drawn(), [1, 2, 1])
    del own["masks"]
    row = next(object_rows(Detections(path="a.png", objects=own), CLASSES))
    assert [row[name] for name in ("x", "y", "area")] == [3, 5, 18]


def test_counts_have_every_class(tmp_path: Path) -> None:
    found, none = Detections(path="a,b.png", objects=objects(drawn(), [1, 1, 1])), Detections(path="c")
    rows = [*count_rows(found, CLASSES), *count_rows(none, CLASSES)]
    write_rows(rows, COUNT_COLUMNS, tmp_path / "new" / "counts.csv")
    with (tmp_path / "new" / "counts.csv").open(newline="") as file:
        assert [tuple(row.values()) for row in csv.DictReader(file)] == [
            *(("a,b.png", "cell", "3"), ("a,b.png", "dirt", "0"), ("c", "cell", "0"), ("c", "dirt", "0"))
        ]
    write_rows([], object_columns(None), tmp_path / "objects.csv")
    assert (tmp_path / "objects.csv").read_text() == ",".join(object_columns(None)) + "\n"


def test_a_label_image_gives_shared_pixels_to_the_better_object(tmp_path: Path) -> None:
    masks = drawn()
    labels = label_image(objects(masks, [1, 1, 1]), 9, 14)
    expected = np.where(masks[0], 1, np.where(masks[1], 2, 0))
    np.testing.assert_array_equal(labels, expected)
    write_label_image(labels, tmp_path / "labels.tif")
    np.testing.assert_array_equal(read_values(tmp_path / "labels.tif"), expected)
    with Image.open(tmp_path / "labels.tif") as image:
        assert image.mode == "I;16"


def test_more_objects_than_16_bits_hold(tmp_path: Path) -> None:
    one = np.zeros((2, 2), bool)
    one[0, 0] = True
    many = objects([one], [1])
    count = 2**16
    masks = Masks(many["masks"].segmentations * count, 2, 2)
    labels = label_image({"scores": torch.ones(count), "masks": masks}, 2, 2)
    assert (labels.dtype, labels[0, 0]) == (np.int32, 1)
    labels[1, 1] = count
    write_label_image(labels, tmp_path / "labels.tif")
    np.testing.assert_array_equal(read_values(tmp_path / "labels.tif"), labels)
