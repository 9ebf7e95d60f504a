"""Evaluation of a run on its validation recordings or on others."""

from __future__ import annotations

from typing import Literal

from lambdanets.audio.config import AudioConfig
from lambdanets.audio.prediction import read_once
from lambdanets.data import AudioDataConfig, audio_eval_loader, open_audio_split
from lambdanets.evaluate.scoring import Scores, score
from lambdanets.train.run import Run


def evaluate(
    run: Run[AudioConfig],
    data: AudioDataConfig | None = None,
    *,
    weights: Literal["best", "last"] = "best",
) -> Scores:
    """Evaluate a run, in the precision it was trained in.

    Args:
        run: A run opened by `load_run`.
        data: Other recordings of the same classes; None takes the run's own validation recordings.
        weights: Weights of the best epoch, or of the last.

    Returns:
        Scores by class; their `figures()` are those of all recordings.

    Raises:
        DataError: The recordings cannot be used, or have other classes than the run.
        RunError: The run has no such weights yet.

    Example:
        >>> evaluate(load_run("runs/words")).figures()["top1"]
    """
    config = read_once(data or run.config.data)
    val_set = open_audio_split(config, "val", seed=run.config.seed, classes=run.classes)
    return score(
        run.model(weights),
        audio_eval_loader(val_set, config),
        num_classes=len(run.classes),
        engine=run.config.engine,
        name=run.config.model.name,
    )
