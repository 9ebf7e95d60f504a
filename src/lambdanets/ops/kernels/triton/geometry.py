"""A problem's sizes as programs take them: three axes, the first of length 1 where there are fewer."""

from __future__ import annotations

from functools import lru_cache

from ...problem import Problem


def sizes(problem: Problem) -> dict[str, int]:
    """What programs call a problem's sizes.

    Its own are B, H, K, V, U. On each of the axes Z, Y, X: N queries, M context elements, L entries of the
    table that some pair meets, of which entry C stands for offset 0.
    """
    p, context = problem, problem.context
    reach = context.reach()
    axes = {
        "N": context.grid,
        "M": context.key_grid,
        "L": [part.stop - part.start for part in reach],
        "C": [c - part.start for c, part in zip(context.centre, reach, strict=True)],
    }
    named = {"B": p.batch, "H": p.num_heads, "K": p.dim_k, "V": p.dim_v, "U": p.dim_u}
    for name, of_axes in axes.items():
        padded = [0 if name == "C" else 1] * (3 - len(of_axes)) + list(of_axes)
        named |= {name + axis: size for axis, size in zip("ZYX", padded, strict=True)}
    return named


def power(size: int, least: int = 1, most: int = 1 << 30) -> int:
    """The power of two that holds a size, within limits that are powers of two."""
    return min(most, max(least, 1 << (size - 1).bit_length()))


@lru_cache(maxsize=4096)
def patch(grid: tuple[int, ...], positions: int) -> tuple[int, int]:
    """So many neighbours (a power of two) down and across: the squarest of the fewest beyond the borders."""
    height, width = (1, *grid)[-2:]
    shapes = [(positions >> i, 1 << i) for i in range(positions.bit_length())]

    def waste(shape: tuple[int, int]) -> tuple[int, int]:
        down, across = shape
        return -(-height // down) * down * -(-width // across) * across, down + across

    return min(shapes, key=waste)


def apart(length: int, centre: int, side: int) -> int:
    """How far apart patches of queries and of the context can be on an axis of a table: so many distances."""
    return -(-centre // side) + 1 - (-(length - 1 - centre) // side)
