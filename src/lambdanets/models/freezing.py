"""Parts of a network that are not trained: stages by number, and everything but the head."""

from __future__ import annotations

from typing import Any

from timm.models import group_parameters
from torch import nn


def classifier_names(network: nn.Module) -> list[str]:
    """Return the names of a network's classifier modules; empty if it does not record them."""
    cfg: Any = getattr(network, "pretrained_cfg", None) or {}
    names = cfg.get("classifier") or ()
    return [names] if isinstance(names, str) else list(names)


def body_and_head(network: nn.Module) -> tuple[list[str], list[str]]:
    """Return the modules that wait while the head is trained, and the modules inside them that do not.

    Of a detector, `body_modules` names the first. Of a classifier they are the whole network, "", and its
    classifiers.

    Returns:
        Two lists of names, the first of which is empty if the network does not record its head.
    """
    if hasattr(network, "body_modules"):
        return list(network.body_modules), []  # pyright: ignore[reportArgumentType]
    heads = classifier_names(network)
    return [""] if heads else [], heads


def freeze_stages(network: Any, number: int, name: str) -> None:
    """Exclude the parameters of the first stages from training, the stem being the first stage.

    Args:
        network: A network of this package or of timm; its classifier is no stage. Of a network without a
            classifier, such as a language model, the last stage is always trained.
        number: Number of stages to freeze.
        name: Name of the network, for errors.

    Raises:
        ValueError: The network has fewer stages, or does not say which parameters belong to which.
    """
    if not hasattr(network, "group_matcher"):
        raise ValueError(f"model.frozen_stages: {name} does not group its parameters by stages")
    heads = tuple(f"{each}." for each in classifier_names(network))
    groups = group_parameters(network, network.group_matcher(coarse=True)).values()
    stages = [stage for names in groups if (stage := [each for each in names if not each.startswith(heads)])]
    stages = stages if heads else stages[:-1]
    if number > len(stages):
        raise ValueError(
            f"model.frozen_stages is at most {len(stages)}, the stem and the other stages of {name}; "
            f"got {number}"
        )
    for names in stages[:number]:
        for each in names:
            network.get_parameter(each).requires_grad_(False)


def frozen_modules(network: nn.Module) -> list[str]:
    """Return the names of the modules that have parameters, none of which is trained."""
    frozen = []
    for name, module in network.named_modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            frozen.append(name)
    return frozen
