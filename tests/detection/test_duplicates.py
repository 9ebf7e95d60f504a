"""An object found twice is counted once, and each counted object is in the label image."""

import numpy as np
import pytest
import torch

from lambdanets.data.coco.masks import Masks, rasterise
from lambdanets.detection.duplicates import entries_without_duplicates, without_duplicates
from lambdanets.detection.masks import Objects, encode_mask
from lambdanets.detection.measuring import label_image
from lambdanets.detection.results import to_results

HEIGHT, WIDTH = 40, 60


def objects_of(*rows: tuple[float, int, np.ndarray]) -> Objects:
    """Objects of (score, label, mask), by descending score."""
    scores, labels, masks = zip(*sorted(rows, key=lambda row: -row[0]), strict=True)
    boxes = []
    for mask in masks:
        y, x = np.nonzero(mask)
        boxes.append([x.min(), y.min(), x.max() + 1, y.max() + 1])
    encoded = [encode_mask(mask, 0, 0, HEIGHT, WIDTH) for mask in masks]
    return {
        "boxes": torch.tensor(np.array(boxes), dtype=torch.float32),
        "labels": torch.tensor(labels),
        "scores": torch.tensor(scores),
        "masks": Masks(encoded, HEIGHT, WIDTH),
    }


def block(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    return mask


def scores(objects: Objects) -> list[float]:
    return [round(value, 2) for value in objects["scores"].tolist()]


def test_of_an_object_and_its_part_the_better_one_stays() -> None:
    whole, part = block(4, 4, 14, 34), block(4, 4, 14, 14)  # IoU of masks and boxes: 1/3
    assert scores(without_duplicates(objects_of((0.9, 1, whole), (0.8, 1, part)))) == [0.9]
    assert scores(without_duplicates(objects_of((0.8, 1, whole), (0.9, 1, part)))) == [0.9]


def test_objects_stay_that_share_less_or_are_of_other_classes() -> None:
    first, beside = block(4, 4, 14, 14), block(4, 9, 14, 19)  # half of each is shared
    assert len(without_duplicates(objects_of((0.9, 1, first), (0.8, 1, beside)))["scores"]) == 2
    assert len(without_duplicates(objects_of((0.9, 1, first), (0.8, 2, first)))["scores"]) == 2


def test_boxes_alone_are_no_evidence() -> None:
    objects = objects_of((0.9, 1, block(4, 4, 14, 34)), (0.8, 1, block(4, 4, 14, 14)))
    del objects["masks"]
    assert without_duplicates(objects) is objects


def test_a_dropped_object_drops_no_other() -> None:
    chain = [block(0, left, 10, left + 10) for left in (0, 4, 8)]  # the last shares 60 % with the second only
    found = without_duplicates(objects_of(*zip((0.9, 0.8, 0.7), (1, 1, 1), chain, strict=True)))
    assert scores(found) == [0.9, 0.7]


def test_an_object_below_several_better_ones_goes() -> None:
    sides = (0.9, 1, block(0, 0, 10, 10)), (0.8, 1, block(0, 16, 10, 26))
    assert scores(without_duplicates(objects_of(*sides, (0.7, 1, block(0, 6, 10, 20))))) == [0.9, 0.8]
    assert len(without_duplicates(objects_of(*sides, (0.7, 1, block(0, 7, 10, 19))))["scores"]) == 3


@pytest.mark.parametrize("seed", range(8))
def test_each_object_keeps_half_of_its_pixels_in_the_label_image(seed: int) -> None:
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(40):
        top, left = draw.integers(0, (HEIGHT - 12, WIDTH - 12))
        high, wide = draw.integers(2, 12, 2)
        rows.append((round(float(draw.random()), 1), 1, block(top, left, top + high, left + wide)))
    objects = objects_of(*rows)
    found = without_duplicates(objects)
    assert 0 < len(found["scores"]) < len(rows)
    areas = [int(mask.sum()) for mask in _drawn(found)]
    shown = np.bincount(label_image(found, HEIGHT, WIDTH).ravel(), minlength=len(areas) + 1)[1:]
    assert (2 * shown >= areas).all()
    # Each dropped object shares more than half with the others.
    again = [without_duplicates(_joined(found, objects, index)) for index in range(len(rows))]
    assert all(len(each["scores"]) == len(found["scores"]) for each in again)
    entries = to_results([objects, objects], [5, 3], [7])
    left = to_results([found, found], [5, 3], [7])
    assert entries_without_duplicates(entries) == left


def _drawn(objects: Objects) -> np.ndarray:
    return rasterise(objects["masks"].segmentations, HEIGHT, WIDTH)


def _joined(found: Objects, objects: Objects, index: int) -> Objects:
    """The found objects and one more, of a lower score."""
    masks = [*found["masks"].segmentations, objects["masks"].segmentations[index]]
    return {
        "boxes": torch.cat([found["boxes"], objects["boxes"][index : index + 1]]),
        "labels": torch.cat([found["labels"], objects["labels"][index : index + 1]]),
        "scores": torch.cat([found["scores"], torch.tensor([-1.0])]),
        "masks": Masks(masks, HEIGHT, WIDTH),
    }
