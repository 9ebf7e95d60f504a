"""Channels-last weights: convolutions of a CPU are faster with them, and return channels-last images."""

from __future__ import annotations

from itertools import chain
from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def to_channels_last(network: Network) -> Network:
    """Store the weights of 2d convolutions in channels-last format, in place; values do not change.

    `Module.to(memory_format=torch.channels_last)` raises an error for a network that also has weights of
    3d convolutions, as timm's lambda layers do.

    Args:
        network: The network; its convolutions then also return channels-last images.

    Returns:
        The same network.
    """
    for tensor in chain(network.parameters(), network.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    return network
