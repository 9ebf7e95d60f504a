"""Optimisers of timm and learning-rate schedules."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from timm.optim import create_optimizer_v2, list_optimizers  # pyright: ignore[reportPrivateImportUsage]
from torch import nn
from torch.optim import Optimizer

from lambdanets.train.errors import RunError
from lambdanets.train.serialization import nearest


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """An optimiser of timm.

    Args:
        name: any name of `timm.optim.list_optimizers()`; "sgd" has Nesterov momentum, "momentum" plain.
        lr: peak learning rate.
        lr_batch: images of a step that `lr` is meant for: the learning rate grows in proportion to those of a
            step here, over all devices and accumulated batches. None takes `lr` as it is.
        weight_decay: on weights of two or more axes; never on biases, norms and position tables.
        momentum: of SGD and its relatives.
        layer_decay: learning-rate factor per layer downwards, for fine-tuning.
        options: further arguments of that optimiser, such as betas.
    """

    name: str = "sgd"
    lr: float = 0.1
    lr_batch: int | None = None
    weight_decay: float = 5e-4
    momentum: float = 0.9
    layer_decay: float | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"optimizer.lr is greater than 0; got {self.lr}")
        if self.lr_batch is not None and self.lr_batch < 1:
            raise ValueError(f"optimizer.lr_batch is 1 or more, or None; got {self.lr_batch}")
        if self.weight_decay < 0:
            raise ValueError(f"optimizer.weight_decay is 0 or more; got {self.weight_decay}")


def create_optimizer(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """The optimiser of a config over a model's parameters.

    Weight decay spares one-axis parameters (biases, norms) and every name in `model.no_weight_decay()`.

    Raises:
        ValueError: timm has no optimiser of that name.
        RunError: it does not take these options.
    """
    known = [str(name) for name in list_optimizers()]
    if config.name.lower() not in known:
        raise ValueError(f"optimizer.name {config.name!r} is not one of timm's{nearest(config.name, known)}")
    try:
        return create_optimizer_v2(
            model,
            config.name,
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            layer_decay=config.layer_decay,
            **config.options,
        )
    except (TypeError, ValueError, AssertionError) as error:
        raise RunError(f"the optimizer settings do not fit {config.name!r}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Warm-up, then a decay.

    Args:
        name: "cosine" (half a period down to `final`), "linear", "steps" or "constant" after the warm-up.
        warmup_epochs: epochs of linear rise from `start` times the learning rate; may be a fraction.
        start: first learning rate of the warm-up, as a fraction of the peak.
        final: last learning rate of "cosine" and "linear", as a fraction of the peak.
        drops: with "steps", the parts of the run, warm-up included, after which the learning rate drops to a
            tenth of what it was.
    """

    name: Literal["cosine", "linear", "steps", "constant"] = "cosine"
    warmup_epochs: float = 0.0
    start: float = 0.0
    final: float = 0.0
    drops: tuple[float, ...] = (0.9, 0.95, 0.975)

    def __post_init__(self) -> None:
        if self.warmup_epochs < 0:
            raise ValueError(f"schedule.warmup_epochs is 0 or more; got {self.warmup_epochs}")
        for name in ("start", "final"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"schedule.{name} is a fraction of the peak, 0 to 1; got {getattr(self, name)}"
                )
        if not all(0 < each < 1 for each in self.drops) or list(self.drops) != sorted(set(self.drops)):
            raise ValueError(f"schedule.drops are parts of the run between 0 and 1, rising; got {self.drops}")


def lr_factor(step: int, config: ScheduleConfig, *, total_steps: int, steps_per_epoch: int) -> float:
    """The factor on the peak learning rate at an optimiser step.

    With w warm-up steps of T in all: start + (1 - start) (t + 1) / w while t < w, then, at
    p = (t - w) / (T - w), final + (1 - final) (1 + cos(pi p)) / 2 for the cosine; with steps, a tenth for
    each of the drops d with t >= d T.

    Args:
        step: optimiser steps done so far, t, from 0.
        config: the schedule.
        total_steps: optimiser steps of the whole run, T.
        steps_per_epoch: optimiser steps of one epoch.

    Returns:
        A number from 0 to 1.
    """
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total_steps)
    if step < warmup:
        return config.start + (1 - config.start) * (step + 1) / warmup
    if config.name == "constant":
        return 1.0
    if config.name == "steps":
        return 0.1 ** sum(step >= round(drop * total_steps) for drop in config.drops)
    progress = min((step - warmup) / max(total_steps - warmup, 1), 1.0)
    falling = 1 - progress if config.name == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return config.final + (1 - config.final) * falling
