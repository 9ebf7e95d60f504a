"""The loaders of a run, made once the rank of this process is known."""

from typing import Any

import lightning.pytorch as pl
from torch.utils.data import DataLoader

from lambdanets.train.errors import RunError, everywhere
from lambdanets.train.learner import Learner


class Loaders(pl.LightningDataModule):
    """Gives the trainer its batches, from where the run stands.

    Args:
        splits: the images.
        module: what is trained; its state knows the position.
    """

    def __init__(self, splits: Any, module: Learner) -> None:
        super().__init__()
        self.splits, self.module = splits, module

    def train_dataloader(self) -> DataLoader:
        config, state = self.module.config, self.module.state
        rank, world_size = self._place()
        with everywhere():
            loader = self.module.train_loader(self.splits, rank=rank, world_size=world_size)
            batches = min(len(loader), config.engine.max_batches or len(loader))
            if state.batches_per_epoch not in (0, batches):
                raise RunError(
                    f"the run had {state.batches_per_epoch} batches in an epoch and has {batches} now; "
                    "resume it with the same images and the same number of devices"
                )
        state.batches_per_epoch = batches
        return loader

    def val_dataloader(self) -> DataLoader:
        rank, world_size = self._place()
        return self.module.val_loader(self.splits, rank=rank, world_size=world_size)

    def _place(self) -> tuple[int, int]:
        if self.trainer is None:
            raise RuntimeError("the loaders are made inside Trainer.fit")
        return self.trainer.global_rank, self.trainer.world_size
