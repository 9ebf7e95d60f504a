"""Figures of a run: training curves, the confusion matrix and the reliability diagram."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lambdanets.utils.fonts import legible, plain_text

TRAIN, VAL, QUIET, INK = "#7f8fa6", "#c8472f", "#d9dde3", "#2b2f36"
# Colours of a panel with more than two curves.
CURVES = (VAL, TRAIN, "#2f6fde", "#1a7f4b", "#b07d2b", "#7a4fa3")
MAX_NAMED_CLASSES = 20  # most classes with names and numbers in the confusion matrix


@dataclass(frozen=True)
class Panel:
    """One panel of the training curves.

    Args:
        name: Title: the quantity and its unit.
        curves: Label of each curve -> column of `metrics.csv`; of two curves, the training's first.
        scale: Factor on the values, such as 100 for percent.
        best: Column whose largest value is marked, a fraction shown in percent; "" marks none.
        lowest: Column whose smallest value is marked; "" marks none.
    """

    name: str
    curves: Mapping[str, str]
    scale: float = 1.0
    best: str = ""
    lowest: str = ""


def draw_curves(
    history: Sequence[Mapping[str, float]], path: Path, panels: Sequence[Panel], title: str = ""
) -> None:
    """Draw metrics and the learning rate over the epochs.

    Args:
        history: Rows of `metrics.csv`; values that an epoch has not measured are skipped.
        path: The PNG file.
        panels: The panels, from left to right.
        title: Title above the panels.
    """
    with plain_text(title):
        save_figure(_curves(history, panels, legible(title)), path)


def _curves(history: Sequence[Mapping[str, float]], panels: Sequence[Panel], title: str) -> Any:
    """Return the Matplotlib figure of `draw_curves`."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 4.4), dpi=150, layout="constrained")
    *shown, rate = figure.subplots(1, len(panels) + 1, width_ratios=(*(5 for _ in panels), 3))
    epochs = [row["epoch"] for row in history]
    marker = "o" if len(epochs) < 25 else ""
    style: dict[str, Any] = {"marker": marker, "markersize": 3.5, "linewidth": 1.8, "clip_on": False}
    for axes, panel in zip(shown, panels, strict=True):
        colours = CURVES if len(panel.curves) > 2 else (TRAIN, VAL)
        for (label, column), colour in zip(panel.curves.items(), colours, strict=False):
            measured = [row for row in history if column in row]
            values = [panel.scale * row[column] for row in measured]
            axes.plot([row["epoch"] for row in measured], values, color=colour, label=label, **style)
    rate.plot(epochs, [row["lr"] for row in history], color=INK, **(style | {"marker": ""}))
    for index, (axes, panel) in enumerate(zip(shown, panels, strict=True)):
        if not index or panel.curves.keys() != panels[index - 1].curves.keys():
            # Curves with a best value rise, others fall: the legend goes to the free corner.
            corner = "upper left" if panel.best else "upper right"
            axes.legend(
                frameon=False, loc="best" if len(panel.curves) > 2 else corner, labelcolor="linecolor"
            )
    for axes, name in zip((*shown, rate), (*(panel.name for panel in panels), "learning rate"), strict=True):
        plain_axes(axes, name)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    rate.set_ylim(bottom=0)
    for axes, panel in zip(shown, panels, strict=True):
        measured = [row for row in history if panel.best in row]
        if measured:
            best = max(measured, key=lambda row: row[panel.best])
            value = panel.scale * best[panel.best]
            _mark_best(axes, best["epoch"], value, f"{value:.2f} %")
            axes.set_ylim(top=panel.scale)
        measured = [row for row in history if panel.lowest in row]
        if measured:
            best = min(measured, key=lambda row: row[panel.lowest])
            value = panel.scale * best[panel.lowest]
            _mark_best(axes, best["epoch"], value, f"{value:.4g}")
    if title:
        figure.suptitle(title, x=0.012, ha="left", fontsize=11, color=INK)
    return figure


def draw_confusion(
    matrix: Tensor, classes: Sequence[str], path: Path, note: str = "", samples: str = "images"
) -> None:
    """Draw a confusion matrix.

    Args:
        matrix: Counts `[classes, classes]`, truth by prediction.
        classes: Class names.
        path: The PNG file.
        note: Text after the title.
        samples: The samples in the title, such as "validation images".
    """
    with plain_text(*classes):
        save_figure(_confusion(matrix, list(map(legible, classes)), note, samples), path)


def _confusion(matrix: Tensor, classes: Sequence[str], note: str, samples: str) -> Any:
    """Return the Matplotlib figure of `draw_confusion`."""
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm
    from matplotlib.figure import Figure

    count, few = len(classes), len(classes) <= MAX_NAMED_CLASSES
    side = min(max(4.2, 0.55 * count + 1.8), 11) if few else 9
    figure = Figure(figsize=(side + 0.6, side), dpi=150, layout="constrained")
    axes = figure.subplots()
    fraction = matrix / matrix.sum(1, keepdim=True).clamp(min=1)
    colours = LinearSegmentedColormap.from_list("house", ["#ffffff", "#f0c9bd", VAL, "#5c1a0e"])
    # The square root makes rare mistakes, of a few percent, visible.
    image = axes.imshow(100 * fraction.numpy(), cmap=colours, norm=PowerNorm(0.5, vmin=0, vmax=100))
    if few:
        names = [name if len(name) <= 18 else name[:17] + "…" for name in classes]
        slant = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) > 3 else {}
        axes.set_xticks(range(count), names, **slant)
        axes.set_yticks(range(count), names)
        for truth in range(count):
            for guess in range(count):
                if number := int(matrix[truth, guess]):
                    ink = "white" if fraction[truth, guess] > 0.3 else INK
                    axes.text(guess, truth, f"{number}", ha="center", va="center", fontsize=8, color=ink)
    axes.set_xlabel("predicted", color=INK)
    axes.set_ylabel("true", color=INK)
    axes.tick_params(length=0, colors=INK, labelsize=9)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.7, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8, colors=INK)
    bar.set_label("% of the true class", fontsize=9, color=INK)
    top1 = 100 * float(matrix.diagonal().sum() / matrix.sum().clamp(min=1))
    title = f"{top1:.2f} % of {int(matrix.sum()):,} {samples} correct"
    axes.set_title(title + (f", {note}" if note else ""), fontsize=11, loc="left", color=INK)
    return figure


def draw_calibration(
    counts: Sequence[Sequence[float]], path: Path, *, error: float, samples: str = "images"
) -> None:
    """Draw a reliability diagram: the accuracy against the confidence, and the histogram of the confidence.

    Args:
        counts: Samples, correct predictions and the sum of the confidences in equal intervals of the
            confidence, `[3, bins]`.
        path: The PNG file.
        error: The expected calibration error, a fraction.
        samples: Noun of the samples.
    """
    save_figure(_calibration(counts, error, samples), path)


def _calibration(counts: Sequence[Sequence[float]], error: float, samples: str) -> Any:
    """Return the Matplotlib figure of `draw_calibration`."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    figure = Figure(figsize=(5.6, 6.4), dpi=150, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    width, total = 100 / len(counts[0]), sum(counts[0])
    for index, (number, correct, confidence) in enumerate(zip(*counts, strict=True)):
        if number:
            middle = (index + 0.5) * width
            upper.bar(middle, 100 * correct / number, 0.92 * width, color=TRAIN)
            ends = [middle - 0.46 * width, middle + 0.46 * width]
            upper.plot(ends, [100 * confidence / number] * 2, color=VAL, linewidth=2.5)
            lower.bar(middle, 100 * number / total, 0.92 * width, color=TRAIN)
    upper.plot([0, 100], [0, 100], color=INK, linewidth=1, linestyle=(0, (4, 3)))
    marks = [Patch(color=TRAIN, label="accuracy"), Line2D([], [], color=VAL, lw=2.5, label="mean confidence")]
    figure.legend(handles=marks, loc="outside lower left", ncols=3, frameon=False, fontsize=9, labelcolor=INK)
    upper.set_xlim(0, 100)
    upper.set_ylim(0, 100)
    accuracy, confidence = (100 * sum(row) / total for row in counts[1:])
    side = ", too confident" if confidence > accuracy else ", not confident enough"
    side = side if abs(confidence - accuracy) > 0.5 else ""
    plain_axes(upper, f"expected calibration error {100 * error:.1f} %{side}")
    plain_axes(lower, f"mean confidence {confidence:.1f} %, accuracy {accuracy:.1f} %")
    upper.set_ylabel("accuracy (%)", color=INK)
    lower.set_ylabel(f"% of {int(total):,} {samples}", color=INK)
    lower.set_xlabel("confidence (%): the probability of the predicted class", color=INK)
    return figure


def plain_axes(axes: Any, name: str) -> None:
    """Style axes like all figures of a run: title on the left, pale lines."""
    axes.set_title(name, loc="left", fontsize=10, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(QUIET)
    axes.grid(axis="y", color=QUIET, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=INK, labelsize=9)
    axes.xaxis.label.set_color(INK)


def _mark_best(axes: Any, epoch: float, value: float, number: str) -> None:
    """Mark a value with a circle, and print it as `number` in the title."""
    axes.plot([epoch], [value], "o", markersize=8, markerfacecolor="none", markeredgecolor=VAL, clip_on=False)
    text = f"best {number}, epoch {epoch:.0f}"
    axes.set_title(text, loc="right", color=VAL, fontsize=9, fontweight="bold")  # above the curves


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as a PNG file, whatever the suffix of the path."""
    figure.savefig(path, format="png", facecolor="white")
