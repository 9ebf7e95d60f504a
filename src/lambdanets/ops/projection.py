"""1x1 projections of one input by the native library, as PyTorch custom operators: outputs and gradients.

Convolutions of the same input become one call with an output for each, which neither concatenates weights and
gradients nor splits and copies outputs. Batch norms in evaluation that follow are applied in the same call.
`is_native` is the rule for which calls the library serves; convolutions serve all others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import get_interpreter_stack, is_legacy_batchedtensor
from torch.utils.flop_counter import register_flop_formula

from .kernels import native
from .kernels.native import projection
from .kernels.native.projection import Norm
from .position import is_forward_mode

DTYPES = (torch.float32, torch.float64)
MIN_FLOPS = (2e6, 3e7)
"""Floating-point operations of the outputs, without and with gradients, below which convolutions are faster.

Measured with whole layers on 1 thread: below them the Python code of these functions takes longer.
"""


def is_native(x: Tensor, weights: Sequence[Tensor], norms: Sequence[Norm | None] = ()) -> bool:
    """Return whether the library serves projections.

    It does in eager mode on CPUs, in float32 and float64, for images in one of the two memory formats, from
    `MIN_FLOPS` on. PyTorch's convolution serves half precision, for which it has instructions; graphs, which
    may run elsewhere; subclasses of tensors; derivatives that custom operators do not have, transforms of
    torch.func and forward mode; and CPUs without AVX2, for which the library has no fast products.

    Args:
        x: Input `[b, d, *grid]`.
        weights: Weight of each projection, `[o, d]`, maybe with further axes of size 1.
        norms: Batch norm that follows each projection, or None.
    """
    if torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return False
    if 2 * x.numel() * sum(map(len, weights)) < MIN_FLOPS[torch.is_grad_enabled()]:
        return False
    tensors = [*weights, *(t for norm in norms if norm for t in norm[:-1] if t is not None)]
    return (
        x.device.type == "cpu"
        and x.dtype in DTYPES
        and x.ndim > 2
        and 0 < len(weights) <= projection.MAX_PARTS
        and _have_right_sizes(x, weights, norms)
        and type(x) in (Tensor, nn.Parameter)
        and all(type(t) in (Tensor, nn.Parameter) for t in tensors)
        and all(t.dtype == x.dtype and t.device == x.device and t.is_contiguous() for t in tensors)
        and projection.has_native_strides(x)
        and not torch.is_autocast_enabled("cpu")
        and not get_interpreter_stack()
        and not is_forward_mode(x, *tensors)
        and native.library.unavailable() is None
        and native.isa() != "base"
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
    return _Output.apply(x, *weights)


def project_normalized(x: Tensor, weights: Sequence[Tensor], norms: Sequence[Norm | None]) -> list[Tensor]:
    """Return the projections of `x`, with the batch norms that follow them, without gradients."""
    tensors = [t for norm in norms for t in (norm[:-1] if norm else [None] * 4)]
    return projection_output(x, weights, tensors, [norm.epsilon if norm else 0.0 for norm in norms])


def new_images(x: Tensor, channels: int) -> Tensor:
    """Return an uninitialised dense tensor `[b, channels, *grid]` in the memory format of `x`."""
    batch, grid = x.shape[0], x.shape[2:]
    if x.stride(1) == 1 and x.shape[1] > 1 and not x.is_contiguous():
        # Not a view of a contiguous tensor: modules that follow may change it in place.
        strides = [channels * math.prod(grid[i:]) for i in range(len(grid) + 1)]
        return x.new_empty_strided((batch, channels, *grid), (strides[0], 1, *strides[1:]))
    return x.new_empty(batch, channels, *grid)


@torch.library.custom_op("lambdanets::projection_output", mutates_args=())
def projection_output(
    x: Tensor, weights: Sequence[Tensor], norms: Sequence[Tensor | None], epsilons: Sequence[float]
) -> list[Tensor]:
    """Return the projections `[b, o, *grid]` of x.

    The arguments `norms` and `epsilons` are empty, or have the mean, variance, scale and shift of the batch
    norm of each projection, None for those that are missing, and its epsilon.
    """
    y = [new_images(x, len(weight)) for weight in weights]
    fused: list[Norm | None] = [None] * len(weights)
    for i, epsilon in enumerate(epsilons):
        mean, variance, scale, shift = norms[4 * i : 4 * i + 4]
        if mean is not None and variance is not None:
            fused[i] = Norm(mean, variance, scale, shift, epsilon)
    projection.output(x, weights, y, fused)
    return y


@projection_output.register_fake
def _(x: Tensor, weights: Sequence[Tensor], *_: Any) -> list[Tensor]:
    """Return empty tensors like the outputs, for tracing."""
    return [new_images(x, weight.shape[0]) for weight in weights]


@torch.library.custom_op("lambdanets::projection_gradients", mutates_args=())
def projection_gradients(
    g: Sequence[Tensor], x: Tensor, weights: Sequence[Tensor], needs_grad: Sequence[bool]
) -> list[Tensor]:
    """Return the gradients of x and of each weight from g, those of the outputs.

    A gradient that is not needed is an empty tensor. The argument `needs_grad` has a bool for each.
    """
    found = _new_gradients(x, weights, needs_grad)
    dx, *d_weights = (t if needed else None for t, needed in zip(found, needs_grad, strict=True))
    projection.gradients(g, x, weights, dx, d_weights)
    return found


@projection_gradients.register_fake
def _new_gradients_fake(
    g: Sequence[Tensor], x: Tensor, weights: Sequence[Tensor], needs_grad: Sequence[bool]
) -> list[Tensor]:
    """Return empty tensors like the gradients, for tracing."""
    return _new_gradients(x, weights, needs_grad)


def _new_gradients(x: Tensor, weights: Sequence[Tensor], needs_grad: Sequence[bool]) -> list[Tensor]:
    """Return uninitialised gradients of x and of the weights, empty ones for those that are not needed."""
    dx = new_images(x, x.shape[1]) if needs_grad[0] else x.new_empty(0)
    pairs = zip(weights, needs_grad[1:], strict=True)
    return [dx, *(w.new_empty(w.shape if needed else 0) for w, needed in pairs)]


class _Output(torch.autograd.Function):
    """`projection_output` of x and the weights, with its gradients.

    The operators are called in eager mode only, so a function of autograd suffices. It takes half the time
    of the autograd of a custom operator with lists, which is that of a small layer.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        ctx.save_for_backward(x, *weights)
        return tuple(projection_output(x, weights, [], []))

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        needs_grad = ctx.needs_input_grad
        x, *weights = ctx.saved_tensors
        if get_interpreter_stack() or any(map(is_legacy_batchedtensor, g)):
            # Under vmap and `is_grads_batched`, for which operators with lists have no rule.
            found = [_convolution_backward(each, x, w) for each, w in zip(g, weights, strict=True)]
            dx, d_weights = zip(*found, strict=True)
            return reduce(torch.add, dx), *d_weights
        found = _Gradients.apply(needs_grad, *g, x, *weights)
        return tuple(t if needed else None for t, needed in zip(found, needs_grad, strict=True))


class _Gradients(torch.autograd.Function):
    """`projection_gradients`, whose own gradients are PyTorch's: second derivatives need not be fast."""

    @staticmethod
    def forward(ctx: Any, needs_grad: Sequence[bool], *tensors: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        ctx.save_for_backward(*tensors)
        ctx.needs_grad = needs_grad
        outputs = len(needs_grad) - 1
        x, *weights = tensors[outputs:]
        return tuple(projection_gradients(tensors[:outputs], x, weights, list(needs_grad)))

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Differentiate <t, dx> + the sum of <s, dW>, where upstream has t and each s.

        With dx = sum of W^T g and dW = g x^T, its gradients are W t + s x for each g, the sum of s^T g for x,
        and g t^T for each W.
        """
        outputs = len(ctx.needs_grad) - 1
        g, (x, *weights) = ctx.saved_tensors[:outputs], ctx.saved_tensors[outputs:]
        t, *s = (u if needed else None for u, needed in zip(upstream, ctx.needs_grad, strict=True))
        needs_g, (needs_x, *needs_w) = (
            ctx.needs_input_grad[1 : outputs + 1],
            ctx.needs_input_grad[outputs + 1 :],
        )
        d_g: list[Tensor | None] = []
        d_w: list[Tensor | None] = []
        d_x = torch.zeros_like(x)
        for g_i, w, s_i, g_needed, w_needed in zip(g, weights, s, needs_g, needs_w, strict=True):
            terms = [(w, t), (s_i, x)] if g_needed else []
            products = [_multiply(a, b) for a, b in terms if a is not None and b is not None]
            d_g.append(sum(products[1:], start=products[0]) if products else None)
            d_w.append(_outer(g_i, t).view_as(w) if w_needed and t is not None else None)
            if needs_x and s_i is not None:
                d_x = d_x + _multiply(s_i.flatten(1).T, g_i)
        return None, *d_g, d_x if needs_x else None, *d_w


def _multiply(weight: Tensor, x: Tensor) -> Tensor:
    """Return the projection of x `[b, d, *grid]` by a weight `[o, d, *1]`."""
    return torch.einsum("od,bd...->bo...", weight.flatten(1), x)


def _convolution_backward(g: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and of a weight by PyTorch."""
    ones, zeros = [1] * (x.ndim - 2), [0] * (x.ndim - 2)
    mask = [True, True, False]
    backward = torch.ops.aten.convolution_backward
    dx, d_weight, _ = backward(g, x, weight, None, ones, zeros, ones, False, zeros, 1, mask)
    return dx, d_weight


def _outer(g: Tensor, x: Tensor) -> Tensor:
    """Return the gradient `[o, d]` of a weight from g `[b, o, *grid]` and x `[b, d, *grid]`."""
    return torch.einsum("bon,bdn->od", g.flatten(2), x.flatten(2))


@register_flop_formula(torch.ops.lambdanets.projection_output)
def _output_flops(x: torch.Size, weights: Sequence[torch.Size], *_: Any, **__: Any) -> int:
    """Return the floating-point operations of the products."""
    return 2 * math.prod(x) * sum(weight[0] for weight in weights)


@register_flop_formula(torch.ops.lambdanets.projection_gradients)
def _gradients_flops(
    g: Sequence[torch.Size],
    x: torch.Size,
    weights: Sequence[torch.Size],
    needs_grad: Sequence[bool],
    *_: Any,
    **__: Any,
) -> int:
    """Return the floating-point operations of the products for the gradients that are needed."""
    counted = (
        weight[0] * (needs_grad[0] + needed) for weight, needed in zip(weights, needs_grad[1:], strict=True)
    )
    return 2 * math.prod(x) * sum(counted)
