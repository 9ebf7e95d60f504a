"""Figures of a bench of networks, drawn from its rows alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lambdanets.bench.figures import INK, NAMES, OURS, QUIET, SOFT, duration, frame, mebibytes, save
from lambdanets.bench.tables import CLOCKS, SINGLE, Clock
from lambdanets.utils.fonts import plain_text

from .labels import place
from .matched import Measure, seconds_of
from .published import EFFICIENT, FAMILIES, LAMBDA, RS
from .records import NOT_RUN, Measured, Row, by_processor

FORMATS = (".png", ".svg")
OTHERS = "#7ba3c9"
COLOURS = {LAMBDA: OURS, EFFICIENT: "#33628f", RS: "#5d8a66"}
MARKERS = {LAMBDA: "o", EFFICIENT: "s", RS: "^"}
PANELS: dict[Measure, str] = {
    "train": "Training step, measured here",
    "eval": "Inference, measured here",
    "published": "Training step, published, 8 TPUv3 cores",
}
SECONDS = "seconds for 1024 images"


@plain_text()
def draw(measured: Sequence[Measured], folder: Path, clock: Clock = "wall") -> list[Path]:
    """Draw time and memory of every network as bars and, for the race, accuracy against time.

    Args:
        measured: The rows with their provenance.
        folder: Where the files go.
        clock: Which of the two times is drawn.

    Returns:
        The files, each figure as PNG and as SVG.
    """
    rows = [row for row, _ in (by_processor(measured) if clock == "process" else measured)]
    bench, where = rows[0].bench, measured[-1][1]
    sources = dict.fromkeys(row.published_source for row in rows if row.published_source)
    figures = {}
    if any(row.ms_per_image > 0 for row in rows):
        figures[f"{bench}-bars"] = _bars(rows)
        if bench == "race":
            figures["race-pareto"] = _pareto(rows)
    made = []
    for name, figure in figures.items():
        notes = [f"Times measured here: {CLOCKS[clock]}"] if clock == "process" else []
        if name == "race-pareto":
            notes.append(f"Published, not measured here: {', '.join(sources)}")
        title = _TITLES.get(name, "Networks: time for one image, and peak memory of a batch")
        frame(figure, title, where, "\n".join(notes))
        made += [save(figure, folder / f"{name}{ending}") for ending in FORMATS]
    return made


_TITLES = {
    "race-pareto": "Published ImageNet accuracy against time: up and to the left is better",
    "table4-bars": "Table 4: what the 3x3 convolutions of a ResNet-50 are replaced by",
    "table13-bars": "Table 13: stages c2 to c5 of a ResNet-50 with convolutions (C) or lambda layers (L)",
    "table14-bars": "Table 14: how many lambda layers in c4",
    "race-bars": "The race: time for one image, and peak memory of a batch",
}


def _bars(rows: Sequence[Row]) -> Any:
    from matplotlib.figure import Figure

    keys = list(dict.fromkeys(_key(row) for row in rows))
    panels: list[tuple[str, str, Callable[[Row], float], Callable[[float], str]]] = []
    for mode, name in NAMES.items():
        for what, value, tell in _QUANTITIES:
            if any(row.mode == mode and value(row) > 0 for row in rows):
                panels.append((mode, f"{name}, {what}", value, tell))
    names = [_name(key, keys) for key in keys]
    longest = max(map(len, names))
    size = (0.7 + 0.075 * longest + 2.75 * len(panels), 1.35 + 0.27 * len(keys))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    for axes, (mode, title, value, tell) in zip(
        figure.subplots(1, len(panels), squeeze=False, sharey=True).flat, panels, strict=True
    ):
        found = {_key(row): row for row in rows if row.mode == mode}
        shown = [row for row in found.values() if value(row) > 0]
        most = max(map(value, shown))
        batch = _common_batch(shown)
        for height, key in enumerate(keys):
            row = found.get(key)
            known = row is not None and value(row) > 0
            length = value(row) if row is not None and known else 0.0
            axes.barh(height, length, height=0.7, color=_colour(key))
            text = tell(length) if known else NOT_RUN if row is not None and not row.samples else "-"
            if row is not None and known:
                text += SINGLE if row.samples == 1 and value(row) == row.ms_per_image else ""
                text += f"  (batch {row.batch})" if row.batch != batch else ""
            ink = INK if known else SOFT
            axes.text(length + 0.02 * most, height, text, va="center", fontsize=8, color=ink)
        title += f" at batch {batch}" if batch else ""
        axes.set_title(title, loc="left", fontsize=9.5, color=INK)
        axes.set_xlim(0, 1.55 * most)
        axes.set_xticks([])
        axes.set_yticks(range(len(keys)), names, fontsize=8.5)
        axes.set_ylim(len(keys) - 0.4, -0.6)
        axes.tick_params(length=0, colors=INK)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.spines["left"].set_color(QUIET)
    return figure


# What the panels of a pass show.
_QUANTITIES: tuple[tuple[str, Callable[[Row], float], Callable[[float], str]], ...] = (
    ("for one image", lambda row: row.ms_per_image, duration),
    ("peak memory", lambda row: row.peak_mib, mebibytes),
)


def _common_batch(rows: Sequence[Row]) -> int:
    """The batch of most bars, 0 where no two have the same."""
    batch, times = Counter(row.batch for row in rows).most_common(1)[0]
    return batch if times > 1 or len(rows) == 1 else 0


Key = tuple[str, str, str, str]  # family, title, model, size


def _key(row: Row) -> Key:
    return row.family, row.title, row.model, row.size


def _name(key: Key, keys: Sequence[Key]) -> str:
    """Family and title of a bar, with its size where another has the same title."""
    family, title, _, size = key
    alone = sum(each[:2] == (family, title) for each in keys) == 1
    return f"{family} {title}{'' if alone else f' at {size}'}".strip()


def _colour(key: Key) -> str:
    family, _, model, _ = key
    return COLOURS.get(family) or (OURS if "lambda" in model else OTHERS)


def _pareto(rows: Sequence[Row]) -> Any:
    from matplotlib.figure import Figure

    shown: list[Measure] = [m for m in PANELS if any(seconds_of(row, m) > 0 for row in _of(rows, m))]
    figure = Figure(figsize=(0.5 + 5.0 * len(shown), 7.2), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False, sharey=True).flat
    laid: list[tuple[Any, list[tuple[float, float, str, str]]]] = []
    for axes, measure in zip(panels, shown, strict=True):
        names: list[tuple[float, float, str, str]] = []
        for family in FAMILIES:
            points = sorted(
                {
                    (row.published_top1, seconds_of(row, measure), row.title)
                    for row in _of(rows, measure)
                    if row.family == family and seconds_of(row, measure) > 0
                }
            )
            if not points:
                continue
            accuracies, seconds, titles = zip(*points, strict=True)
            ink, marker = COLOURS[family], MARKERS[family]
            axes.plot(
                seconds, accuracies, color=ink, marker=marker, markersize=5, linewidth=1.6, label=family
            )
            names += [(x, y, text, ink) for x, y, text in zip(seconds, accuracies, titles, strict=True)]
        _axes(axes, PANELS[measure])
        laid.append((axes, names))
    panels = [axes for axes, _ in laid]
    panels[0].set_ylabel("published top-1 on ImageNet, %", fontsize=9, color=INK)
    # The last has every family, whoever ran here.
    panels[-1].legend(frameon=False, fontsize=9, loc="lower right", labelcolor="linecolor")
    for axes in panels:
        axes.margins(x=0.14, y=0.06)
    # Places are known only when everything else has its own.
    figure.draw_without_rendering()
    for axes, names in laid:
        place(axes, names)
    return figure


def _of(rows: Sequence[Row], measure: Measure) -> list[Row]:
    return [row for row in rows if measure == "published" or row.mode == measure]


def _axes(axes: Any, title: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel(SECONDS, fontsize=9, color=INK)
    axes.grid(color=QUIET, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, which="both", labelsize=8, colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(QUIET)
