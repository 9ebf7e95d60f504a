"""The callback that keeps parts of a network as they are: frozen stages, the body while the head learns."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

from lambdanets.models.freezing import classifier_names, frozen_modules
from lambdanets.train.errors import RunError, raised_on_all_ranks
from lambdanets.train.learner import Learner


class FrozenParts(Callback):
    """Puts modules that are not trained into evaluation mode, and drops gradients of the body.

    In evaluation mode batch norms use their statistics and do not update them. In the first
    `model.head_epochs` epochs everything but the head is in evaluation mode and gets no gradient, so the
    optimiser neither changes it nor collects momenta for it. Gradients are computed all the same, as
    distributed training expects.

    Args:
        module: The Lightning module, whose network has its parameters frozen already.
    """

    def __init__(self, module: Learner) -> None:
        self.network = module.network
        self.head_epochs: int = getattr(module.config.model, "head_epochs", 0)
        self.frozen = frozen_modules(self.network)
        self.heads = classifier_names(self.network)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        sharded = isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy)
        if sharded and (self.head_epochs or self.frozen):
            with raised_on_all_ranks():
                raise RunError("frozen stages and model.head_epochs need engine.strategy=ddp, not FSDP")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # A run that is resumed inside an epoch does not start it again.
        self._set_modes(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._set_modes(trainer)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any
    ) -> None:
        if self._trains_head_alone(trainer):
            trained = {p for name in self.heads for p in self.network.get_submodule(name).parameters()}
            for parameter in self.network.parameters():
                if parameter not in trained:
                    parameter.grad = None

    def _trains_head_alone(self, trainer: pl.Trainer) -> bool:
        return trainer.current_epoch < self.head_epochs

    def _set_modes(self, trainer: pl.Trainer) -> None:
        self.network.train(not self._trains_head_alone(trainer))
        if self._trains_head_alone(trainer):
            for name in self.heads:
                self.network.get_submodule(name).train()
        for name in self.frozen:
            self.network.get_submodule(name).eval()
