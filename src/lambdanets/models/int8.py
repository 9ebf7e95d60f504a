"""Weights as int8 with a scale for each output channel: a quarter of the size of float32, for storage."""

from collections.abc import Mapping

import torch
from torch import Tensor

SCALE = ".scale"
"""Suffix of the name of a tensor's scales."""
LARGEST = 127
MIN_ELEMENTS = 32  # per scale; smaller tensors, such as those of norms, are stored as they are


def quantise(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Store large float tensors as int8, rounded to nearest, with one scale for each index of the first axis.

    Args:
        weights: Tensors by name.

    Returns:
        Tensors by name: of a quantised tensor `NAME` int8, and `NAME.scale` float32 `[c]`, where c is the
        size of its first axis. An element is at most half a scale off: 1/254 of the largest in its row.

    Example:
        >>> {name: str(tensor.dtype) for name, tensor in quantise({"fc.weight": torch.randn(4, 64)}).items()}
        {'fc.weight': 'torch.int8', 'fc.weight.scale': 'torch.float32'}
    """
    stored: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if not tensor.is_floating_point() or tensor.ndim < 2 or tensor[0].numel() < MIN_ELEMENTS:
            stored[name] = tensor
            continue
        rows = tensor.detach().float().flatten(1)
        scale = rows.abs().amax(1) / LARGEST
        scaled = rows / scale.clamp_min(torch.finfo(scale.dtype).tiny)[:, None]
        stored[name] = scaled.round().to(torch.int8).view(tensor.shape)
        stored[name + SCALE] = scale
    return stored


def dequantise(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return float32 tensors for those that `quantise` stored as int8, and all others as they are.

    Args:
        stored: Tensors by name.
    """
    weights = dict(stored)
    for name, tensor in stored.items():
        if tensor.dtype == torch.int8 and name + SCALE in stored:
            scale = weights.pop(name + SCALE)
            weights[name] = (tensor.flatten(1) * scale[:, None]).view(tensor.shape)
    return weights
