"""Every form of a mask becomes the pixels that it means, and a damaged one is told before it is drawn."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as tool

from lambdanets.data.coco.masks import clip_polygons, rasterise, rasterise_at, read_counts, segmentation_fault

MASKS = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda size: arrays(np.uint8, size, elements=st.integers(0, 1))
)


def runs(mask: np.ndarray) -> list[int]:
    """Run lengths down the columns, of background first, written by hand."""
    lengths = [(value, len(list(group))) for value, group in groupby(mask.T.ravel().tolist())]
    return [0] * (lengths[0][0] == 1) + [length for _, length in lengths]


def compressed(mask: np.ndarray) -> dict[str, Any]:
    written = tool.encode(np.asfortranarray(mask))
    return {"size": list(written["size"]), "counts": written["counts"].decode()}


@given(MASKS)
def test_compressed_run_lengths_are_read(mask: np.ndarray) -> None:
    assert read_counts(compressed(mask)["counts"]).tolist() == runs(mask)


def test_long_runs_are_read() -> None:
    mask = np.zeros((3000, 2000), np.uint8)
    mask[5:2900, 3:1999] = 1
    mask[100:102, 50] = 0
    assert read_counts(compressed(mask)["counts"]).tolist() == runs(mask)


@given(MASKS)
def test_both_forms_of_run_lengths_are_drawn(mask: np.ndarray) -> None:
    height, width = mask.shape
    forms = [compressed(mask), {"size": [height, width], "counts": runs(mask)}]
    np.testing.assert_array_equal(rasterise(forms, height, width), [mask, mask])
    faults = [segmentation_fault(form, height, width) for form in forms]
    assert faults == ([None, None] if mask.any() else ["its mask is empty"] * 2)


@given(MASKS, *[st.lists(st.integers(0, 8), min_size=1, max_size=12)] * 2)
def test_rows_and_columns_are_those_of_the_whole_mask(
    mask: np.ndarray, rows: list[int], columns: list[int]
) -> None:
    height, width = mask.shape
    y, x = np.sort(np.array(rows) % height), np.sort(np.array(columns) % width)
    top, left, part = rasterise_at(compressed(mask), height, width, y, x)
    drawn = np.zeros((len(y), len(x)), np.uint8)
    drawn[top : top + part.shape[0], left : left + part.shape[1]] = part
    np.testing.assert_array_equal(drawn, mask[np.ix_(y, x)])
    assert part.size == 0 or all(edge.any() for edge in (part[0], part[-1], part[:, 0], part[:, -1]))


@given(st.tuples(*[st.integers(0, 8)] * 2), st.tuples(*[st.integers(1, 8)] * 2))
def test_a_rectangle_is_the_pixels_within(start: tuple[int, int], size: tuple[int, int]) -> None:
    (left, top), (width, height) = start, size
    right, bottom = left + width, top + height
    polygon = [left, top, right, top, right, bottom, left, bottom]
    expected = np.zeros((1, 17, 16), np.uint8)
    expected[0, top:bottom, left:right] = 1
    np.testing.assert_array_equal(rasterise([[polygon]], 17, 16), expected)


def test_several_polygons_are_one_mask() -> None:
    parts = [[0, 0, 2, 0, 2, 2, 0, 2], [4, 4, 6, 4, 6, 5, 4, 5]]
    expected = np.zeros((6, 7), np.uint8)
    expected[:2, :2] = 1
    expected[4, 4:6] = 1
    np.testing.assert_array_equal(rasterise([parts], 6, 7), expected[None])
    assert rasterise([], 6, 7).shape == (0, 6, 7)


@pytest.mark.parametrize(
    ("segmentation", "told"),
    [
        (None, "no segmentation"),
        ([], "no segmentation"),
        ([[1, 1, 4, 1]], r"fewer than 3 points \(2\)"),
        ([[1, 1, 4, 1, 4]], "5 coordinates, an odd number"),
        ([[[1, 1], [4, 1], [4, 4]]], "not a list of numbers"),
        ([[1, 1, 4, 1, 4, "4"]], "not a list of numbers"),
        ([[1, 1, 4, 1, 4, float("nan")]], "not finite"),
        ({"counts": [20]}, r"no size \[height, width\] but None"),
        ({"size": [5, 4], "counts": [3, 17]}, "5 high, the image 5 wide and 4 high"),
        ({"size": [4, 5], "counts": [3, 16]}, "cover 19 pixels, the image has 20"),
        ({"size": [4, 5], "counts": [13, -3, 10]}, "one is negative"),
        ({"size": [4, 5], "counts": [20]}, "mask is empty"),
        ({"size": [4, 5], "counts": []}, "cover 0 pixels"),
        ({"size": [4, 5], "counts": [3.0, 17.0]}, "neither text nor a list of whole numbers"),
        ({"size": [4, 5], "counts": "3a 4"}, "characters that do not occur"),
        ({"size": [4, 5], "counts": "3é"}, "characters that do not occur"),
        ({"size": [4, 5], "counts": "3a"}, "cut short"),
        ({"size": [4, 5], "counts": "oooooooo1"}, "a number is too long"),
        ({"size": [4, 5], "counts": "33"}, "cover 6 pixels"),
        ({"size": [4, 5], "counts": [10**30, 20]}, "damaged: one is beyond the image's 20 pixels"),
        ({"size": [4, 5], "counts": [-(10**30), 20]}, "beyond the image's 20 pixels"),
        ([[9, 1, 12, 1, 12, 3]], "covers no pixel of the image, which is 5 pixels wide and 4 high"),
        ([[1, 1, 4, 1, 3, 1], [0, 0, 4, 4, 2, 2]], "its polygons cover no pixel"),
        ([[1, 1, 4, 1, 4, 10**400]], "not finite, or beyond 1,000,000 pixels"),
        ([[-1e9, 1, 4, 1, 4, 3]], "beyond"),
    ],
)
def test_what_is_wrong_with_a_mask(segmentation: object, told: str) -> None:
    with pytest.raises(AssertionError, match=told):
        raise AssertionError(segmentation_fault(segmentation, 4, 5))


@given(st.lists(st.lists(st.floats(-4, 14), min_size=6, max_size=12), min_size=1, max_size=2))
def test_polygons_without_fault_cover_a_pixel(parts: list[list[float]]) -> None:
    polygons = [part[: len(part) // 2 * 2] for part in parts]
    covered = bool(tool.area(tool.merge(tool.frPyObjects(polygons, 10, 12))))
    assert (segmentation_fault(polygons, 10, 12) is None) == covered


@pytest.mark.parametrize("form", ["polygon", "runs"])
@pytest.mark.parametrize(
    ("box", "fits"),
    [
        ([20, 30, 40, 20], True),
        ([25, 26, 40, 20], True),  # no edge further than five pixels
        ([20, 30, 70, 20], True),  # they share more than half
        ([20, 30, 90, 20], False),
        ([60, 30, 40, 20], False),
        ([0, 0, 10, 8], False),
    ],
)
def test_a_mask_must_fit_its_box(form: str, box: list[float], fits: bool) -> None:
    mask = np.zeros((100, 120), np.uint8)
    mask[30:50, 20:60] = 1
    forms = {"polygon": [[20, 30, 60, 30, 60, 50, 20, 50]], "runs": compressed(mask)}
    fault = segmentation_fault(forms[form], 100, 120, box)
    assert fits == (fault is None)
    assert fits or str(fault).startswith("its mask reaches from (20, 30) to (60, 50) and its box from (")


def test_what_hangs_over_the_edge_is_compared_within_the_image() -> None:
    polygon = [-300, -300, 15, -300, 15, 20, -300, 20]
    assert segmentation_fault([polygon], 100, 120, [0, 0, 15, 20]) is None


@given(MASKS, st.data())
def test_a_damaged_text_never_passes_for_another_size(mask: np.ndarray, data: st.DataObject) -> None:
    whole = compressed(mask)
    place = data.draw(st.integers(0, len(whole["counts"]) - 1))
    text = whole["counts"][:place] + data.draw(st.text(max_size=3)) + whole["counts"][place + 1 :]
    height, width = mask.shape
    if segmentation_fault(whole | {"counts": text}, height, width) is None:
        drawn = rasterise([whole | {"counts": text}], height, width)[0]
        assert runs_without_zeros(read_counts(text).tolist()) == runs_without_zeros(runs(drawn))


def runs_without_zeros(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Runs of one value as (value, length), joined where a run of none lies between them."""
    values = [value % 2 for value, length in enumerate(lengths) for _ in range(length)]
    return [(value, len(list(group))) for value, group in groupby(values)]


def inside(polygon: list[float], height: int, width: int) -> np.ndarray:
    """Whether the middle of each pixel is in a polygon: a ray crosses its outline an odd number of times."""
    points = np.array(polygon).reshape(-1, 2)
    y, x = np.mgrid[:height, :width] + 0.5
    within = np.zeros((height, width), bool)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        crosses = (y0 <= y) != (y1 <= y)
        within ^= crosses & (x < x0 + (x1 - x0) * (y - y0) / np.where(crosses, y1 - y0, 1))
    return within


@pytest.mark.parametrize("reach", [100, 3_000, 900_000])
def test_polygons_that_are_cut_off_cover_the_same_pixels(reach: float) -> None:
    draw, wrong = np.random.default_rng(0), 0
    for _ in range(50):
        spread = np.tile(draw.choice([20, reach], draw.integers(3, 9)), (2, 1)).T
        polygon = (draw.normal(size=spread.shape) * spread).clip(-999_999, 999_999).ravel().tolist()
        [cut] = clip_polygons([polygon], 24, 32)
        assert np.min(cut) >= -32
        assert np.max(cut) <= 64
        wrong += (rasterise([[cut]], 24, 32)[0] != inside(polygon, 24, 32)).sum()
    assert wrong <= 0.005 * 50 * 24 * 32  # pycocotools rounds corners to a fifth of a pixel


def test_a_polygon_inside_stays_as_it_is() -> None:
    polygon = [-3, 2.5, 40, 2, 10, 47.0]
    assert clip_polygons([polygon], 24, 32) == [polygon]


def test_outlines_beyond_all_measure_are_refused() -> None:
    far = [value for row in range(2000) for value in ((-1) ** row * 999_999, row / 100)]
    long = [value for row in range(100_000) for value in (row % 2 * 32, row / 5000)]
    told = "the outline of its polygons is longer than 2,000,000 pixels"
    assert segmentation_fault([far], 24, 32) == told  # pycocotools dies of it
    assert segmentation_fault(clip_polygons([far], 24, 32), 24, 32) is None
    assert segmentation_fault([long], 24, 32) == told
