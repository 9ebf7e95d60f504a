"""Samplers of batches: functions of the seed, the position in training and the rank alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from .balance import balanced_order, occurrences
from .config import DataConfig
from .errors import DataError
from .mixed import PSEUDO, MixedSet, batch_sizes
from .randomness import derived_seed, permutation, shard_permutation

REPEATED = 2**32  # added to the epoch of a sample for each earlier occurrence in the same epoch
Position = Callable[[], tuple[int, int]]  # returns (epoch, batches already done in it)
# Indices of samples [b], and their epoch: one for all, or one for each [b].
Batch = tuple[np.ndarray, int | np.ndarray]


def whole_batches(size: int, batch_size: int, world_size: int) -> tuple[int, int]:
    """Return the batch size of each process, and the number of its batches in an epoch.

    The remainder that does not fill a batch of all processes is left out. A set smaller than one such batch
    gives one smaller batch.

    Args:
        size: samples in the set.
        batch_size: samples in a batch of one process.
        world_size: number of processes.

    Raises:
        DataError: there are fewer samples than processes.
    """
    if size < world_size:
        raise DataError(f"{size} training images are too few for {world_size} processes.")
    batch_size = min(batch_size, size // world_size)
    return batch_size, size // (batch_size * world_size)


class TrainBatches(Sampler):
    """Batches of one epoch, for one of several processes, from the current position of training.

    An epoch is a permutation by (seed, epoch), cut into batches for all processes together; `whole_batches`
    gives their size and number. Every sample occurs at most once.

    Args:
        size: samples in the set.
        batch_size: samples in a batch of one process.
        seed: seed of the run.
        position: returns (epoch, batches already done in it), called at the start of every iteration.
        rank: rank of this process.
        world_size: number of processes.
        shards: index of the shard of each sample, of shape [n]: samples of 16 shards at a time are shuffled.
            None shuffles all samples.
        balanced: class index of each sample, of shape [n]: an epoch has equally many of each class, see
            `balanced_order`. Each occurrence of a sample is augmented in its own way. None takes each once.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int,
        position: Position,
        rank: int,
        world_size: int,
        shards: np.ndarray | None = None,
        balanced: np.ndarray | None = None,
    ):
        self.balanced = balanced
        self.size, self.seed, self.position = size, seed, position
        self.rank, self.world_size, self.shards = rank, world_size, shards
        self.batch_size, self.num_batches = whole_batches(size, batch_size, world_size)

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[Batch]:
        # A generator would call `position` only when the first batch is requested.
        return self._batches(*self.position())

    def _batches(self, epoch: int, done: int) -> Iterator[Batch]:
        order = self._order(epoch)
        epochs = None if self.balanced is None else epoch + occurrences(order) * REPEATED
        for batch in range(done, len(self)):
            start = (batch * self.world_size + self.rank) * self.batch_size
            rows = slice(start, start + self.batch_size)
            yield order[rows], epoch if epochs is None else epochs[rows]

    def _order(self, epoch: int) -> np.ndarray:
        if self.balanced is not None:
            return balanced_order(self.seed, epoch, self.balanced)
        if self.shards is None:
            return permutation(self.seed, epoch, self.size)
        return shard_permutation(self.seed, epoch, self.shards)


class GroupedBatches(TrainBatches):
    """Batches of samples of one group, such as images of similar shape: the same group for all processes.

    An epoch has the same samples and number of batches as without groups, and is a function of (seed, epoch).
    The remainders of the groups form mixed batches.

    Args:
        groups: index of the group of each sample, of shape [n].
        batch_size: samples in a batch of one process.
        common: the other arguments of `TrainBatches`.
    """

    def __init__(self, groups: np.ndarray, batch_size: int, **common: Any):
        super().__init__(len(groups), batch_size, **common)
        self.groups = groups

    def _order(self, epoch: int) -> np.ndarray:
        step = self.batch_size * self.world_size
        order = super()._order(epoch)[: len(self) * step]
        members = [order[self.groups[order] == group] for group in np.unique(self.groups)]
        whole = [each[: len(each) // step * step] for each in members]
        rest = [each[len(each) // step * step :] for each in members]
        batches = np.concatenate([*whole, *rest]).reshape(-1, step)
        return batches[permutation(derived_seed(self.seed, "ratio"), epoch, len(batches))].ravel()


class EvalBatches(Sampler):
    """Batches of every sample once and in order; process r of w takes the samples r, r + w, r + 2w, ...

    Args:
        size: samples in the set.
        batch_size: samples in a batch of one process; the last batch may be smaller.
        rank: rank of this process.
        world_size: number of processes.
    """

    def __init__(self, size: int, batch_size: int, *, rank: int, world_size: int):
        self.indices = np.arange(rank, size, world_size)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.indices), self.batch_size):
            yield self.indices[start : start + self.batch_size], 0


class MixedBatches(Sampler):
    """Batches of one epoch of the labelled images, each filled up with pseudo-labelled ones.

    An epoch is one pass over the labelled images, as without pseudo-labels. The pseudo-labelled images are
    visited in passes of their own, each a permutation by (seed, pass), which continue from epoch to epoch and
    may begin inside a batch. The batches are a function of (seed, epoch, batch, rank).

    Args:
        mixed: both sets.
        config: `batch_size` images for one process, `pseudo_ratio` pseudo-labelled for each labelled one.
        seed: seed of the run.
        position: returns (epoch, batches already done in it), called at the start of every iteration.
        rank: rank of this process.
        world_size: number of processes.
    """

    def __init__(
        self,
        mixed: MixedSet,
        config: DataConfig,
        *,
        seed: int,
        position: Position,
        rank: int,
        world_size: int,
    ):
        labelled_size, self.pseudo_size = batch_sizes(config)
        # Indices of pseudo-labelled images in `mixed` start at this offset.
        self.offset, self.num_pseudo = len(mixed.labelled), len(mixed.pseudo)
        self.labelled_batches = TrainBatches(
            self.offset,
            labelled_size,
            seed=seed,
            position=position,
            rank=rank,
            world_size=world_size,
            shards=mixed.labelled.shards if config.order == "shards" else None,
        )
        # If the labelled set is smaller than its part of a batch, both parts shrink in proportion.
        scale = self.labelled_batches.batch_size / labelled_size
        self.pseudo_size = max(1, round(self.pseudo_size * scale))
        self.seed, self.position = derived_seed(seed, PSEUDO), position
        self.rank, self.world_size = rank, world_size
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.labelled_batches)

    def __iter__(self) -> Iterator[Batch]:
        epoch, done = self.position()
        return self._batches(iter(self.labelled_batches), epoch * len(self) + done)

    def _batches(self, labelled_batches: Iterator[Batch], first_step: int) -> Iterator[Batch]:
        for step, (labelled, epoch) in enumerate(labelled_batches, start=first_step):
            start = (step * self.world_size + self.rank) * self.pseudo_size
            passes, positions = np.divmod(np.arange(start, start + self.pseudo_size), self.num_pseudo)
            pseudo = np.concatenate([self._pass(p)[positions[passes == p]] for p in np.unique(passes)])
            epochs = np.concatenate([np.full(len(labelled), epoch), passes])
            yield np.concatenate([labelled, self.offset + pseudo]), epochs

    def _pass(self, number: int) -> np.ndarray:
        """Return the order of a pass, [pseudo-labelled images]; cached, as a pass may last many epochs."""
        if self._order is None or self._order[0] != number:
            self._order = number, permutation(self.seed, number, self.num_pseudo)
        return self._order[1]
