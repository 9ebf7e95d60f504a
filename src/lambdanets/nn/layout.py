"""Between images (b c *grid) and the operator's axes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _OrderedGradient(torch.autograd.Function):
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


class _OrderedGradientForwardMode(_OrderedGradient):
    # With forward-mode differentiation, which torch.compile does not trace.
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:  # type: ignore[override]
        return tangent.view_as(tangent)


def ordered_gradient(x: Tensor) -> Tensor:
    """The identity, for the output of a batch norm; its gradient takes the memory order of `x`.

    PyTorch's batch norm on a CPU is many times slower where the two orders differ, and misreads the strides
    that the gradient of a single image may have: that one becomes contiguous. A trace (torch.jit.trace) keeps
    no backward of ours, so it is not in it.
    """
    if not torch.is_grad_enabled() or torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return x
    return (_OrderedGradient if torch.compiler.is_compiling() else _OrderedGradientForwardMode).apply(x)


def dense_like(y: Tensor, x: Tensor) -> Tensor:
    """A copy of the images `y` (b c *grid), perhaps a part of larger ones, in the memory format of `x`.

    What follows may write into it, which a view of a split forbids.
    """
    if is_channels_last(x):
        return y.movedim(1, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 1)
    return y.clone(memory_format=torch.contiguous_format)


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of b c *grid lie side by side in memory; where both orders are one, no."""
    return x.stride(1) == 1 and x.shape[1] > 1 and not x.is_contiguous()


def to_channels(y: Tensor, x: Tensor) -> Tensor:
    """From b h n v to channels, head-major, on the grid and in the memory format of `x`: often a view."""
    if is_channels_last(x):
        by_position = y.transpose(1, 2).flatten(2).contiguous()  # b n (h v)
        return by_position.mT.unflatten(2, x.shape[2:])
    return y.mT.flatten(1, 2).contiguous().unflatten(2, x.shape[2:])
