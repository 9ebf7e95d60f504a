"""Tables of the race and of the paper's Tables 4, 13 and 14: measured beside published numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from lambdanets.bench import NetworkRecord, Table
from lambdanets.bench.network_report import (
    PASS_TITLES,
    cost_cells,
    grouped_notes,
    model_text,
    number_or_dash,
    passes_of,
    with_spread,
)
from lambdanets.bench.networks import IMAGES
from lambdanets.bench.records import NONE
from lambdanets.bench.report import number, times
from lambdanets.bench.timing import Pass

from .published import EFFICIENT, FIGURE4, LAMBDA, REFERENCES, RESNET_RS, RS, TABLE19

Measure = Literal["published", "train", "eval"]
MEASURES: dict[Measure, str] = {"published": "published", "train": "training", "eval": "inference"}
BASELINES = (EFFICIENT, RS)

# A backward pass multiplies twice: for the gradients of the inputs and of the weights.
FORWARDS: dict[Pass, int] = {"train": 3, "eval": 1}
RACERS = (
    "LambdaResNet 50 is lambda_resnet50, EfficientNet B0 timm's efficientnet_b0, ResNet-RS 50 "
    f"resnet50_rs_se. Published: {TABLE19}; {FIGURE4}; {RESNET_RS}; times for training on 8 TPUv3 cores."
)
RATIO_METHOD = (
    "How much longer the other family takes for a LambdaResNet's published accuracy: between the two points "
    "of the other family that enclose this accuracy the logarithm of the time is interpolated linearly in "
    "the accuracy; nothing is extrapolated (-). Above 1 the LambdaResNet is the faster one. Accuracies are "
    "published ones throughout; times are those of the heading."
)
RATES_METHOD = (
    "Why the ratios differ from machine to machine: the speed of a family depends on its number of "
    "multiply-adds and on how fast the machine runs them. The table has the multiply-adds per second, in "
    "10^9: the median of a family's networks, the slowest and the fastest; a training step counts three "
    "forward passes."
)
TABLE4_METHOD = (
    "Memory as the paper counts it is a formula: attention maps of 8 heads and batch 128, or position tables "
    "E of n x m x k, in float32, for grids of 56, 28, 14, 7 with 3, 4, 6, 3 layers at 224 pixels, in GiB. It "
    "is not the memory of the layers here. The measured peak is that of the whole network at its own batch. "
    "OOM: the paper's own ran out of memory."
)


Point = tuple[float, float]  # accuracy, seconds


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """The time of a baseline over that of a LambdaResNet with the same accuracy.

    Attributes:
        title: The LambdaResNet.
        top1: Its published accuracy.
        baseline: The other family.
        measure: Published times, or those measured here in training steps or inference.
        value: The ratio; NaN where one of the two times is unknown.
    """

    title: str
    top1: float
    baseline: str
    measure: Measure
    value: float


def interpolate(points: Iterable[Point], top1: float) -> float:
    """Return the seconds of a curve at an accuracy, NaN outside of it.

    Between the two points that enclose the accuracy the logarithm of the seconds is linear in the accuracy.

    Args:
        points: Accuracy and seconds of each point. A point with NaN seconds was not run; between it and its
            neighbours nothing is interpolated.
        top1: The accuracy.
    """
    curve = sorted(points)
    for (low, fast), (high, slow) in pairwise(curve):
        if low <= top1 <= high:
            if top1 in (low, high) or high == low:
                return fast if top1 == low else slow
            weight = (top1 - low) / (high - low)
            return math.exp((1 - weight) * math.log(fast) + weight * math.log(slow))
    return NONE


def ratios(rows: Sequence[NetworkRecord]) -> list[Ratio]:
    """Return the ratio of every LambdaResNet to every baseline by every measure."""
    found = []
    for measure in MEASURES:
        curves = {family: _curve(rows, family, measure) for family in (LAMBDA, *BASELINES)}
        for title, (top1, seconds) in curves[LAMBDA].items():
            for baseline in BASELINES:
                value = interpolate(curves[baseline].values(), top1) / seconds
                found.append(Ratio(title=title, top1=top1, baseline=baseline, measure=measure, value=value))
    return found


def _curve(rows: Sequence[NetworkRecord], family: str, measure: Measure) -> dict[str, Point]:
    """Return the points of a family by title; a network without a row of this pass has NaN seconds."""
    own = [row for row in rows if row.family == family]
    found = {row.title: (row.published_top1, NONE) for row in own}
    for row in own:
        if measure in ("published", row.mode):
            found[row.title] = row.published_top1, seconds_of(row, measure)
    return found


def seconds_of(row: NetworkRecord, measure: Measure) -> float:
    """Return a row's seconds for 1024 images, published or measured."""
    return row.published_seconds if measure == "published" else row.seconds


def race_tables(rows: Sequence[NetworkRecord]) -> list[Table]:
    """Return the points of the race, the speed at matched accuracy, and the multiply-adds per second."""
    return [_points(rows), _ratios(rows), _rates(rows)]


def paper_tables(rows: Sequence[NetworkRecord]) -> list[Table]:
    """Return the speed and the memory of one of the paper's tables."""
    bench = rows[0].bench
    return [_speed(rows, bench), _memory(rows, bench)]


def _speed(rows: Sequence[NetworkRecord], bench: str) -> Table:
    """Return the throughput of the paper and the one measured here, absolute and over one of its rows."""
    # Inference first: the paper's times are of inference.
    reference, modes = REFERENCES[bench], passes_of(rows)[::-1]
    networks = _by_network(rows)
    counts = any(row.published_parameters_m > 0 for row in rows)
    body = []
    for found in networks:
        row = found[modes[0]]
        base = _base(row, [each for each in networks if each[modes[0]].title == reference])
        published = row.published_examples_per_s
        over = published / base[modes[0]].published_examples_per_s if base and published else NONE
        cells = [row.title, row.size, number(row.published_top1)]
        cells += [number(row.published_parameters_m)] if counts else []
        cells += [cost_cells(row)[0], _published_rate(published), times(over)]
        for mode in modes:
            ratio = found[mode].images_per_s / base[mode].images_per_s if base else NONE
            cells += [with_spread(found[mode], number(found[mode].images_per_s)), times(ratio)]
        body.append(tuple(cells))
    headings = ["row", "size", "paper: top-1", *(["paper: parameters M"] if counts else []), "parameters M"]
    headings += ["paper: images/s", "ratio"]
    for mode in modes:
        headings += [f"{MEASURES[mode]} images/s", "ratio"]
    title = (
        f"Table {bench.removeprefix('table')}: the paper's inference on 8 TPUv3 cores in float32, and "
        f"measured here; ratios are over {reference}"
    )
    return Table(
        title=title, headings=tuple(headings), rows=tuple(body), notes=(*grouped_notes(rows), _names(rows))
    )


def _memory(rows: Sequence[NetworkRecord], bench: str) -> Table:
    modes, counted = passes_of(rows), bench == "table4"
    body = []
    for found in _by_network(rows):
        row = found[modes[0]]
        cells = [row.title, row.size]
        cells += [row.published_memory or "-", number(row.maps_gib)] if counted else []
        for mode in modes:
            each = found[mode]
            cells += [number_or_dash(each.peak_mib), str(each.batch or "-")]
        body.append(tuple(cells))
    headings = ["row", "size"]
    headings += ["paper: counted GB", "computed GiB"] if counted else []
    for mode in modes:
        headings += [f"{MEASURES[mode]} peak MiB", "batch"]
    title = "Memory: " + ("as the paper counts it, and the " if counted else "the ") + "peaks measured here"
    return Table(title=title, headings=tuple(headings), rows=tuple(body))


def _by_network(rows: Sequence[NetworkRecord]) -> list[dict[Pass, NetworkRecord]]:
    """Return the rows of each network at a size by pass; a missing row becomes one without measurements."""
    made = []
    for title, size in dict.fromkeys((row.title, row.size) for row in rows):
        own = {row.mode: row for row in rows if (row.title, row.size) == (title, size)}
        known = next(iter(own.values()))
        empty = replace(known, batch=0, wall_ms=NONE, samples=0, peak_mib=NONE, note="")
        made.append({mode: own.get(mode, replace(empty, mode=mode)) for mode in passes_of(rows)})
    return made


def _base(
    row: NetworkRecord, references: Iterable[dict[Pass, NetworkRecord]]
) -> dict[Pass, NetworkRecord] | None:
    """Return the reference of a row: the paper's for a row of the paper, else that at its own size."""
    for found in references:
        known = next(iter(found.values()))
        if known.published_source if row.published_source else known.size == row.size:
            return found
    return None


def _points(rows: Sequence[NetworkRecord]) -> Table:
    body = []
    for family, title, model, size in dict.fromkeys((r.family, r.title, r.model, r.size) for r in rows):
        found = {row.mode: row for row in rows if (row.model, row.size) == (model, size)}
        row = next(iter(found.values()))
        cells = [f"{family} {title}", size, number(row.published_top1), number(row.published_seconds)]
        for mode in PASS_TITLES:
            each = found.get(mode)
            cells += [
                with_spread(each, number(each.seconds)) if each else "-",
                str(each.batch or "-") if each else "-",
            ]
        body.append((*cells, *cost_cells(row)))
    headings = ["network", "size", "published: top-1", "published: training"]
    headings += ["training", "batch", "inference", "batch", "parameters M", "GMAC"]
    return Table(
        title="Seconds for 1024 images, published and measured here",
        headings=tuple(headings),
        rows=tuple(body),
        notes=grouped_notes(rows),
    )


def _ratios(rows: Sequence[NetworkRecord]) -> Table:
    found = ratios(rows)
    values = {(each.title, each.baseline, each.measure): each.value for each in found}
    body = []
    for top1, title in sorted({(each.top1, each.title) for each in found}):
        cells = [times(values[title, base, measure]) for base in BASELINES for measure in MEASURES]
        body.append((title, number(top1), *cells))
    headings = ["LambdaResNet", "published: top-1"]
    headings += [
        f"{base.removesuffix(' with SE')}: {name}" for base in BASELINES for name in MEASURES.values()
    ]
    return Table(
        title="Speed at matched accuracy: the time of the other family over that of the LambdaResNet",
        headings=tuple(headings),
        rows=tuple(body),
    )


def _rates(rows: Sequence[NetworkRecord]) -> Table:
    """Return the multiply-adds per second of each family, by each measure of time."""
    body = []
    for family in dict.fromkeys(row.family for row in rows):
        own = [row for row in rows if row.family == family and row.macs]
        cells = [_range(_speeds(own, measure)) for measure in MEASURES]
        body.append((family, str(len({(row.model, row.size) for row in own})), *cells))
    headings = ("family", "networks", *(f"{name} GMAC/s" for name in MEASURES.values()))
    title = "Multiply-adds per second, by the published times and here"
    return Table(title=title, headings=headings, rows=tuple(body))


def _speeds(rows: Iterable[NetworkRecord], measure: Measure) -> list[float]:
    mode: Pass = "train" if measure == "published" else measure
    # Published numbers are in the rows of both passes.
    chosen = {(row.model, row.size): row for row in rows if measure in ("published", row.mode)}
    found = [FORWARDS[mode] * row.macs / 1e9 * IMAGES / seconds_of(row, measure) for row in chosen.values()]
    return [speed for speed in found if not math.isnan(speed)]


def _range(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def _names(rows: Sequence[NetworkRecord]) -> str:
    """Return the note with the models of the rows of a paper's table."""
    return "models: " + "; ".join(dict.fromkeys(f"{row.title} is {model_text(row)}" for row in rows))


def _published_rate(examples_per_s: float) -> str:
    return "OOM" if examples_per_s == 0 else number_or_dash(examples_per_s)
