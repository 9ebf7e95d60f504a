"""One split of labelled recordings: each sample is a function of (seed, epoch, index)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..randomness import keys
from .config import AudioDataConfig
from .features import Augmentation, Features, middle, pad, part_length
from .recordings import duration, read_recording

AudioBatch = tuple[tuple[Tensor, Tensor], Tensor]
"""Features `[b, c, n]` and their mask `[b, n]`; class indices `[b]`."""


class AudioSet(Dataset):
    """Recordings with a class each, and their features.

    Args:
        paths: paths of the files.
        targets: class index of each, int64 of shape [n].
        classes: names, in the order of the targets.
        config: the configuration, with a sample rate.
        train: augment the samples.

    Attributes:
        cached: the features of all recordings, float32 of shape [c, n_i] each, if they are in memory.
        skipped: one sentence for each recording that was left out.
    """

    def __init__(
        self,
        paths: Sequence[str],
        targets: np.ndarray,
        classes: Sequence[str],
        config: AudioDataConfig,
        *,
        train: bool = False,
    ):
        self.paths = list(paths)
        self.targets = targets
        self.classes = tuple(classes)
        self.config = config
        self.features = Features(config)
        augments = train and (config.augment.active or config.seconds is not None)
        self.augmentation = Augmentation(config) if augments else None
        self.part = part_length(config)
        self.cached: list[Tensor] | None = None
        self.skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> str:
        """Return the file of a sample."""
        return self.paths[index]

    def whole(self, index: int) -> Tensor:
        """Return the features [c, n] of a whole recording, before augmentation.

        Raises:
            DataError: the file cannot be used.
        """
        return self.cached[index] if self.cached is not None else self.read(index)

    def read(self, index: int) -> Tensor:
        """Read a file and compute its features [c, n].

        Raises:
            DataError: the file cannot be used.
        """
        config = self.config
        samples = read_recording(self.paths[index], self.features.rate, max_seconds=config.max_seconds)
        return self.features(samples)

    def batch(
        self, indices: Sequence[int] | np.ndarray, epoch: int | np.ndarray = 0, seed: int = 0
    ) -> AudioBatch:
        """Return several samples, padded with zeros to the longest.

        Args:
            indices: b of them.
            epoch: counted from 0; with the seed and the index it decides the augmentation.
            seed: seed of the run.

        Returns:
            ((features of shape [b, c, n], mask of shape [b, n]), targets of shape [b]).

        Raises:
            DataError: a file cannot be used.
        """
        rows = np.asarray(indices, dtype=np.intp)
        features = [self.whole(int(row)) for row in rows]
        targets = torch.from_numpy(self.targets[rows])
        if self.augmentation is None:
            return pad([middle(each, self.part) for each in features]), targets
        return self.augmentation(features, keys(seed, epoch, rows)), targets

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        (features, _), targets = self.batch([index])
        return features[0], int(targets[0])

    def durations(self) -> np.ndarray:
        """Return the length of each recording in seconds, from the headers of the files, of shape [n].

        Raises:
            DataError: a file cannot be opened as a recording.
        """
        return np.array([duration(path) for path in self.paths])

    def leave_out(self, bad: dict[int, str]) -> list[str]:
        """Remove samples permanently; the indices of the samples behind them become lower.

        Args:
            bad: the reason for each, by index.

        Returns:
            The names of the classes that have lost all their samples.
        """
        rest = np.setdiff1d(np.arange(len(self)), list(bad))
        emptied = sorted(set(self.targets.tolist()) - set(self.targets[rest].tolist()))
        self.paths = [self.paths[index] for index in rest]
        self.targets = self.targets[rest]
        if self.cached is not None:
            self.cached = [self.cached[index] for index in rest]
        self.skipped = (*self.skipped, *(bad[index] for index in sorted(bad)))
        return [self.classes[target] for target in emptied]
