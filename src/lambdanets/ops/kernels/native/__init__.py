"""One fused C++ program for CPUs: output and gradients in attention order, with no map in memory.

The map q E exists for one tile of queries and context elements at a time, in the first-level cache, and the
content lambda is applied in the same pass. The library's results are the same for any number of threads.

`source` holds the program. Read it in this order: `interface.h`, `vector.h`, `product.h` (products in
registers), `map.h`, `copy.h`, `geometry.h` (rows, windows, strips), `tile.h`, `parallel.h` (threads, memory),
`pass.h` (what both passes share), `output.h`, `query_gradients.h`, `gradients.h`, `kernel.cpp` (compiled once
for each instruction set), `dispatch.cpp`.

Two programs compute the content part. `content.h`, called by `content.py`, has the content lambda that all
queries share, and `exponential.h`. Called by `causal_content.py` for a causal order: `causal_content.h` (the
weights), `causal_content_output.h`, `causal_content_steps.h`, `causal_content_gradients.h`. The 1x1
projections of a layer are a program too, called by `projection.py`: `projection.h`, `projection_output.h`,
`projection_gradients.h`.

One step of a causal layer is a program of its own, called by `step.py`: `step.h` (the operator and its state),
`layer_step.h` (projections, norms, short convolution and gate around it).
"""

from __future__ import annotations

import ctypes
import math
import operator
import os
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ...problem import Cost, Problem
from . import library

NAME = "native"
MAX_AXES = 3
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ISAS = {"base": 1, "avx2": 2, "avx512": 3}
ISA_VARIABLE = "LAMBDANETS_NATIVE_ISA"  # names an instruction set to use instead of the CPU's best

# Estimates: floating-point operations per second of a core, by instruction set, and bytes of a vector.
RATES = {"avx512": 240e9, "avx2": 120e9, "base": 30e9}
BFLOAT16_GAIN = 1.5  # where the CPU multiplies pairs of bfloat16
VECTOR_BYTES = {"avx512": 64, "avx2": 32, "base": 16}
BACKWARD_SLOWDOWN = 1.05  # products of the backward pass have shorter inner axes
CALL_SECONDS = 14e-6
COPY_BANDWIDTH = 32e9  # bytes per second that are packed and written
GROUPS, SUMS_BYTES = 32, 2**25  # sums of gradients that are added at the end, and the most bytes of them


class TensorStruct(ctypes.Structure):
    """`LambdanetsTensor` of source/interface.h."""

    _fields_ = (("data", ctypes.c_void_p), ("stride", ctypes.c_int64 * 5))


_Sizes = ctypes.c_int64 * 3
# Functions that write a `TensorStruct` into a buffer, by the number of strides.
_PACK = [struct.Struct(f"={1 + axes}q").pack_into for axes in range(6)]


class Call(ctypes.Structure):
    """The first fields of the arguments of every function, which `invoke` fills in."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("isa", "itemsize", "threads")),
        ("parallel_for", ctypes.c_void_p),
    )


class _PositionCall(Call):
    """`LambdanetsCall` of source/interface.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "heads", "dim_k", "dim_v", "dim_u")),
        *((name, _Sizes) for name in ("grid", "context_grid", "table", "centre", "step")),
        *((name, TensorStruct) for name in ("q", "v", "e", "content_lambda", "y", "g")),
        *((name, TensorStruct) for name in ("dq", "dv", "de", "d_lambda")),
    )


def output(
    q: Tensor,
    v: Tensor,
    e: Tensor,
    problem: Problem,
    y: Tensor,
    content_lambda: Tensor | None = None,
) -> None:
    """Write the position part plus q times the content lambda, if given, into y."""
    if not problem.batch:
        return
    dtype = _stored_dtype(problem.dtype)
    result = y if y.dtype == dtype else torch.empty_like(y, dtype=dtype)
    inputs = {"q": q, "v": v, "e": e, "content_lambda": content_lambda}
    _run("position_output", problem, dtype, inputs, {"y": result})
    if result is not y:
        y.copy_(result)


def gradients(
    g: Tensor,
    q: Tensor,
    v: Tensor,
    e: Tensor,
    problem: Problem,
    needs_grad: Sequence[bool],
    content_lambda: Tensor | None = None,
    d_lambda: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of q, v and e; write that of the content lambda into `d_lambda`, if given."""
    dtype = _stored_dtype(problem.dtype)
    dq = torch.empty_like(q, dtype=dtype) if needs_grad[0] else None
    dv = torch.empty_like(v, dtype=dtype) if needs_grad[1] else None
    # Entries that no pair reads stay zero.
    de = torch.zeros_like(e, dtype=dtype) if needs_grad[2] else None
    if problem.batch and (any(needs_grad) or d_lambda is not None):
        inputs = {"g": g, "q": q, "v": v, "e": e, "content_lambda": content_lambda}
        results = {"dq": dq, "dv": dv, "de": de, "d_lambda": d_lambda}
        _run("position_gradients", problem, dtype, inputs, results)
    return dq, dv, de


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the library's arithmetic: float32 for half precision, which is converted."""
    return torch.promote_types(dtype, torch.float32)


def _stored_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the library's tensors: float32 for float16, which is converted."""
    return dtype if dtype == torch.bfloat16 else accumulator_dtype(dtype)


def _run(
    function: str,
    problem: Problem,
    dtype: torch.dtype,
    inputs: dict[str, Tensor | None],
    results: dict[str, Tensor | None],
) -> None:
    """Call a function of the library; inputs are converted to `dtype`, which results have.

    The content lambda and its gradient have the dtype of the arithmetic.
    """
    call = _PositionCall.from_buffer_copy(_sizes(problem))
    tensors = {name: convert(x, dtype) for name, x in inputs.items()} | results
    tensors["content_lambda"] = convert(inputs["content_lambda"], accumulator_dtype(dtype))
    # The call has the addresses of the tables alone: a converted one must live until it returns.
    tables = {name: x for name in ("e", "de") if (x := tensors.pop(name, None)) is not None}
    for name, x in tables.items():
        setattr(call, name, _table(x, problem))
    if not invoke(function, call, dtype, tensors):
        raise MemoryError(f"kernel {NAME!r} found no memory for its temporaries ({problem})")


def invoke(function: str, call: Call, dtype: torch.dtype, tensors: Mapping[str, Tensor | None]) -> bool:
    """Call a function of the library.

    Args:
        function: Its name, without the prefix of all of them.
        call: Its arguments, without tensors and the fields of `Call`.
        dtype: dtype of its tensors.
        tensors: Its tensors, by the names of the fields; None for those that are not given.

    Returns:
        Whether there was memory for its temporaries.

    Raises:
        RuntimeError: There is no library, or tensors are not on the CPU.
    """
    given = [(name, x) for name, x in tensors.items() if x is not None]
    kind = type(call)
    for name, x in given:
        # In half the time of an assignment to the field.
        _PACK[x.ndim](call, getattr(kind, name).offset, x.data_ptr(), *x.stride())
    return invoke_complete(function, call, dtype, given[0][1].device.type)


def invoke_complete(function: str, call: Call, dtype: torch.dtype, device: str) -> bool:
    """Call a function as `invoke` does, with the tensors in the call already; `device` is their type."""
    loaded = library.require(device)
    call.isa, call.itemsize, call.threads = ISAS[isa()], dtype.itemsize, torch.get_num_threads()
    call.parallel_for = parallel_for()
    return not getattr(loaded, f"lambdanets_{function}")(ctypes.byref(call))


def convert(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return a tensor in a dtype; None stays None."""
    return x if x is None or x.dtype == dtype else x.to(dtype)


def _table(e: Tensor, problem: Problem) -> TensorStruct:
    """Return the entries of a table that occur, with leading axes of size 1: [z, y, x, k, u]."""
    strides = e.stride()
    first = sum(map(operator.mul, _first_entry(problem), strides))
    return TensorStruct(e.data_ptr() + first * e.itemsize, (0,) * (MAX_AXES + 2 - e.ndim) + strides)


@lru_cache(maxsize=4096)
def _first_entry(problem: Problem) -> tuple[int, ...]:
    """Return the index of the first entry of a table that occurs."""
    return tuple(part.start for part in problem.context.reachable_entries())


def as_struct(x: Tensor) -> TensorStruct:
    """Return a tensor as the library takes it."""
    return TensorStruct(x.data_ptr(), x.stride())


@lru_cache(maxsize=4096)
def _sizes(problem: Problem) -> bytes:
    """Return a `_PositionCall` with the sizes of a problem; grids get leading axes of size 1."""
    p, context = problem, problem.context
    missing = MAX_AXES - len(p.grid)
    entries = context.reachable_entries()
    axes = {
        "grid": (1, p.grid),
        "context_grid": (1, context.key_grid),
        "table": (1, tuple(part.stop - part.start for part in entries)),
        "centre": (0, tuple(c - part.start for c, part in zip(context.centre, entries, strict=True))),
        "step": (1, context.step),
    }
    call = _PositionCall(
        batch=p.batch,
        heads=p.num_heads,
        dim_k=p.dim_k,
        dim_v=p.dim_v,
        dim_u=p.dim_u,
        **{name: (size,) * missing + sizes for name, (size, sizes) in axes.items()},
    )
    return bytes(call)


@lru_cache(maxsize=1)
def parallel_for() -> int:
    """Return the address of PyTorch's loop over threads, so that the kernel runs on PyTorch's threads."""
    folder = os.path.join(os.path.dirname(torch.__file__), "lib")
    function = ctypes.CDLL(os.path.join(folder, "libtorch_cpu.so")).torch_parallel_for
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address


def isa() -> str:
    """Return the instruction set in use: that of `LAMBDANETS_NATIVE_ISA`, at most the best of the CPU."""
    return _limited_isa(os.environ.get(ISA_VARIABLE), library.load())


@lru_cache(maxsize=16)
def _limited_isa(named: str | None, loaded: ctypes.CDLL | None) -> str:
    """Return the instruction set that is named, at most the best of the CPU and of a library."""
    best = "base" if loaded is None else loaded.lambdanets_isa().decode()
    named = named or best
    if named not in ISAS:
        raise ValueError(f"{ISA_VARIABLE} is one of {', '.join(ISAS)}; got {named!r}")
    return min(named, best, key=ISAS.__getitem__)


def describe() -> str:
    """Return a sentence for the user: the instruction set in use, or why the kernel is not available."""
    reason = library.unavailable()
    return f"Native kernel: {isa()}." if reason is None else f"No native kernel: {reason}."


def unsupported(problem: Problem) -> list[str]:
    """Return the reasons for which the kernel cannot serve a problem; empty if it can."""
    reasons = []
    if problem.device != "cpu":
        reasons.append(f"it is for CPUs, not for {problem.device}")
    if problem.dense or problem.masked:
        reasons.append("it serves tables of relative positions, not dense embeddings")
    if len(problem.grid) > MAX_AXES:
        reasons.append(f"it serves grids of up to {MAX_AXES} axes, not {len(problem.grid)}")
    if problem.dtype not in DTYPES:
        reasons.append(f"it has no arithmetic for {problem.dtype}")
    if not reasons and (reason := library.unavailable()):
        reasons.append(reason)
    return reasons


def cost(problem: Problem, *, backward: bool = False) -> Cost:
    """Return the cost of h (k + v) multiply-adds per pair, or h (3 k + 2 v) backward, with packed copies.

    Operations are those of pairs that have an entry; the time is that of whole vectors of columns.
    """
    p = problem
    if not p.position:
        return Cost(flops=0, bytes=p.io_bytes, peak_bytes=0, seconds=0.0)
    itemsize = max(4, p.itemsize)
    name = isa()
    lanes = VECTOR_BYTES[name] // itemsize
    rate = RATES[name] * 4 / itemsize
    if p.dtype == torch.bfloat16 and name == "avx512" and torch.cpu._is_avx512_bf16_supported():
        rate *= BFLOAT16_GAIN
    per_pair = 3 * p.dim_k + 2 * p.dim_v if backward else p.dim_k + p.dim_v
    flops = 2 * p.batch * p.num_heads * p.dim_u * p.context.num_pairs * per_pair
    table = itemsize * math.prod(p.context.table_shape) * p.dim_k * p.dim_u
    values = itemsize * p.batch * p.num_context * p.dim_v * p.dim_u
    moved = 2 * p.io_bytes + 2 * table
    peak = values + 2 * table
    if backward:
        sums = max(values + table, min(GROUPS * (values + table), SUMS_BYTES))
        moved = 2 * moved + 2 * GROUPS * table
        peak += table + sums
    seconds = flops * _padding(p, lanes) / rate * (BACKWARD_SLOWDOWN if backward else 1)
    return Cost(
        flops=flops, bytes=moved, peak_bytes=peak, seconds=seconds + moved / COPY_BANDWIDTH + CALL_SECONDS
    )


def _padding(problem: Problem, lanes: int) -> float:
    """Return the ratio of the multiply-adds computed to those needed: vectors are filled up with zeros."""
    p = problem
    entries, keys = p.context.table_shape[-1], p.context.key_grid[-1]
    seen = min(entries, keys)
    columns = min(keys, seen + 3) / seen if seen < keys else 1.0
    filled = math.ceil(seen / lanes) * lanes / seen
    depth = math.ceil(p.dim_v / lanes) * lanes
    return (p.dim_k * filled + depth * columns) / (p.dim_k + p.dim_v)
