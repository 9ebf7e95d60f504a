"""Tiles: what one instance of a program takes, and which are tried for a problem, the likeliest first.

Their order is what is known without a device: registers and shared memory (`benchmarks/gpu/compiled.csv`) and
docs/roofline.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

from ...problem import Problem
from .geometry import apart, patch, power, sizes

LEAST = 16  # numbers that tensor cores add up at once
PROGRAMS = 512  # of a table's gradient, about: the batch is cut into as many parts as that takes


@dataclass(frozen=True)
class Tile:
    """What one instance of a program takes: examples, heads, queries, context elements, values; and how.

    Args:
        examples: A power of two, as all sizes.
        heads: Of those of an example.
        queries: In a patch.
        context: Elements in a patch.
        values: Of the value depth.
        warps: Groups of 32 threads.
        stages: Loads that are under way at once.
        first: "queries" where they meet the table first, "values" where lambdas are formed.
    """

    examples: int
    heads: int
    queries: int
    context: int
    values: int
    warps: int = 4
    stages: int = 2
    first: str = "queries"


@lru_cache(maxsize=4096)  # as it is asked for at every launch
def tiles(problem: Problem, program: str) -> tuple[Tile, ...]:
    """The tiles that are tried for a program: "output", or the gradient "dq", "dv" or "de"."""
    heads = power(problem.num_heads, most=LEAST)
    rows = LEAST // heads  # examples whose heads together are as many rows as tensor cores take
    examples = rows if program == "de" else power(max(1, problem.batch), most=rows)
    depth, wide = power(problem.dim_k, LEAST), problem.itemsize > 2
    values = power(problem.dim_v, LEAST, 32 if wide else 64)
    pairs = max(LEAST, (2048 if wide else 8192) // depth)  # of two patches: their embeddings stay as large
    if program == "de":
        side = power(math.isqrt(pairs), most=8 if wide else 16)
        return tuple(Tile(examples, heads, side, side, values, warps) for warps in (8, 4))
    # The products add up over the context, or for dv over the queries of all heads: over 16 of them at least.
    large, small = min(32, max(LEAST, pairs // LEAST)), LEAST
    shapes = [(large, 8), (small, 8), (small, 4)]
    if program == "dv":
        n = max(LEAST // heads, min(LEAST, pairs // LEAST))
        found = [Tile(examples, heads, n, max(1, min(m, pairs // n)), values, w) for m, w in shapes]
    else:
        found = [Tile(examples, heads, max(1, min(LEAST, pairs // m)), m, values, w) for m, w in shapes]
    if examples > 1:
        found.append(replace(found[0], examples=examples // 2, warps=4))
    if program == "output" and not wide:
        found += _lambdas_first(problem, heads, depth, values)
    return tuple(dict.fromkeys(found))


def _lambdas_first(problem: Problem, heads: int, depth: int, values: int) -> list[Tile]:
    """Lambdas of 128 columns (n k) for 128 or 256 rows (b v)."""
    found = []
    for rows in (128, 256):
        examples = power(max(1, problem.batch), most=rows // values)
        found.append(Tile(examples, heads, max(1, 128 // depth), 32, values, 8, first="values"))
    return found


@lru_cache(maxsize=4096)
def table_parts(problem: Problem, tile: Tile) -> tuple[int, ...]:
    """Sizes of the products of a table's gradient: parts, u, pairs of patches (z, y, x), of places, and k."""
    down, across = patch(problem.grid, tile.queries)
    size = sizes(problem)
    pairs = (size["LZ"], apart(size["LY"], size["CY"], down), apart(size["LX"], size["CX"], across))
    programs = problem.dim_u * math.prod(pairs)
    parts = max(1, min(-(-problem.batch // tile.examples), -(-PROGRAMS // programs)))
    return parts, problem.dim_u, *pairs, tile.queries, tile.queries, power(problem.dim_k, LEAST)
