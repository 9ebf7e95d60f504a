"""Tiles: the part of a problem that one Triton program computes, and the candidates for a problem.

No device has measured the order of the candidates: it follows from the registers and the shared memory of the
compiled kernels (`benchmarks/gpu/compiled.csv`) and from docs/roofline.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

from ...problem import Problem

MIN_DOT_SIZE = 16  # the shortest side of a product on tensor cores
TABLE_PROGRAMS = 512  # desired programs of a table's gradient, reached by cutting the batch into parts


@dataclass(frozen=True)
class Tile:
    """The block that one program computes, and the options that it is compiled with. Sizes are powers of two.

    Args:
        examples: Examples of the batch.
        heads: Heads of an example.
        queries: Query positions of a patch.
        context: Context elements of a patch.
        values: Channels of the value depth.
        warps: Warps of the program, 32 threads each.
        stages: Stages of the pipelining of loads.
        first: "queries" if they multiply the table first (`by_position`), "values" if lambdas are computed
            first (`lambda_first`).
    """

    examples: int
    heads: int
    queries: int
    context: int
    values: int
    warps: int = 4
    stages: int = 2
    first: str = "queries"


@lru_cache(maxsize=4096)  # every launch asks for them
def candidate_tiles(problem: Problem, result: str) -> tuple[Tile, ...]:
    """Return the candidate tiles for a result, in descending order of their expected speed.

    Args:
        problem: The problem.
        result: "output", or the gradient "dq", "dv" or "de".
    """
    heads = next_power_of_2(problem.num_heads, most=MIN_DOT_SIZE)
    rows = MIN_DOT_SIZE // heads  # examples whose heads together are MIN_DOT_SIZE rows of a product
    examples = rows if result == "de" else next_power_of_2(max(1, problem.batch), most=rows)
    # Full precision means float32 or float64.
    depth, full_precision = next_power_of_2(problem.dim_k, MIN_DOT_SIZE), problem.itemsize > 2
    values = next_power_of_2(problem.dim_v, MIN_DOT_SIZE, 32 if full_precision else 64)
    # Pairs (n, m) of a query patch and a context patch: so many that the embeddings [pairs, k] have about the
    # same size for every k.
    pairs = max(MIN_DOT_SIZE, (2048 if full_precision else 8192) // depth)
    if result == "de":
        side = next_power_of_2(math.isqrt(pairs), most=8 if full_precision else 16)
        return tuple(Tile(examples, heads, side, side, values, warps) for warps in (8, 4))
    # The products sum over the context, or for dv over the queries of all heads: at least MIN_DOT_SIZE.
    large, small = min(32, max(MIN_DOT_SIZE, pairs // MIN_DOT_SIZE)), MIN_DOT_SIZE
    # Context elements and warps.
    options = [(large, 8), (small, 8), (small, 4)]
    if result == "dv":
        n = max(MIN_DOT_SIZE // heads, min(MIN_DOT_SIZE, pairs // MIN_DOT_SIZE))
        found = [Tile(examples, heads, n, max(1, min(m, pairs // n)), values, warps) for m, warps in options]
    else:
        found = [
            Tile(examples, heads, max(1, min(MIN_DOT_SIZE, pairs // m)), m, values, warps)
            for m, warps in options
        ]
    if examples > 1:
        found.append(replace(found[0], examples=examples // 2, warps=4))
    if result == "output" and not full_precision:
        found += _lambda_first_tiles(problem, heads, depth, values)
    return tuple(dict.fromkeys(found))


def _lambda_first_tiles(problem: Problem, heads: int, depth: int, values: int) -> list[Tile]:
    """Return tiles with lambdas of 128 columns (n k) and 128 or 256 rows (b v)."""
    found = []
    for rows in (128, 256):
        examples = next_power_of_2(max(1, problem.batch), most=rows // values)
        found.append(Tile(examples, heads, max(1, 128 // depth), 32, values, 8, first="values"))
    return found


@lru_cache(maxsize=4096)
def table_part_shape(problem: Problem, tile: Tile) -> tuple[int, ...]:
    """Return the shape of the partial sums of a table's gradient (`by_position.table_gradient_kernel`).

    Its axes are: parts of the batch, u, distances between patches (z, y, x), positions of the query patch and
    of the context patch, and k, rounded up.
    """
    down, across = patch_shape(problem.grid, tile.queries)
    size = kernel_sizes(problem)
    distances = (
        size["LZ"],
        _patch_distances(size["LY"], size["CY"], down),
        _patch_distances(size["LX"], size["CX"], across),
    )
    programs = problem.dim_u * math.prod(distances)
    parts = max(1, min(-(-problem.batch // tile.examples), -(-TABLE_PROGRAMS // programs)))
    depth = next_power_of_2(problem.dim_k, MIN_DOT_SIZE)
    return parts, problem.dim_u, *distances, tile.queries, tile.queries, depth


def _patch_distances(length: int, centre: int, side: int) -> int:
    """Return the number of distances, in patches, between query and context patches that share an entry.

    Args:
        length: Entries of the table on this axis.
        centre: Index of the entry of offset 0.
        side: Positions of a patch on this axis.
    """
    return -(-centre // side) + 1 - (-(length - 1 - centre) // side)


def kernel_sizes(problem: Problem) -> dict[str, int]:
    """Return a problem's sizes by the names of the Triton kernels' arguments.

    B, H, K, V, U are the problem's own. On each of the axes Z, Y, X there are N queries, M context elements
    and L entries of the table that some pair reads, of which entry C stands for offset 0. Problems with fewer
    than three axes have length 1 on the first ones.
    """
    p, context = problem, problem.context
    entries = context.reachable_entries()
    axes = {
        "N": context.grid,
        "M": context.key_grid,
        "L": [part.stop - part.start for part in entries],
        "C": [c - part.start for c, part in zip(context.centre, entries, strict=True)],
    }
    named = {"B": p.batch, "H": p.num_heads, "K": p.dim_k, "V": p.dim_v, "U": p.dim_u}
    for name, of_axes in axes.items():
        padded = [0 if name == "C" else 1] * (3 - len(of_axes)) + list(of_axes)
        named |= {name + axis: size for axis, size in zip("ZYX", padded, strict=True)}
    return named


def next_power_of_2(size: int, least: int = 1, most: int = 1 << 30) -> int:
    """Return the smallest power of two that is at least `size`, within limits that are powers of two."""
    return min(most, max(least, 1 << (size - 1).bit_length()))


@lru_cache(maxsize=4096)
def patch_shape(grid: tuple[int, ...], positions: int) -> tuple[int, int]:
    """Return the sides (y, x) of patches with this number of positions, a power of two.

    Of the shapes whose patches extend over the fewest positions beyond the borders, it is the squarest.
    """
    height, width = (1, *grid)[-2:]
    shapes = [(positions >> i, 1 << i) for i in range(positions.bit_length())]

    def waste(shape: tuple[int, int]) -> tuple[int, int]:
        """Return the positions that patches of a shape cover, and the sum of its sides."""
        down, across = shape
        return round_up(height, down) * round_up(width, across), down + across

    return min(shapes, key=waste)


def round_up(size: int, step: int) -> int:
    """Return the smallest multiple of `step` that is at least `size`."""
    return -(-size // step) * step
