"""Before anything is trained: can this machine do it, does every contender exist, can it take the images?"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lambdanets.train import RunConfig
from lambdanets.train.optim import create_optimizer

from .settings import Cell, Study


def check_engine(config: RunConfig) -> None:
    """See whether Lightning can run these settings here.

    Raises:
        RunError: this machine, or Lightning, does not have what they ask for.
    """
    from lambdanets.train.engine import make_trainer, quiet_lightning, trainer_placement

    with quiet_lightning():
        make_trainer(**trainer_placement(config.engine), logger=False, enable_checkpointing=False)


def count_parameters(study: Study, contenders: Sequence[str]) -> dict[str, int]:
    """Build every contender without memory, let it look at an image, and count its parameters.

    Raises:
        ValueError: some cannot be built; all of them are named, with their reasons and those that can.
    """
    counted: dict[str, int] = {}
    complaints: list[str] = []
    for name in contenders:
        config = study.run_config(Cell(contender=name, seed=0))
        size = config.data.image_size
        try:
            with torch.device("meta"), torch.no_grad():
                network = config.network(study.images.classes).eval()
                create_optimizer(network, config.optimizer)
                counted[name] = sum(parameter.numel() for parameter in network.parameters())
                network(torch.empty(1, config.data.in_chans, size, size))
        except NotImplementedError:
            continue  # an operator that cannot run without memory says nothing about the contender
        except (ValueError, TypeError, AssertionError, RuntimeError) as error:
            why = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            complaints.append(f"{name}: {why}")
    if complaints:
        able = [name for name in contenders if not any(text.startswith(f"{name}: ") for text in complaints)]
        hint = f"; leave them out with --contenders {','.join(able)}" if able else ""
        raise ValueError(f"{len(complaints)} of {len(contenders)} contenders cannot be built here{hint}: "
                         + "; ".join(complaints))  # fmt: skip
    return counted
