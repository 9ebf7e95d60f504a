"""Indexing that the Triton kernels share: patches of a grid, their visible windows, tiles of tensors.

Every grid has three axes (z, y, x); problems with fewer axes have length 1 on the first ones. A patch is TY x
TX neighbouring positions in one plane, x fastest, given by its origin (z, y, x). Entry o + C on an axis of
the table stands for offset o = position(m) - position(n), and the table has L entries: a query at x sees the
context from x - C on, and a context element at x is seen by the queries from x - (L - 1 - C) on.

A tile is a block of a tensor: a tuple of the memory offsets of its elements from the tensor's pointer, in
elements, and a mask of those that exist. `strides` are those of the tensor's axes, `sizes` their lengths,
INDEX is the dtype of memory offsets. Letters of shapes: BN = TY * TX positions of a patch (BM for the
context), BB examples, BH heads, BD channels; "BB BH" is one merged axis.
"""

from __future__ import annotations

import triton
import triton.language as tl

ONE = tl.constexpr(1)  # a length or block size of 1 as a compile-time constant


@triton.jit
def masked_load(ptr, tile):
    """Load a tile, with zeros where its mask is False."""
    return tl.load(ptr + tile[0], mask=tile[1], other=0.0)


@triton.jit
def masked_store(ptr, tile, values):
    """Store values to a tile, in the dtype of its tensor, where its mask is True."""
    tl.store(ptr + tile[0], values.to(ptr.dtype.element_ty), mask=tile[1])


@triton.jit
def num_patches(grid, TY: tl.constexpr, TX: tl.constexpr):
    """Return the number of patches of a grid."""
    return grid[0] * tl.cdiv(grid[1], TY) * tl.cdiv(grid[2], TX)


@triton.jit
def patch_origin(i, grid, TY: tl.constexpr, TX: tl.constexpr):
    """Return the origin (z, y, x) of patch i of a grid."""
    across, down = tl.cdiv(grid[2], TX), tl.cdiv(grid[1], TY)
    return i // (across * down), i // across % down * TY, i % across * TX


@triton.jit
def output_block(
    grid, V, H, TY: tl.constexpr, TX: tl.constexpr, BV: tl.constexpr, BH: tl.constexpr, BB: tl.constexpr
):
    """Return the block of the output that this program writes: patch origin, first value, head, example."""
    i, rest = tl.program_id(0) % num_patches(grid, TY, TX), tl.program_id(0) // num_patches(grid, TY, TX)
    v0, rest = rest % tl.cdiv(V, BV) * BV, rest // tl.cdiv(V, BV)
    return patch_origin(i, grid, TY, TX), v0, rest % tl.cdiv(H, BH) * BH, rest // tl.cdiv(H, BH) * BB


@triton.jit
def visible_range(x, T: tl.constexpr, N, C, L, M):
    """Return the range (start, stop) that T positions, from x on, see on an axis of length M.

    The positions lie on an axis of length N. On this axis the table has L entries, and C is that of offset 0.
    """
    start = tl.maximum(0, x - C)
    return start, tl.maximum(start, tl.minimum(M, tl.minimum(x + T, N) - 1 - C + L))


@triton.jit
def visible_window(origin, grid, other_grid, table, centre, TY: tl.constexpr, TX: tl.constexpr):
    """Return the window (start z, y, x, stop z, y, x) of the other grid that a patch of this grid sees.

    Stops are exclusive. For a patch of the context, whose other grid is that of the queries, `centre` is
    mirrored: L - 1 - C.
    """
    z0, z1 = visible_range(origin[0], ONE, grid[0], centre[0], table[0], other_grid[0])
    y0, y1 = visible_range(origin[1], TY, grid[1], centre[1], table[1], other_grid[1])
    x0, x1 = visible_range(origin[2], TX, grid[2], centre[2], table[2], other_grid[2])
    return z0, y0, x0, z1, y1, x1


@triton.jit
def num_window_patches(window, TY: tl.constexpr, TX: tl.constexpr):
    """Return the number of patches that cover a window."""
    z0, y0, x0, z1, y1, x1 = window
    return (z1 - z0) * tl.cdiv(y1 - y0, TY) * tl.cdiv(x1 - x0, TX)


@triton.jit
def window_patch(i, window, TY: tl.constexpr, TX: tl.constexpr):
    """Return the round and the patch of step i of a loop that visits all patches of a window in every round.

    A round is one u, or one block of heads or of examples; the patch is given by its origin (z, y, x).
    """
    z0, y0, x0, z1, y1, x1 = window
    across, down = tl.cdiv(x1 - x0, TX), tl.cdiv(y1 - y0, TY)
    row = i // across
    plane = row // down
    round_ = plane // (z1 - z0)
    return round_, (z0 + plane % (z1 - z0), y0 + row % down * TY, x0 + i % across * TX)


@triton.jit
def patch_coords(i, origin, grid, TX: tl.constexpr):
    """Return the coordinates y and x of positions i of a patch, and a mask of those inside the grid."""
    y, x = origin[1] + i // TX, origin[2] + i % TX
    return y, x, (y < grid[1]) & (x < grid[2])


@triton.jit
def linear_index(z, y, x, grid, INDEX: tl.constexpr):
    """Return the row-major index of positions (z, y, x) in a grid."""
    return (z * grid[1] + y).to(INDEX) * grid[2] + x


@triton.jit
def position_tile(
    strides, b0, h0, origin, sizes, grid,
    BB: tl.constexpr, BH: tl.constexpr, TY: tl.constexpr, TX: tl.constexpr, BD: tl.constexpr,
    INDEX: tl.constexpr,
):  # fmt: skip
    """Return a patch of a tensor [b, h, n, d] as a tile [BN, BB BH, BD]: one matrix per position."""
    row, d = tl.arange(0, BB * BH), tl.arange(0, BD)  # [BB BH], [BD]
    b, h = b0 + row // BH, h0 + row % BH  # [BB BH]
    y, x, inside = patch_coords(tl.arange(0, TY * TX), origin, grid, TX)  # [BN]
    n = linear_index(origin[0], y, x, grid, INDEX)  # [BN]
    of_rows = (b.to(INDEX) * strides[0] + h.to(INDEX) * strides[1])[None, :, None]  # [1, BB BH, 1]
    offsets = of_rows + (n * strides[2])[:, None, None]  # [BN, BB BH, 1]
    exists = ((b < sizes[0]) & (h < sizes[1]))[None, :, None]  # [1, BB BH, 1]
    return (
        offsets + (d.to(INDEX) * strides[3])[None, None, :],  # [BN, BB BH, BD]
        inside[:, None, None] & exists & (d < sizes[2])[None, None, :],  # [BN, BB BH, BD]
    )


@triton.jit
def example_tile(
    strides, b0, h0, origin, d0, sizes, grid,
    BB: tl.constexpr, BH: tl.constexpr, TY: tl.constexpr, TX: tl.constexpr, BD: tl.constexpr,
    INDEX: tl.constexpr,
):  # fmt: skip
    """Return a patch of a tensor [b, h, n, d] as a tile [BB, BH BN, BD]: one matrix per example."""
    b, row, d = (
        b0 + tl.arange(0, BB),
        tl.arange(0, BH * TY * TX),
        d0 + tl.arange(0, BD),
    )  # [BB], [BH BN], [BD]
    h = h0 + row // (TY * TX)  # [BH BN]
    y, x, inside = patch_coords(row % (TY * TX), origin, grid, TX)  # [BH BN]
    n = linear_index(origin[0], y, x, grid, INDEX)  # [BH BN]
    of_rows = (h.to(INDEX) * strides[1] + n * strides[2])[None, :, None]  # [1, BH BN, 1]
    offsets = (b.to(INDEX) * strides[0])[:, None, None] + of_rows  # [BB, BH BN, 1]
    exists = (inside & (h < sizes[1]))[None, :, None]  # [1, BH BN, 1]
    return (
        offsets + (d.to(INDEX) * strides[3])[None, None, :],  # [BB, BH BN, BD]
        (b < sizes[0])[:, None, None] & exists & (d < sizes[2])[None, None, :],  # [BB, BH BN, BD]
    )


@triton.jit
def lambda_tile(
    strides, b0, v0, sizes, BB: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, INDEX: tl.constexpr
):
    """Return content lambdas [b, k, v] as a tile [BB, BK, BV]."""
    b, k, v = b0 + tl.arange(0, BB), tl.arange(0, BK), v0 + tl.arange(0, BV)  # [BB], [BK], [BV]
    # [BB, BK, 1]
    offsets = (b.to(INDEX) * strides[0])[:, None, None] + (k.to(INDEX) * strides[1])[None, :, None]
    exists = (b < sizes[0])[:, None, None] & (k < sizes[1])[None, :, None]  # [BB, BK, 1]
    return (
        offsets + (v.to(INDEX) * strides[2])[None, None, :],  # [BB, BK, BV]
        exists & (v < sizes[2])[None, None, :],  # [BB, BK, BV]
    )


@triton.jit
def entry_offsets(strides, oz, oy, ox, table, INDEX: tl.constexpr):
    """Return the memory offsets of a table's entries (oz, oy, ox), and a mask of those inside the table.

    oz is always inside: a patch has one plane, and its window only the planes that it sees.
    """
    inside = (oy >= 0) & (oy < table[1]) & (ox >= 0) & (ox < table[2])
    return oz.to(INDEX) * strides[0] + oy.to(INDEX) * strides[1] + ox.to(INDEX) * strides[2], inside


@triton.jit
def table_tile(
    strides, query_origin, context_origin, table, centre, K,
    NTY: tl.constexpr, NTX: tl.constexpr, MTY: tl.constexpr, MTX: tl.constexpr, BK: tl.constexpr,
    INDEX: tl.constexpr,
):  # fmt: skip
    """Return the table's entries for all pairs of a patch of queries and one of the context: [BN, BM, BK]."""
    n, m, k = tl.arange(0, NTY * NTX), tl.arange(0, MTY * MTX), tl.arange(0, BK)  # [BN], [BM], [BK]
    oz = context_origin[0] - query_origin[0] + centre[0]
    oy = (context_origin[1] + m // MTX + centre[1])[None, :] - (query_origin[1] + n // NTX)[
        :, None
    ]  # [BN, BM]
    ox = (context_origin[2] + m % MTX + centre[2])[None, :] - (query_origin[2] + n % NTX)[:, None]  # [BN, BM]
    offsets, inside = entry_offsets(strides, oz, oy, ox, table, INDEX)  # [BN, BM]
    return (
        offsets[:, :, None] + (k.to(INDEX) * strides[3])[None, None, :],  # [BN, BM, BK]
        inside[:, :, None] & (k < K)[None, None, :],  # [BN, BM, BK]
    )
