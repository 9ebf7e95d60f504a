"""1x1 projections of one input by the native library, with gradients of any order.

Convolutions of the same input become one call with an output for each, which neither concatenates weights and
gradients nor splits and copies outputs. Batch norms in evaluation that follow are applied in the same call.
`is_native` is the rule for which calls the library serves; convolutions serve all others. Among these are
graphs and dispatch modes, so no operator of PyTorch is needed, whose call takes longer than a small product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_legacy_batchedtensor

from .kernels import native
from .kernels.native import projection
from .kernels.native.projection import Norm
from .position import is_forward_mode, is_observed

DTYPES = (torch.float32, torch.float64)


def is_native(x: Tensor, weights: Sequence[Tensor], norms: Sequence[Norm | None] = ()) -> bool:
    """Return whether the library serves projections.

    It does in eager mode on CPUs, in float32 and float64, for images in one of the two memory formats.
    PyTorch's convolution serves half precision, for which it has instructions; graphs, which may run
    elsewhere; subclasses of tensors; transforms of torch.func and forward mode; dispatch modes, such as
    counters of operations; and CPUs without AVX2, for which the library has no fast products.

    Args:
        x: Input `[b, d, *grid]`.
        weights: Weight of each projection, `[o, d]`, maybe with further axes of size 1.
        norms: Batch norm that follows each projection, or None.
    """
    if torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return False
    tensors = [*weights, *(t for norm in norms if norm for t in norm[:-1] if t is not None)]
    return (
        x.device.type == "cpu"
        and x.dtype in DTYPES
        and x.ndim > 2
        and 0 < len(weights) <= projection.MAX_PARTS
        and all(map(_is_alike, repeat(x), [x, *tensors]))
        and all(t.is_contiguous() for t in tensors)
        and _have_right_sizes(x, weights, norms)
        and projection.has_native_strides(x)
        and not torch.is_autocast_enabled("cpu")
        and not is_observed()
        and not is_forward_mode(x, *tensors)
        and native.library.unavailable() is None
        and native.isa() != "base"
    )


def _is_alike(x: Tensor, tensor: Tensor) -> bool:
    """Return whether a tensor is a plain one with the dtype and the device of x.

    A tensor that PyTorch negates when it reads it, as the imaginary part of a conjugate, is not plain.
    """
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.dtype == x.dtype
        and tensor.device == x.device
        and not tensor.is_neg()
    )


def _have_right_sizes(x: Tensor, weights: Sequence[Tensor], norms: Sequence[Norm | None]) -> bool:
    """Return whether weights and norms fit `x`; a convolution raises PyTorch's error if they do not."""
    channels = x.shape[1]
    return all(
        w.ndim == x.ndim and w.shape[1] == channels and w.numel() == len(w) * channels > 0 for w in weights
    ) and all(
        t is None or t.shape == w.shape[:1]
        for w, norm in zip(weights, norms, strict=False)
        for t in (norm[:-1] if norm else ())
    )


def project(x: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the projections of `x` by the library; see `is_native`.

    Args:
        x: Input `[b, d, *grid]`.
        weights: Weight of each projection, `[o, d, *1]`.

    Returns:
        For each projection `[b, o, *grid]`, dense in the memory format of `x`. It can be differentiated to
        any order.
    """
    return _Projections.apply(x, *weights)


def project_normalized(x: Tensor, weights: Sequence[Tensor], norms: Sequence[Norm | None]) -> list[Tensor]:
    """Return the projections of `x`, with the batch norms that follow them, without gradients."""
    y = [new_images(x, len(weight)) for weight in weights]
    projection.output(x, weights, y, norms)
    return y


def new_images(x: Tensor, channels: int) -> Tensor:
    """Return an uninitialised dense tensor `[b, channels, *grid]` in the memory format of `x`."""
    batch, grid = x.shape[0], x.shape[2:]
    if x.stride(1) == 1 and x.shape[1] > 1 and not x.is_contiguous():
        # Not a view of a contiguous tensor: modules that follow may change it in place.
        strides = [channels * math.prod(grid[i:]) for i in range(len(grid) + 1)]
        return x.new_empty_strided((batch, channels, *grid), (strides[0], 1, *strides[1:]))
    return x.new_empty(batch, channels, *grid)


class _Projections(torch.autograd.Function):
    """The projections of x by weights, without norms."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        ctx.save_for_backward(x, *weights)
        return tuple(project_normalized(x, weights, [None] * len(weights)))

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, *weights = ctx.saved_tensors
        needs_x, *needs_weights = ctx.needs_input_grad
        if (
            torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or is_observed()
            or any(is_legacy_batchedtensor(each) or each.is_neg() for each in g)
        ):
            # PyTorch's own gradients: for second derivatives, in graphs, under vmap and dispatch modes, for
            # gradients that are negated when they are read.
            found = [_convolution_backward(each, x, w) for each, w in zip(g, weights, strict=True)]
            dx, d_weights = zip(*found, strict=True)
            return reduce(torch.add, dx), *d_weights
        dx = new_images(x, x.shape[1]) if needs_x else None
        d_weights = [
            _new_gradient(w) if needed else None for w, needed in zip(weights, needs_weights, strict=True)
        ]
        projection.gradients(g, x, weights, dx, d_weights)
        return dx, *d_weights


def _new_gradient(weight: Tensor) -> Tensor:
    """Return an uninitialised gradient of a weight `[o, d, *1]`, contiguous as `[o, d]`.

    It has the strides of a contiguous weight, also in their axes of size 1: DDP would copy any other.
    """
    return torch.empty_like(weight) if weight.is_contiguous() else weight.new_empty(weight.shape)


def _convolution_backward(g: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and of a weight by PyTorch."""
    ones, zeros = [1] * (x.ndim - 2), [0] * (x.ndim - 2)
    mask = [True, True, False]
    backward = torch.ops.aten.convolution_backward
    dx, d_weight, _ = backward(g, x, weight, None, ones, zeros, ones, False, zeros, 1, mask)
    return dx, d_weight
