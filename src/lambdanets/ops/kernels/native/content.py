"""The content lambda that all queries share, with a softmax of the keys, in C++ (source/content.h)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from . import Call, TensorStruct, accumulator_dtype, convert, invoke

_SIZES = ("batch", "context", "dim_k", "dim_v", "dim_u")
_TENSORS = ("k", "v", "mask", "content_lambda", "g", "dk", "dv")


class _ContentCall(Call):
    """`LambdanetsContent` of source/interface.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, TensorStruct) for name in _TENSORS),
    )


def output(k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Return the content lambda [b, k, v] in float32 at least; v is zero where the mask hides an element."""
    dtype = accumulator_dtype(k.dtype)
    content_lambda = torch.empty(k.shape[0], k.shape[2], v.shape[2], dtype=dtype)
    _run("content_output", k, v, mask, {"content_lambda": content_lambda})
    return content_lambda


def gradients(
    g: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, needs_grad: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of k and v, in float32 at least, None where not needed.

    Args:
        g: Gradient of the content lambda, [b, k, v].
        k: Keys [b, m, k, u].
        v: Values [b, m, v, u].
        mask: Booleans [b, m], False where an element is hidden.
        needs_grad: Whether the gradients of k and v are needed.
    """
    dtype = accumulator_dtype(k.dtype)
    dk = torch.empty_like(k, dtype=dtype) if needs_grad[0] else None
    dv = torch.empty_like(v, dtype=dtype) if needs_grad[1] else None
    _run("content_gradients", k, v, mask, {"g": convert(g, dtype), "dk": dk, "dv": dv})
    return dk, dv


def _run(function: str, k: Tensor, v: Tensor, mask: Tensor | None, others: dict[str, Tensor | None]) -> None:
    """Call a function of the library; keys and values are converted to the dtype of its arithmetic."""
    if not k.numel():
        return
    dtype = accumulator_dtype(k.dtype)
    sizes = (*k.shape[:3], *v.shape[2:])
    call = _ContentCall(**dict(zip(_SIZES, sizes, strict=True)))
    tensors = {"k": convert(k, dtype), "v": convert(v, dtype), "mask": mask, **others}
    if not invoke(function, call, dtype, tensors):
        raise MemoryError(f"the content lambda found no memory for its temporaries {sizes}")
