"""The report of a study, drawn from its rows alone: means over seeds, their intervals, tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lambdanets.bench import Table
from lambdanets.bench.report import threads, to_markdown

from .records import CellRecord
from .trunks import BASELINE

CONFIDENCE = 0.95
METHOD = (
    "Top-1 is that of the last epoch on the validation images: no epoch is chosen by it. ± is half of the "
    "95 % confidence interval of the mean over seeds (Student's t); sd is the standard deviation of a seed. "
    "Differences are paired by seed; their intervals are each for itself, not for all of them together. "
    "An interval is that of seeds of this recipe on these images alone. Images/s are those of training, by "
    "wall time and by CPU time; memory is the peak of the process, with libraries and images."
)
ONE_SEED = "one seed"
PAIRS = (
    "Row minus column in percent, paired by seed; bold where the 95 % interval of this pair leaves out zero. "
    "Nothing is corrected for the number of pairs: where no two differed, one in twenty would be bold."
)


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean over seeds.

    Attributes:
        value: The mean.
        deviation: Standard deviation of a single seed, with n - 1; NaN for one seed.
        half: Half the width of the 95 % confidence interval by Student's t with n - 1 degrees of freedom; NaN
            for one seed.
        number: Number of seeds, n.
    """

    value: float
    deviation: float
    half: float
    number: int


def mean(values: Sequence[float]) -> Mean:
    """Return the mean of one number for each seed.

    Raises:
        ValueError: There is no number.
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
    """Return the mean of the differences seed by seed, over shared seeds; None where there is none.

    The same seed gives both the same order of images and the same augmentation, whose effect pairing removes.
    """
    shared = sorted(values.keys() & baseline.keys())
    return mean([values[seed] - baseline[seed] for seed in shared]) if shared else None


@dataclass(frozen=True, kw_only=True)
class Result:
    """One contender over all its seeds.

    Attributes:
        name, title, model, options, parameters: Of the contender.
        top1, best: Mean over seeds of the last and of the best epoch's accuracy, in percent.
        gain: Mean difference of `top1` to the baseline's, paired by seed; None for the baseline itself and
            where they share no seed.
        images_per_second, images_per_cpu_second: Means over seeds.
        peak_mib: The largest; NaN where it was not measured.
        values: `top1` of each seed, in percent.
    """

    name: str
    title: str
    model: str
    options: str
    parameters: int
    top1: Mean
    best: Mean
    gain: Mean | None
    images_per_second: float
    images_per_cpu_second: float
    peak_mib: float
    values: tuple[float, ...]


def results(records: Sequence[CellRecord]) -> list[Result]:
    """Return every contender's result, the most accurate first."""
    groups: dict[str, list[CellRecord]] = {}
    for record in records:
        groups.setdefault(record.contender, []).append(record)
    baseline = {record.seed: 100 * record.top1 for record in groups.get(BASELINE, [])}
    found = [_result(rows, baseline) for rows in groups.values()]
    return sorted(found, key=lambda result: -result.top1.value)


def _result(rows: list[CellRecord], baseline: dict[int, float]) -> Result:
    rows = sorted(rows, key=lambda row: row.seed)
    first = rows[0]
    accuracy = {row.seed: 100 * row.top1 for row in rows}
    memory = [row.peak_gpu_mib if not math.isnan(row.peak_gpu_mib) else row.peak_mib for row in rows]
    return Result(
        name=first.contender,
        title=first.title,
        model=first.model,
        options=first.options,
        parameters=first.parameters,
        top1=mean(list(accuracy.values())),
        best=mean([100 * row.best_top1 for row in rows]),
        gain=None if first.contender == BASELINE else difference(accuracy, baseline),
        images_per_second=mean([row.images_per_second for row in rows]).value,
        images_per_cpu_second=mean([row.images_per_cpu_second for row in rows]).value,
        peak_mib=max((value for value in memory if not math.isnan(value)), default=math.nan),
        values=tuple(accuracy.values()),
    )


def summary_table(records: Sequence[CellRecord]) -> Table:
    """Return the table of a study: a line for each contender, the most accurate first."""
    found = results(records)
    rows = tuple(
        (
            result.title,
            f"{result.parameters:,}",
            str(result.top1.number),
            with_half(result.top1),
            "-" if result.top1.number == 1 else f"{result.top1.deviation:.2f}",
            f"{result.best.value:.2f}",
            "-" if result.gain is None else with_half(result.gain, sign="+"),
            f"{result.images_per_second:,.0f}",
            f"{result.images_per_cpu_second:,.0f}",
            "-" if math.isnan(result.peak_mib) else f"{result.peak_mib:,.0f}",
        )
        for result in found
    )
    headings = (
        "contender", "parameters", "seeds", "top-1 %", "sd", "best epoch %", f"minus {BASELINE}", "images/s",
        "per CPU s", "peak MiB",
    )  # fmt: skip
    return Table(title=title(records), headings=headings, rows=rows, notes=notes(records))


def pairs_table(records: Sequence[CellRecord]) -> Table:
    """Return the differences of all pairs of contenders, the most accurate first."""
    found = results(records)
    accuracy: dict[str, dict[int, float]] = {}
    for record in records:
        accuracy.setdefault(record.contender, {})[record.seed] = 100 * record.top1
    rows = tuple(
        (
            row.title,
            *("" if place <= at else _pair(accuracy[row.name], accuracy[column.name])
              for place, column in enumerate(found[1:], 1)),
        )
        for at, row in enumerate(found[:-1])
    )  # fmt: skip
    headings = ("minus", *(column.title for column in found[1:]))
    return Table(title="Every pair", headings=headings, rows=rows)


def _pair(one: dict[int, float], other: dict[int, float]) -> str:
    value = difference(one, other)
    if value is None:
        return "-"
    text = with_half(value, sign="+")
    return f"**{text}**" if abs(value.value) > value.half else text


def title(records: Sequence[CellRecord]) -> str:
    """Return trunk, data and recipe in a line."""
    first = records[0]
    images = f"{first.train_images:,} training and {first.val_images:,} validation images"
    size = f"{first.image_size}x{first.image_size}"
    epochs = f"{first.epochs} epoch{'s' if first.epochs != 1 else ''} of recipe {first.recipe}"
    return f"Trunk {first.trunk}, {first.data} ({images}, {size}), {epochs}"


def with_half(value: Mean, *, sign: str = "") -> str:
    """Return a mean with half its interval: 87.80 ± 0.31, or 87.80 (one seed)."""
    text = f"{value.value:{sign}.2f}"
    return f"{text} ({ONE_SEED})" if value.number == 1 else f"{text} ± {value.half:.2f}"


def notes(records: Sequence[CellRecord]) -> tuple[str, ...]:
    """Return sentences on missing seeds and on differences between the cells."""
    seeds = sorted({record.seed for record in records})
    have: dict[str, set[int]] = {}
    for record in records:
        have.setdefault(record.contender, set()).add(record.seed)
    lines = [
        f"{name} lacks {'seeds' if len(gap) > 1 else 'seed'} {', '.join(map(str, gap))}"
        for name, own in have.items()
        if (gap := [seed for seed in seeds if seed not in own])
    ]
    if any(len(own) == 1 for own in have.values()):
        lines.append("one seed has no interval: its number may be off by more than any difference here")
    if BASELINE not in have:
        lines.append(f"{BASELINE} is not there: no differences")
    for name in ("processor", "threads", "jobs", "precision", "torch", "commit"):
        values = sorted({str(getattr(record, name)) for record in records})
        if len(values) > 1:
            lines.append(f"cells differ in {name}: {', '.join(values)}")
    return tuple(lines)


def provenance_line(records: Sequence[CellRecord]) -> str:
    """Return one line on the machine and the versions of the newest row."""
    row = max(records, key=lambda record: record.date)
    commit = f" ({row.commit})" if row.commit else ""
    return (
        f"{row.processor}, {row.device}, {threads(row.threads)} a process, {row.jobs} at once, "
        f"{row.precision}; "
        f"lambdanets {row.lambdanets}{commit}, torch {row.torch}, timm {row.timm}, python {row.python}; "
        f"{row.system}; {min(record.date for record in records)} to {row.date}"
    )


def markdown(records: Sequence[CellRecord], figures: Iterable[str] = ()) -> str:
    """Return the report of a study: setup, table, figures, every pair, models."""
    table, pairs = summary_table(records), pairs_table(records)
    models = Table(
        title="Models",
        headings=("contender", "name", "model", "options"),
        rows=tuple(
            (result.title, result.name, f"`{result.model}`", f"`{result.options}`")
            for result in results(records)
        ),
    )
    parts = [
        "# `python -m benchmarks.study`",
        table.title,
        METHOD,
        provenance_line(records),
        to_markdown(table, left=1),
        *(f"![{name}]({name})" for name in figures if name.endswith(".png")),
        *([f"## {pairs.title}", PAIRS, to_markdown(pairs, left=1)] if pairs.rows else []),
        f"## {models.title}",
        to_markdown(models, left=4),
    ]
    return "\n\n".join(parts) + "\n"
