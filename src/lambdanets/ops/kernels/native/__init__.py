"""One fused C++ program for CPUs: output and gradients in attention order, with no map in memory.

The map q E exists for one tile of queries and context elements at a time, in the first-level cache, and the
content lambda is applied in the same pass. The library's results are the same for any number of threads.

`source` holds the program. Read it in this order: `interface.h`, `vector.h`, `product.h` (products in
registers), `map.h`, `copy.h`, `geometry.h` (rows, windows, strips), `tile.h`, `parallel.h` (threads, memory),
`pass.h` (what both passes share), `output.h`, `query_gradients.h`, `gradients.h`, `kernel.cpp` (compiled once
for each instruction set), `dispatch.cpp`.

The causal content part is a program of its own, called by `causal_content.py`: `exponential.h`,
`causal_content.h` (the weights), `causal_content_output.h`, `causal_content_steps.h`,
`causal_content_gradients.h`.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ...position_table import trim_table
from ...problem import Cost, Problem
from . import library

NAME = "native"
MAX_AXES = 3
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ISAS = {"base": 1, "avx2": 2, "avx512": 3}
ISA_VARIABLE = "LAMBDANETS_NATIVE_ISA"  # names an instruction set to use instead of the CPU's best

# Estimates: floating-point operations per second of a core, by instruction set, and bytes of a vector.
RATES = {"avx512": 240e9, "avx2": 110e9, "base": 30e9}
BFLOAT16_GAIN = 1.6  # where the CPU multiplies pairs of bfloat16
VECTOR_BYTES = {"avx512": 64, "avx2": 32, "base": 16}
BACKWARD_SLOWDOWN = 1.2  # products of the backward pass have shorter inner axes
CALL_SECONDS = 20e-6
COPY_BANDWIDTH = 20e9  # bytes per second that are packed and written
GROUPS, SUMS_BYTES = 32, 2**25  # sums of gradients that are added at the end, and the most bytes of them


class TensorStruct(ctypes.Structure):
    """`LambdanetsTensor` of source/interface.h."""

    _fields_ = (("data", ctypes.c_void_p), ("stride", ctypes.c_int64 * 5))


_Sizes = ctypes.c_int64 * 3


class _Call(ctypes.Structure):
    """`LambdanetsCall` of source/interface.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("isa", "itemsize", "bfloat16", "threads")),
        ("parallel_for", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch", "heads", "dim_k", "dim_v", "dim_u")),
        *((name, _Sizes) for name in ("grid", "context_grid", "table", "centre", "step")),
        *((name, TensorStruct) for name in ("q", "v", "e", "content_lambda", "y", "g", "dq", "dv", "de")),
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
    dtype = accumulator_dtype(problem.dtype)
    result = y if y.dtype == dtype else torch.empty_like(y, dtype=dtype)
    inputs = {"q": q, "v": v, "e": e, "content_lambda": content_lambda}
    _run("lambdanets_position_output", problem, dtype, inputs, {"y": result})
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
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of q, v and e, that of q with the part of the content lambda if given."""
    dtype = accumulator_dtype(problem.dtype)
    dq = torch.empty_like(q, dtype=dtype) if needs_grad[0] else None
    dv = torch.empty_like(v, dtype=dtype) if needs_grad[1] else None
    # Entries that no pair reads stay zero.
    de = torch.zeros_like(e, dtype=dtype) if needs_grad[2] else None
    if problem.batch and any(needs_grad):
        inputs = {"g": g, "q": q, "v": v, "e": e, "content_lambda": content_lambda}
        results = {"dq": dq, "dv": dv, "de": de}
        _run("lambdanets_position_gradients", problem, dtype, inputs, results)
    return dq, dv, de


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the library's arithmetic: float32 for half precision, which is converted."""
    return torch.promote_types(dtype, torch.float32)


def _run(
    function: str,
    problem: Problem,
    dtype: torch.dtype,
    inputs: dict[str, Tensor | None],
    results: dict[str, Tensor | None],
) -> None:
    """Call a function of the library; inputs are converted to `dtype`, which results have."""
    loaded = library.require(next(x.device.type for x in inputs.values() if x is not None))
    tensors = {name: None if x is None else x.to(dtype) for name, x in inputs.items()} | results
    call = _Call(
        isa=ISAS[isa()],
        itemsize=dtype.itemsize,
        bfloat16=problem.dtype == torch.bfloat16,
        threads=torch.get_num_threads(),
        parallel_for=parallel_for(),
        **_sizes(problem),
    )
    for name, x in tensors.items():
        if x is not None:
            setattr(call, name, as_struct(_table(x, problem) if name in ("e", "de") else x))
    status = getattr(loaded, function)(ctypes.byref(call))
    if status:
        raise MemoryError(f"kernel {NAME!r} found no memory for its temporaries ({problem})")


def _table(e: Tensor, problem: Problem) -> Tensor:
    """Return the entries of a table that occur, with leading axes of size 1: [z, y, x, k, u]."""
    entries, _ = trim_table(e, problem.context)
    return entries[(None,) * (MAX_AXES + 2 - e.ndim)]


def as_struct(x: Tensor) -> TensorStruct:
    """Return a tensor as the library takes it."""
    return TensorStruct(x.data_ptr(), x.stride())


@lru_cache(maxsize=4096)
def _sizes(problem: Problem) -> dict[str, int | tuple[int, ...]]:
    """Return the fields of `_Call` that hold a problem's sizes, its grids with leading axes of size 1."""
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
    return {
        "batch": p.batch,
        "heads": p.num_heads,
        "dim_k": p.dim_k,
        "dim_v": p.dim_v,
        "dim_u": p.dim_u,
        **{name: (size,) * missing + sizes for name, (size, sizes) in axes.items()},
    }


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
    loaded = library.load()
    best = "base" if loaded is None else loaded.lambdanets_isa().decode()
    named = os.environ.get(ISA_VARIABLE) or best
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
