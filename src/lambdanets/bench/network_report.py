"""Reports of benchmarks of networks, drawn from their rows alone: tables, Markdown and bars."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from lambdanets.utils.fonts import plain_text

from .networks import NOT_RUN, Measured, NetworkRecord, with_cpu_time
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
)
from .timing import PASS_NAMES, Pass

FORMATS = (".png", ".svg")
OTHERS = "#7ba3c9"  # the colour of networks without lambda layers
PASS_TITLES: dict[Pass, str] = {"train": "Training step", "eval": "Inference"}
LEGEND = (
    "A training step is forward, cross entropy, backward and a step of SGD with momentum; inference is a "
    "forward pass in inference mode; both on random images in channels-last layout, with random weights. "
    "Images per second are from the median step; ± is half of the distance between the 20 % and the 80 % "
    "quantile, * a single step. The networks of a group took turns in one process. Peak memory includes "
    "the network, its batch, gradients, momenta and temporaries: on a CPU it is the growth of a separate "
    "process, on a GPU that of PyTorch's allocations. In bfloat16 training has float32 weights and "
    "autocast, inference bfloat16 weights. GMAC: 10^9 multiply-adds of a forward pass for one image; for "
    "our lambda layers those of the kernels that the planner selects for one image, for local attention "
    "those of whole tiles. Published numbers are marked as such and were not measured here."
)


class NamedFigure(NamedTuple):
    """A figure, the stem of its file, its title, and the sources of numbers that were not measured here."""

    name: str
    figure: Any
    title: str
    sources: str = ""


def throughput_tables(rows: Sequence[NetworkRecord]) -> list[Table]:
    """Return one table for each pass: cost, throughput and peak memory of every network."""
    return [_throughput(rows, which) for which in passes_of(rows)]


@dataclass(frozen=True, kw_only=True)
class NetworkReport:
    """The report of one benchmark of networks.

    Attributes:
        command: The command that was run, the title of the Markdown page.
        tables: Function that makes the tables from rows.
        paragraphs: Text after the legend.
        bars_title: Title of the figure with bars.
        colours: Colours by family.
        more_figures: Function that makes further figures from rows, of which at least one was measured.
    """

    command: str
    tables: Callable[[Sequence[NetworkRecord]], list[Table]] = throughput_tables
    paragraphs: tuple[str, ...] = ()
    bars_title: str = "Networks: time for one image, and peak memory of a batch"
    colours: Mapping[str, str] = field(default_factory=dict)
    more_figures: Callable[[Sequence[NetworkRecord]], Iterable[NamedFigure]] = lambda rows: ()

    def make_tables(self, measured: Sequence[Measured], clock: Clock = "wall") -> list[Table]:
        """Return the tables, with wall time or with CPU time."""
        return self.tables(_rows(measured, clock))

    def legend(self, clock: Clock = "wall") -> list[str]:
        """Return the paragraphs that explain the tables."""
        clocks = [f"Times measured here are {CLOCKS[clock]}."] if clock == "process" else []
        return [LEGEND, *clocks, *self.paragraphs]

    def markdown(
        self, measured: Sequence[Measured], figures: Iterable[str] = (), clock: Clock = "wall"
    ) -> str:
        """Return the Markdown page with these figures."""
        paragraphs = [provenance_range(measured), *self.legend(clock)]
        return page(self.command, paragraphs, self.make_tables(measured, clock), figures)

    @plain_text()
    def draw(self, measured: Sequence[Measured], folder: Path, clock: Clock = "wall") -> list[Path]:
        """Draw time and memory of every network as bars, and the further figures of this benchmark.

        Args:
            measured: The rows with their provenance.
            folder: Where the files are written.
            clock: The time that is drawn.

        Returns:
            The files, each figure as PNG and as SVG.
        """
        rows = _rows(measured, clock)
        if not any(row.ms_per_image > 0 for row in rows):
            return []
        bars = NamedFigure(f"{rows[0].bench}-bars", bar_figure(rows, self.colours), self.bars_title)
        files = []
        for name, figure, title, sources in (bars, *self.more_figures(rows)):
            clocks = [f"Times measured here: {CLOCKS[clock]}"] if clock == "process" else []
            add_frame(figure, title, measured[-1][1], "\n".join([*clocks, *filter(None, [sources])]))
            files += [save(figure, folder / f"{name}{suffix}") for suffix in FORMATS]
        return files


MODELS_REPORT = NetworkReport(command="lambdanets bench models")


def _rows(measured: Sequence[Measured], clock: Clock) -> list[NetworkRecord]:
    return [row for row, _ in (with_cpu_time(measured) if clock == "process" else measured)]


def provenance_range(measured: Sequence[Measured]) -> str:
    """Return one line on machine and versions, with the first and the last time of measurement."""
    known = [where for _, where in measured]
    first, last = min(known, key=lambda each: each.date), max(known, key=lambda each: each.date)
    line = provenance_line(first)
    commits = list(dict.fromkeys(each.commit for each in known if each.commit))
    if last.date != first.date:
        line += f" to {last.date}"
    return line + (f"; commits {', '.join(commits)}" if len(commits) > 1 else "")


def _throughput(rows: Sequence[NetworkRecord], which: Pass) -> Table:
    shown = [row for row in rows if row.mode == which]
    body = tuple(
        (
            model_text(row),
            row.size,
            *cost_cells(row),
            str(row.batch or "-"),
            with_spread(row, number(row.images_per_s)),
            number(row.wall_ms),
            number_or_dash(row.peak_mib),
        )
        for row in shown
    )
    headings = ("model", "size", "parameters M", "GMAC", "batch", "images/s", "ms/batch", "peak MiB")
    return Table(title=PASS_TITLES[which], headings=headings, rows=body, notes=grouped_notes(shown))


def passes_of(rows: Sequence[NetworkRecord]) -> list[Pass]:
    """Return the passes that occur in the rows, in the order of the report."""
    return [which for which in PASS_TITLES if any(row.mode == which for row in rows)]


def model_text(row: NetworkRecord) -> str:
    """Return the model of a row with its options."""
    return f"{row.model}{f'({row.options})' if row.options else ''}"


def cost_cells(row: NetworkRecord) -> tuple[str, str]:
    """Return the cells with the millions of parameters and the GMAC."""
    return (f"{row.parameters / 1e6:.2f}", f"{row.macs / 1e9:.3g}") if row.parameters else ("-", "-")


def with_spread(row: NetworkRecord, value: str) -> str:
    """Return a measured value with its spread; "not run" or "-" if there is none."""
    if not row.samples:
        return NOT_RUN if NOT_RUN in row.note else "-"
    return f"{value}{SINGLE if row.samples == 1 else f' ±{row.spread:.0%}'}"


def number_or_dash(value: float) -> str:
    """Return a number without decimals; "-" for NaN."""
    return "-" if value != value else f"{value:,.0f}"


def grouped_notes(rows: Sequence[NetworkRecord]) -> tuple[str, ...]:
    """Return each note once, after the networks that have it, and their passes if these are not all."""
    notes: dict[str, dict[str, list[str]]] = {}
    passes = {row.mode for row in rows}
    for row in rows:
        if row.note:
            name = f"{row.family} {row.title}".strip()
            notes.setdefault(row.note, {}).setdefault(name, []).append(row.mode)
    return tuple(
        f"{', '.join(_with_passes(name, found, passes) for name, found in networks.items())}: {note}"
        for note, networks in notes.items()
    )


def _with_passes(name: str, found: Sequence[str], passes: AbstractSet[str]) -> str:
    own = dict.fromkeys(found)
    return name if own.keys() == passes else f"{name} ({', '.join(PASS_NAMES[mode] for mode in own)})"


# The panels of a pass: a title, the value of a row, and its text.
_QUANTITIES: tuple[tuple[str, Callable[[NetworkRecord], float], Callable[[float], str]], ...] = (
    ("for one image", lambda row: row.ms_per_image, duration),
    ("peak memory", lambda row: row.peak_mib, mebibytes),
)

_Key = tuple[str, str, str, str]  # family, title, model, size


def bar_figure(rows: Sequence[NetworkRecord], colours: Mapping[str, str]) -> Any:
    """Return a figure with a bar for every network in every panel: time and memory of each pass."""
    from matplotlib.figure import Figure

    keys = list(dict.fromkeys(_key(row) for row in rows))
    panels: list[tuple[str, str, Callable[[NetworkRecord], float], Callable[[float], str]]] = []
    for mode, name in PASS_NAMES.items():
        for quantity, value, to_text in _QUANTITIES:
            if any(row.mode == mode and value(row) > 0 for row in rows):
                panels.append((mode, f"{name}, {quantity}", value, to_text))
    names = [_name(key, keys) for key in keys]
    longest = max(map(len, names))
    size = (0.7 + 0.075 * longest + 2.75 * len(panels), 1.35 + 0.27 * len(keys))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    for axes, (mode, title, value, to_text) in zip(
        figure.subplots(1, len(panels), squeeze=False, sharey=True).flat, panels, strict=True
    ):
        found = {_key(row): row for row in rows if row.mode == mode}
        shown = [row for row in found.values() if value(row) > 0]
        largest = max(map(value, shown))
        batch = _common_batch(shown)
        for height, key in enumerate(keys):
            row = found.get(key)
            measured = row is not None and value(row) > 0
            length = value(row) if row is not None and measured else 0.0
            family, _, model, _ = key
            colour = colours.get(family) or (OURS if "lambda" in model else OTHERS)
            axes.barh(height, length, height=0.7, color=colour)
            text = to_text(length) if measured else NOT_RUN if row is not None and not row.samples else "-"
            if row is not None and measured:
                text += SINGLE if row.samples == 1 and value(row) == row.ms_per_image else ""
                text += f"  (batch {row.batch})" if row.batch != batch else ""
            ink = INK if measured else SOFT
            axes.text(length + 0.02 * largest, height, text, va="center", fontsize=8, color=ink)
        title += f" at batch {batch}" if batch else ""
        axes.set_title(title, loc="left", fontsize=9.5, color=INK)
        axes.set_xlim(0, 1.55 * largest)
        axes.set_xticks([])
        axes.set_yticks(range(len(keys)), names, fontsize=8.5)
        axes.set_ylim(len(keys) - 0.4, -0.6)
        axes.tick_params(length=0, colors=INK)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.spines["left"].set_color(QUIET)
    return figure


def _common_batch(rows: Sequence[NetworkRecord]) -> int:
    """Return the most frequent batch of several rows; 0 if all differ."""
    batch, count = Counter(row.batch for row in rows).most_common(1)[0]
    return batch if count > 1 or len(rows) == 1 else 0


def _key(row: NetworkRecord) -> _Key:
    return row.family, row.title, row.model, row.size


def _name(key: _Key, keys: Sequence[_Key]) -> str:
    """Return family and title of a bar, with its size where another has the same title."""
    family, title, _, size = key
    alone = sum(each[:2] == (family, title) for each in keys) == 1
    return f"{family} {title}{'' if alone else f' at {size}'}".strip()
