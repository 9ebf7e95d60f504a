"""Loaders of labelled recordings; batches are padded to their longest recording."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from ..batches import EvalBatches, GroupedBatches, Position, TrainBatches
from ..loader import batched_loader
from .audio_set import AudioSet
from .config import AudioDataConfig

GROUPS = 8  # groups of recordings of similar length
GROUP_BATCHES = 4  # fewest batches of a group


def audio_train_loader(
    data_set: AudioSet,
    config: AudioDataConfig,
    *,
    seed: int,
    position: Position,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader:
    """Return the loader of training batches.

    Args:
        data_set: the training side from `open_audio`.
        config: batch size, workers and grouping.
        seed: seed of the run.
        position: returns (epoch, batches already done in it); called at the start of every iteration, so that
            a run can resume in the middle of an epoch.
        rank: rank of this process.
        world_size: number of processes, which get different samples and equally many batches.

    Returns:
        A loader of ((features of shape [b, c, n], mask of shape [b, n]), targets of shape [b]), whose length
        is that of a whole epoch.
    """
    balanced = data_set.targets if config.sampling == "balanced" else None
    common: Any = {
        "seed": seed, "position": position, "rank": rank, "world_size": world_size, "balanced": balanced
    }  # fmt: skip
    groups = min(GROUPS, len(data_set) // (GROUP_BATCHES * config.batch_size * world_size))
    if config.group_by_length and groups > 1:
        durations = data_set.durations()
        edges = np.quantile(durations, np.arange(1, groups) / groups)
        batches = GroupedBatches(np.digitize(durations, edges), config.batch_size, **common)
    else:
        batches = TrainBatches(len(data_set), config.batch_size, **common)
    return batched_loader(data_set, batches, workers=_workers(data_set, config), seed=seed)


def audio_eval_loader(
    data_set: AudioSet, config: AudioDataConfig, *, rank: int = 0, world_size: int = 1
) -> DataLoader:
    """Return the loader of a set in order: each recording once over all processes.

    Args:
        data_set: the set.
        config: batch size and workers.
        rank: rank of this process.
        world_size: number of processes.

    Returns:
        A loader as in `audio_train_loader`; the last batch may be smaller.
    """
    batches = EvalBatches(len(data_set), config.batch_size, rank=rank, world_size=world_size)
    return batched_loader(data_set, batches, workers=_workers(data_set, config), seed=0)


def _workers(data_set: AudioSet, config: AudioDataConfig) -> int:
    """Return the number of processes: none for features in memory, which are padded faster than sent."""
    return 0 if data_set.cached is not None else config.workers
