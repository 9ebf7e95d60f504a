"""The causal content part with a softmax as a recurrence in C++ (source/causal_content.h).

A sequence can be continued: the state after it is that before the next one.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from . import Call, TensorStruct, accumulator_dtype, convert, invoke

_SIZES = ("batch", "heads", "queries", "context", "dim_k", "dim_v", "dim_u")
_PACK_SIZES = struct.Struct(f"={len(_SIZES)}q").pack_into
# Each state of `LambdanetsCausalContent` has two tensors.
_STATES = ("initial", "final", "d_initial", "d_final")
_TENSORS = (
    *("q", "k", "v", "mask", "y", "g", "dq", "dk", "dv"),
    *(f"{state}_{part}" for state in _STATES for part in ("log_norm", "summary")),
    *("decay", "d_decay"),
)


class _CausalContentCall(Call):
    """`LambdanetsCausalContent` of source/interface.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, TensorStruct) for name in _TENSORS),
    )


def output(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_norm: Tensor | None,
    summary: Tensor | None,
    decay: Tensor | None,
    mask: Tensor | None,
    y: Tensor,
) -> tuple[Tensor, Tensor]:
    """Write the causal content part into y [b, h, n, v], and return the state after the last query.

    Args:
        q: Queries [b, h, n, k].
        k: Keys [b, m, k, u].
        v: Values [b, m, v, u].
        log_norm: Log of the sum of exp(keys) before the first element, [b, k, u]; None for no elements. The
            returned one is float64.
        summary: Mean of the values before the first element, weighted by exp(keys), [b, k, v, u].
        decay: Decay per visible element [k, u], or None.
        mask: Booleans [b, m], False where an element is hidden.
        y: The output, which is written.
    """
    dtype = accumulator_dtype(q.dtype)
    result = y if y.dtype == dtype else torch.empty_like(y, dtype=dtype)
    (b, _, dim_k, u), dim_v = k.shape, v.shape[2]
    final = torch.empty(b, dim_k, u, dtype=torch.float64), torch.empty(b, dim_k, dim_v, u, dtype=dtype)
    options = {"decay": decay, "initial_log_norm": log_norm, "initial_summary": summary}
    results: dict[str, Tensor | None] = {"y": result}
    results["final_log_norm"], results["final_summary"] = final
    _run("output", {"q": q, "k": k, "v": v}, options, mask, results)
    if result is not y:
        y.copy_(result)
    return final


def gradients(
    upstream: Sequence[Tensor | None],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_norm: Tensor | None,
    summary: Tensor | None,
    decay: Tensor | None,
    mask: Tensor | None,
    needs_grad: Sequence[bool],
) -> list[Tensor | None]:
    """Return the gradients of the first six arguments of `output`, None where not needed.

    Args:
        upstream: Gradients of y and of the state after the last query, None for zero.
        q: As for `output`.
        k: As for `output`.
        v: As for `output`.
        log_norm: As for `output`.
        summary: As for `output`.
        decay: As for `output`.
        mask: As for `output`.
        needs_grad: Whether each gradient is needed.
    """
    g, d_log_norm, d_summary = upstream
    if g is None:
        g = q.new_zeros(()).expand(*q.shape[:3], v.shape[2])
    dtype = accumulator_dtype(q.dtype)
    found = [
        torch.empty_like(x, dtype=dtype) if needed and x is not None else None
        for x, needed in zip((q, k, v, log_norm, summary, decay), needs_grad, strict=True)
    ]
    if found[5] is not None and not q.numel():
        found[5].zero_()
    options = {"decay": decay, "initial_log_norm": log_norm, "initial_summary": summary}
    options |= {"d_final_log_norm": d_log_norm, "d_final_summary": d_summary}
    names: list[str] = ["dq", "dk", "dv", "d_initial_log_norm", "d_initial_summary", "d_decay"]
    results = dict(zip(names, found, strict=True))
    _run("gradients", {"g": g, "q": q, "k": k, "v": v}, options, mask, results)
    return found


def _run(
    name: str,
    inputs: dict[str, Tensor],
    options: dict[str, Tensor | None],
    mask: Tensor | None,
    results: dict[str, Tensor | None],
) -> None:
    """Call a function of the library; inputs and options are converted to the dtypes of its arguments."""
    q, v = inputs["q"], inputs["v"]
    if not q.numel():
        return
    dtype = accumulator_dtype(q.dtype)
    call = _CausalContentCall()
    b, heads, n, dim_k = q.shape
    _, m, dim_v, dim_u = v.shape
    sizes = (b, heads, n, m, dim_k, dim_v, dim_u)
    _PACK_SIZES(call, _CausalContentCall.batch.offset, *sizes)
    given = inputs | options
    log_norm = convert(given.pop("initial_log_norm"), torch.float64)
    tensors = {name: convert(x, dtype) for name, x in given.items()} | {"initial_log_norm": log_norm}
    if not invoke(f"causal_content_{name}", call, dtype, tensors | {"mask": mask} | results):
        raise MemoryError(f"the causal content part found no memory for its temporaries {sizes}")
