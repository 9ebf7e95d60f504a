"""The figure of a study, drawn from its rows: accuracy with intervals, and accuracy against speed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lambdanets.bench.report import INK, OURS, QUIET, SOFT, save
from lambdanets.utils.fonts import legible, plain_text

from .records import CellRecord
from .report import ONE_SEED, Result, provenance_line, results, title

ATTENTION, CONVOLUTION = "#33628f", "#a07d43"
# Candidate offsets of a name from its point, in points.
OFFSETS = [
    (side * length, rise)
    for length in (8, 14, 26, 44)
    for rise in (0, 8, -8, 16, -16, 26, -26, 38, -38, 52, -52)
    for side in (1, -1)
]


def draw_figures(records: Sequence[CellRecord], folder: Path) -> list[Path]:
    """Draw both panels into `study.png` and `study.svg`.

    Args:
        records: The rows.
        folder: Where the files are written.

    Returns:
        The files.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = results(records)
    heading, source = title(records), provenance_line(records)
    with plain_text(heading, source):
        figure = Figure(figsize=(13.5, 1.9 + max(0.36 * len(found), 2.6)), dpi=150, layout="constrained")
        renderer = FigureCanvasAgg(figure).get_renderer()
        left, right = figure.subplots(1, 2, width_ratios=[1.05, 1])
        _intervals(left, found)
        figure.suptitle(legible(heading), x=0.01, ha="left", fontsize=12, color=INK)
        figure.supxlabel(legible(source), x=0.01, ha="left", fontsize=7, color=SOFT)
        on_gpu = any(record.device != "cpu" for record in records)
        speeds = [each.images_per_second if on_gpu else each.images_per_cpu_second for each in found]
        _against_speed(right, found, speeds)
        unit = "second" if on_gpu else "second of CPU time"
        right.set_xlabel(f"training images per {unit} (right is faster)", fontsize=9, color=INK)
        figure.draw_without_rendering()  # the layout is settled now: names can be placed in pixels
        _name_points(right, found, speeds, renderer)
        return [save(figure, folder / f"study.{kind}") for kind in ("png", "svg")]


def colour(result: Result) -> str:
    """Return the colour of a contender's family."""
    if result.name.startswith("lambda"):
        return OURS
    return CONVOLUTION if result.name in ("conv", "se") else ATTENTION


def _intervals(axes: Any, found: list[Result]) -> None:
    for place, result in enumerate(found):
        ink, one = colour(result), result.top1.number == 1
        if not one:
            axes.plot(
                [result.top1.value - result.top1.half, result.top1.value + result.top1.half],
                [place, place], color=ink, linewidth=2.2, solid_capstyle="round", zorder=3,
            )  # fmt: skip
            axes.scatter(result.values, [place] * len(result.values), s=9, color=ink, alpha=0.45, zorder=2)
        axes.scatter(
            [result.top1.value],
            [place],
            s=42,
            zorder=4,
            color="white" if one else ink,
            edgecolors=ink,
            linewidths=1.4,
        )
        text = f"{result.top1.value:.2f}" + (f"  {ONE_SEED}" if one else f" ± {result.top1.half:.2f}")
        axes.annotate(
            text, (1.02, place), xycoords=("axes fraction", "data"), va="center", fontsize=8.5, color=INK,
            annotation_clip=False,
        )  # fmt: skip
    axes.set_yticks(range(len(found)), [result.title for result in found], fontsize=9)
    for label, result in zip(axes.get_yticklabels(), found, strict=True):
        label.set_color(colour(result))
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.margins(x=0.06)
    axes.set_xlabel("top-1 of the last epoch, %: mean, its 95 % interval, and each seed", fontsize=9)
    _clean(axes, "x")


def _against_speed(axes: Any, found: list[Result], speeds: list[float]) -> None:
    for speed, result in zip(speeds, found, strict=True):
        ink, one = colour(result), result.top1.number == 1
        if not one:
            axes.errorbar(
                speed,
                result.top1.value,
                yerr=result.top1.half,
                color=ink,
                linewidth=1.2,
                alpha=0.55,
                zorder=2,
            )
        axes.scatter(
            [speed], [result.top1.value], s=42, zorder=3, color="white" if one else ink, edgecolors=ink,
            linewidths=1.4,
        )  # fmt: skip
    span = max(max(speeds) - min(speeds), 0.1 * max(speeds))
    axes.set_xlim(min(speeds) - 0.3 * span, max(speeds) + 0.65 * span)  # space for names
    axes.margins(y=0.12)
    axes.set_ylabel("top-1 of the last epoch, %", fontsize=9, color=INK)
    _clean(axes, "both")


def _clean(axes: Any, grid: str) -> None:
    axes.grid(axis=grid, color=QUIET, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="x", length=0, labelsize=8.5, colors=INK)
    axes.tick_params(axis="y", length=0, labelsize=8.5)
    axes.xaxis.label.set_color(INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(QUIET)


def _name_points(axes: Any, found: list[Result], speeds: list[float], renderer: Any) -> None:
    """Write each name where it covers no point and no other name; a distant one has a line to its point."""
    from matplotlib.transforms import Bbox

    points = list(zip(speeds, found, strict=True))
    scale = renderer.points_to_pixels(1.0)
    pixels = [axes.transData.transform((speed, result.top1.value)) for speed, result in points]
    bounds = 8 * scale
    dots = [Bbox.from_bounds(x - bounds / 2, y - bounds / 2, bounds, bounds) for x, y in pixels]
    intervals, names = [], []
    for speed, result in points:
        low, high = (
            axes.transData.transform((speed, result.top1.value + side * result.top1.half)) for side in (-1, 1)
        )
        if result.top1.number > 1:  # its interval
            intervals.append(Bbox.from_extents(low[0] - scale / 2, low[1], high[0] + scale / 2, high[1]))
    inside = axes.get_window_extent(renderer)
    for (speed, result), (x, y) in sorted(zip(points, pixels, strict=True), key=lambda each: -each[1][1]):
        text = axes.text(0, 0, result.title, fontsize=8.5)
        extent = text.get_window_extent(renderer)
        text.remove()
        choices = []
        for right, rise in OFFSETS:
            start = x + right * scale - (extent.width if right < 0 else 0)
            box = Bbox.from_bounds(start, y + rise * scale - extent.height / 2, extent.width, extent.height)
            # A name over an interval is legible, over another name or a point it is not.
            covered = sum(_area(box, other) for other in intervals)
            covered += 8 * sum(_area(box, other) for other in (*dots, *names))
            outside = extent.width * extent.height - _area(box, inside)
            distance = math.hypot(right, rise) + (4 if right < 0 else 0)
            choices.append((covered + 8 * outside + 3 * scale**2 * distance, (right, rise), box))
        _, (right, rise), box = min(choices, key=lambda choice: choice[0])
        names.append(box)
        far = math.hypot(right, rise) > 17
        behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.4, "alpha": 0.75}
        line = {"arrowstyle": "-", "color": SOFT, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4}
        axes.annotate(
            result.title, (speed, result.top1.value), (right, rise), textcoords="offset points",
            ha="left" if right > 0 else "right", va="center", fontsize=8.5, color=colour(result),
            arrowprops=line if far else None, zorder=5, bbox=behind,
        )  # fmt: skip


def _area(one: Any, other: Any) -> float:
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return max(width, 0.0) * max(height, 0.0)
