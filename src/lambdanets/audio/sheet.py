"""The sheet of recordings: their features with the most probable labels, as one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lambdanets.audio.prediction import AudioPrediction
from lambdanets.train.checkpoint import replacing
from lambdanets.utils.fonts import legible, plain_text
from lambdanets.viz.figures import INK, QUIET, save_figure

RIGHT, WRONG, OTHER = "#1a7f4b", "#c8372d", "#2f6fde"
COLUMNS, MAX_DRAWN = 5, 50
MAX_POINTS = 2000  # samples of a recording that are drawn as a curve
MAX_LETTERS = 26


def draw_spectrograms(
    predictions: Sequence[AudioPrediction],
    path: Path,
    title: str = "",
    *,
    columns: int = COLUMNS,
    summary: str | None = None,
) -> list[Path]:
    """Draw recordings with their labels: truth and prediction, green if right, red if wrong.

    Log-mel features are drawn as a spectrogram, samples as a curve. Predictions with an error are left out;
    of more than 50, the first are drawn.

    Args:
        predictions: The result of `predict` or `predict_samples`.
        path: The PNG file.
        title: Line above all recordings.
        columns: Recordings side by side.
        summary: Text after the title; None counts the correct predictions.

    Returns:
        The written file; none if no recording could be read.
    """
    shown = [each for each in predictions if each.features is not None]
    if not shown:
        return []
    names = [each.path for each in shown] + [label for each in shown for label in each.labels]
    path.parent.mkdir(parents=True, exist_ok=True)
    with plain_text(title, *names), replacing(path) as temporary:
        save_figure(_figure(shown, legible(title), columns, summary), temporary)
    return [path]


def _figure(shown: Sequence[AudioPrediction], title: str, columns: int, summary: str | None) -> Any:
    """Return the Matplotlib figure of `draw_spectrograms`."""
    from matplotlib.figure import Figure

    drawn = shown[:MAX_DRAWN]
    columns = min(columns, len(drawn))
    rows = -(-len(drawn) // columns)
    figure = Figure(figsize=(max(2.3 * columns, 4.6), 1.9 * rows + 0.5), dpi=150, layout="constrained")
    grid = np.atleast_1d(figure.subplots(rows, columns, sharex=True, squeeze=False)).ravel()
    longest = max(each.seconds for each in drawn)
    for axes, each in zip(grid, drawn, strict=False):
        _draw(axes, each, longest)
    for axes in grid[len(drawn) :]:
        axes.set_visible(False)
    known = [each for each in shown if each.right is not None]
    parts = [title] if title else []
    if summary is not None:
        parts.append(summary)
    elif known:
        parts.append(f"{sum(bool(each.right) for each in known)} of {len(known)} correct")
    if len(shown) > len(drawn):
        parts.append(f"the first {len(drawn)} of {len(shown)} drawn")
    figure.suptitle("  ·  ".join(parts), x=0.01, ha="left", fontsize=10, color=INK)
    return figure


def _draw(axes: Any, each: AudioPrediction, longest: float) -> None:
    """Draw one recording on the time axis that all share."""
    assert each.features is not None
    features = each.features.cpu().numpy()
    if len(features) > 1:
        axes.imshow(
            features, aspect="auto", origin="lower", cmap="magma", interpolation="nearest",
            extent=(0, each.seconds, 0, len(features)),
        )  # fmt: skip
    else:
        step = max(1, features.shape[1] // MAX_POINTS)
        samples = features[0, ::step]
        axes.plot(np.linspace(0, each.seconds, len(samples)), samples, color=INK, linewidth=0.5)
    axes.set_xlim(0, longest)
    axes.xaxis.set_major_formatter("{x:g} s")
    axes.set_yticks([])
    axes.tick_params(length=0, colors=INK, labelsize=7)
    axes.spines[:].set_color(QUIET)
    guess = f"{_short(each.labels[0])} {each.probabilities[0]:.0%}"
    if each.truth is None:
        text, colour = guess, OTHER
    elif each.right:
        text, colour = guess, RIGHT
    else:
        text, colour = f"{guess}, true: {_short(each.truth)}", WRONG
    axes.set_title(text, loc="left", fontsize=8, color=colour, fontweight="bold", pad=3)
    axes.set_xlabel(_short(Path(each.path).name, ends=True), fontsize=6.5, color=INK, labelpad=1)


def _short(text: str, *, ends: bool = False) -> str:
    """Return a name that can be drawn, of limited length; `ends` shortens it in the middle."""
    text = legible(text)
    if len(text) <= MAX_LETTERS:
        return text
    half = MAX_LETTERS // 2
    return f"{text[:half]}…{text[-half:]}" if ends else f"{text[: MAX_LETTERS - 1]}…"
