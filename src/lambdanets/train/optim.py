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
        name: Name of a timm optimiser; "sgd" has Nesterov momentum, "momentum" plain momentum.
        lr: Peak learning rate.
        lr_batch: Samples per step that `lr` is meant for: the learning rate is scaled by those of a step
            here, over all devices and accumulated batches, divided by this number. None does not scale.
        weight_decay: Weight decay of tensors with two or more axes; never of biases, norms and position
            tables.
        momentum: Momentum of SGD and its relatives.
        layer_decay: Factor of the learning rate from one layer to the one below, for fine-tuning.
        options: Further arguments of the optimiser, such as betas, set as `optimizer.options.NAME=VALUE`.
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
    """Create the optimiser of a configuration for a model's parameters.

    Parameters of one axis (biases, norms) and those in `model.no_weight_decay()` get no weight decay.

    Raises:
        ValueError: timm has no optimiser of that name.
        RunError: The optimiser does not take these options.
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
    """A learning-rate schedule of warm-up and decay, a function of the step without state.

    Args:
        name: Decay after the warm-up: "cosine" (half a period down to `final`), "linear", "steps" or
            "constant".
        warmup_epochs: Epochs of linear rise from `start` times the peak; may be a fraction.
        start: First learning rate of the warm-up, as a fraction of the peak.
        final: Last learning rate of "cosine" and "linear", as a fraction of the peak.
        drops: With "steps", the fractions of the run, warm-up included, at which the learning rate drops to a
            tenth.
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
    """Return the factor on the peak learning rate at an optimiser step.

    In the warm-up of w steps, t < w, it is start + (1 - start) (t + 1) / w. Later, with
    p = (t - w) / (T - w), it is

    - "cosine": final + (1 - final) (1 + cos(pi p)) / 2
    - "linear": final + (1 - final) (1 - p)
    - "steps": 0.1 to the power of the number of drops d with t >= d T
    - "constant": 1

    Args:
        step: Optimiser steps done so far, t, from 0.
        config: The schedule.
        total_steps: Optimiser steps of the whole run, T.
        steps_per_epoch: Optimiser steps of one epoch.

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
