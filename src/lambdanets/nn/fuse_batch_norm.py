"""One operation instead of several: 1x1 projections of the same input, fused with their batch norms.

The native library computes them in eager calls on CPUs (`lambdanets.ops.projection`). Elsewhere they are
concatenated into one convolution. In evaluation without gradients, the batch norms that follow are fused too.
The weights are fused again at each call, which takes little time compared with the layer: a cached copy could
miss a change of the weights.
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

from lambdanets.ops.projection import Norm, is_native, project, project_normalized

from .memory_format import dense_like

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

Projection = tuple[Tensor, Tensor | None, _BatchNorm | None]
"""Weight and bias of a 1x1 convolution, and the batch norm that follows it."""


def is_unmodified(module: nn.Module) -> bool:
    """Return whether a module has no hooks, and no `forward` that was assigned to the instance."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
    )


def can_concatenate(x: Tensor, modules: Sequence[nn.Module]) -> bool:
    """Return whether one 1x1 convolution of `x` can replace these convolutions and batch norms.

    The result is False where a module has hooks or was replaced by one of another class, and while torch.jit
    or torch.fx traces, since the graph has to contain the modules themselves.
    """
    traced = torch.jit.is_tracing() or isinstance(x, Proxy)  # pyright: ignore[reportPrivateImportUsage]
    return not (traced or _has_any_global_hook()) and all(
        (type(m) in _BATCH_NORMS or (type(m) in _CONVOLUTIONS and _is_pointwise(m))) and is_unmodified(m)
        for m in modules
    )


def can_fuse(x: Tensor, projections: Sequence[Any], norms: Sequence[nn.Module]) -> bool:
    """Return whether batch norms can be fused into the projections of `x` that precede them.

    This requires disabled gradients, norms in evaluation with running statistics, and `can_concatenate`.
    """
    return (
        not torch.is_grad_enabled()
        and all(type(norm) in _BATCH_NORMS for norm in norms)
        and not any(norm.training or norm.running_mean is None for norm in norms)
        and can_concatenate(x, [*projections, *norms])
    )


def project_concatenated(x: Tensor, projections: Sequence[Any]) -> list[Tensor]:
    """Apply 1x1 convolutions to one input, by the native library or as a single convolution where possible.

    Both read the input once and compute its gradient once. A single convolution is about twice as fast as
    three.

    Args:
        x: Input `[b, dim, *grid]`.
        projections: The convolutions.

    Returns:
        Their outputs, each dense in the memory format of `x`: batch norms are slow on other tensors.
    """
    if not can_concatenate(x, projections):
        return [p(x) for p in projections]
    biases = [p.bias for p in projections if p.bias is not None]
    weights = [p.weight for p in projections]
    if not biases and is_native(x, weights):
        return list(project(x, weights))
    if len(projections) == 1 or len(biases) not in (0, len(projections)):
        return [p(x) for p in projections]
    weight = torch.cat(weights)
    bias = torch.cat(biases) if biases else None
    y = _convolution(x)(x, weight, bias)
    sizes = [len(p.weight) for p in projections]
    return [dense_like(part, x) for part in y.split(sizes, dim=1)]


def project_fused(x: Tensor, projections: Sequence[Projection]) -> tuple[Tensor, ...]:
    """Apply 1x1 convolutions to one input, with the batch norms that follow them, in one operation.

    Args:
        x: Input `[b, dim, *grid]`.
        projections: Weight, bias and batch norm of each; the norms are in evaluation.

    Returns:
        For each projection `[b, channels, *grid]`: the output of its norm, or of the convolution if it has
        none.
    """
    weights, biases, norms = zip(*projections, strict=True)
    native_norms = [None if norm is None else _native_norm(norm) for norm in norms]
    if all(bias is None for bias in biases) and is_native(x, weights, native_norms):
        return tuple(project_normalized(x, weights, native_norms))
    fused = [_fuse(*projection) for projection in projections]
    weight, bias = torch.cat([weight for weight, _ in fused]), torch.cat([bias for _, bias in fused])
    y = _convolution(x)(x, weight, bias)
    return y.split([len(bias) for _, bias in fused], dim=1)


def _native_norm(norm: _BatchNorm) -> Norm:
    """Return a batch norm in evaluation as the native library takes it."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return Norm(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)


def _fuse(weight: Tensor, bias: Tensor | None, norm: _BatchNorm | None) -> tuple[Tensor, Tensor]:
    """Return weight and bias of one convolution that equals a convolution and its norm, in their dtype."""
    if bias is None:
        bias = weight.new_zeros(len(weight))
    if norm is None:
        return weight, bias
    assert norm.running_mean is not None
    assert norm.running_var is not None
    accumulator_dtype = torch.promote_types(weight.dtype, torch.float32)
    scale = torch.rsqrt(norm.running_var.to(accumulator_dtype) + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    shift = (bias.to(accumulator_dtype) - norm.running_mean) * scale
    shift = shift if norm.bias is None else shift + norm.bias
    weight = weight * scale.view(-1, *[1] * (weight.ndim - 1))
    return weight.to(bias.dtype), shift.to(bias.dtype)


def _convolution(x: Tensor) -> Callable[..., Tensor]:
    """Return the convolution function for the axes of `x`."""
    return (F.conv1d, F.conv2d, F.conv3d)[x.ndim - 3]


def _is_pointwise(convolution: Any) -> bool:
    """Return whether a convolution is 1x1, without stride, groups and padding."""
    largest = max(*convolution.kernel_size, *convolution.stride, convolution.groups)
    return largest == 1 and not any(convolution.padding)
