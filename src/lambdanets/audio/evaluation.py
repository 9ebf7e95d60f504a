"""Evaluation of a run on its validation recordings or on others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch

from lambdanets.audio.config import AudioConfig
from lambdanets.audio.prediction import AudioPrediction, read_once, with_features
from lambdanets.data import AudioDataConfig, audio_eval_loader, open_audio_split
from lambdanets.evaluate.samples import Recorder, Samples
from lambdanets.evaluate.scoring import Scores, score
from lambdanets.train.run import Run


def evaluate(
    run: Run[AudioConfig],
    data: AudioDataConfig | None = None,
    *,
    weights: Literal["best", "last"] = "best",
    recorder: Recorder | None = None,
    device: torch.device | None = None,
) -> Scores:
    """Evaluate a run, in the precision it was trained in.

    Args:
        run: A run opened by `load_run`.
        data: Other recordings of the same classes; None takes the run's own validation recordings.
        weights: Weights of the best epoch, or of the last.
        recorder: Collects the predictions for single recordings.
        device: Device in place of the run's.

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
    if recorder is not None:
        recorder.begin(val_set)
    return score(
        run.model(weights),
        audio_eval_loader(val_set, config),
        num_classes=len(run.classes),
        engine=run.config.engine,
        name=run.config.model.name,
        on_samples=None if recorder is None else recorder.add,
        device=device,
        binary=run.config.loss.name == "binary",
    )


def as_prediction(samples: Samples, row: int, classes: Sequence[str]) -> AudioPrediction:
    """Return the prediction for a recording of an evaluation, with its features, for a sheet."""
    recordings, index = samples.find(row)
    results = samples.results
    guess, truth = (classes[int(each[row])] for each in (results.guesses, results.truths))
    (features, _), _ = recordings.batch([index])
    heard = with_features(samples.path(row), features[0], recordings.features)
    return replace(
        heard,
        labels=(guess, truth),
        probabilities=(float(results.confidences[row]), float(results.truth_probabilities[row])),
        truth=truth,
    )
