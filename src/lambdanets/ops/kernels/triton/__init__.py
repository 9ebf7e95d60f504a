"""Fused Triton kernels for NVIDIA GPUs: maps q E, position lambdas and embeddings E stay on chip.

`by_position` has the queries multiply the table first and transposes the map between its two products; its
gradients are deterministic. `lambda_first` computes lambdas in registers. Which of the two is faster for the
output is measured on the device (`tuning`). Not in the paper, which stores position lambdas. docs/roofline.md
derives both.

Read in this order: `tiling` (the work of one program), `indexing` (patches, windows, tiles), `by_position`
and `lambda_first` (the kernels), `launch` (their arguments), `tuning` (the choice of a tile). Triton is
imported on the first call, so that the package imports without it.
"""

from __future__ import annotations

import math
import os
import sysconfig
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import torch
from torch import Tensor

from ...content import apply_lambda_gradients
from ...hardware import BANDWIDTH, CALL_SECONDS, GPU_RATES
from ...memory_layout import memory_layout_of
from ...problem import Cost, Problem
from .tiling import (
    MIN_DOT_SIZE,
    candidate_tiles,
    kernel_sizes,
    next_power_of_2,
    patch_shape,
    round_up,
    table_part_shape,
)

NAME = "triton"
MAX_DIM_K = 256  # embeddings of a larger depth do not fit into a program's registers and shared memory
MAX_POSITIONS = 2**29  # of a grid: int32 holds the difference of two coordinates plus a tile
MIN_CAPABILITY = (8, 0)  # tensor cores for all supported dtypes
# Expected speed as a fraction of that of large matrix products. Shared memory limits it, as docs/roofline.md
# derives; it has not been measured.
RATE_FRACTION = 0.3


def output(
    q: Tensor,
    v: Tensor,
    e: Tensor,
    problem: Problem,
    y: Tensor,
    content_lambda: Tensor | None = None,
) -> None:
    """Write the position part plus q times the content lambda, if given, into y."""
    from . import launch, tuning

    if problem.batch:
        tuning.run(
            "output",
            problem,
            (q, v, e, y),
            lambda tile: [launch.output_call(q, v, e, problem, y, tile, content_lambda)],
        )


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
    from . import launch, tuning

    dq = torch.empty_like(q) if needs_grad[0] else None
    dv = torch.empty_like(v) if needs_grad[1] else None
    de = torch.zeros_like(e) if needs_grad[2] else None  # entries that no pair reads stay zero
    if not problem.batch:
        return dq, dv, de
    if dq is not None:
        tuning.run(
            "dq",
            problem,
            (g, v, e, dq),
            lambda tile: [launch.query_gradient_call(g, v, e, problem, dq, tile, content_lambda)],
        )
    if dv is not None:
        tuning.run(
            "dv",
            problem,
            (g, q, e, dv),
            lambda tile: [launch.value_gradient_call(g, q, e, problem, dv, tile)],
        )
    if de is not None:
        tuning.run(
            "de",
            problem,
            (g, q, v, de),
            lambda tile: launch.table_gradient_calls(g, q, v, problem, de, tile),
        )
    if d_lambda is not None and content_lambda is not None:
        _, found = apply_lambda_gradients(g, q, content_lambda, memory_layout_of(q), (False, True))
        assert found is not None
        d_lambda.copy_(found)
    return dq, dv, de


def unsupported(problem: Problem) -> list[str]:
    """Return the reasons for which the kernel cannot serve a problem."""
    reasons = list(_missing(problem.device))
    if problem.position and not problem.relative:
        reasons.append("it needs a table of offsets, dense embeddings are not supported")
    if len(problem.grid) > 3:
        reasons.append(f"grids have up to three axes, not {len(problem.grid)}")
    if problem.dilation and max(problem.dilation) > 1:
        reasons.append("dilated scopes are not supported")
    if problem.dim_k > MAX_DIM_K:
        reasons.append(f"query depths are at most {MAX_DIM_K}, not {problem.dim_k}")
    if max(problem.num_queries, problem.num_context) > MAX_POSITIONS:
        reasons.append(f"grids have at most {MAX_POSITIONS:,} positions")
    return reasons


@lru_cache(maxsize=8)
@torch.compiler.assume_constant_result  # a compiled graph would break where a file is read
def _missing(device: str) -> tuple[str, ...]:
    """Return the reasons for which the kernels cannot run on this machine and a device type, as phrases."""
    if find_spec("triton") is None:
        return ("Triton is not installed",)
    if device != "cuda":
        interpreted = device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
        return () if interpreted else (f"it runs on CUDA devices, not on {device}",)
    if torch.version.hip is not None:
        return ("it supports NVIDIA GPUs only",)
    if torch.cuda.is_available():
        lowest = min(torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count()))
        if lowest < MIN_CAPABILITY:
            needs, has = (".".join(map(str, version)) for version in (MIN_CAPABILITY, lowest))
            return (f"it needs a device of compute capability {needs}, here is one of {has}",)
        if not (os.environ.get("CC") or which("gcc") or which("clang")):
            return ("Triton finds no C compiler; install gcc or clang, or set CC",)
        headers = Path(sysconfig.get_path("include"), "Python.h")
        if not headers.exists():
            return (f"Triton compiles C code and finds no {headers}; install Python's headers",)
    return ()


def cost(problem: Problem, *, backward: bool = False) -> Cost:
    """Return the cost of h (k + v) multiply-adds per pair, three times that backward.

    `flops` counts the pairs that have an entry; the time includes the padding of tiles.
    """
    p = problem
    if not p.position:
        return Cost(flops=0, bytes=p.io_bytes, peak_bytes=0, seconds=0.0)
    moved = p.io_bytes + p.itemsize * p.table_elements
    passes, calls, parts = 1, 1, 0
    if backward:
        passes, calls = 3, 4
        parts = max(4, p.itemsize) * math.prod(table_part_shape(p, candidate_tiles(p, "de")[0]))
        moved = 3 * moved + 2 * parts
    flops = passes * 2 * p.batch * p.num_heads * p.dim_u * p.context.num_pairs * (p.dim_k + p.dim_v)
    rate = RATE_FRACTION * GPU_RATES[p.itemsize]
    seconds = max(flops * _padding(p) / rate, moved / BANDWIDTH["cuda"])
    return Cost(flops=flops, bytes=moved, peak_bytes=parts, seconds=seconds + calls * CALL_SECONDS["cuda"])


def _padding(problem: Problem) -> float:
    """Return the ratio of the products computed with the first candidate tile to those needed.

    A tile computes whole patches, and depths, heads and batches that are rounded up.
    """
    p, tile, size = problem, candidate_tiles(problem, "output")[0], kernel_sizes(problem)
    queries = patch_shape(p.grid, tile.queries)
    context = patch_shape(p.context.key_grid, tile.context)
    batch, heads = round_up(p.batch, tile.examples), round_up(p.num_heads, tile.heads)
    ratio = batch / max(1, p.batch) * heads / p.num_heads
    depths = next_power_of_2(p.dim_k, MIN_DOT_SIZE) + next_power_of_2(p.dim_v, MIN_DOT_SIZE)
    ratio *= depths / (p.dim_k + p.dim_v)
    for axis, side, context_side in zip("YX", queries, context, strict=True):
        n, m, entries = (size[letter + axis] for letter in "NML")
        seen_by_query, seen_by_patch = min(m, entries), min(m, entries + side - 1)
        ratio *= round_up(n, side) / n * round_up(seen_by_patch, context_side) / seen_by_query
    return ratio
