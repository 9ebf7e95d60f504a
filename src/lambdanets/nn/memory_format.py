"""Memory formats of images [b, c, *grid]: gradients, copies and outputs in the format of another tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _MatchGradientFormat(torch.autograd.Function):
    """The identity, whose gradient gets the memory format of the input; see `match_gradient_format`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:  # type: ignore[override]
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        (x,) = inputs
        ctx.channels_last = x.shape[0] > 1 and is_channels_last(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return g.movedim(1, -1).contiguous().movedim(-1, 1) if ctx.channels_last else g.contiguous()


class _MatchGradientFormatForwardMode(_MatchGradientFormat):
    """The same function with a jvp, which torch.compile does not trace; used in eager mode only."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:  # type: ignore[override]
        return tangent.view_as(tangent)


def match_gradient_format(x: Tensor) -> Tensor:
    """Return `x`, the output of a batch norm; its gradient will have the memory format of `x`.

    PyTorch's batch norm on a CPU is many times slower where gradient and input differ in memory format. For a
    batch of one it also misreads some strides of the gradient and returns wrong results, so there the
    gradient is made contiguous. `torch.jit.trace` does not record custom backward passes, so a trace omits
    this function.

    Args:
        x: Output of a batch norm, `[b, c, *grid]`.

    Returns:
        A view of `x`, or `x` itself where no gradient is needed.
    """
    if not torch.is_grad_enabled() or torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return x
    compiling = torch.compiler.is_compiling()
    return (_MatchGradientFormat if compiling else _MatchGradientFormatForwardMode).apply(x)


def dense_like(y: Tensor, x: Tensor) -> Tensor:
    """Copy `y` into dense memory in the memory format of `x`.

    The copy is not a view, so modules that follow may change it in place; autograd forbids that for the
    views that a split returns.

    Args:
        y: Images `[b, c, *grid]`, possibly a slice of a larger tensor.
        x: Images whose memory format is taken.

    Returns:
        A dense copy of `y`.
    """
    if is_channels_last(x):
        return y.movedim(1, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 1)
    return y.clone(memory_format=torch.contiguous_format)


def is_channels_last(x: Tensor) -> bool:
    """Return whether the channels of `x` `[b, c, *grid]` are adjacent in memory.

    False where the contiguous and the channels-last format are the same, as with one channel.
    """
    return x.stride(1) == 1 and x.shape[1] > 1 and not x.is_contiguous()


def merge_heads(y: Tensor, x: Tensor) -> Tensor:
    """Return the output of the operator as images, head by head along the channels.

    Args:
        y: Output of the operator, `[b, h, n, v]`.
        x: Images `[b, c, *grid]` that give the grid and the memory format.

    Returns:
        Images `[b, h * v, *grid]` in the memory format of `x`, a view of `y` where possible.
    """
    if is_channels_last(x):
        by_position = y.transpose(1, 2).flatten(2).contiguous()  # [b, n, h * v]
        return by_position.mT.unflatten(2, x.shape[2:])
    return y.mT.flatten(1, 2).contiguous().unflatten(2, x.shape[2:])
