"""The RMS norm over the last axis, by the native library where it serves the call, else by PyTorch.

On CPUs PyTorch computes the gradients of its norm by about twenty operations.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .kernels import native
from .kernels.native import rms_norm as kernel
from .position import is_eager, is_forward_mode, is_observed
from .projection import DTYPES, is_plain


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Return x `[..., c]` divided by its root mean square over the last axis, times a weight `[c]`."""
    if is_native(x, weight):
        return _RmsNorm.apply(x, weight, epsilon)
    return F.rms_norm(x, weight.shape, weight, epsilon)


def is_native(x: Tensor, weight: Tensor) -> bool:
    """Return whether the library serves a call: an eager one on a CPU, in float32 or float64, contiguous."""
    if torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return False
    return (
        is_plain(x, x)
        and is_plain(x, weight)
        and x.device.type == "cpu"
        and x.dtype in DTYPES
        and x.shape[-1:] == weight.shape
        and x.is_contiguous()
        and weight.is_contiguous()
        and not torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        and not torch.is_autocast_enabled("cpu")
        and not is_observed()
        and not is_forward_mode(x, weight)
        and native.library.unavailable() is None
    )


class _RmsNorm(torch.autograd.Function):
    """The norm with the library's gradients; PyTorch's for gradients of gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.epsilon = epsilon
        return kernel.output(x, weight, epsilon)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled() or not is_eager(g):
            # For second derivatives, in graphs, and where something observes the operations.
            inverse = (x.square().mean(-1, keepdim=True) + ctx.epsilon).rsqrt()
            scaled = g * weight
            mean = (scaled * x).mean(-1, keepdim=True)
            dx = inverse * (scaled - x * inverse.square() * mean)
            return dx, (g * x * inverse).sum_to_size(weight.shape), None
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        d_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        kernel.gradients(g.contiguous(), x, weight, ctx.epsilon, dx, d_weight)
        return dx, d_weight, None
