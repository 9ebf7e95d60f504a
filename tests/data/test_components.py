"""Connected parts and bounding boxes are scipy's, and those of a search pixel by pixel."""

import numpy as np
import pytest

from lambdanets.data.coco.components import bounding_boxes, even_pixels, label_parts


def searched(mask: np.ndarray) -> np.ndarray:
    """Parts of a mask, numbered by their first pixels, by visiting the neighbours of each pixel."""
    numbers, count = np.zeros(mask.shape, int), 0
    for start in zip(*np.nonzero(mask), strict=True):
        if numbers[start]:
            continue
        count += 1
        waiting = [start]
        while waiting:
            row, column = waiting.pop()
            if not (0 <= row < mask.shape[0] and 0 <= column < mask.shape[1]):
                continue
            if mask[row, column] and not numbers[row, column]:
                numbers[row, column] = count
                waiting += [(row + y, column + x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    return numbers


def comb(side: int) -> np.ndarray:
    """One winding line: rows that are joined at one end in turn."""
    mask = np.zeros((side, side), bool)
    mask[::2] = mask[1::4, -1] = mask[3::4, 0] = True
    return mask


def spirals() -> np.ndarray:
    """Two lines that wind around each other, a pixel apart: their rows are joined late."""
    mask = np.zeros((23, 23), bool)
    for ring in range(0, 11, 2):
        mask[ring, ring : 23 - ring] = mask[22 - ring, ring : 23 - ring] = True
        mask[ring : 23 - ring, ring] = mask[ring : 23 - ring, 22 - ring] = True
    mask[11:, 11] = False
    return mask


MASKS = [np.random.default_rng(n).random((1 + 7 * n % 29, 1 + 11 * n % 31)) < n / 40 for n in range(40)]
MASKS += [comb(33), spirals(), np.zeros((0, 5), bool), np.zeros((5, 0), bool), np.ones((1, 1), bool)]


@pytest.mark.parametrize("index", range(len(MASKS)))
def test_parts_are_those_of_a_search(index: int) -> None:
    expected = searched(MASKS[index])
    for mask in (MASKS[index], np.asfortranarray(MASKS[index])):
        labels, count = label_parts(mask)
        np.testing.assert_array_equal(labels, expected)
        assert count == expected.max(initial=0)
    for number, box in enumerate(bounding_boxes(labels, count), start=1):
        rows, columns = np.nonzero(expected == number)
        assert box == (slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1))


def test_parts_are_those_of_scipy() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    draw = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(draw.random((400, 500)), 2) > 0.5
    for mask in (*MASKS[:42], smooth):
        labels, count = label_parts(mask)
        expected, expected_count = ndimage.label(mask, np.ones((3, 3)))
        np.testing.assert_array_equal(labels, expected)
        assert count == expected_count
        assert bounding_boxes(labels, count) == ndimage.find_objects(expected)
        values = labels % 3
        even = ndimage.minimum_filter(values, 3) == ndimage.maximum_filter(values, 3)
        np.testing.assert_array_equal(even_pixels(values), even)
