"""Training of a classifier of recordings: its Lightning module, its task, and `train` and `load_run`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lambdanets.audio.config import AudioConfig
from lambdanets.audio.prediction import predict_set
from lambdanets.audio.sheet import draw_spectrograms
from lambdanets.data import AudioSet, AudioSplits, audio_eval_loader, audio_train_loader, open_audio
from lambdanets.data.audio.audio_set import AudioBatch
from lambdanets.train import Run
from lambdanets.train import load_run as load_any_run
from lambdanets.train.classifier import Classifier
from lambdanets.train.engine import Task, train_task
from lambdanets.train.losses import class_weights
from lambdanets.train.reporting import RunResult
from lambdanets.train.run import RunFiles

SHEET = 15  # validation recordings that are drawn


class AudioClassifier(Classifier):
    """Trains a classifier on labelled recordings; arguments are those of `Classifier`.

    A batch is ((features `[b, c, n]`, mask `[b, n]`), targets `[b]`).
    """

    val_set: AudioSet | None = None

    def train_loader(self, splits: AudioSplits, *, rank: int, world_size: int) -> DataLoader:
        self.class_weights = class_weights(self.config.loss, splits.train, self.classes)
        return audio_train_loader(
            splits.train,
            self.config.data,
            seed=self.config.seed,
            position=lambda: self.state.position,
            rank=rank,
            world_size=world_size,
        )

    def val_loader(self, splits: AudioSplits, *, rank: int, world_size: int) -> DataLoader:
        self.val_set = splits.val
        return audio_eval_loader(splits.val, self.config.data, rank=rank, world_size=world_size)

    def _run(self, network: nn.Module, images: Any) -> Tensor:
        return network(*images)

    def network_inputs(self, batch: AudioBatch) -> tuple[Tensor, Tensor]:
        return batch[0]

    def named_tensors(self, batch: AudioBatch) -> dict[str, Tensor]:
        (features, mask), targets = batch
        return {"features": features, "mask": mask, "targets": targets}

    def format_data(self, splits: AudioSplits) -> str:
        return f"{len(splits.train):,} training and {len(splits.val):,} validation recordings"

    def data_advice(self) -> list[str]:
        data = self.config.data
        cache = [] if data.cache is True else ["data.cache=true where the features fit into memory"]
        return [*cache, f"recordings stored at {data.sample_rate} samples per second"]

    def draw_best(self, files: RunFiles) -> None:
        """Draw the confusion matrix of the best epoch, and validation recordings with its predictions."""
        super().draw_best(files)
        if self.val_set is not None and files.best.exists():
            run = Run(self.config, self.classes, files.directory)
            title = f"{self.config.model.name}, epoch {self.state.best_epoch}"
            draw_spectrograms(predict_set(run, self.val_set, SHEET), files.sheet, title)


def _open_splits(config: AudioConfig) -> AudioSplits:
    splits = open_audio(config.data, seed=config.seed)
    class_weights(config.loss, splits.train, splits.classes)  # before anything is written
    return splits


AUDIO = Task(AudioConfig, _open_splits, AudioClassifier)


def train(
    config: AudioConfig | None = None,
    *,
    run_dir: str | Path,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
) -> RunResult:
    """Train a classifier on labelled recordings and write one folder.

    Arguments, result and errors are those of `lambdanets.train.train`. In addition to the files of a
    classifier of images, the folder holds `sheet.png`: validation recordings with the best epoch's
    predictions.

    Example:
        >>> train(get_recipe("audio"), run_dir="runs/words")
    """
    return train_task(AUDIO, config, run_dir=run_dir, resume=resume, callbacks=callbacks)


def load_run(path: str | Path) -> Run[AudioConfig]:
    """Open the folder of a run that trained a classifier of recordings.

    Args:
        path: The folder that `train` wrote; it may have been moved since.

    Raises:
        RunError: The folder is no such run, or its configuration or its classes cannot be read.
    """
    return load_any_run(path, AudioConfig)
