"""Loaders of annotated images, in lists: their sizes and numbers of objects differ."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from ..batches import EvalBatches, Position, TrainBatches
from ..loader import batched_loader
from ..randomness import other_seed, permutation
from .coco_set import CocoSet
from .config import CocoConfig

RATIOS = 2.0 ** np.arange(-1, 1.01, 0.5)  # bounds of the groups, of width / height


class RatioBatches(TrainBatches):
    """Batches of images of nearly one shape: batches of all processes at a step are of one group.

    An epoch holds the same images as without groups, as many batches, and comes from (seed, epoch) alone.
    What is left of the groups makes up mixed batches.

    Args:
        groups: number of the group of each sample, of shape [n].
        batch_size: for one process.
        place: the rest of `TrainBatches`' arguments.
    """

    def __init__(self, groups: np.ndarray, batch_size: int, **place: Any):
        super().__init__(len(groups), batch_size, **place)
        self.groups = groups

    def _order(self, epoch: int) -> np.ndarray:
        step = self.batch_size * self.world_size
        order = super()._order(epoch)[: len(self) * step]
        members = [order[self.groups[order] == group] for group in np.unique(self.groups)]
        whole = [each[: len(each) // step * step] for each in members]
        rest = [each[len(each) // step * step :] for each in members]
        batches = np.concatenate([*whole, *rest]).reshape(-1, step)
        return batches[permutation(other_seed(self.seed, "ratio"), epoch, len(batches))].ravel()


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
        data_set: from `open_coco`.
        config: batch size, workers and grouping.
        seed: of the run.
        position: returns (epoch, batches already done in it); asked whenever an iteration starts, which is
            how a run resumes in the middle of an epoch.
        rank: of this process.
        world_size: number of processes; each gets other samples, and as many batches.

    Returns:
        A loader of (list of images, list of targets), as `CocoSet.original` describes them, whose length is
        that of a whole epoch.
    """
    place: Any = {"seed": seed, "position": position, "rank": rank, "world_size": world_size}
    if config.group_by_ratio:
        groups = np.digitize(data_set.sizes[:, 1] / data_set.sizes[:, 0], RATIOS)
        batches = RatioBatches(groups, config.batch_size, **place)
    else:
        batches = TrainBatches(len(data_set), config.batch_size, **place)
    return batched_loader(data_set, batches, workers=config.workers, seed=seed)


def coco_eval_loader(
    data_set: CocoSet, config: CocoConfig, *, rank: int = 0, world_size: int = 1
) -> DataLoader:
    """Return the loader of a set in order: every image once over all processes, the last batch smaller.

    Targets are without masks: what is found is held against `CocoSet.ground_truth`.
    """
    batches = EvalBatches(len(data_set), config.batch_size, rank=rank, world_size=world_size)
    return batched_loader(data_set.without_masks(), batches, workers=config.workers, seed=0)
