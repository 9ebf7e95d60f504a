"""Scores as files: curves of precision against recall, and a table of classes."""

from __future__ import annotations

import csv
import io
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from lambdanets.detection.scores import KindScores, Scores
from lambdanets.train.checkpoint import write_text
from lambdanets.train.figures import INK, TRAIN, VAL, plain_axes, save_figure
from lambdanets.utils.fonts import legible, plain_text

CURVES = (("ap50", "IoU 0.50", TRAIN), ("ap75", "IoU 0.75", INK), ("ap", "mean of 0.50 to 0.95", VAL))
TITLES = {"box": "boxes", "mask": "masks"}


def draw_precision_recall(scores: Scores, path: str | os.PathLike[str], title: str = "") -> None:
    """Draw precision against recall, of boxes and masks side by side, with their average precisions.

    Args:
        scores: the mean over the classes that have objects is drawn.
        path: the PNG.
        title: above the panels.
    """
    with plain_text(title):
        save_figure(_precision_recall(scores, legible(title)), Path(path))


def _precision_recall(scores: Scores, title: str) -> Any:
    from matplotlib.figure import Figure

    kinds = scores.kinds
    figure = Figure(figsize=(0.8 + 4.6 * len(kinds), 4.6), dpi=150, layout="constrained")
    for axes, (kind, own) in zip(
        figure.subplots(1, len(kinds), squeeze=False)[0], kinds.items(), strict=True
    ):
        _curves(axes, own)
        plain_axes(axes, f"precision of {TITLES[kind]} (%)")
        axes.set_xlabel("recall (%)")
    if title:
        figure.suptitle(title, x=0.012, ha="left", fontsize=11, color=INK)
    return figure


def _curves(axes: Any, scores: KindScores) -> None:
    recall = np.linspace(0, 100, scores.precision.shape[-1])
    for (figure, label, colour), curve in zip(CURVES, scores.mean_precision, strict=True):
        value = scores.values[figure]
        reached = "no objects" if math.isnan(value) else f"AP {100 * value:.1f} %"
        axes.plot(recall, 100 * curve, color=colour, linewidth=1.8, label=f"{label}   {reached}")
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 102)
    axes.legend(frameon=False, loc="best", labelcolor="linecolor", fontsize=9)


def write_per_class(scores: Scores, path: str | os.PathLike[str]) -> None:
    """Write a CSV file of the classes: class, objects, box_ap, box_ap50, and the same of masks.

    Fractions; empty for a class without objects.
    """
    rows = scores.per_class()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(rows[0])
    for row in rows:
        writer.writerow(
            value if not isinstance(value, float) else "" if math.isnan(value) else f"{value:.6g}"
            for value in row.values()
        )
    write_text(Path(path), text.getvalue())
