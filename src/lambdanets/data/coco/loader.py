"""Loaders of annotated images; batches are lists, as sizes and numbers of objects differ."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from ..batches import EvalBatches, GroupedBatches, Position, TrainBatches
from ..loader import batched_loader
from .coco_set import CocoSet
from .config import CocoConfig

RATIOS = 2.0 ** np.arange(-1, 1.01, 0.5)  # values of width / height that separate the groups


def coco_train_loader(
    data_set: CocoSet,
    config: CocoConfig,
    *,
    seed: int,
    position: Position,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader:
    """Return the loader of training batches.

    Args:
        data_set: the training side from `open_coco`.
        config: batch size, workers and grouping.
        seed: seed of the run.
        position: returns (epoch, batches already done in it); called at the start of every iteration, so that
            a run can resume in the middle of an epoch.
        rank: rank of this process.
        world_size: number of processes, which get different samples and equally many batches.

    Returns:
        A loader of (list of images, list of targets), as `CocoSet.original` describes them, whose length is
        that of a whole epoch.
    """
    common: Any = {"seed": seed, "position": position, "rank": rank, "world_size": world_size}
    if config.group_by_ratio:
        groups = np.digitize(data_set.sizes[:, 1] / data_set.sizes[:, 0], RATIOS)
        batches = GroupedBatches(groups, config.batch_size, **common)
    else:
        batches = TrainBatches(len(data_set), config.batch_size, **common)
    return batched_loader(data_set, batches, workers=config.workers, seed=seed)


def coco_eval_loader(
    data_set: CocoSet, config: CocoConfig, *, rank: int = 0, world_size: int = 1
) -> DataLoader:
    """Return the loader of a set in order: each image once over all processes.

    Args:
        data_set: the set.
        config: batch size and workers.
        rank: rank of this process.
        world_size: number of processes.

    Returns:
        A loader of (list of images, list of targets); the last batch may be smaller. Targets have no masks,
        as detections are compared with `CocoSet.ground_truth`.
    """
    batches = EvalBatches(len(data_set), config.batch_size, rank=rank, world_size=world_size)
    return batched_loader(data_set.without_masks(), batches, workers=config.workers, seed=0)
