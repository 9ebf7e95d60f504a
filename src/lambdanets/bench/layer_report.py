"""The report of `lambdanets bench op`: its rows, the tables and the figures drawn from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lambdanets.utils.fonts import plain_text

from .records import NONE, Provenance, read_rows, write_rows
from .report import (
    CLOCKS,
    INK,
    OURS,
    QUIET,
    SINGLE,
    SOFT,
    Clock,
    Table,
    add_frame,
    duration,
    mebibytes,
    number,
    page,
    provenance_line,
    save,
    times,
)
from .timing import PASS_NAMES

PASSES = {
    "train": "Training step of the layer (forward and backward)",
    "eval": "Inference (forward, in inference mode)",
}
LEGEND = (
    "Every layer takes the same input and returns as many channels. Ours, lucidrains' and timm's compute "
    "the same function with the same weights: projections, batch norms, content and positions. SDPA is "
    "softmax attention with as many heads through PyTorch's fused function, without batch norm, position "
    "embeddings and output projection; 3x3 conv (3 per axis) is the convolution that the layer replaces, "
    "without batch norm. Times are medians of samples that all layers take in turn, in one process; ± is "
    "half of the distance between the 20 % and the 80 % quantile; 3.0x beside a time is its ratio to ours. "
    "Peers are other implementations of the same function. GEMM: operations per second of our layer, as a "
    "fraction of those of a large matrix product (by the faster of MKL and oneDNN on a CPU) in the same run. "
    "copy: bytes per second of our layer (input, output, weights and their gradients, each once), as a "
    "fraction of those of a copy in the same run. The larger of the two is the fraction of the roofline that "
    "our layer reaches."
)
COLOURS = {"lucidrains": "#33628f", "timm": "#7ba3c9", "SDPA": "#5d8a66", "3x3 conv": "#b08d57"}
SPARE = ("#7a5c99", "#4f9d9d", "#99845c", "#8a8f98")  # colours of all other contenders
GAP = 0.055  # vertical distance between the names at the ends of curves, as a fraction of the axis


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """One contender in one pass of one case: a row of op.csv.

    Attributes:
        case: Name of the case.
        title: Sizes of the case as text.
        series: Name of the curve to which the case belongs as a point, or "".
        grid: Sizes of the grid, such as 14x14.
        scope: Scope of the position table, or "global".
        batch: b; smaller than the title's where memory did not suffice, as the note reports.
        dim: Channels.
        num_heads: h.
        dim_k: k.
        dim_u: u.
        mode: "train" or "eval".
        contender: Name of the contender.
        role: "layer", "kernel", "peer" or "other".
        layout: Memory format of the input: "contiguous" (channels before positions) or "channels_last".
        kernel: The kernel that our layer selected, forward and backward where they differ.
        note: Why there are no numbers, or how they differ from those of other rows; usually "".
        wall_ms: Median wall time; with its quantiles `wall_q20` and `wall_q80`.
        cpu_ms: The same of the CPU time of all threads.
        samples: Number of samples.
        peak_mib: Peak memory of the pass above that of weights and inputs, in MiB: on a CPU of a separate
            process, on a GPU of PyTorch's allocations.
        ratio: Wall time per example, divided by that of our layer.
        ratio_cpu: The same for CPU time.
        error64: Difference from the definition on a crop in float64, or in `dtype` where a kernel does not
            support float64; NaN for another function.
        error: Difference from our layer on the case itself, computed by another kernel where our layer
            selects Triton's.
        gflop: Operations of our layer and kernels, projections included; NaN for others.
        of_gemm: Operations per second, as a fraction of those of a matrix product in the same run.
        of_gemm_cpu: The same for CPU time.
        gbytes: Gigabytes that the pass moves at least: input, output, weights and, in training, their
            gradients, each once.
        of_copy: `gbytes` per second, as a fraction of those of a copy in the same run. The larger of
            `of_gemm` and `of_copy` is the fraction of the roofline that the layer reaches.
    """

    case: str
    title: str
    series: str
    grid: str
    scope: str
    batch: int
    dim: int
    num_heads: int
    dim_k: int
    dim_u: int
    mode: str
    contender: str
    role: str
    layout: str = "contiguous"
    kernel: str = ""
    note: str = ""
    wall_ms: float = NONE
    wall_q20: float = NONE
    wall_q80: float = NONE
    cpu_ms: float = NONE
    cpu_q20: float = NONE
    cpu_q80: float = NONE
    samples: int = 0
    peak_mib: float = NONE
    ratio: float = NONE
    ratio_cpu: float = NONE
    error64: float = NONE
    error: float = NONE
    gflop: float = NONE
    of_gemm: float = NONE
    of_gemm_cpu: float = NONE
    gbytes: float = NONE
    of_copy: float = NONE

    @property
    def positions(self) -> int:
        return math.prod(map(int, self.grid.split("x")))

    def time(self, clock: str) -> float:
        """Return the median milliseconds of the clock "wall" or "process"."""
        return self.wall_ms if clock == "wall" else self.cpu_ms

    def over_ours(self, clock: str) -> float:
        """Return the ratio of its time to that of our layer, by the clock "wall" or "process"."""
        return self.ratio if clock == "wall" else self.ratio_cpu


def write_layers(path: Path, records: Iterable[LayerRecord], provenance: Provenance) -> None:
    """Write the rows of one benchmark, all with one provenance."""
    write_rows(path, LayerRecord, ((record, provenance) for record in records))


def read_layers(path: Path) -> tuple[list[LayerRecord], Provenance]:
    """Read a file of `write_layers`.

    Raises:
        ValueError: The file is no such table, or has no rows.
    """
    rows = read_rows(path, LayerRecord, "op")
    return [record for record, _ in rows], rows[0][1]


def layer_tables(records: Sequence[LayerRecord], clock: Clock = "wall") -> list[Table]:
    """Return the tables of times, memory and kernels for each pass.

    Args:
        records: The rows.
        clock: The time that is shown.
    """
    made = []
    for mode in PASSES:
        rows = [record for record in records if record.mode == mode]
        if not rows:
            continue
        made.append(_times(rows, mode, clock))
        if any(not math.isnan(row.peak_mib) for row in rows):
            made.append(_memory(rows, mode))
        if any(row.role == "kernel" for row in rows):
            made.append(_kernels(rows, mode, clock))
    return made


def layer_markdown(
    records: Sequence[LayerRecord], where: Provenance, clock: Clock, figures: Iterable[str] = ()
) -> str:
    """Return the report in Markdown: provenance, tables, figures."""
    return page(
        "lambdanets bench op", (provenance_line(where), LEGEND), layer_tables(records, clock), figures
    )


def _times(rows: list[LayerRecord], mode: str, clock: Clock) -> Table:
    layers, names = _layers(rows)
    body = []
    for case in _cases(rows):
        found = {row.contender: row for row in layers if row.case == case}
        ours = next(row for row in found.values() if row.role == "layer")
        peers = [row for row in found.values() if row.role == "peer" and row.samples]
        best = min(peers, key=lambda row: row.time(clock), default=None)
        part = ours.of_gemm if clock == "wall" else ours.of_gemm_cpu
        body.append(
            (
                case,
                ours.title,
                _with_spread(ours, clock),
                times(best.over_ours(clock)) if best and ours.samples else "-",
                *(_with_ratio(found.get(name), clock) for name in names),
                _percent(part),
                _percent(ours.of_copy),
            )
        )
    headings = ("case", "input", "ours", "fastest peer / ours", *names, "GEMM", "copy")
    title = f"{PASSES[mode]}: {CLOCKS[clock]}"
    return Table(title=title, headings=headings, rows=tuple(body), notes=_notes(layers))


def _memory(rows: list[LayerRecord], mode: str) -> Table:
    layers, names = _layers(rows)
    body = []
    for case in _cases(rows):
        found = {row.contender: row for row in layers if row.case == case}
        ours = next(row for row in found.values() if row.role == "layer")
        peers = [row for row in found.values() if row.role == "peer" and not math.isnan(row.peak_mib)]
        best = min(peers, key=lambda row: row.peak_mib, default=None)
        ratio = best.peak_mib / ours.peak_mib if best and ours.peak_mib > 0 else math.nan
        mib = [_mib(found[name]) if name in found else "-" for name in names]
        body.append((case, ours.title, _mib(ours), times(ratio), *mib))
    headings = ("case", "input", "ours", "leanest peer / ours", *names)
    return Table(title=f"{PASSES[mode]}: peak MiB above the input", headings=headings, rows=tuple(body))


def _kernels(rows: list[LayerRecord], mode: str, clock: Clock) -> Table:
    kernels = [row for row in rows if row.role == "kernel"]
    names = list(dict.fromkeys(row.contender for row in kernels))
    body = []
    for case in _cases(rows):
        ours = next(row for row in rows if row.case == case and row.role == "layer")
        found = {row.contender: row for row in kernels if row.case == case}
        cells = [_with_ratio(found.get(name), clock) for name in names]
        body.append((case, ours.title, ours.kernel or "-", _with_spread(ours, clock), *cells))
    title = f"{PASSES[mode]}, kernel by kernel: {CLOCKS[clock]}"
    headings = ("case", "input", "auto selects", "auto", *names)
    return Table(title=title, headings=headings, rows=tuple(body), notes=_notes(kernels))


def _layers(rows: list[LayerRecord]) -> tuple[list[LayerRecord], list[str]]:
    """Return the rows without those of single kernels, and the names of all contenders but our layer."""
    layers = [row for row in rows if row.role != "kernel"]
    return layers, list(dict.fromkeys(row.contender for row in layers if row.role != "layer"))


def _cases(rows: list[LayerRecord]) -> list[str]:
    return list(dict.fromkeys(row.case for row in rows))


def _notes(rows: list[LayerRecord]) -> tuple[str, ...]:
    """Return each note once, with its contender and cases."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.note:
            mark = f"{SINGLE} " if row.samples == 1 else ""
            reasons.setdefault((f"{mark}{row.contender}", row.note), []).append(row.case)
    return tuple(f"{name}: {note} ({', '.join(cases)})" for (name, note), cases in reasons.items())


def _percent(part: float) -> str:
    return "-" if math.isnan(part) else f"{part:.0%}"


def _with_spread(row: LayerRecord, clock: Clock) -> str:
    if not row.samples:
        return "-"
    low, high = (row.wall_q20, row.wall_q80) if clock == "wall" else (row.cpu_q20, row.cpu_q80)
    spread = "" if row.samples == 1 else f" ±{(high - low) / 2 / row.time(clock):.0%}"
    return f"{number(row.time(clock))}{spread or SINGLE}"


def _with_ratio(row: LayerRecord | None, clock: Clock) -> str:
    if row is None or not row.samples:
        return "-"
    mark = SINGLE if row.samples == 1 else ""
    ratio = row.over_ours(clock)
    return f"{number(row.time(clock))}{mark}" + ("" if math.isnan(ratio) else f" {times(ratio)}")


def _mib(row: LayerRecord) -> str:
    return "-" if math.isnan(row.peak_mib) else f"{row.peak_mib:,.1f}"


@plain_text()
def draw_layers(records: Sequence[LayerRecord], where: Provenance, folder: Path, clock: Clock) -> list[Path]:
    """Draw bars of single cases, and curves of series.

    Args:
        records: The rows.
        where: Their provenance, written below each figure.
        folder: Where the files are written.
        clock: The time that is drawn.

    Returns:
        The files.
    """
    layers = [row for row in records if row.role != "kernel"]
    alone = [row for row in layers if not row.series]
    series = [row for row in layers if row.series]
    bars = {mode: [row for row in alone if row.mode == mode and row.samples] for mode in PASS_NAMES}
    made = [
        _bars(found, mode, where, folder / f"op-bars-{mode}.png", clock)
        for mode, found in bars.items()
        if found
    ]
    if _has_curves(series, lambda row: row.time(clock)):
        unit = "CPU ms of all threads" if clock == "process" else "ms"
        times = _curves(series, lambda row: row.time(clock), f"Time, {unit}", duration, where)
        made.append(save(times, folder / "op-time.png"))
    if _has_curves(series, lambda row: row.peak_mib):
        memory = _curves(
            series, lambda row: row.peak_mib, "Peak memory above the input, MiB", mebibytes, where
        )
        made.append(save(memory, folder / "op-memory.png"))
    return made


def _bars(rows: list[LayerRecord], mode: str, where: Provenance, path: Path, clock: Clock) -> Path:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    cases = list(dict.fromkeys(row.case for row in rows))
    columns = min(4, len(cases))
    lines = math.ceil(len(cases) / columns)
    figure = Figure(
        figsize=(0.6 + 3.5 * columns, 1.15 + 1.95 * lines),
        dpi=150,
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.06),
    )
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat[len(cases) :]:
        axes.set_visible(False)
    for case, axes in zip(cases, grid.flat, strict=False):
        bars = [row for row in rows if row.case == case]
        longest = max(row.time(clock) for row in bars)
        for index, row in enumerate(bars):
            ours = row.role == "layer"
            axes.barh(index, row.time(clock), height=0.72, color=_colour(row.contender, row.role))
            single = "*" if row.samples == 1 else ""
            text = f" {duration(row.time(clock))}{single}"
            ratio = row.over_ours(clock)
            axes.text(row.time(clock), index, text, va="center", fontsize=8, color=INK)
            if not ours and not math.isnan(ratio):
                style: dict[str, Any] = {"ha": "right", "va": "center", "fontweight": "bold", "fontsize": 9}
                axes.text(1.62 * longest, index, times(ratio), color=INK, **style)
        axes.set_yticks(range(len(bars)), [row.contender for row in bars], fontsize=8)
        for label, row in zip(axes.get_yticklabels(), bars, strict=True):
            label.set_color(OURS if row.role == "layer" else INK)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.62 * longest)
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.spines["left"].set_color(QUIET)
        axes.set_title(f"{case}:  {bars[0].title}", loc="left", fontsize=9, color=INK)
    unit = "CPU time of all threads" if clock == "process" else "time"
    add_frame(figure, f"One layer, {PASS_NAMES[mode]}: {unit}, in bold its ratio to ours", where)
    return save(figure, path)


def _has_curves(rows: list[LayerRecord], value: Callable[[LayerRecord], float]) -> bool:
    """Return whether some contender has more than one point in a series."""
    parts = {(row.series, row.mode) for row in rows}
    return any(
        len(points) > 1
        for part in parts
        for points in _lines([row for row in rows if (row.series, row.mode) == part], value).values()
    )


def _lines(
    rows: list[LayerRecord], value: Callable[[LayerRecord], float]
) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """Return the points (positions, value) of each curve by name and role, in ascending order."""
    lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in sorted(rows, key=lambda row: row.positions):
        if value(row) > 0:
            lines.setdefault((row.contender, row.role), []).append((row.positions, value(row)))
    return lines


def _curves(
    rows: list[LayerRecord],
    value: Callable[[LayerRecord], float],
    title: str,
    to_text: Callable[[float], str],
    where: Provenance,
) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    series = list(dict.fromkeys(row.series for row in rows))
    modes = [mode for mode in PASS_NAMES if any(row.mode == mode for row in rows)]
    size = (0.4 + 5.4 * len(series), 0.9 + 4.0 * len(modes))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    grid = figure.subplots(len(modes), len(series), squeeze=False, sharex="col", sharey="row")
    shown = [value(row) for row in rows if value(row) > 0]
    for line, mode in zip(grid, modes, strict=True):
        for axes, curve in zip(line, series, strict=True):
            part = [row for row in rows if row.mode == mode and row.series == curve]
            lines = _lines(part, value)
            sides = sorted({(row.positions, row.grid) for row in part})
            axes.set_xscale("log")
            axes.set_yscale("log")
            bottom, top = 0.6 * min(shown), 2.2 * max(shown)
            axes.set_ylim(bottom, top)
            left, right = sides[0][0], sides[-1][0]
            axes.set_xlim(left / 1.35, right * (right / left) ** 0.5)  # space for the names
            _guides(axes, lines, left, right, top)
            ends = []
            for (name, role), points in lines.items():
                ours = role == "layer"
                style = {"linewidth": 2.4 if ours else 1.5, "markersize": 5 if ours else 3.8, "marker": "o"}
                axes.plot(
                    *zip(*points, strict=True), color=_colour(name, role), zorder=4 if ours else 3, **style
                )
                ends.append((points[-1], f"{name} {to_text(points[-1][1])}", _colour(name, role), ours))
            _name_ends(axes, ends, bottom, top)
            axes.set_title(
                f"{PASS_NAMES[mode]}, {curve}: {part[0].title.split(',')[0]}", loc="left", fontsize=10
            )
            axes.xaxis.set_major_locator(FixedLocator([n for n, _ in sides]))
            axes.xaxis.set_minor_locator(NullLocator())
            names = {n: f"{text}\n{n:,}" for n, text in sides}
            axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _, names=names: names.get(round(n), "")))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,g}"))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.grid(axis="y", color=QUIET, linewidth=0.6)
            axes.set_axisbelow(True)
            axes.tick_params(length=0, labelsize=8, colors=INK)
            axes.spines[["top", "right"]].set_visible(False)
            axes.spines[["left", "bottom"]].set_color(QUIET)
    for axes in grid[-1]:
        axes.set_xlabel("grid, and its positions n", fontsize=9, color=INK)
    add_frame(figure, title, where)
    return figure


def _guides(axes: Any, lines: dict[Any, list[tuple[int, float]]], left: int, right: int, top: float) -> None:
    """Draw dashed lines proportional to n log n and to n², both through the first point of our layer."""
    ours = next((points for (_, role), points in lines.items() if role == "layer"), None)
    if not ours:
        return
    start = ours[0][1]
    ends = [left * (right / left) ** (step / 40) for step in range(41)]
    slopes = {
        "n log n": [start * n * math.log(n) / (left * math.log(left)) for n in ends],
        "n²": [start * (n / left) ** 2 for n in ends],
    }
    for name, values in slopes.items():
        inside = [(n, y) for n, y in zip(ends, values, strict=True) if y < 0.75 * top]
        axes.plot(*zip(*inside, strict=True), color=SOFT, linewidth=1, linestyle=(0, (4, 3)), zorder=2)
        n, y = inside[-1]
        behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
        place: dict[str, Any] = {"textcoords": "offset points", "ha": "right", "va": "center", "zorder": 2}
        axes.annotate(name, (n, y), (-14, 0), fontsize=8, color=SOFT, bbox=behind, **place)


def _name_ends(
    axes: Any, ends: list[tuple[tuple[int, float], str, str, bool]], bottom: float, top: float
) -> None:
    """Write the name of each curve at its end, moved up where it would cover another one."""
    span = math.log(top / bottom)
    last = max(n for (n, _), *_ in ends)
    heights: dict[int, float] = {}
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85}
    for (n, value), text, ink, ours in sorted(ends, key=lambda end: end[0][1]):
        # A curve that ends early is named above its end, since other curves continue to the right of it.
        early = n < last
        wanted = math.log(value / bottom) / span + (GAP / 2 if early else 0)
        heights[n] = max(wanted, heights.get(n, -1.0) + GAP)
        place = (n / 1.2 if early else n * 1.2, bottom * math.exp(heights[n] * span))
        side, weight = "right" if early else "left", "bold" if ours else "normal"
        style: dict[str, Any] = {
            "ha": side,
            "va": "center",
            "fontweight": weight,
            "bbox": behind,
            "zorder": 5,
        }
        axes.annotate(text, place, fontsize=8.5, color=ink, **style)


def _colour(name: str, role: str) -> str:
    """Return the colour of a contender, the same in every figure."""
    if role == "layer":
        return OURS
    return COLOURS.get(name) or SPARE[sum(map(ord, name)) % len(SPARE)]
