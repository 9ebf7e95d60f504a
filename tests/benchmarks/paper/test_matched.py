"""Speed at matched accuracy on curves whose interpolation is known."""

import math

import pytest

from benchmarks.paper.tables import interpolate, ratios
from lambdanets.bench import Measured

CURVE = [(81.0, 16.0), (77.0, 1.0), (79.0, 4.0)]


@pytest.mark.parametrize(
    ("top1", "seconds"), [(77.0, 1.0), (78.0, 2.0), (79.0, 4.0), (80.5, 4 * 4**0.75), (81.0, 16.0)]
)
def test_the_logarithm_is_linear_between_points(top1: float, seconds: float) -> None:
    assert interpolate(CURVE, top1) == pytest.approx(seconds)


@pytest.mark.parametrize("top1", [76.9, 81.1])
def test_nothing_is_extrapolated(top1: float) -> None:
    assert math.isnan(interpolate(CURVE, top1))


def test_beside_a_point_that_did_not_run_nothing_is_said() -> None:
    curve = [(77.0, 1.0), (79.0, math.nan), (81.0, 16.0), (82.0, 32.0)]
    assert math.isnan(interpolate(curve, 78.0))
    assert math.isnan(interpolate(curve, 80.0))
    assert interpolate(curve, 81.0) == 16.0 or math.isnan(interpolate(curve, 81.0))
    assert interpolate(curve, 81.5) == pytest.approx(16 * 2**0.5)


def test_ratios_of_a_race(race: list[Measured]) -> None:
    """At 78.0 EfficientNet takes 2 s; the LambdaResNet 0.5 s: 4x. At 80.0 it is 8 s over 4 s: 2x."""
    found = {(r.title, r.baseline.split()[0], r.measure): r.value for r in ratios([row for row, _ in race])}
    for measure in ("published", "train", "eval"):
        assert found["50@128", "EfficientNet", measure] == pytest.approx(4.0)
        assert found["50@160", "EfficientNet", measure] == pytest.approx(2.0)
        assert math.isnan(found["50@128", "ResNet-RS", measure])
        assert found["50@160", "ResNet-RS", measure] == pytest.approx(2 * 4**0.75 / 4)


def test_who_has_no_row_of_a_pass_has_not_run(race: list[Measured]) -> None:
    """Without B1 the neighbours of 78.0 would be B0 and B2, and the time between them another."""
    left = [row for row, _ in race if (row.title, row.mode) != ("B1", "eval")]
    found = {(r.title, r.baseline.split()[0], r.measure): r.value for r in ratios(left)}
    assert len(found) == 2 * 2 * 3
    assert math.isnan(found["50@128", "EfficientNet", "eval"])
    assert found["50@128", "EfficientNet", "train"] == pytest.approx(4.0)
    assert found["50@128", "EfficientNet", "published"] == pytest.approx(4.0)
