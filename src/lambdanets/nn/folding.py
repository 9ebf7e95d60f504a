"""Projections as one: together with the batch norms after them in evaluation without gradients, else alone.

Weights are joined anew at each call, which costs next to nothing beside the layer: a copy that is kept could
miss a change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import _has_any_global_hook

from .layout import dense_like

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

Part = tuple[Tensor, Tensor | None, _BatchNorm | None]


def joinable(x: Tensor, modules: Sequence[nn.Module]) -> bool:
    """Whether one 1x1 projection of `x` computes all that these projections, and norms if any, would do.

    It does not where a module has hooks or was exchanged. A trace, by torch.jit or torch.fx, keeps the
    modules.
    """
    traced = torch.jit.is_tracing() or isinstance(x, Proxy)  # pyright: ignore[reportPrivateImportUsage]
    return not (traced or _has_any_global_hook()) and all(
        (type(m) in _NORMS or (type(m) in _CONVOLUTIONS and _is_pointwise(m))) and untouched(m)
        for m in modules
    )


def untouched(module: nn.Module) -> bool:
    """Whether nobody hooked into a module or gave it a forward of its own."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return not any(hooks) and "forward" not in vars(module)


def foldable(x: Tensor, projections: Sequence[Any], norms: Sequence[nn.Module]) -> bool:
    """Whether projections of `x` can be joined with the norms after them: in evaluation without gradients."""
    return (
        not torch.is_grad_enabled()
        and all(type(norm) in _NORMS for norm in norms)
        and not any(norm.training or norm.running_mean is None for norm in norms)
        and joinable(x, [*projections, *norms])
    )


def project_apart(x: Tensor, projections: Sequence[Any]) -> list[Tensor]:
    """Apply 1x1 convolutions to one input, as one where they can be joined; for training, norms follow.

    Reading the input once and forming its gradient once makes one convolution about twice as fast as three.

    Args:
        x: Input of shape (b, dim, *grid).
        projections: Convolutions.

    Returns:
        Their outputs, each dense in the memory format of `x`: batch norms are slow on anything else.
    """
    biases = [p.bias for p in projections if isinstance(p, _CONVOLUTIONS) and p.bias is not None]
    alike = len(biases) in (0, len(projections))
    if len(projections) == 1 or not alike or not joinable(x, projections):
        return [p(x) for p in projections]
    weight = torch.cat([p.weight for p in projections])
    bias = torch.cat(biases) if biases else None
    y = _convolution(x)(x, weight, bias)
    sizes = [len(p.weight) for p in projections]
    return [dense_like(part, x) for part in y.split(sizes, dim=1)]


def _convolution(x: Tensor) -> Callable[..., Tensor]:
    return (F.conv1d, F.conv2d, F.conv3d)[x.ndim - 3]


def _is_pointwise(convolution: Any) -> bool:
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
    weight, bias = torch.cat([weight for weight, _ in folded]), torch.cat([bias for _, bias in folded])
    y = _convolution(x)(x, weight, bias)
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
