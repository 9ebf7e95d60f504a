"""The causal content part with a softmax as a recurrence in C++ (source/causal_content.h).

A sequence can be continued: the state after it is that before the next one. With a state, one call for one
position is a step of decoding.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import Call, TensorStruct, accumulator_dtype, as_struct, invoke

_SIZES = ("batch", "heads", "queries", "context", "dim_k", "dim_v", "dim_u")
_TENSORS = ("q", "k", "v", "mask", "y", "g", "dq", "dk", "dv")
_STATES = ("initial", "final", "d_initial", "d_final")


class State(NamedTuple):
    """The state after some elements, or its gradient, in float32 at least.

    Attributes:
        log_weight: Log of the sum of exp(keys) [b, k, u], -infinity for no elements.
        mean: Mean of the values, weighted by exp(keys) [b, k, v, u], zero for no elements.
    """

    log_weight: Tensor
    mean: Tensor


class _StateStruct(ctypes.Structure):
    """`LambdanetsState` of source/interface.h."""

    _fields_ = tuple((name, TensorStruct) for name in State._fields)


class _CausalContentCall(Call):
    """`LambdanetsCausalContent` of source/interface.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, TensorStruct) for name in _TENSORS),
        *((name, _StateStruct) for name in _STATES),
    )


def output(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    y: Tensor,
    initial: State | None = None,
    final: State | None = None,
) -> None:
    """Write the causal content part into y [b, h, n, v], and the state after the last query into `final`."""
    dtype = accumulator_dtype(q.dtype)
    result = y if y.dtype == dtype else torch.empty_like(y, dtype=dtype)
    _run("output", {"q": q, "k": k, "v": v}, mask, {"y": result}, {"initial": initial, "final": final})
    if result is not y:
        y.copy_(result)


def gradients(
    g: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    needs_grad: Sequence[bool],
    initial: State | None = None,
    d_final: State | None = None,
    d_initial: State | None = None,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of q, k and v, in float32 at least; write that of `initial` into `d_initial`.

    Args:
        g: Gradient of the output, [b, h, n, v].
        q: Queries [b, h, n, k].
        k: Keys [b, m, k, u].
        v: Values [b, m, v, u].
        mask: Booleans [b, m], False where an element is hidden.
        needs_grad: Whether the gradients of q, k and v are needed.
        initial: The state before the first element.
        d_final: Gradient of the state after the last query.
        d_initial: Gradient of `initial`, which is written.
    """
    dtype = accumulator_dtype(q.dtype)
    found = [
        torch.empty_like(x, dtype=dtype) if needed else None
        for x, needed in zip((q, k, v), needs_grad, strict=True)
    ]
    dq, dk, dv = found
    states = {"initial": initial, "d_final": d_final, "d_initial": d_initial}
    _run("gradients", {"g": g, "q": q, "k": k, "v": v}, mask, {"dq": dq, "dk": dk, "dv": dv}, states)
    return tuple(found)


def _run(
    name: str,
    inputs: dict[str, Tensor],
    mask: Tensor | None,
    results: dict[str, Tensor | None],
    states: dict[str, State | None],
) -> None:
    """Call a function of the library; inputs are converted to the dtype of its arithmetic."""
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    if not q.numel():
        return
    dtype = accumulator_dtype(q.dtype)
    sizes = (*q.shape[:3], k.shape[1], q.shape[3], v.shape[2], v.shape[3])
    call = _CausalContentCall(**dict(zip(_SIZES, sizes, strict=True)))
    for state_name, state in states.items():
        if state is not None:
            setattr(call, state_name, _StateStruct(*map(as_struct, state)))
    converted = {name: x.to(dtype) for name, x in inputs.items()}
    if not invoke(f"causal_content_{name}", call, dtype, {"mask": mask, **converted, **results}):
        raise MemoryError(f"the causal content part found no memory for its temporaries {sizes}")
