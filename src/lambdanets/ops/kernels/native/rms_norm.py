"""The RMS norm over the last axis in C++ (source/rms_norm.h): output and gradients."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from . import Call, TensorStruct, invoke


class _RmsNormCall(Call):
    """`LambdanetsRmsNorm` of source/interface.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "channels")),
        *((name, TensorStruct) for name in ("x", "weight", "y", "g", "dx", "d_weight")),
        ("epsilon", ctypes.c_double),
    )


def output(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Return the norm of x `[..., c]`, contiguous, times a weight `[c]`."""
    y = torch.empty_like(x)
    _run("rms_norm_output", x, weight, epsilon, y=y)
    return y


def gradients(
    g: Tensor, x: Tensor, weight: Tensor, epsilon: float, dx: Tensor | None, d_weight: Tensor | None
) -> None:
    """Write the gradients of x and of the weight that are given, from g, that of the output.

    All tensors are contiguous.
    """
    if d_weight is not None and not x.numel():
        d_weight.zero_()
    _run("rms_norm_gradients", x, weight, epsilon, g=g, dx=dx, d_weight=d_weight)


def _run(function: str, x: Tensor, weight: Tensor, epsilon: float, **tensors: Tensor | None) -> None:
    """Call a function of the library."""
    channels = len(weight)
    if not x.numel():
        return
    call = _RmsNormCall(rows=x.numel() // channels, channels=channels, epsilon=epsilon)
    given = {"x": x, "weight": weight, **tensors}
    flat = {name: None if each is None else each.view(-1) for name, each in given.items()}
    if not invoke(function, call, x.dtype, flat):
        raise MemoryError(f"the RMS norm of x {tuple(x.shape)} found no memory for its temporaries")
