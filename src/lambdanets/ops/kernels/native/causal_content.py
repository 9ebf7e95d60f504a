"""The causal content part with a softmax as a recurrence in C++ (source/causal_content.h)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from . import ISAS, TensorStruct, accumulator_dtype, as_struct, isa, library, parallel_for

_SIZES = ("batch", "heads", "queries", "context", "dim_k", "dim_v", "dim_u")
_TENSORS = ("q", "k", "v", "mask", "y", "g", "dq", "dk", "dv")


class _Call(ctypes.Structure):
    """`LambdanetsCausalContent` of source/interface.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("isa", "itemsize", "threads")),
        ("parallel_for", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, TensorStruct) for name in _TENSORS),
    )


def output(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, y: Tensor) -> None:
    """Write the causal content part into y [b, h, n, v]."""
    dtype = accumulator_dtype(q.dtype)
    result = y if y.dtype == dtype else torch.empty_like(y, dtype=dtype)
    _run("output", {"q": q, "k": k, "v": v}, mask, {"y": result})
    if result is not y:
        y.copy_(result)


def gradients(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, needs_grad: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Return the gradients of q, k and v, in float32 at least."""
    dtype = accumulator_dtype(q.dtype)
    found = [
        torch.empty_like(x, dtype=dtype) if needed else None
        for x, needed in zip((q, k, v), needs_grad, strict=True)
    ]
    dq, dk, dv = found
    _run("gradients", {"g": g, "q": q, "k": k, "v": v}, mask, {"dq": dq, "dk": dk, "dv": dv})
    return tuple(found)


def _run(
    name: str, inputs: dict[str, Tensor], mask: Tensor | None, results: dict[str, Tensor | None]
) -> None:
    """Call a function of the library; inputs are converted to the dtype of its arithmetic."""
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    if not q.numel():
        return
    loaded = library.load()
    assert loaded is not None, "`unavailable` gives the reason"
    dtype = accumulator_dtype(q.dtype)
    sizes = (*q.shape[:3], k.shape[1], q.shape[3], v.shape[2], v.shape[3])
    call = _Call(
        isa=ISAS[isa()],
        itemsize=dtype.itemsize,
        threads=torch.get_num_threads(),
        parallel_for=parallel_for(),
        **dict(zip(_SIZES, sizes, strict=True)),
    )
    converted = {name: x.to(dtype) for name, x in inputs.items()}
    for tensor_name, x in {"mask": mask, **converted, **results}.items():
        if x is not None:
            setattr(call, tensor_name, as_struct(x))
    if getattr(loaded, f"lambdanets_causal_content_{name}")(ctypes.byref(call)):
        raise MemoryError(f"the causal content part found no memory for its temporaries {sizes}")
