"""Means over seeds, and how far they may be from the truth."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean over seeds.

    Attributes:
        value: the mean.
        deviation: standard deviation of a single seed, with n - 1; nan for one seed.
        half: half the width of the 95 % confidence interval by Student's t with n - 1 degrees of freedom:
            the mean ± this; nan for one seed.
        number: of seeds, n.
    """

    value: float
    deviation: float
    half: float
    number: int


def mean(values: Sequence[float]) -> Mean:
    """Return the mean of one number for each seed.

    Raises:
        ValueError: there is none.
    """
    if not values:
        raise ValueError("a mean needs at least one number")
    number = len(values)
    if number == 1:
        return Mean(value=values[0], deviation=math.nan, half=math.nan, number=1)
    from scipy.stats import t

    deviation = statistics.stdev(values)
    half = float(t.ppf((1 + CONFIDENCE) / 2, number - 1)) * deviation / math.sqrt(number)
    return Mean(value=statistics.fmean(values), deviation=deviation, half=half, number=number)


def difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Mean | None:
    """Return the mean difference, seed by seed, over those that both have; None where they share none.

    The same seed gives both the same order of images and the same augmentation. Pairing takes that out.
    """
    shared = sorted(values.keys() & baseline.keys())
    return mean([values[seed] - baseline[seed] for seed in shared]) if shared else None
