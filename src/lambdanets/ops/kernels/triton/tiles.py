"""What the programs share: tiles of queries, table and values, and the shift between offsets and elements.

A tile of queries is BN neighbours of one row of the grid for BH heads; its rows are (h x), heads first. A
tile of the context is BC rows of BN neighbours; its columns are (c x). Between them lie 2 BN - 1 offsets on
the second axis (2 BN, the last for nothing), so the tile of the table has (c o).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _of_query_rows(
    stride_h, stride_n, stride_d, y, x0, width, H, D, d0, BH: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr
):
    """Where rows (h x) for the queries x0 ... of row y are, and which of them there are."""
    row = tl.arange(0, BH * BN)
    h, x, d = row // BN, x0 + row % BN, d0 + tl.arange(0, BD)
    where = h.to(tl.int64) * stride_h + (y * width + x).to(tl.int64) * stride_n
    mask = (h < H) & (x < width)
    return where[:, None] + d[None, :] * stride_d, mask[:, None] & (d < D)[None, :]


@triton.jit
def query_rows(
    p, stride_h, stride_n, stride_d, y, x0, width, H, D, d0,
    BH: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Rows (h x) of q, or of the gradient of the output, for the queries x0 ... of row y; zero beyond."""
    where, mask = _of_query_rows(stride_h, stride_n, stride_d, y, x0, width, H, D, d0, BH, BN, BD)
    return tl.load(p + where, mask=mask, other=0.0)


@triton.jit
def store_query_rows(
    p, tile, stride_h, stride_n, stride_d, y, x0, width, H, D, d0,
    BH: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Write what `query_rows` would read."""
    where, mask = _of_query_rows(stride_h, stride_n, stride_d, y, x0, width, H, D, d0, BH, BN, BD)
    tl.store(p + where, tile.to(p.dtype.element_ty), mask=mask)


@triton.jit
def entries(
    e,
    stride_y,
    stride_x,
    stride_k,
    oy,
    ox,
    length_y,
    length_x,
    rows,
    K,
    BC: tl.constexpr,
    BO: tl.constexpr,
    BK: tl.constexpr,
):
    """Entries (c o) of the table, from (oy, ox): BC rows, of which the first `rows` count, of BO each."""
    entry, k = tl.arange(0, BC * BO), tl.arange(0, BK)
    c = entry // BO
    at_y, at_x = oy + c, ox + entry % BO
    mask = (at_y >= 0) & (at_y < length_y) & (at_x >= 0) & (at_x < length_x) & (c < rows)
    where = at_y.to(tl.int64) * stride_y + at_x.to(tl.int64) * stride_x
    return tl.load(
        e + where[:, None] + k[None, :] * stride_k, mask=mask[:, None] & (k < K)[None, :], other=0.0
    )


@triton.jit
def values(
    v, stride_m, stride_v, y, x0, height, width, V, v0, BC: tl.constexpr, BX: tl.constexpr, BV: tl.constexpr
):
    """Values (c x) of BC rows of the context from row y, BX each from x0; zero outside the grid."""
    element, d = tl.arange(0, BC * BX), v0 + tl.arange(0, BV)
    at_y, at_x = y + element // BX, x0 + element % BX
    mask = (at_y < height) & (at_x >= 0) & (at_x < width)
    where = (at_y * width + at_x).to(tl.int64) * stride_m
    return tl.load(
        v + where[:, None] + d[None, :] * stride_v, mask=mask[:, None] & (d < V)[None, :], other=0.0
    )


@triton.jit
def looked_up(p, column, ROWS: tl.constexpr, FROM: tl.constexpr):
    """A map of the shape of `column` from one of ROWS by FROM: of each row, what stands in those columns.

    Triton takes it through shared memory, there in blocks of 8 columns, 4 rows and 2 blocks by turns: row by
    row, the rows of a product's result would all be written to the same banks. (Given two axes, it makes 8
    shuffles per element of it.)
    """
    blocks = tl.permute(tl.reshape(p, [ROWS // 4, 4, FROM // 16, 2, 8]), (2, 0, 3, 1, 4))
    row = tl.arange(0, ROWS)[:, None]
    index = column // 16 * (ROWS * 16) + row // 4 * 64 + column // 8 % 2 * 32 + row % 4 * 8 + column % 8
    found = tl.gather(
        tl.reshape(blocks, [ROWS * FROM]), tl.reshape(index, [column.shape[0] * column.shape[1]]), 0
    )
    return tl.reshape(found, column.shape)


@triton.jit
def to_elements(p, BH: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr):
    """A map (h x) by offsets (c o) as one by context elements (c x): each row shifted by its query's x."""
    x, column = (tl.arange(0, BH * BN) % BN)[:, None], tl.arange(0, BC * BN)[None, :]
    return looked_up(p, column // BN * (2 * BN) + column % BN + (BN - 1) - x, BH * BN, BC * 2 * BN)


@triton.jit
def to_offsets(s, BH: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr):
    """The transpose of `to_elements`: a map by context elements as one by offsets, zero where it has none."""
    x, column = (tl.arange(0, BH * BN) % BN)[:, None], tl.arange(0, BC * 2 * BN)[None, :]
    element = column % (2 * BN) - (BN - 1) + x
    inside = (element >= 0) & (element < BN)
    return tl.where(
        inside, looked_up(s, column // (2 * BN) * BN + tl.where(inside, element, 0), BH * BN, BC * BN), 0.0
    )
