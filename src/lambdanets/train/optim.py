"""timm's optimisers, with weight decay only where it belongs."""

from dataclasses import dataclass, field
from typing import Any

from timm.optim import create_optimizer_v2, list_optimizers  # pyright: ignore[reportPrivateImportUsage]
from torch import nn
from torch.optim import Optimizer

from lambdanets.train.errors import RunError
from lambdanets.train.typed import nearest


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
