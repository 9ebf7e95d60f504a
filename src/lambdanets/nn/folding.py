"""Projections and the batch norms after them as one projection, in evaluation without gradients.

Weights are folded anew at each call, which costs next to nothing beside the layer: a copy that is kept could
miss a change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

Part = tuple[Tensor, Tensor | None, _BatchNorm | None]


def foldable(projections: Sequence[Any], norms: Sequence[nn.Module]) -> bool:
    """Whether one 1x1 projection says all that these modules would do.

    It does not where gradients are asked for, or where somebody hooked into a module or exchanged it; and a
    trace keeps the modules.
    """
    return (
        not torch.is_grad_enabled()
        and not torch._C._is_tracing()
        and all(type(p) in _CONVOLUTIONS and _is_pointwise(p) for p in projections)
        and all(type(norm) in _NORMS for norm in norms)
        and not any(norm.training or norm.running_mean is None for norm in norms)
        and not any(m._forward_hooks or m._forward_pre_hooks for m in (*projections, *norms))
        and not any("forward" in vars(m) for m in (*projections, *norms))
    )


def _is_pointwise(convolution: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> bool:
    sides = (*convolution.kernel_size, *convolution.stride, convolution.groups)
    return all(size == 1 for size in sides) and not any(convolution.padding)


def project(x: Tensor, parts: Sequence[Part]) -> tuple[Tensor, ...]:
    """Apply 1x1 convolutions, each with the batch norm after it, as one.

    Args:
        x: Input of shape (b, dim, *grid).
        parts: For each convolution its weight, its bias and its norm in evaluation, or None.

    Returns:
        Their outputs.
    """
    folded = [_folded(*part) for part in parts]
    convolution = (F.conv1d, F.conv2d, F.conv3d)[x.ndim - 3]
    y = convolution(x, torch.cat([weight for weight, _ in folded]), torch.cat([bias for _, bias in folded]))
    return y.split([len(bias) for _, bias in folded], dim=1)


def _folded(weight: Tensor, bias: Tensor | None, norm: _BatchNorm | None) -> tuple[Tensor, Tensor]:
    if bias is None:
        bias = weight.new_zeros(len(weight))
    if norm is None:
        return weight, bias
    assert norm.running_mean is not None
    assert norm.running_var is not None
    wide = torch.promote_types(weight.dtype, torch.float32)
    scale = torch.rsqrt(norm.running_var.to(wide) + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    shift = (bias.to(wide) - norm.running_mean) * scale
    shift = shift if norm.bias is None else shift + norm.bias
    weight = weight * scale.view(-1, *[1] * (weight.ndim - 1))
    return weight.to(bias.dtype), shift.to(bias.dtype)
