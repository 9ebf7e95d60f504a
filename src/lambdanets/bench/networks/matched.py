"""Speed at matched accuracy: what another family takes for the accuracy of a LambdaResNet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from .published import EFFICIENT, LAMBDA, RS
from .records import NONE, Row

Measure = Literal["published", "train", "eval"]
MEASURES: dict[Measure, str] = {
    "published": "published",
    "train": "training",
    "eval": "inference",
}
BASELINES = (EFFICIENT, RS)

Point = tuple[float, float]  # accuracy, seconds


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How much longer a baseline takes.

    Attributes:
        title: The LambdaResNet.
        top1: Its published accuracy.
        baseline: The other family.
        measure: Whose times: published ones, or those measured here in training steps or inference.
        value: The baseline's time at this accuracy over the LambdaResNet's; nan where one is unknown.
    """

    title: str
    top1: float
    baseline: str
    measure: Measure
    value: float


def interpolate(points: Iterable[Point], top1: float) -> float:
    """Return the seconds of a curve at an accuracy, nan outside of it.

    Between the two points that enclose the accuracy the logarithm of the seconds is linear in the accuracy.

    Args:
        points: Accuracy and seconds of each point; one whose seconds are nan is known not to have run, and
            there is nothing to be said between it and its neighbours.
        top1: The accuracy.
    """
    curve = sorted(points)
    for (low, fast), (high, slow) in pairwise(curve):
        if low <= top1 <= high:
            if top1 in (low, high) or high == low:
                return fast if top1 == low else slow
            share = (top1 - low) / (high - low)
            return math.exp((1 - share) * math.log(fast) + share * math.log(slow))
    return NONE


def ratios(rows: Sequence[Row]) -> list[Ratio]:
    """Return the ratio of every LambdaResNet to every baseline by every measure."""
    found = []
    for measure in MEASURES:
        curves = {family: _curve(rows, family, measure) for family in (LAMBDA, *BASELINES)}
        for title, (top1, seconds) in curves[LAMBDA].items():
            for baseline in BASELINES:
                value = interpolate(curves[baseline].values(), top1) / seconds
                found.append(Ratio(title=title, top1=top1, baseline=baseline, measure=measure, value=value))
    return found


def _curve(rows: Sequence[Row], family: str, measure: Measure) -> dict[str, Point]:
    """The points of a family by one measure, by their names; who has no row of this pass has not run."""
    own = [row for row in rows if row.family == family]
    found = {row.title: (row.published_top1, NONE) for row in own}
    for row in own:
        if measure in ("published", row.mode):
            found[row.title] = row.published_top1, seconds_of(row, measure)
    return found


def seconds_of(row: Row, measure: Measure) -> float:
    """Return a row's seconds for 1024 images, published or measured."""
    return row.published_seconds if measure == "published" else row.seconds
