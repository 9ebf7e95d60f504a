"""Figures of a bench, drawn from its rows alone: bars for each case, curves over the number of positions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lambdanets.utils.fonts import plain_text

from .records import Provenance, Record
from .tables import Clock, number, threads, times

OURS, INK, SOFT, QUIET = "#c8472f", "#2b2f36", "#6b7380", "#d9dde3"
COLOURS = {"lucidrains": "#33628f", "timm": "#7ba3c9", "SDPA": "#5d8a66", "3x3 conv": "#b08d57"}
SPARE = ("#7a5c99", "#4f9d9d", "#99845c", "#8a8f98")
NAMES = {"train": "training step", "eval": "inference"}
GAP = 0.055  # between the names at the ends of curves, as a fraction of the height


@plain_text()
def draw_figures(records: Sequence[Record], where: Provenance, folder: Path, clock: Clock) -> list[Path]:
    """Draw what the rows have: bars where cases stand alone, curves where they form series.

    Args:
        records: The rows.
        where: Their provenance, for the small print.
        folder: Where the files go.
        clock: Which of the two times is drawn.

    Returns:
        The files.
    """
    layers = [row for row in records if row.role != "kernel"]
    alone = [row for row in layers if not row.series]
    series = [row for row in layers if row.series]
    bars = {mode: [row for row in alone if row.mode == mode and row.samples] for mode in NAMES}
    made = [
        _bars(found, mode, where, folder / f"op-bars-{mode}.png", clock)
        for mode, found in bars.items()
        if found
    ]
    if _has_curves(series, lambda row: row.time(clock)):
        unit = "processor ms of all threads" if clock == "process" else "ms"
        times = _curves(series, lambda row: row.time(clock), f"Time, {unit}", duration, where)
        made.append(save(times, folder / "op-time.png"))
    if _has_curves(series, lambda row: row.peak_mib):
        memory = _curves(
            series, lambda row: row.peak_mib, "Peak memory above the input, MiB", mebibytes, where
        )
        made.append(save(memory, folder / "op-memory.png"))
    return made


def _bars(rows: list[Record], mode: str, where: Provenance, path: Path, clock: Clock) -> Path:
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
        for place, row in enumerate(bars):
            ours = row.role == "layer"
            axes.barh(place, row.time(clock), height=0.72, color=colour(row.contender, row.role))
            single = "*" if row.samples == 1 else ""
            text = f" {duration(row.time(clock))}{single}"
            ratio = row.over_ours(clock)
            axes.text(row.time(clock), place, text, va="center", fontsize=8, color=INK)
            if not ours and not math.isnan(ratio):
                style: dict[str, Any] = {"ha": "right", "va": "center", "fontweight": "bold", "fontsize": 9}
                axes.text(1.62 * longest, place, times(ratio), color=INK, **style)
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
    unit = "processor time of all threads" if clock == "process" else "time"
    frame(figure, f"One layer, {NAMES[mode]}: {unit}, and in bold how it compares with ours", where)
    return save(figure, path)


def duration(milliseconds: float) -> str:
    """Return a time in words."""
    return f"{number(milliseconds)} ms" if milliseconds < 1e3 else f"{number(milliseconds / 1e3)} s"


def mebibytes(mib: float) -> str:
    """Return an amount of memory in words."""
    return f"{number(mib)} MiB" if mib < 1e4 else f"{number(mib / 1024)} GiB"


def _has_curves(rows: list[Record], value: Callable[[Record], float]) -> bool:
    parts = {(row.series, row.mode) for row in rows}
    return any(
        len(points) > 1
        for part in parts
        for points in _lines([row for row in rows if (row.series, row.mode) == part], value).values()
    )


def _lines(
    rows: list[Record], value: Callable[[Record], float]
) -> dict[tuple[str, str], list[tuple[int, float]]]:
    lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in sorted(rows, key=lambda row: row.positions):
        if value(row) > 0:
            lines.setdefault((row.contender, row.role), []).append((row.positions, value(row)))
    return lines


def _curves(
    rows: list[Record],
    value: Callable[[Record], float],
    title: str,
    tell: Callable[[float], str],
    where: Provenance,
) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    series = list(dict.fromkeys(row.series for row in rows))
    modes = [mode for mode in NAMES if any(row.mode == mode for row in rows)]
    size = (0.4 + 5.4 * len(series), 0.9 + 4.0 * len(modes))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    grid = figure.subplots(len(modes), len(series), squeeze=False, sharex="col", sharey="row")
    shown = [value(row) for row in rows if value(row) > 0]
    for line, mode in zip(grid, modes, strict=True):
        for axes, name in zip(line, series, strict=True):
            part = [row for row in rows if row.mode == mode and row.series == name]
            lines = _lines(part, value)
            sides = sorted({(row.positions, row.grid) for row in part})
            axes.set_xscale("log")
            axes.set_yscale("log")
            bottom, top = 0.6 * min(shown), 2.2 * max(shown)
            axes.set_ylim(bottom, top)
            left, right = sides[0][0], sides[-1][0]
            axes.set_xlim(left / 1.35, right * (right / left) ** 0.5)  # room for the names
            _guides(axes, lines, left, right, top)
            ends = []
            for (who, role), points in lines.items():
                ours = role == "layer"
                style = {"linewidth": 2.4 if ours else 1.5, "markersize": 5 if ours else 3.8, "marker": "o"}
                axes.plot(
                    *zip(*points, strict=True), color=colour(who, role), zorder=4 if ours else 3, **style
                )
                ends.append((points[-1], f"{who} {tell(points[-1][1])}", colour(who, role), ours))
            _name_ends(axes, ends, bottom, top)
            axes.set_title(f"{NAMES[mode]}, {name}: {part[0].title.split(',')[0]}", loc="left", fontsize=10)
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
    frame(figure, title, where)
    return figure


def _guides(axes: Any, lines: dict[Any, list[tuple[int, float]]], left: int, right: int, top: float) -> None:
    """The slopes of n log n and n², both from where our layer starts."""
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
    """Each curve's name at its end, moved apart where they would cover one another."""
    span = math.log(top / bottom)
    last = max(n for (n, _), *_ in ends)
    heights: dict[int, float] = {}
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85}
    for (n, value), text, ink, ours in sorted(ends, key=lambda end: end[0][1]):
        early = n < last  # to its right others go on; above its end there is nobody
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


def colour(name: str, role: str) -> str:
    """Return a contender's colour, the same in every figure."""
    if role == "layer":
        return OURS
    return COLOURS.get(name) or SPARE[sum(map(ord, name)) % len(SPARE)]


def frame(figure: Any, title: str, where: Provenance, sources: str = "") -> None:
    """Write the title above a figure, and below it where its rows were measured, and what else it shows."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK)
    commit = f" ({where.commit})" if where.commit else ""
    figure.supxlabel(
        f"{where.processor}, {threads(where.threads)}, {where.dtype}, torch {where.torch}, lambdanets "
        f"{where.lambdanets}{commit}, {where.date.split()[0]}" + (f"\n{sources}" if sources else ""),
        x=0.01, ha="left", fontsize=7, color=SOFT,
    )  # fmt: skip


def save(figure: Any, path: Path) -> Path:
    """Write a figure beside its place and rename it into it; the name says which format."""
    from matplotlib import rc_context

    temporary = path.with_name(f"{path.name}.part")
    kind = path.suffix[1:]
    metadata = {"Date": None} if kind == "svg" else {}
    with rc_context({"svg.hashsalt": "lambdanets"}):  # and without a date the same rows give the same file
        figure.savefig(temporary, format=kind, facecolor="white", metadata=metadata)
    temporary.replace(path)
    return path
