"""Loaders of windows of text: functions of the seed, the position in training and the rank alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import DataLoader, Sampler

from ..batches import Batch, EvalBatches, Position
from ..loader import batched_loader
from ..randomness import beginning, permuted
from .config import TextDataConfig
from .text_set import TextSet


class WindowBatches(Sampler):
    """Batches of the starts of training windows, for one of several processes, from the current position.

    A pass over the text is a random order of its disjoint windows of `context` tokens, the first of which
    begins at a random position below twice that number. Passes follow one another without regard to epochs:
    an epoch is `data.windows` windows, rounded down to whole batches of all processes.

    Args:
        length: Tokens of the text, more than `config.context`.
        config: Context, batch size and windows of an epoch.
        seed: Seed of the run.
        position: Returns (epoch, batches already done in it), called at the start of every iteration.
        rank: Rank of this process.
        world_size: Number of processes.
    """

    def __init__(
        self,
        length: int,
        config: TextDataConfig,
        *,
        seed: int,
        position: Position,
        rank: int,
        world_size: int,
    ):
        self.context, self.batch_size = config.context, config.batch_size
        self.seed, self.position = seed, position
        self.rank, self.world_size = rank, world_size
        self.windows = max(1, (length - self.context) // self.context)
        # Numbers of tokens that the first window of a pass may leave out.
        self.shifts = length - self.windows * self.context
        self.num_batches = max(1, (config.windows or self.windows) // (self.batch_size * world_size))

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[Batch]:
        # A generator would call `position` only when the first batch is requested.
        return self._batches(*self.position())

    def _batches(self, epoch: int, done: int) -> Iterator[Batch]:
        for batch in range(done, len(self)):
            step = epoch * len(self) + batch
            first = (step * self.world_size + self.rank) * self.batch_size
            yield self.starts(np.arange(first, first + self.batch_size)), epoch

    def starts(self, numbers: np.ndarray) -> np.ndarray:
        """Return the positions of the first tokens of windows, `[b]`, numbered from the start of the run."""
        passes, positions = np.divmod(numbers, self.windows)
        found = np.empty_like(numbers)
        for number in np.unique(passes).tolist():
            own = passes == number
            order = permuted(self.seed, number, positions[own], self.windows)
            found[own] = beginning(self.seed, number, self.shifts) + self.context * order
        return found


class EvalWindows(EvalBatches):
    """Batches of the starts of all windows of a text in order, for one of several processes.

    Args:
        text: The text.
        batch_size: Windows in a batch of one process; the last batch may be smaller.
        rank: Rank of this process.
        world_size: Number of processes.
    """

    def __init__(self, text: TextSet, batch_size: int, *, rank: int, world_size: int):
        super().__init__(len(text), batch_size, rank=rank, world_size=world_size)
        self.indices = self.indices * text.context


def text_train_loader(
    text: TextSet,
    config: TextDataConfig,
    *,
    seed: int,
    position: Position,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader:
    """Return the loader of training batches.

    Args:
        text: The training side from `open_text`.
        config: Batch size and windows of an epoch.
        seed: Seed of the run.
        position: Returns (epoch, batches already done in it); called at the start of every iteration, so that
            a run can resume in the middle of an epoch.
        rank: Rank of this process.
        world_size: Number of processes, which get different windows.

    Returns:
        A loader of (tokens, following tokens) as `TextSet.batch` describes them, of the length of a whole
        epoch.
    """
    batches = WindowBatches(
        len(text.tokens), config, seed=seed, position=position, rank=rank, world_size=world_size
    )
    return batched_loader(text, batches, workers=0, seed=seed)


def text_eval_loader(text: TextSet, batch_size: int, *, rank: int = 0, world_size: int = 1) -> DataLoader:
    """Return the loader of a text in order: each token but the first is predicted once over all processes.

    Args:
        text: The text.
        batch_size: Windows in a batch.
        rank: Rank of this process.
        world_size: Number of processes.
    """
    return batched_loader(
        text, EvalWindows(text, batch_size, rank=rank, world_size=world_size), workers=0, seed=0
    )
