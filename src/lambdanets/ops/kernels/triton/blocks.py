"""What the programs share: patches of positions, what they see of the other grid, and tiles of tensors.

Every grid has three axes (z, y, x), the first ones of length 1 where a problem has fewer. A patch is TY x TX
neighbours in one plane, x fastest. Entry o + C of a table's axis stands for offset o = position(m) -
position(n), and the table has L entries: a query at x sees the context from x - C on, and a context element
at x is seen by queries from x - (L - 1 - C) on.

A tile is a block of a tensor of three axes: by position (n, b h, d), or by example (b, h n, d).
"""

from __future__ import annotations

import triton
import triton.language as tl

ONE = tl.constexpr(1)


@triton.jit
def read(p, at):
    """A tile: `at` are its places and which of them there are; zero elsewhere."""
    return tl.load(p + at[0], mask=at[1], other=0.0)


@triton.jit
def write(p, at, tile):
    """Write a tile to the places that there are."""
    tl.store(p + at[0], tile.to(p.dtype.element_ty), mask=at[1])


@triton.jit
def corner(i, grid, TY: tl.constexpr, TX: tl.constexpr):
    """Where patch i of a grid (z, y, x) begins."""
    across, down = tl.cdiv(grid[2], TX), tl.cdiv(grid[1], TY)
    return i // (across * down), i // across % down * TY, i % across * TX


@triton.jit
def patches(grid, TY: tl.constexpr, TX: tl.constexpr):
    """How many patches a grid has."""
    return grid[0] * tl.cdiv(grid[1], TY) * tl.cdiv(grid[2], TX)


@triton.jit
def instance(
    grid, V, H, TY: tl.constexpr, TX: tl.constexpr, BV: tl.constexpr, BH: tl.constexpr, BB: tl.constexpr
):
    """What this instance of a program writes: where its patch begins, its first value, head and example."""
    at, rest = tl.program_id(0) % patches(grid, TY, TX), tl.program_id(0) // patches(grid, TY, TX)
    v0, rest = rest % tl.cdiv(V, BV) * BV, rest // tl.cdiv(V, BV)
    return corner(at, grid, TY, TX), v0, rest % tl.cdiv(H, BH) * BH, rest // tl.cdiv(H, BH) * BB


@triton.jit
def seen(x, T: tl.constexpr, N, C, L, M):
    """What x ... x + T - 1 of an axis of length N see of one of length M: first, and one past the last."""
    start = tl.maximum(0, x - C)
    return start, tl.maximum(start, tl.minimum(M, tl.minimum(x + T, N) - 1 - C + L))


@triton.jit
def window(at, grid, other, table, centre, TY: tl.constexpr, TX: tl.constexpr):
    """What the patch that begins at (z, y, x) sees of the other grid: first places, and one past the last."""
    z0, z1 = seen(at[0], ONE, grid[0], centre[0], table[0], other[0])
    y0, y1 = seen(at[1], TY, grid[1], centre[1], table[1], other[1])
    x0, x1 = seen(at[2], TX, grid[2], centre[2], table[2], other[2])
    return z0, y0, x0, z1, y1, x1


@triton.jit
def steps(window, TY: tl.constexpr, TX: tl.constexpr):
    """How many patches cover a window."""
    z0, y0, x0, z1, y1, x1 = window
    return (z1 - z0) * tl.cdiv(y1 - y0, TY) * tl.cdiv(x1 - x0, TX)


@triton.jit
def step(i, window, TY: tl.constexpr, TX: tl.constexpr):
    """Step i through a window, patch by patch, round by round: rounds done, and where the patch begins."""
    z0, y0, x0, z1, y1, x1 = window
    across, down = tl.cdiv(x1 - x0, TX), tl.cdiv(y1 - y0, TY)
    of_plane = i // across
    of_window = of_plane // down
    done = of_window // (z1 - z0)
    return done, (z0 + of_window % (z1 - z0), y0 + of_plane % down * TY, x0 + i % across * TX)


@triton.jit
def places(i, at, grid, TX: tl.constexpr):
    """Positions i of the patch that begins at (z, y, x): their y, their x, and which are in the grid."""
    y, x = at[1] + i // TX, at[2] + i % TX
    return y, x, (y < grid[1]) & (x < grid[2])


@triton.jit
def number(z, y, x, grid, INDEX: tl.constexpr):
    """A position as a number, row-major."""
    return (z * grid[1] + y).to(INDEX) * grid[2] + x


@triton.jit
def by_position(
    strides, b0, h0, at, sizes, grid,
    BB: tl.constexpr, BH: tl.constexpr, TY: tl.constexpr, TX: tl.constexpr, BD: tl.constexpr,
    INDEX: tl.constexpr,
):  # fmt: skip
    """The tile (n, b h, d) of a patch of queries: its places in a tensor (b h n d), and which there are."""
    row, d = tl.arange(0, BB * BH), tl.arange(0, BD)
    b, h = b0 + row // BH, h0 + row % BH
    y, x, mask = places(tl.arange(0, TY * TX), at, grid, TX)
    n = number(at[0], y, x, grid, INDEX)
    where = (b.to(INDEX) * strides[0] + h.to(INDEX) * strides[1])[None, :, None] + (n * strides[2])[
        :, None, None
    ]
    return (
        where + (d.to(INDEX) * strides[3])[None, None, :],
        mask[:, None, None]
        & ((b < sizes[0]) & (h < sizes[1]))[None, :, None]
        & (d < sizes[2])[None, None, :],
    )


@triton.jit
def by_example(
    strides, b0, h0, at, d0, sizes, grid,
    BB: tl.constexpr, BH: tl.constexpr, TY: tl.constexpr, TX: tl.constexpr, BD: tl.constexpr,
    INDEX: tl.constexpr,
):  # fmt: skip
    """The tile (b, h n, d) of a patch of positions: its places in a tensor (b h n d), and which there are."""
    b, row, d = b0 + tl.arange(0, BB), tl.arange(0, BH * TY * TX), d0 + tl.arange(0, BD)
    h = h0 + row // (TY * TX)
    y, x, mask = places(row % (TY * TX), at, grid, TX)
    n = number(at[0], y, x, grid, INDEX)
    where = (b.to(INDEX) * strides[0])[:, None, None] + (h.to(INDEX) * strides[1] + n * strides[2])[
        None, :, None
    ]
    return (
        where + (d.to(INDEX) * strides[3])[None, None, :],
        (b < sizes[0])[:, None, None]
        & (mask & (h < sizes[1]))[None, :, None]
        & (d < sizes[2])[None, None, :],
    )


@triton.jit
def of_lambdas(
    strides, b0, v0, sizes, BB: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, INDEX: tl.constexpr
):
    """The tile (b, k, v) of content lambdas: its places, and which there are."""
    b, k, v = b0 + tl.arange(0, BB), tl.arange(0, BK), v0 + tl.arange(0, BV)
    where = (b.to(INDEX) * strides[0])[:, None, None] + (k.to(INDEX) * strides[1])[None, :, None]
    return (
        where + (v.to(INDEX) * strides[2])[None, None, :],
        (b < sizes[0])[:, None, None] & (k < sizes[1])[None, :, None] & (v < sizes[2])[None, None, :],
    )


@triton.jit
def entry(strides, oz, oy, ox, table, INDEX: tl.constexpr):
    """The places of entries (oz, oy, ox) of a table, and which there are; oz always is."""
    inside = (oy >= 0) & (oy < table[1]) & (ox >= 0) & (ox < table[2])
    return oz.to(INDEX) * strides[0] + oy.to(INDEX) * strides[1] + ox.to(INDEX) * strides[2], inside


@triton.jit
def entries(
    strides, of_queries, of_context, table, centre, K,
    NTY: tl.constexpr, NTX: tl.constexpr, MTY: tl.constexpr, MTX: tl.constexpr, BK: tl.constexpr,
    INDEX: tl.constexpr,
):  # fmt: skip
    """The tile (n, m, k) of a table between patches that begin at two places (z, y, x)."""
    n, m, k = tl.arange(0, NTY * NTX), tl.arange(0, MTY * MTX), tl.arange(0, BK)
    oz = of_context[0] - of_queries[0] + centre[0]
    oy = (of_context[1] + m // MTX + centre[1])[None, :] - (of_queries[1] + n // NTX)[:, None]
    ox = (of_context[2] + m % MTX + centre[2])[None, :] - (of_queries[2] + n % NTX)[:, None]
    where, inside = entry(strides, oz, oy, ox, table, INDEX)
    return (
        where[:, :, None] + (k.to(INDEX) * strides[3])[None, None, :],
        inside[:, :, None] & (k < K)[None, None, :],
    )
