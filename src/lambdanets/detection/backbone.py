"""The backbone of a detector: the feature maps of a classification network and a feature pyramid on them."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from lambdanets.detection.config import DetectorConfig
from lambdanets.models import create_model, load_weights
from lambdanets.models.freezing import freeze_stages, frozen_modules
from lambdanets.models.weight_files import PRETRAINED
from lambdanets.utils.text import first_line, join_some


class Backbone(nn.Module):
    """A network of ours or of timm without its head, and a feature pyramid on its maps.

    Parameters have the names of torchvision's `BackboneWithFPN`.

    Args:
        config: Network, initial weights, frozen parts and pyramid.
        loads_weights: The caller loads weights later: neither those of the configuration nor published ones
            are read.

    Attributes:
        out_channels: Channels of each map.
        strides: Side of the image over that of each map.

    Raises:
        ValueError: The network does not exist, has no maps of these reductions, requires images of one fixed
            size, has fewer stages than should be frozen, or has no batch norms to freeze.
        WeightsError: The weights cannot be found or read, or belong to another network.
    """

    def __init__(self, config: DetectorConfig, *, loads_weights: bool = False) -> None:
        super().__init__()
        published = config.weights == PRETRAINED and not loads_weights
        self.body: Any = create_model(config.name, **config.options, num_classes=0, pretrained=published)
        if config.weights is not None and not published and not loads_weights:
            self.load_classifier(config.weights)
        self.indices, channels = _prune(self.body, config)
        self._frozen = _freeze(self.body, config)
        _check_any_size(self.body, self.indices, channels, config)
        self.fpn = FeaturePyramidNetwork(
            channels,
            config.fpn_channels,
            extra_blocks=LastLevelMaxPool(),
            norm_layer=nn.BatchNorm2d if config.head_norm else None,
        )
        self.out_channels = config.fpn_channels
        self.strides = (*config.reductions, 2 * config.reductions[-1])
        self.train()

    def load_classifier(self, weights: str) -> None:
        """Load the weights of a classifier, without its head.

        Args:
            weights: A source for `lambdanets.models.load_weights`.

        Raises:
            WeightsError: The weights cannot be found or read, or belong to another network.
        """
        load_weights(self.body, weights, head="replace")

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Return the maps of the pyramid by name, "0", "1", ... and "pool", the largest first.

        Args:
            images: [b, 3, height, width]; sides that are multiples of the last stride give maps with exact
                strides.
        """
        maps = self.body.forward_intermediates(images, indices=self.indices, intermediates_only=True)
        return self.fpn(OrderedDict((str(level), each) for level, each in enumerate(maps)))

    def train(self, mode: bool = True) -> Backbone:
        """Set training or evaluation mode; frozen modules stay in evaluation mode."""
        super().train(mode)
        for name in self._frozen:
            self.body.get_submodule(name).eval()
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: the network's activations are recomputed in the backward pass."""
        self.body.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay, such as position tables."""
        names = self.body.no_weight_decay() if hasattr(self.body, "no_weight_decay") else ()
        return {f"body.{name}" for name in names}

    def layers(self, coarse: bool = False) -> dict[str, int]:
        """Return the depth of each parameter of the network, from 0, for layer-wise learning rates."""
        depths: Any = group_parameters(self.body, self.body.group_matcher(coarse=coarse), reverse=True)
        return {f"body.{name}": depth for name, depth in depths.items()}


def _prune(body: Any, config: DetectorConfig) -> tuple[list[int], list[int]]:
    """Remove the layers behind the last map of the pyramid; return the indices and channels of its maps."""
    info = getattr(body, "feature_info", None)
    if not info or not hasattr(body, "prune_intermediate_layers"):
        raise ValueError(f"model.name {config.name} gives no feature maps; take another network")
    last = {each["reduction"]: (index, each["num_chs"]) for index, each in enumerate(info)}
    if missing := [reduction for reduction in config.reductions if reduction not in last]:
        raise ValueError(
            f"model.reductions {config.reductions}: {config.name} has no feature map of {missing[0]}, but of "
            f"{join_some(map(str, last), form=str)}"
        )
    indices, channels = zip(*(last[reduction] for reduction in config.reductions), strict=True)
    body.prune_intermediate_layers(list(indices), prune_norm=True, prune_head=True)
    return list(indices), list(channels)


def _freeze(body: Any, config: DetectorConfig) -> list[str]:
    """Freeze stages and norms; return the names of all modules without trainable parameters."""
    if config.frozen_stages:
        freeze_stages(body, config.frozen_stages, config.name)
    if config.norms == "frozen":
        norms = [module for module in body.modules() if isinstance(module, _BatchNorm)]
        if not norms:
            raise ValueError(f"model.norms='frozen' has no effect: {config.name} has no batch norms")
        for norm in norms:
            norm.requires_grad_(False)
    return frozen_modules(body)


def _check_any_size(body: Any, indices: list[int], channels: list[int], config: DetectorConfig) -> None:
    """Run the network on a rectangular image, so that one of a fixed image size fails before training."""
    height, width = side = 2 * config.reductions[-1], 4 * config.reductions[-1]
    parameter = next(body.parameters())
    image = torch.zeros(1, 3, *side, device=parameter.device, dtype=parameter.dtype)
    body.eval()
    try:
        with torch.no_grad():
            maps = body.forward_intermediates(image, indices=indices, intermediates_only=True)
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = first_line(error)
        raise ValueError(
            f"model.name {config.name} cannot take images of any size, which a detector has to: {reason}"
        ) from error
    for each, depth, reduction in zip(maps, channels, config.reductions, strict=True):
        if each.shape[1:] != (depth, height // reduction, width // reduction):
            raise ValueError(
                f"model.name {config.name} gives a map of shape {tuple(each.shape[1:])} where reduction "
                f"{reduction} has {(depth, height // reduction, width // reduction)}; take another network"
            )
