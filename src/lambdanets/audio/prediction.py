"""Predictions for recordings by a trained run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from lambdanets.audio.config import AudioConfig
from lambdanets.data import AudioDataConfig, AudioSet, DataError, open_audio_split
from lambdanets.data.audio.features import Features, middle, pad, part_length
from lambdanets.data.audio.recordings import RECORDINGS, read_recording, require_packages
from lambdanets.data.files import find_files
from lambdanets.evaluate.prediction import batched, check_positive, error_reason, prepare_network
from lambdanets.train.run import Run
from lambdanets.viz.contact_sheet import Prediction


@dataclass(frozen=True, kw_only=True)
class AudioPrediction(Prediction):
    """The labels of one recording, or the reason why it could not be read.

    Attributes:
        features: Its features `[c, n]`, the input of the network; None if it could not be read.
        seconds: Their length in seconds.
    """

    features: Tensor | None = field(default=None, repr=False, compare=False)
    seconds: float = 0.0


def predict(
    run: Run[AudioConfig],
    paths: Iterable[str | os.PathLike[str]],
    *,
    top: int = 5,
    batch_size: int = 32,
    weights: Literal["best", "last"] = "best",
) -> list[AudioPrediction]:
    """Classify recordings, and those inside folders, with a trained run.

    Recordings are read as in the run's validation. A file that cannot be read does not stop the others: its
    prediction has the reason.

    Args:
        run: A run opened by `load_run`.
        paths: Files and folders; folders are searched recursively, in the order of names.
        top: Number of classes per recording; all if the run has fewer.
        batch_size: Recordings per batch.
        weights: The best weights by validation, or those of the last epoch.

    Returns:
        One prediction per recording, in the order of the paths.

    Raises:
        ValueError: `top` or `batch_size` is not positive.
        DataError: A package for reading recordings is missing.

    Example:
        >>> for each in predict(load_run("runs/words"), ["yes.wav", "more/"]):
        ...     print(each.path, each.labels[0], f"{each.probabilities[0]:.1%}")
    """
    return list(predict_files(run, paths, top=top, batch_size=batch_size, weights=weights))


def predict_files(
    run: Run[AudioConfig],
    paths: Iterable[str | os.PathLike[str]],
    *,
    top: int = 5,
    batch_size: int = 32,
    weights: Literal["best", "last"] = "best",
    device: torch.device | None = None,
) -> Iterator[AudioPrediction]:
    """Classify recordings as `predict` does, on a given or the best device, and yield them one by one."""
    check_positive(top=top, batch_size=batch_size)
    require_packages()
    config = run.config.data
    features, part = Features(config), part_length(config)
    network, device = prepare_network(run.model(weights), run.config.engine, device)
    for batch in batched(find_files(paths, RECORDINGS.suffixes), batch_size):
        loaded: list[AudioPrediction] = []
        for path in batch:
            try:
                if path.is_dir():
                    raise DataError("there are no recordings in this folder")
                samples = read_recording(path, features.rate, max_seconds=config.max_seconds)
                loaded.append(with_features(str(path), middle(features(samples), part), features))
            except (DataError, OSError) as error:
                loaded.append(AudioPrediction(path=str(path), error=error_reason(error, path)))
        yield from _classified(network, loaded, device, run.classes, top)


def predict_samples(
    run: Run[AudioConfig],
    count: int,
    *,
    top: int = 5,
    batch_size: int = 32,
    weights: Literal["best", "last"] = "best",
    device: torch.device | None = None,
) -> list[AudioPrediction]:
    """Classify recordings of the run's own validation set, spread evenly over it, with their true classes.

    Args:
        run: A run opened by `load_run`.
        count: Number of recordings; the whole set if it has fewer.
        top: Number of classes per recording.
        batch_size: Recordings per batch.
        weights: The best weights by validation, or those of the last epoch.
        device: Device of the computation; None takes the best.

    Raises:
        ValueError: `count`, `top` or `batch_size` is not positive.
        DataError: The recordings cannot be used.
    """
    check_positive(count=count, top=top, batch_size=batch_size)
    config = read_once(run.config.data)
    val_set = open_audio_split(config, "val", seed=run.config.seed, classes=run.classes)
    return predict_set(run, val_set, count, top=top, batch_size=batch_size, weights=weights, device=device)


def read_once(config: AudioDataConfig) -> AudioDataConfig:
    """Return a configuration that reads recordings when they are used, and before only to skip bad ones."""
    return replace(config, check=config.on_bad_recording == "skip", cache=False)


def predict_set(
    run: Run[AudioConfig],
    val_set: AudioSet,
    count: int,
    *,
    top: int = 5,
    batch_size: int = 32,
    weights: Literal["best", "last"] = "best",
    device: torch.device | None = None,
) -> list[AudioPrediction]:
    """Classify recordings of an opened set, as `predict_samples` does."""
    count = min(count, len(val_set))
    chosen = [(index * len(val_set)) // count for index in range(count)]
    network, device = prepare_network(run.model(weights), run.config.engine, device)
    results: list[AudioPrediction] = []
    for batch in batched(chosen, batch_size):
        loaded = []
        for index in batch:
            (features, _), targets = val_set.batch([index])
            truth = val_set.classes[int(targets[0])]
            heard = with_features(val_set.path(index), features[0], val_set.features)
            loaded.append(replace(heard, truth=truth))
        results += _classified(network, loaded, device, run.classes, top)
    return results


def with_features(path: str, features: Tensor, source: Features) -> AudioPrediction:
    """Return a recording without labels, with its features."""
    seconds = features.shape[1] * source.hop / source.rate
    return AudioPrediction(path=path, features=features, seconds=seconds)


@torch.inference_mode()
def _classified(
    network: nn.Module,
    loaded: Sequence[AudioPrediction],
    device: torch.device,
    classes: Sequence[str],
    top: int,
) -> list[AudioPrediction]:
    """Return predictions with their labels and probabilities; those with an error are unchanged."""
    inputs = [each.features for each in loaded if each.features is not None]
    if not inputs:
        return list(loaded)
    features, mask = (each.to(device) for each in pad(inputs))
    probabilities, indices = network(features, mask).float().softmax(-1).cpu().topk(min(top, len(classes)))
    answers = iter(zip(indices.tolist(), probabilities.tolist(), strict=True))
    results = []
    for each in loaded:
        if each.features is not None:
            chosen, values = next(answers)
            labels = tuple(classes[index] for index in chosen)
            each = replace(each, labels=labels, probabilities=tuple(values))
        results.append(each)
    return results
