"""Names beside points of a figure, such that they cover neither one another nor the points and lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

FONT = 7.5  # points
WIDTH, HEIGHT = 0.7 * FONT, 1.2 * FONT  # of a letter
# Where a name may stand: its distance from the point, in points, and the angles, the best first.
DISTANCES = (7, 13, 20, 28, 38)
ANGLES = (135, 315, 180, 0, 90, 270, 45, 225)

Box = tuple[float, float, float, float]  # left, bottom, right, top


def place(axes: Any, names: Sequence[tuple[float, float, str, str]]) -> None:
    """Write names beside points.

    Args:
        axes: Where; its limits and place must be final.
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
        # A far place is worse than a near one, but better than covering anything.
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
    """Points every few points of a line, for what covers them covers it."""
    found = []
    for (x, y), (right, top) in pairwise(points):
        steps = max(1, int(math.hypot(right - x, top - y) / 4))
        found += [(x + (right - x) * k / steps, y + (top - y) * k / steps) for k in range(steps)]
    return found


def _box(x: float, y: float, text: str, far: float, angle: float) -> Box:
    """The box of a name whose nearest edge is so far from the point, in that direction."""
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
