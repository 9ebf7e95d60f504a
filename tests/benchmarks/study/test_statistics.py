"""Means over seeds against the formulas of a textbook and against scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.study.report import difference, mean

# Student's t for 95 %, two-sided, as tables print it: degrees of freedom to quantile.
TABLE = {1: 12.706, 2: 4.303, 4: 2.776, 9: 2.262}


@pytest.mark.parametrize("freedom", TABLE)
def test_the_interval_is_students(freedom: int) -> None:
    values = list(np.random.default_rng(freedom).normal(80, 0.5, freedom + 1))
    found = mean(values)
    centre = sum(values) / len(values)
    deviation = math.sqrt(sum((value - centre) ** 2 for value in values) / freedom)
    assert found.value == pytest.approx(centre)
    assert found.deviation == pytest.approx(deviation)
    assert found.half == pytest.approx(TABLE[freedom] * deviation / math.sqrt(freedom + 1), rel=2e-4)
    low, high = stats.t.interval(0.95, freedom, loc=centre, scale=stats.sem(values))
    assert (found.value - found.half, found.value + found.half) == pytest.approx((low, high))


def test_one_seed_has_no_interval() -> None:
    found = mean([81.25])
    assert (found.value, found.number) == (81.25, 1)
    assert math.isnan(found.deviation)
    assert math.isnan(found.half)
    with pytest.raises(ValueError, match="at least one number"):
        mean([])


def test_differences_are_paired_by_seed() -> None:
    ours, theirs = {0: 80.0, 1: 82.0, 2: 84.5, 7: 10.0}, {2: 83.5, 1: 81.2, 0: 79.1, 9: 99.0}
    found = difference(ours, theirs)
    assert found is not None
    assert found.number == 3
    assert found.value == pytest.approx((0.9 + 0.8 + 1.0) / 3)
    test = stats.ttest_rel([80.0, 82.0, 84.5], [79.1, 81.2, 83.5]).confidence_interval(0.95)
    assert (found.value - found.half, found.value + found.half) == pytest.approx((test.low, test.high))
    assert difference({0: 1.0}, {1: 2.0}) is None
