"""What a bench of networks found, as tables of words: for the terminal and for the Markdown file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from lambdanets.bench.passes import Pass
from lambdanets.bench.records import Provenance
from lambdanets.bench.tables import SINGLE, Table, number, page, provenance_line, times

from .matched import BASELINES, MEASURES, ratios
from .published import REFERENCES
from .records import NOT_RUN, Measured, Row

TITLES: dict[Pass, str] = {"train": "Training step", "eval": "Inference"}
LEGEND = (
    "A training step is forward, cross entropy, backward and a step of SGD with momentum; inference is a "
    "forward pass in inference mode; both on random images in channels-last layout, with random weights. "
    "Images per second are from the median step; ± is half of what lies between the 20 % and 80 % quantiles, "
    "* a single step. The networks of a group took turns in one process. Peak memory is all that a network "
    "with its batch, gradients, momenta and temporaries adds to a process of its own. In bfloat16 training "
    "has float32 weights and autocast, inference bfloat16 weights. GMAC: 10^9 multiply-adds of a forward pass "
    "for one image. What is published is marked so and was not measured here."
)
RATIO_METHOD = (
    "How much longer the other family takes for a LambdaResNet's published accuracy: between the two points "
    "of the other family that enclose this accuracy the logarithm of the time is interpolated linearly in the "
    "accuracy; nothing is extrapolated (-). Above 1 the LambdaResNet is the faster one. Accuracies are "
    "published ones throughout; times are those of the heading."
)
TABLE4_METHOD = (
    "Memory as the paper counts it is a formula: attention maps of 8 heads and batch 128, or position tables "
    "E of n x m x k, in float32, for grids of 56, 28, 14, 7 with 3, 4, 6, 3 layers at 224 pixels, in GiB. It "
    "is not what the layers here hold. The measured peak is that of the whole network at its own batch."
)


def make_tables(rows: Sequence[Row]) -> list[Table]:
    """Return the tables that the rows are for."""
    bench = rows[0].bench
    if bench in REFERENCES:
        return [_paper(rows, bench)]
    if bench == "race":
        return [_points(rows), _ratios(rows)]
    return [_throughput(rows, mode) for mode in TITLES if any(row.mode == mode for row in rows)]


def words(bench: str) -> list[str]:
    """Return the paragraphs that the tables of a bench need."""
    more = {"race": [RATIO_METHOD], "table4": [TABLE4_METHOD]}
    return [LEGEND, *more.get(bench, [])]


def markdown(measured: Sequence[Measured], figures: Iterable[str] = ()) -> str:
    """Return the report of a bench of networks."""
    rows = [row for row, _ in measured]
    bench = rows[0].bench
    return page(f"lambdanets bench {bench}", [places(measured), *words(bench)], make_tables(rows), figures)


def places(measured: Sequence[Measured]) -> str:
    """Return one line on machine and versions, and between which times the rows were measured."""
    known: list[Provenance] = [where for _, where in measured]
    first, last = min(known, key=lambda each: each.date), max(known, key=lambda each: each.date)
    line = provenance_line(first)
    commits = list(dict.fromkeys(each.commit for each in known if each.commit))
    if last.date != first.date:
        line += f" to {last.date}"
    return line + (f"; commits {', '.join(commits)}" if len(commits) > 1 else "")


def _throughput(rows: Sequence[Row], mode: Pass) -> Table:
    found = [row for row in rows if row.mode == mode]
    body = tuple(
        (
            f"{row.model}{f' ({row.options})' if row.options else ''}",
            row.size,
            *_costs(row),
            str(row.batch or "-"),
            _rate(row),
            number(row.wall_ms),
            _mib(row.peak_mib),
        )
        for row in found
    )
    headings = ("model", "size", "parameters M", "GMAC", "batch", "images/s", "ms/batch", "peak MiB")
    return Table(title=TITLES[mode], headings=headings, rows=body, notes=_notes(found))


def _paper(rows: Sequence[Row], bench: str) -> Table:
    titles = list(dict.fromkeys(row.title for row in rows))
    reference = REFERENCES[bench]
    modes = [mode for mode in TITLES if any(row.mode == mode for row in rows)]
    memory = bench == "table4"
    body = []
    for title in titles:
        found = {row.mode: row for row in rows if row.title == title}
        base = {row.mode: row for row in rows if row.title == reference}
        row = next(iter(found.values()))
        said = next(iter(base.values())).published_examples_per_s if base else math.nan
        cells = [title, _called(row)]
        if memory:
            cells += [row.published_memory or "-", number(row.maps_gib)]
        cells += [number(row.published_parameters_m)] if not memory else []
        cells += [_costs(row)[0]]
        cells += [_whole(row.published_examples_per_s), _times(row.published_examples_per_s / said)]
        for mode in modes:
            each, other = found[mode], base.get(mode)
            ratio = each.images_per_s / other.images_per_s if other else math.nan
            cells += [str(each.batch or "-"), _rate(each), _times(ratio), _mib(each.peak_mib)]
        body.append((*cells, number(row.published_top1)))
    headings = ["layer" if memory else "network", "model here"]
    headings += ["paper: GB counted", "the same computed, GiB"] if memory else ["paper: parameters M"]
    headings += ["parameters M", "paper: inference images/s", f"paper: over {reference}"]
    for mode in modes:
        name = TITLES[mode].lower()
        headings += [f"{name}: batch", "images/s", f"over {reference}", "peak MiB"]
    title = f"Table {bench.removeprefix('table')} of the paper (8 TPUv3 cores, float32), and measured here"
    return Table(title=title, headings=(*headings, "paper: top-1"), rows=tuple(body), notes=_notes(rows))


def _points(rows: Sequence[Row]) -> Table:
    body = []
    for family, title, model, size in dict.fromkeys((r.family, r.title, r.model, r.size) for r in rows):
        found = {row.mode: row for row in rows if (row.model, row.size) == (model, size)}
        row = next(iter(found.values()))
        cells = [
            f"{family} {title}",
            f"{model}@{size}",
            number(row.published_top1),
            number(row.published_seconds),
        ]
        for mode in TITLES:
            each = found.get(mode)
            cells += [_seconds(each), str(each.batch or "-") if each else "-"]
        body.append((*cells, *_costs(row)))
    headings = ["network", "model here", "published: top-1", "published: TPUv3 training"]
    headings += ["training", "batch", "inference", "batch", "parameters M", "GMAC"]
    return Table(
        title="Seconds for 1024 images, published and measured here",
        headings=tuple(headings),
        rows=tuple(body),
        notes=_notes(rows),
    )


def _ratios(rows: Sequence[Row]) -> Table:
    found = ratios(rows)
    points = sorted({(each.top1, each.title) for each in found})
    body = []
    for top1, title in points:
        cells = [
            _times(next(r.value for r in found if (r.title, r.baseline, r.measure) == (title, base, measure)))
            for base in BASELINES
            for measure in MEASURES
        ]
        body.append((f"LambdaResNet {title}", number(top1), *cells))
    headings = ["network", "published: top-1"]
    headings += [f"{base}: {name}" for base in BASELINES for name in MEASURES.values()]
    return Table(
        title="Speed at matched accuracy: the time of the other family over the LambdaResNet's",
        headings=tuple(headings),
        rows=tuple(body),
    )


def _called(row: Row) -> str:
    return f"{row.model}{f' ({row.options})' if row.options else ''}@{row.size}"


def _costs(row: Row) -> tuple[str, str]:
    return (f"{row.parameters / 1e6:.2f}", f"{row.macs / 1e9:.3g}") if row.parameters else ("-", "-")


def _rate(row: Row) -> str:
    return _spread(row, number(row.images_per_s))


def _seconds(row: Row | None) -> str:
    if row is None:
        return "-"
    return _spread(row, number(row.seconds))


def _spread(row: Row, value: str) -> str:
    if not row.samples:
        return NOT_RUN if row.note.startswith(NOT_RUN) or NOT_RUN in row.note else "-"
    return f"{value}{SINGLE if row.samples == 1 else f' ±{row.spread:.0%}'}"


def _times(ratio: float) -> str:
    return "-" if math.isnan(ratio) else times(ratio)


def _whole(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:,.0f}"


def _mib(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:,.0f}"


def _notes(rows: Sequence[Row]) -> tuple[str, ...]:
    """Each reason once, with those it is for."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.note:
            reasons.setdefault(row.note, []).append(f"{row.title} {TITLES[_mode(row)].lower()}")
    return tuple(f"{', '.join(who)}: {note}" for note, who in reasons.items())


def _mode(row: Row) -> Pass:
    return "train" if row.mode == "train" else "eval"
