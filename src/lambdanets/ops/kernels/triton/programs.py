"""The programs' launches for a problem and a tile."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from triton import cdiv

from ...problem import Problem
from ...tables import trimmed
from . import by_position, lambda_first
from .call import Call
from .geometry import patch, power, sizes
from .tile import LEAST, Tile, table_parts, tiles

WIDE = 2**31  # places beyond which they need 64 bits
SUMMED = 16  # entries of a table that one program adds up


def output_call(
    q: Tensor, v: Tensor, e: Tensor, problem: Problem, y: Tensor, tile: Tile, lambdas: Tensor | None = None
) -> Call:
    """What writes the position part, and q times content lambdas (b k v) if given, into y (b h n v)."""
    program = (by_position if tile.first == "queries" else lambda_first).output_program
    return _call(program, problem, tile, (q, v, _entries(e, problem), y), lambdas=lambdas)


def query_gradient_call(
    g: Tensor, v: Tensor, e: Tensor, problem: Problem, dq: Tensor, tile: Tile, lambdas: Tensor | None = None
) -> Call:
    """What writes the gradient of q (b h n k)."""
    tensors = (g, v, _entries(e, problem), dq)
    return _call(by_position.query_gradient_program, problem, tile, tensors, lambdas=lambdas)


def value_gradient_call(g: Tensor, q: Tensor, e: Tensor, problem: Problem, dv: Tensor, tile: Tile) -> Call:
    """What writes the gradient of v (b m v u)."""
    return _call(by_position.value_gradient_program, problem, tile, (g, q, _entries(e, problem), dv))


def table_calls(
    g: Tensor, q: Tensor, v: Tensor, problem: Problem, de: Tensor, tile: Tile
) -> tuple[Call, Call]:
    """What writes the gradient of the entries that some pair meets into de (*offsets k u): products, sums."""
    wide = torch.promote_types(q.dtype, torch.float32)
    parts = q.new_empty(table_parts(problem, tile), dtype=wide)
    return (
        _call(by_position.table_gradient_program, problem, tile, (g, q, v), parts),
        _call(by_position.table_sum_program, problem, tile, (_met(de, problem),), parts),
    )


def rounded() -> bool:
    """Whether products may take float32 as TF32, as PyTorch's own."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def _met(e: Tensor, problem: Problem) -> Tensor:
    """The part of a table (*offsets k u) that some pair meets, with three axes of offsets."""
    met, _ = trimmed(e, problem.context)
    return met[(None,) * (5 - met.ndim)]


def _entries(e: Tensor, problem: Problem) -> Tensor:
    """That part with its k side by side in memory."""
    met = _met(e, problem)
    return met if met.stride(-2) == 1 else met.mT.contiguous().mT


def _depth(problem: Problem) -> int:
    return power(problem.dim_k, LEAST)


def _call(
    program: Any,
    problem: Problem,
    tile: Tile,
    tensors: tuple[Tensor, ...],
    parts: Tensor | None = None,
    lambdas: Tensor | None = None,
) -> Call:
    """A launch: tensors, parts, which come first where they are read, strides of the tensors, and numbers."""
    instances, numbers, constants = _fixed(program, problem, tile, rounded())
    given = tensors
    if "CONTENT" in program.arg_names:
        constants = constants | {"CONTENT": lambdas is not None}
        tensors = given = (*tensors, tensors[0].new_empty(0, 0, 0) if lambdas is None else lambdas)
    if parts is not None:
        given = (parts, *tensors) if program is by_position.table_sum_program else (*tensors, parts)
    # Steps of 0 where there is one of something: Triton cannot know that it is at 0 of steps of 1.
    strides, reach = [], 0
    for x in given:
        last = 0
        for size, step in zip(x.shape, x.stride(), strict=True):
            step = step if size > 1 else 0
            last += (size - 1) * step
            if x is not parts:
                strides.append(step)
        reach = max(reach, last)
    constants = constants | {"INDEX": tl.int64 if reach >= WIDE else tl.int32}
    return Call(program, instances, (*given, *strides, *numbers), constants, tile.warps, tile.stages)


def without_memory(problem: Problem) -> Iterator[tuple[str, Tile, Call]]:
    """The launches of every program with every tile that it tries, on tensors without memory, to compile."""
    p, table = problem, problem.context.table_shape

    def sized(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=p.dtype, device="meta")

    y, q = (sized(p.batch, p.num_heads, p.num_queries, depth) for depth in (p.dim_v, p.dim_k))
    v, e = sized(p.batch, p.num_context, p.dim_v, p.dim_u), sized(*table, p.dim_k, p.dim_u)
    lambdas = sized(p.batch, p.dim_k, p.dim_v) if p.content else None
    for tile in tiles(p, "output"):
        yield "output", tile, output_call(q, v, e, p, y, tile, lambdas)
    for tile in tiles(p, "dq"):
        yield "dq", tile, query_gradient_call(y, v, e, p, q, tile, lambdas)
    for tile in tiles(p, "dv"):
        yield "dv", tile, value_gradient_call(y, q, e, p, v, tile)
    for tile in tiles(p, "de"):
        products, sums = table_calls(y, q, v, p, e, tile)
        yield "de", tile, products
        yield "de", tile, sums


@lru_cache(maxsize=4096)
def _fixed(
    program: Any, problem: Problem, tile: Tile, tf32: bool
) -> tuple[int, tuple[int, ...], dict[str, Any]]:
    """What is the same for all tensors of a problem: instances, numbers in the program's order, constants."""
    p = problem
    wide = p.dtype == torch.float64
    parts = table_parts(p, tile)
    queries, context = patch(p.grid, tile.queries), patch(p.context.key_grid, tile.context)
    constants = {
        "BB": tile.examples,
        "BH": tile.heads,
        "NTY": queries[0],
        "NTX": queries[1],
        "MTY": context[0],
        "MTX": context[1],
        "BK": _depth(p),
        "BV": tile.values,
        "BO": SUMMED,
        "SUM": tl.float64 if wide else tl.float32,
        "PRECISION": "tf32" if tf32 and p.dtype == torch.float32 else "ieee",
    }
    numbers = sizes(p) | {"PARTS": parts[0]}
    names = program.arg_names
    blocks = cdiv(p.batch, tile.examples)
    heads, values = cdiv(p.num_heads, tile.heads), cdiv(p.dim_v, tile.values)
    instances = {
        by_position.output_program: _patches(p.grid, queries) * values * heads * blocks,
        lambda_first.output_program: _patches(p.grid, queries) * values * heads * blocks,
        by_position.query_gradient_program: _patches(p.grid, queries) * heads * blocks,
        by_position.value_gradient_program: _patches(p.context.key_grid, context) * values * p.dim_u * blocks,
        by_position.table_gradient_program: math.prod(parts[:-3]),
        by_position.table_sum_program: p.dim_u * numbers["LZ"] * numbers["LY"] * cdiv(numbers["LX"], SUMMED),
    }[program]
    return (
        instances,
        tuple(numbers[name] for name in names if name in numbers),
        {name: value for name, value in constants.items() if name in names},
    )


def _patches(grid: tuple[int, ...], size: tuple[int, int]) -> int:
    depth, height, width = (1, 1, *grid)[-3:]
    return depth * cdiv(height, size[0]) * cdiv(width, size[1])
