"""Fused programs for NVIDIA GPUs, in Triton: the position part without maps, lambdas or embeddings in memory.

`by_position` has the queries meet the table first and turns the map between its two products; its gradients
are deterministic. `lambda_first` forms lambdas in registers; which of the two is faster forwards the device
tries. Not in the paper, whose position lambdas go to memory. docs/roofline.md derives both.
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

from ...machine import BANDWIDTH, CALL, GPU
from ...problem import Cost, Problem
from .geometry import patch, power, sizes
from .tile import LEAST, Tile, table_parts, tiles

NAME = "triton"
APPLIES_CONTENT = True
DEEPEST = 256  # dim_k whose embeddings a program has room for
LONGEST = 2**29  # positions of a grid: 32 bits count what two of them are apart, and a tile beyond
CAPABILITY = (8, 0)  # with tensor cores for all of these types
SHARE = 0.3  # of the rate of large products that shared memory lets through: docs/roofline.md, not measured


def output(
    q: Tensor, v: Tensor, e: Tensor, problem: Problem, y: Tensor, lambdas: Tensor | None = None
) -> None:
    """Write the position part into y (b h n v), from q (b h n k), v (b m v u) and a table.

    Content lambdas (b k v), if given, are applied to q as well.
    """
    from . import programs, tuning

    def calls(tile: Tile) -> list[programs.Call]:
        return [programs.output_call(q, v, e, problem, y, tile, lambdas)]

    if problem.batch:
        tuning.run("output", problem, (q, v, e, y), calls)


def gradients(
    g: Tensor,
    q: Tensor,
    v: Tensor,
    e: Tensor,
    problem: Problem,
    wanted: Sequence[bool],
    lambdas: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of q, v and e, each where it is wanted, from that of the output."""
    from . import programs, tuning

    dq = torch.empty_like(q) if wanted[0] else None
    dv = torch.empty_like(v) if wanted[1] else None
    de = torch.zeros_like(e) if wanted[2] else None  # entries that no pair meets stay so
    if not problem.batch:
        return dq, dv, de
    if dq is not None:
        tuning.run(
            "dq",
            problem,
            (g, v, e, dq),
            lambda tile: [programs.query_gradient_call(g, v, e, problem, dq, tile, lambdas)],
        )
    if dv is not None:
        tuning.run(
            "dv",
            problem,
            (g, q, e, dv),
            lambda tile: [programs.value_gradient_call(g, q, e, problem, dv, tile)],
        )
    if de is not None:
        tuning.run(
            "de", problem, (g, q, v, de), lambda tile: programs.table_calls(g, q, v, problem, de, tile)
        )
    return dq, dv, de


def unsupported(problem: Problem) -> list[str]:
    """Why these programs cannot serve a problem; empty if they can."""
    reasons = list(_missing(problem.device))
    if problem.position and not problem.relative:
        reasons.append("dense embeddings are not read, only tables of offsets")
    if len(problem.grid) > 3:
        reasons.append(f"grids have up to three axes, not {len(problem.grid)}")
    if problem.dilation and max(problem.dilation) > 1:
        reasons.append("dilated scopes are not served")
    if problem.dim_k > DEEPEST:
        reasons.append(f"query depths are at most {DEEPEST}, not {problem.dim_k}")
    if max(problem.num_queries, problem.num_context) > LONGEST:
        reasons.append(f"grids have at most {LONGEST:,} positions")
    return reasons


@lru_cache(maxsize=8)
@torch.compiler.assume_constant_result  # or a compiled graph would break at the first look at a file
def _missing(device: str) -> tuple[str, ...]:
    """What this machine lacks for a type of device."""
    if find_spec("triton") is None:
        return ("Triton is not installed",)
    if device != "cuda":
        interpreted = device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
        return () if interpreted else (f"it runs on CUDA devices, not on {device}",)
    if torch.version.hip is not None:
        return ("it is made for NVIDIA's GPUs",)
    if torch.cuda.is_available():
        least = min(torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count()))
        if least < CAPABILITY:
            needs, has = (".".join(map(str, numbers)) for numbers in (CAPABILITY, least))
            return (f"it needs a device of compute capability {needs}, here is one of {has}",)
        if not (os.environ.get("CC") or which("gcc") or which("clang")):
            return ("Triton finds no C compiler; install gcc or clang, or set CC",)
        headers = Path(sysconfig.get_path("include"), "Python.h")
        if not headers.exists():
            return (f"Triton compiles C and there is no {headers}; install Python's headers",)
    return ()


def cost(problem: Problem, *, backward: bool = False) -> Cost:
    """h (k + v) products per pair, thrice that backwards; in time, those of patches that meet."""
    p = problem
    if not p.position:
        return Cost(flops=0, bytes=p.io_bytes, peak_bytes=0, seconds=0.0)
    moved = p.io_bytes + p.itemsize * p.table_elements
    passes, calls, parts = 1, 1, 0
    if backward:
        passes, calls = 3, 4
        parts = max(4, p.itemsize) * math.prod(table_parts(p, tiles(p, "de")[0]))
        moved = 3 * moved + 2 * parts
    flops = passes * 2 * p.batch * p.num_heads * p.dim_u * p.context.num_pairs * (p.dim_k + p.dim_v)
    seconds = max(flops * _padding(p) / (SHARE * GPU[p.itemsize]), moved / BANDWIDTH["cuda"])
    return Cost(flops=flops, bytes=moved, peak_bytes=parts, seconds=seconds + calls * CALL["cuda"])


def _padding(problem: Problem) -> float:
    """How much the first tile computes of what there is: whole patches, powers of two, 16 of k and v."""
    p, tile, size = problem, tiles(problem, "output")[0], sizes(problem)
    of_queries, of_context = patch(p.grid, tile.queries), patch(p.context.key_grid, tile.context)
    filled = _up(p.batch, tile.examples) / max(1, p.batch) * _up(p.num_heads, tile.heads) / p.num_heads
    filled *= (power(p.dim_k, LEAST) + power(p.dim_v, LEAST)) / (p.dim_k + p.dim_v)
    for axis, side, other in zip("YX", of_queries, of_context, strict=True):
        window = min(size["M" + axis], size["L" + axis])
        met = min(size["M" + axis], size["L" + axis] + side - 1)  # by one of the patch
        filled *= _up(size["N" + axis], side) / size["N" + axis] * _up(met, other) / window
    return filled


def _up(size: int, step: int) -> int:
    return -(-size // step) * step
