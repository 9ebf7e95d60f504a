"""The callback that keeps parts of a network as they are: frozen stages, the body while the head learns."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

from lambdanets.models.freezing import body_and_head, frozen_modules
from lambdanets.train.errors import RunError, raised_on_all_ranks
from lambdanets.train.learner import Learner


class FrozenParts(Callback):
    """Puts modules that are not trained into evaluation mode, and drops gradients of the body.

    In evaluation mode batch norms use their statistics and do not update them. In the first
    `model.head_epochs` epochs the body (everything but the head; of a detector the backbone without its
    feature pyramid) is in evaluation mode and gets no gradient, so the optimiser neither changes it nor
    collects momenta for it. Gradients are computed all the same, as distributed training expects.

    Args:
        module: The Lightning module, whose network has its parameters frozen already.
    """

    def __init__(self, module: Learner) -> None:
        self.network = module.network
        self.head_epochs: int = getattr(module.config.model, "head_epochs", 0)
        self.frozen = frozen_modules(self.network)
        self.body, self.heads = body_and_head(self.network)

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
            body, trained = (
                {p for name in names for p in self.network.get_submodule(name).parameters()}
                for names in (self.body, self.heads)
            )
            for parameter in body - trained:
                parameter.grad = None

    def _trains_head_alone(self, trainer: pl.Trainer) -> bool:
        return trainer.current_epoch < self.head_epochs

    def _set_modes(self, trainer: pl.Trainer) -> None:
        self.network.train()
        if self._trains_head_alone(trainer):
            for names, mode in ((self.body, False), (self.heads, True)):
                for name in names:
                    self.network.get_submodule(name).train(mode)
        for name in self.frozen:
            self.network.get_submodule(name).eval()
