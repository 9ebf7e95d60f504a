"""Loaders whose batches depend on the seed and the position in training, not on the number of workers."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from lambdanets.utils.processes import leave_signals_to_parent

from .batches import Batch, EvalBatches, MixedBatches, Position, TrainBatches
from .config import DataConfig
from .errors import DataError
from .image_set import ImageSet
from .mixed import MixedSet
from .streams.stream_set import StreamSet
from .streams.stream_shard import LaneBatches, StreamShard, evaluation_shard, training_shard

# Limits of the number of worker processes: a mistyped number would exhaust the memory at their start.
WORKERS_PER_CORE, MIN_WORKER_LIMIT = 4, 32


class BatchedDataset(Protocol):
    """A data set that returns the batch of any indices at once, augmented as a function of epoch and seed."""

    def __len__(self) -> int: ...
    def batch(self, indices: np.ndarray, epoch: int | np.ndarray, seed: int) -> tuple[Any, Any]: ...


class _IndexedBatches(Dataset):
    """Data set whose items are whole batches, so that a worker makes one at once."""

    def __init__(self, data_set: BatchedDataset, seed: int):
        self.data_set, self.seed = data_set, seed

    def __len__(self) -> int:
        return len(self.data_set)

    def __getitem__(self, batch: Batch) -> tuple[Any, Any]:
        indices, epoch = batch
        return self.data_set.batch(indices, epoch, self.seed)


class _StreamBatches(Dataset):
    """Data set whose items are batches of a stream; a worker keeps the lanes that it reads open."""

    def __init__(self, stream: StreamSet, shard: StreamShard, seed: int):
        self.stream, self.shard, self.seed = stream, shard, seed
        # By lane: (epoch, number) of the batch that its iterator yields next, and the iterator.
        self._next: dict[int, tuple[int, int]] = {}
        self._reading: dict[int, Iterator[tuple[Tensor, Tensor]]] = {}

    def __len__(self) -> int:
        return len(self.shard)

    def __getitem__(self, batch: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, number = batch
        lane = number % self.shard.lanes
        info = get_worker_info()
        # Workers make batches in turn: this worker's next batch of this lane has the number `number + step`.
        step = math.lcm(self.shard.lanes, info.num_workers if info else 1)
        if self._next.get(lane) != batch:
            self._reading[lane] = self.stream.batches(
                self.shard, number, step=step, epoch=epoch, seed=self.seed
            )
        self._next[lane] = epoch, number + step
        return next(self._reading[lane])


def train_loader(
    image_set: ImageSet | MixedSet | StreamSet,
    config: DataConfig,
    *,
    seed: int,
    position: Position,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader:
    """Return the loader of training batches.

    Args:
        image_set: the training set from `open_splits`.
        config: batch size and workers. No workers are used for small cached images with light augmentation
            (`ImageSet.immediate`), as sending such a batch takes longer than making it.
        seed: seed of the run.
        position: returns (epoch, batches already done in it); called at the start of every iteration, so that
            a run can resume in the middle of an epoch.
        rank: rank of this process.
        world_size: number of processes, which get different samples.

    Returns:
        A loader of (images of shape [b, channels, image_size, image_size], int64 targets of shape [b]) whose
        length is that of a whole epoch.
    """
    if isinstance(image_set, StreamSet):
        shard = training_shard(len(image_set), config.batch_size, rank=rank, world_size=world_size)
        return _stream_loader(image_set, config, shard, seed=seed, position=position)
    common: Any = {"seed": seed, "position": position, "rank": rank, "world_size": world_size}
    if isinstance(image_set, MixedSet):
        return _loader(image_set, config, MixedBatches(image_set, config, **common), seed)
    shards = image_set.shards if config.order == "shards" else None
    balanced = image_set.targets if config.sampling == "balanced" else None
    batches = TrainBatches(len(image_set), config.batch_size, **common, shards=shards, balanced=balanced)
    return _loader(image_set, config, batches, seed)


def eval_loader(
    image_set: ImageSet | StreamSet, config: DataConfig, *, rank: int = 0, world_size: int = 1
) -> DataLoader:
    """Return the loader of a set in order: each sample once over all processes.

    Args:
        image_set: a set from `open_split`, or the validation set from `open_splits`.
        config: batch size and workers.
        rank: rank of this process.
        world_size: number of processes.

    Returns:
        A loader of (images, targets) as in `train_loader`; the last batch may be smaller.
    """
    if isinstance(image_set, StreamSet):
        shard = evaluation_shard(len(image_set), config.batch_size, rank=rank, world_size=world_size)
        return _stream_loader(image_set, config, shard, seed=0, position=None)
    batches = EvalBatches(len(image_set), config.batch_size, rank=rank, world_size=world_size)
    return _loader(image_set, config, batches, 0)


def _loader(image_set: ImageSet | MixedSet, config: DataConfig, batches: Sampler, seed: int) -> DataLoader:
    return batched_loader(image_set, batches, workers=0 if image_set.immediate else config.workers, seed=seed)


def batched_loader(data_set: BatchedDataset, batches: Sampler, *, workers: int, seed: int) -> DataLoader:
    """Return a loader whose workers make a whole batch at once from each (indices, epoch) of a sampler."""
    return DataLoader(
        _IndexedBatches(data_set, seed), batch_size=None, sampler=batches, **_process_options(workers, seed)
    )


def _stream_loader(
    stream: StreamSet, config: DataConfig, shard: StreamShard, *, seed: int, position: Position | None
) -> DataLoader:
    return DataLoader(
        _StreamBatches(stream, shard, seed),
        batch_size=None,
        sampler=LaneBatches(shard, position),
        **_process_options(config.workers, seed),
    )


def checked_workers(workers: int) -> int:
    """Return `workers`, unless it is more processes than the machine can use.

    Raises:
        DataError: it is more than four for each core, and more than 32.
    """
    limit = max(MIN_WORKER_LIMIT, WORKERS_PER_CORE * (os.cpu_count() or 1))
    if workers > limit:
        raise DataError(
            f"data.workers={workers} is more processes than a machine of {os.cpu_count()} cores can use; set "
            f"{limit} or fewer."
        )
    return workers


def _process_options(workers: int, seed: int) -> dict[str, Any]:
    return {
        "num_workers": checked_workers(workers),
        "persistent_workers": workers > 0,
        "worker_init_fn": leave_signals_to_parent,
        "pin_memory": torch.cuda.is_available(),
        # The loader draws a seed for its workers at every start, which must not advance the global generator.
        "generator": torch.Generator().manual_seed(seed),
    }
