"""What a bench of networks found, as tables of words: for the terminal and for the Markdown file."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

from lambdanets.bench.figures import NAMES
from lambdanets.bench.passes import Pass
from lambdanets.bench.records import NONE, Provenance
from lambdanets.bench.tables import CLOCKS, SINGLE, Clock, Table, number, page, provenance_line, times

from .matched import BASELINES, MEASURES, Measure, ratios, seconds_of
from .published import FIGURE4, REFERENCES, RESNET_RS, TABLE19
from .records import IMAGES, NOT_RUN, Measured, Row, by_processor

TITLES: dict[Pass, str] = {"train": "Training step", "eval": "Inference"}
SHORT: dict[Pass, str] = {"train": "training", "eval": "inference"}
# A backward pass multiplies twice: for the gradients of the inputs and of the weights.
FORWARDS: dict[Pass, int] = {"train": 3, "eval": 1}
LEGEND = (
    "A training step is forward, cross entropy, backward and a step of SGD with momentum; inference is a "
    "forward pass in inference mode; both on random images in channels-last layout, with random weights. "
    "Images per second are from the median step; ± is half of what lies between the 20 % and 80 % quantiles, "
    "* a single step. The networks of a group took turns in one process. Peak memory is all that a network "
    "with its batch, gradients, momenta and temporaries adds to a process of its own, on a GPU to what "
    "PyTorch has allocated there. In bfloat16 training has float32 weights and autocast, inference bfloat16 "
    "weights. GMAC: 10^9 multiply-adds of a forward "
    "pass for one image, those of our lambda layers as the kernels planned for one image do them, those of "
    "local attention with all of its tiles. What is published is marked so and was not measured here."
)
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
    "Why the ratios differ from machine to machine: a family is as fast as it has few multiply-adds and as "
    "the machine runs them quickly. The table has the multiply-adds that a second holds, in 10^9, the median "
    "of a family's networks with the slowest and the fastest; a training step counts three forward passes."
)
TABLE4_METHOD = (
    "Memory as the paper counts it is a formula: attention maps of 8 heads and batch 128, or position tables "
    "E of n x m x k, in float32, for grids of 56, 28, 14, 7 with 3, 4, 6, 3 layers at 224 pixels, in GiB. It "
    "is not what the layers here hold. The measured peak is that of the whole network at its own batch. OOM: "
    "the paper's own ran out of memory."
)


def make_tables(measured: Sequence[Measured], clock: Clock = "wall") -> list[Table]:
    """Return the tables that the rows are for.

    Args:
        measured: The rows with their provenance.
        clock: Which of the two times is shown.
    """
    rows = [row for row, _ in (by_processor(measured) if clock == "process" else measured)]
    bench = rows[0].bench
    if bench in REFERENCES:
        return [_speed(rows, bench), _memory(rows, bench)]
    if bench == "race":
        return [_points(rows), _ratios(rows), _rates(rows)]
    return [_throughput(rows, mode) for mode in _modes(rows)]


def words(bench: str, clock: Clock = "wall") -> list[str]:
    """Return the paragraphs that the tables of a bench need."""
    times = [f"Times measured here are {CLOCKS[clock]}."] if clock == "process" else []
    more = {"race": [RACERS, RATIO_METHOD, RATES_METHOD], "table4": [TABLE4_METHOD]}
    return [LEGEND, *times, *more.get(bench, [])]


def markdown(measured: Sequence[Measured], figures: Iterable[str] = (), clock: Clock = "wall") -> str:
    """Return the report of a bench of networks."""
    bench = measured[0][0].bench
    return page(
        f"lambdanets bench {bench}",
        [places(measured), *words(bench, clock)],
        make_tables(measured, clock),
        figures,
    )


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
            _called(row),
            row.size,
            *_costs(row),
            str(row.batch or "-"),
            _rate(row),
            number(row.wall_ms),
            _whole(row.peak_mib),
        )
        for row in found
    )
    headings = ("model", "size", "parameters M", "GMAC", "batch", "images/s", "ms/batch", "peak MiB")
    return Table(title=TITLES[mode], headings=headings, rows=body, notes=_notes(found))


def _speed(rows: Sequence[Row], bench: str) -> Table:
    """A table of the paper: its throughput and ours, absolute and over one of its rows."""
    # Inference first, beside the paper's.
    reference, modes = REFERENCES[bench], _modes(rows)[::-1]
    networks = _by_network(rows)
    counts = any(row.published_parameters_m > 0 for row in rows)
    body = []
    for found in networks:
        row = found[modes[0]]
        base = _base(row, [each for each in networks if each[modes[0]].title == reference])
        said = row.published_examples_per_s
        over = said / base[modes[0]].published_examples_per_s if base and said else NONE
        cells = [row.title, row.size, number(row.published_top1)]
        cells += [number(row.published_parameters_m)] if counts else []
        cells += [_costs(row)[0], _said(said), _times(over)]
        for mode in modes:
            ratio = found[mode].images_per_s / base[mode].images_per_s if base else NONE
            cells += [_rate(found[mode]), _times(ratio)]
        body.append(tuple(cells))
    headings = ["row", "size", "paper: top-1", *(["paper: parameters M"] if counts else []), "parameters M"]
    headings += ["paper: images/s", "ratio"]
    for mode in modes:
        headings += [f"{SHORT[mode]} images/s", "ratio"]
    title = (
        f"Table {bench.removeprefix('table')}: the paper's inference on 8 TPUv3 cores in float32, and "
        f"measured here; ratios are over {reference}"
    )
    return Table(title=title, headings=tuple(headings), rows=tuple(body), notes=(*_notes(rows), _names(rows)))


def _memory(rows: Sequence[Row], bench: str) -> Table:
    modes, counted = _modes(rows), bench == "table4"
    body = []
    for found in _by_network(rows):
        row = found[modes[0]]
        cells = [row.title, row.size]
        cells += [row.published_memory or "-", number(row.maps_gib)] if counted else []
        for mode in modes:
            each = found[mode]
            cells += [_whole(each.peak_mib), str(each.batch or "-")]
        body.append(tuple(cells))
    headings = ["row", "size"]
    headings += ["paper: counted GB", "computed GiB"] if counted else []
    for mode in modes:
        headings += [f"{SHORT[mode]} peak MiB", "batch"]
    title = "Memory: " + ("as the paper counts it, and the " if counted else "the ") + "peaks measured here"
    return Table(title=title, headings=tuple(headings), rows=tuple(body))


def _modes(rows: Sequence[Row]) -> list[Pass]:
    modes: list[Pass] = [mode for mode in TITLES if any(row.mode == mode for row in rows)]
    return modes


def _by_network(rows: Sequence[Row]) -> list[dict[Pass, Row]]:
    """The rows of each network at a size by their passes; a missing one is as one that measured nothing."""
    made = []
    for title, size in dict.fromkeys((row.title, row.size) for row in rows):
        own = {row.mode: row for row in rows if (row.title, row.size) == (title, size)}
        known = next(iter(own.values()))
        empty = replace(known, batch=0, wall_ms=NONE, samples=0, peak_mib=NONE, note="")
        made.append({mode: own.get(mode, replace(empty, mode=mode)) for mode in _modes(rows)})
    return made


def _base(row: Row, references: Iterable[dict[Pass, Row]]) -> dict[Pass, Row] | None:
    """What a row is over: one of the paper over the paper's reference, another over that at its own size."""
    for found in references:
        known = next(iter(found.values()))
        if known.published_source if row.published_source else known.size == row.size:
            return found
    return None


def _points(rows: Sequence[Row]) -> Table:
    body = []
    for family, title, model, size in dict.fromkeys((r.family, r.title, r.model, r.size) for r in rows):
        found = {row.mode: row for row in rows if (row.model, row.size) == (model, size)}
        row = next(iter(found.values()))
        cells = [f"{family} {title}", size, number(row.published_top1), number(row.published_seconds)]
        for mode in TITLES:
            each = found.get(mode)
            cells += [_seconds(each), str(each.batch or "-") if each else "-"]
        body.append((*cells, *_costs(row)))
    headings = ["network", "size", "published: top-1", "published: training"]
    headings += ["training", "batch", "inference", "batch", "parameters M", "GMAC"]
    return Table(
        title="Seconds for 1024 images, published and measured here",
        headings=tuple(headings),
        rows=tuple(body),
        notes=_notes(rows),
    )


def _ratios(rows: Sequence[Row]) -> Table:
    found = ratios(rows)
    values = {(each.title, each.baseline, each.measure): each.value for each in found}
    body = []
    for top1, title in sorted({(each.top1, each.title) for each in found}):
        cells = [_times(values[title, base, measure]) for base in BASELINES for measure in MEASURES]
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


def _rates(rows: Sequence[Row]) -> Table:
    """How fast the multiply-adds of each family are done, by each measure of time."""
    body = []
    for family in dict.fromkeys(row.family for row in rows):
        own = [row for row in rows if row.family == family and row.macs]
        cells = [_range(_speeds(own, measure)) for measure in MEASURES]
        body.append((family, str(len({(row.model, row.size) for row in own})), *cells))
    headings = ("family", "networks", *(f"{name} GMAC/s" for name in MEASURES.values()))
    title = "Multiply-adds per second, by the published times and here"
    return Table(title=title, headings=headings, rows=tuple(body))


def _speeds(rows: Iterable[Row], measure: Measure) -> list[float]:
    mode: Pass = "train" if measure == "published" else measure
    # What is published stands in the rows of both passes.
    chosen = {(row.model, row.size): row for row in rows if measure in ("published", row.mode)}
    found = [FORWARDS[mode] * row.macs / 1e9 * IMAGES / seconds_of(row, measure) for row in chosen.values()]
    return [speed for speed in found if not math.isnan(speed)]


def _range(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def _called(row: Row) -> str:
    return f"{row.model}{f'({row.options})' if row.options else ''}"


def _names(rows: Sequence[Row]) -> str:
    """Which of our models the rows of a paper's table are."""
    return "models: " + "; ".join(dict.fromkeys(f"{row.title} is {_called(row)}" for row in rows))


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
        return NOT_RUN if NOT_RUN in row.note else "-"
    return f"{value}{SINGLE if row.samples == 1 else f' ±{row.spread:.0%}'}"


def _times(ratio: float) -> str:
    return "-" if math.isnan(ratio) else times(ratio)


def _said(examples_per_s: float) -> str:
    return "OOM" if examples_per_s == 0 else _whole(examples_per_s)


def _whole(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:,.0f}"


def _notes(rows: Sequence[Row]) -> tuple[str, ...]:
    """Each reason once, with those it is for; a pass is named where it is not for all."""
    reasons: dict[str, dict[str, list[str]]] = {}
    modes = {row.mode for row in rows}
    for row in rows:
        if row.note:
            name = f"{row.family} {row.title}".strip()
            reasons.setdefault(row.note, {}).setdefault(name, []).append(row.mode)
    return tuple(
        f"{', '.join(_of_passes(name, found, modes) for name, found in who.items())}: {note}"
        for note, who in reasons.items()
    )


def _of_passes(name: str, found: Sequence[str], modes: AbstractSet[str]) -> str:
    said = dict.fromkeys(found)
    return name if said.keys() == modes else f"{name} ({', '.join(NAMES[mode] for mode in said)})"
