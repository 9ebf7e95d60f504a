"""Loaders whose batches depend on the seed and the position alone, not on the workers that read them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from .config import DataConfig
from .errors import DataError, DataWarning
from .image_set import ImageSet
from .randomness import permutation, shard_permutation
from .stream import StreamSet

Position = Callable[[], tuple[int, int]]
Batch = tuple[np.ndarray, int]  # indices, and the epoch they are drawn for


class TrainBatches(Sampler):
    """Batches of one epoch, for one of several processes, from where training stands.

    An epoch is a permutation by (seed, epoch), cut into batches for all processes together. Every sample
    comes at most once; those that do not fill a batch wait for another epoch. A set smaller than one batch
    gives one smaller batch.

    Args:
        size: samples in the set.
        batch_size: for one process.
        seed: of the run.
        position: returns (epoch, batches already done in it), asked at the start of every iteration.
        rank: of this process.
        world_size: number of processes.
        shards: number of the archive of each sample, of shape (n,), to visit those one after the other; None
            mixes all samples.
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
    ):
        if size < world_size:
            raise DataError(f"{size} training images are too few for {world_size} processes.")
        self.size, self.seed, self.position = size, seed, position
        self.rank, self.world_size, self.shards = rank, world_size, shards
        self.batch_size = min(batch_size, size // world_size)

    def __len__(self) -> int:
        return self.size // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[Batch]:
        return self._batches(*self.position())  # asked now, not at the first batch

    def _batches(self, epoch: int, done: int) -> Iterator[Batch]:
        if self.shards is None:
            order = permutation(self.seed, epoch, self.size)
        else:
            order = shard_permutation(self.seed, epoch, self.shards)
        for batch in range(done, len(self)):
            start = (batch * self.world_size + self.rank) * self.batch_size
            yield order[start : start + self.batch_size], epoch


class EvalBatches(Sampler):
    """Every sample once and in order, dealt out to the processes in turn."""

    def __init__(self, size: int, batch_size: int, *, rank: int, world_size: int):
        self.indices = np.arange(rank, size, world_size)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.indices), self.batch_size):
            yield self.indices[start : start + self.batch_size], 0


class _Batched(Dataset):
    """Lets a worker make a whole batch at once."""

    def __init__(self, image_set: ImageSet, seed: int):
        self.image_set, self.seed = image_set, seed

    def __len__(self) -> int:
        return len(self.image_set)

    def __getitem__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        indices, epoch = batch
        return self.image_set.batch(indices, epoch, self.seed)


def train_loader(
    image_set: ImageSet | StreamSet,
    config: DataConfig,
    *,
    seed: int,
    position: Position,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader:
    """Return the loader of training batches.

    Args:
        image_set: from `open_splits`.
        config: batch size and workers. A set in memory whose changes run on whole batches uses no workers:
            sending such a batch takes longer than making it.
        seed: of the run.
        position: returns (epoch, batches already done in it); asked whenever an iteration starts, which is
            how a run resumes in the middle of an epoch.
        rank: of this process.
        world_size: number of processes; each gets other samples.

    Returns:
        A loader of (images of shape (b, channels, image_size, image_size), int64 targets of shape (b,)) whose
        length is that of a whole epoch.
    """
    if isinstance(image_set, StreamSet):
        return _stream_loader(image_set, config, seed=seed, position=position, world_size=world_size)
    batches = TrainBatches(
        len(image_set),
        config.batch_size,
        seed=seed,
        position=position,
        rank=rank,
        world_size=world_size,
        shards=image_set.shards if config.order == "shards" else None,
    )
    return _loader(image_set, config, batches, seed)


def eval_loader(
    image_set: ImageSet | StreamSet, config: DataConfig, *, rank: int = 0, world_size: int = 1
) -> DataLoader:
    """Return the loader of a set in order: every sample once over all processes, the last batch smaller."""
    if isinstance(image_set, StreamSet):
        return _stream_loader(image_set, config, seed=0, position=None, world_size=world_size)
    batches = EvalBatches(len(image_set), config.batch_size, rank=rank, world_size=world_size)
    return _loader(image_set, config, batches, 0)


def _loader(image_set: ImageSet, config: DataConfig, batches: Sampler, seed: int) -> DataLoader:
    workers = 0 if image_set.immediate else config.workers
    return DataLoader(
        _Batched(image_set, seed), batch_size=None, sampler=batches, **_process_options(workers, seed)
    )


def _process_options(workers: int, seed: int) -> dict[str, Any]:
    return {
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "pin_memory": torch.cuda.is_available(),
        # The loader draws a number at every start; from the global generator it would shift the model's.
        "generator": torch.Generator().manual_seed(seed),
    }


class _StreamLoader(DataLoader):
    dataset: Any
    position: Position | None = None

    def __iter__(self) -> Any:
        if self.position is not None:
            epoch, done = self.position()
            self.dataset.data_set.set_epoch(epoch)
            if done:
                warnings.warn(
                    f"a streamed source cannot resume inside an epoch: epoch {epoch} starts again, "
                    f"{done} batches of it are seen twice.",
                    DataWarning,
                    stacklevel=2,
                )
        return super().__iter__()


def _stream_loader(
    stream: StreamSet, config: DataConfig, *, seed: int, position: Position | None, world_size: int
) -> DataLoader:
    if world_size > 1:
        raise DataError(
            f"{config.source!r} is streamed and cannot be divided among {world_size} processes without "
            "repeats; read shards as tar:PATH, Hugging Face's sets as hfds/NAME, or train with --devices 1."
        )
    stream.data_set.set_loader_cfg(num_workers=config.workers)
    loader = _StreamLoader(
        stream,
        batch_size=config.batch_size,
        drop_last=position is not None,
        **_process_options(config.workers, seed),
    )
    loader.position = position
    return loader
