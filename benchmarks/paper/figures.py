"""Figures of the race: published accuracy against time, with names beside the points."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from lambdanets.bench import NamedFigure, NetworkRecord
from lambdanets.bench.report import INK, OURS, QUIET

from .published import EFFICIENT, FAMILIES, LAMBDA, RS
from .tables import Measure, seconds_of

COLOURS = {LAMBDA: OURS, EFFICIENT: "#33628f", RS: "#5d8a66"}
MARKERS = {LAMBDA: "o", EFFICIENT: "s", RS: "^"}
PANELS: dict[Measure, str] = {
    "train": "Training step, measured here",
    "eval": "Inference, measured here",
    "published": "Training step, published, 8 TPUv3 cores",
}
SECONDS = "seconds for 1024 images"

FONT = 7.5  # points
WIDTH, HEIGHT = 0.7 * FONT, 1.2 * FONT  # of a letter
# Candidate positions of a name: distances from its point, in points, and angles, the best first.
DISTANCES = (7, 13, 20, 28, 38)
ANGLES = (135, 315, 180, 0, 90, 270, 45, 225)

Box = tuple[float, float, float, float]  # left, bottom, right, top


def race_figures(rows: Sequence[NetworkRecord]) -> Iterator[NamedFigure]:
    """Yield the figure of accuracy against time."""
    sources = dict.fromkeys(row.published_source for row in rows if row.published_source)
    title = "Published ImageNet accuracy against time: up and to the left is better"
    published = f"Published, not measured here: {', '.join(sources)}"
    yield NamedFigure("race-pareto", _pareto(rows), title, published)


def _pareto(rows: Sequence[NetworkRecord]) -> Any:
    from matplotlib.figure import Figure

    shown: list[Measure] = [m for m in PANELS if any(seconds_of(row, m) > 0 for row in _of(rows, m))]
    figure = Figure(figsize=(0.5 + 5.0 * len(shown), 7.2), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False, sharey=True).flat
    placed: list[tuple[Any, list[tuple[float, float, str, str]]]] = []
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
        placed.append((axes, names))
    panels = [axes for axes, _ in placed]
    panels[0].set_ylabel("published top-1 on ImageNet, %", fontsize=9, color=INK)
    # The last panel, with published times, has every family.
    panels[-1].legend(frameon=False, fontsize=9, loc="lower right", labelcolor="linecolor")
    for axes in panels:
        axes.margins(x=0.14, y=0.06)
    # The layout is settled now: names can be placed in points.
    figure.draw_without_rendering()
    for axes, names in placed:
        write_names(axes, names)
    return figure


def _of(rows: Sequence[NetworkRecord], measure: Measure) -> list[NetworkRecord]:
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


def write_names(axes: Any, names: Sequence[tuple[float, float, str, str]]) -> None:
    """Write names beside points such that they cover neither one another nor points and lines.

    Args:
        axes: The axes, with final limits and position.
        names: x, y, name and colour of each point.
    """
    scale = 72 / axes.figure.dpi
    points = [tuple(scale * axes.transData.transform((x, y))) for x, y, *_ in names]
    corners = scale * axes.bbox.get_points()
    frame: Box = (*corners[0], *corners[1])
    lines = [
        (x, y) for line in axes.lines for x, y in _along(scale * axes.transData.transform(line.get_xydata()))
    ]
    taken: list[Box] = []
    for (x, y), (*_, text, ink) in zip(points, names, strict=True):
        choices = [_box(x, y, text, far, angle) for far in DISTANCES for angle in ANGLES]
        costs = [_cost(box, taken, points, lines, frame) for box in choices]
        # A distant position is worse than a near one, but better than one that covers something.
        best = min(range(len(choices)), key=lambda k: costs[k] + 0.3 * (k // len(ANGLES)) + 0.01 * k)
        box = choices[best]
        taken.append(box)
        middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        far = best // len(ANGLES) > 0
        axes.annotate(
            text,
            names[len(taken) - 1][:2],
            (middle[0] - x, middle[1] - y),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=FONT,
            color=ink,
            zorder=5,
            arrowprops={"arrowstyle": "-", "color": ink, "linewidth": 0.5, "shrinkA": 0} if far else None,
        )


def _along(points: Any) -> list[tuple[float, float]]:
    """Return positions along a line, four points apart: a box that covers the line covers one of them."""
    found = []
    for (x, y), (right, top) in pairwise(points):
        steps = max(1, int(math.hypot(right - x, top - y) / 4))
        found += [(x + (right - x) * k / steps, y + (top - y) * k / steps) for k in range(steps)]
    return found


def _box(x: float, y: float, text: str, far: float, angle: float) -> Box:
    """Return the box of a name at this distance and angle from its point."""
    half, up = WIDTH * len(text) / 2, HEIGHT / 2
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    x += cos * far + half * (abs(cos) > 0.1) * math.copysign(1, cos)
    y += sin * far + up * (abs(sin) > 0.1) * math.copysign(1, sin)
    return x - half, y - up, x + half, y + up


def _cost(box: Box, taken: list[Box], points: Sequence[Any], lines: Sequence[Any], frame: Box) -> float:
    overlaps = sum(_overlap(box, other) for other in taken) + 0.5 * _covered(box, points, 3.5)
    outside = box[0] < frame[0] or box[1] < frame[1] or box[2] > frame[2] + 20 or box[3] > frame[3]
    return 10.0 * overlaps + _covered(box, lines, 2) + 100.0 * outside


def _covered(box: Box, points: Sequence[Any], margin: float) -> int:
    left, bottom, right, top = box
    return sum(left - margin < x < right + margin and bottom - margin < y < top + margin for x, y in points)


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
