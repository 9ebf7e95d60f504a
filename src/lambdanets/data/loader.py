"""Loaders whose batches depend on the seed and the position alone, not on the workers that read them."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from lambdanets.utils.processes import leave_signals_to_parent

from .batches import Batch, EvalBatches, MixedBatches, Position, TrainBatches
from .config import DataConfig
from .errors import DataError, DataWarning
from .image_set import ImageSet
from .lanes import LaneBatches, Part, evaluation_part, training_part
from .mixed import MixedSet
from .sequential import SequentialSet
from .stream import StreamSet, TimmStream

# A mistyped number of processes would exhaust the memory before the first of them is used.
WORKERS_PER_CORE, MIN_WORKER_LIMIT = 4, 32


class Batches(Protocol):
    """A set that makes the batch of any indices, in an epoch of a seed."""

    def __len__(self) -> int: ...
    def batch(self, indices: np.ndarray, epoch: int | np.ndarray, seed: int) -> tuple[Any, Any]: ...


class _Batched(Dataset):
    """Lets a worker make a whole batch at once."""

    def __init__(self, data_set: Batches, seed: int):
        self.data_set, self.seed = data_set, seed

    def __len__(self) -> int:
        return len(self.data_set)

    def __getitem__(self, batch: Batch) -> tuple[Any, Any]:
        indices, epoch = batch
        return self.data_set.batch(indices, epoch, self.seed)


class _Following(Dataset):
    """Lets a worker read on from where it stands in each lane of a stream."""

    def __init__(self, stream: SequentialSet, part: Part, seed: int):
        self.stream, self.part, self.seed = stream, part, seed
        self._next: dict[int, tuple[int, int]] = {}
        self._reading: dict[int, Iterator[tuple[Tensor, Tensor]]] = {}

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, number = place
        lane = number % self.part.lanes
        info = get_worker_info()
        step = math.lcm(self.part.lanes, info.num_workers if info else 1)  # workers take batches in turn
        if self._next.get(lane) != place:
            self._reading[lane] = self.stream.batches(
                self.part, number, step=step, epoch=epoch, seed=self.seed
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
    if isinstance(image_set, SequentialSet):
        part = training_part(len(image_set), config.batch_size, rank=rank, world_size=world_size)
        return _lane_loader(image_set, config, part, seed=seed, position=position)
    if isinstance(image_set, TimmStream):
        return _stream_loader(image_set, config, seed=seed, position=position, world_size=world_size)
    place: Any = {"seed": seed, "position": position, "rank": rank, "world_size": world_size}
    if isinstance(image_set, MixedSet):
        return _loader(image_set, config, MixedBatches(image_set, config, **place), seed)
    shards = image_set.shards if config.order == "shards" else None
    batches = TrainBatches(len(image_set), config.batch_size, **place, shards=shards)
    return _loader(image_set, config, batches, seed)


def eval_loader(
    image_set: ImageSet | StreamSet, config: DataConfig, *, rank: int = 0, world_size: int = 1
) -> DataLoader:
    """Return the loader of a set in order: every sample once over all processes, the last batch smaller."""
    if isinstance(image_set, SequentialSet):
        part = evaluation_part(len(image_set), config.batch_size, rank=rank, world_size=world_size)
        return _lane_loader(image_set, config, part, seed=0, position=None)
    if isinstance(image_set, TimmStream):
        return _stream_loader(image_set, config, seed=0, position=None, world_size=world_size)
    batches = EvalBatches(len(image_set), config.batch_size, rank=rank, world_size=world_size)
    return _loader(image_set, config, batches, 0)


def _loader(image_set: ImageSet | MixedSet, config: DataConfig, batches: Sampler, seed: int) -> DataLoader:
    return batched_loader(image_set, batches, workers=0 if image_set.immediate else config.workers, seed=seed)


def batched_loader(data_set: Batches, batches: Sampler, *, workers: int, seed: int) -> DataLoader:
    """Return the loader whose workers make a whole batch at once, of the indices and epoch that come."""
    return DataLoader(
        _Batched(data_set, seed), batch_size=None, sampler=batches, **_process_options(workers, seed)
    )


def _lane_loader(
    stream: SequentialSet, config: DataConfig, part: Part, *, seed: int, position: Position | None
) -> DataLoader:
    return DataLoader(
        _Following(stream, part, seed),
        batch_size=None,
        sampler=LaneBatches(part, position),
        **_process_options(config.workers, seed),
    )


def checked_workers(workers: int) -> int:
    """Return a number of processes that read images, unless it is more than the machine can use.

    Raises:
        DataError: It is more than four for each core, and more than 32.
    """
    most = max(MIN_WORKER_LIMIT, WORKERS_PER_CORE * (os.cpu_count() or 1))
    if workers > most:
        raise DataError(
            f"data.workers={workers} is more processes than a machine of {os.cpu_count()} cores can use; set "
            f"{most} or fewer."
        )
    return workers


def _process_options(workers: int, seed: int) -> dict[str, Any]:
    return {
        "num_workers": checked_workers(workers),
        "persistent_workers": workers > 0,
        "worker_init_fn": leave_signals_to_parent,
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
    stream: TimmStream, config: DataConfig, *, seed: int, position: Position | None, world_size: int
) -> DataLoader:
    if world_size > 1:
        raise DataError(
            f"{config.source!r} is streamed and cannot be divided among {world_size} processes without "
            "repeats; read shards as wds/NAME:PATH or tar:PATH, Hugging Face's sets as hfids/NAME or "
            "hfds/NAME, or train with --devices 1."
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
