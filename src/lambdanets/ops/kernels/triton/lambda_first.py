"""Lambdas first, in registers: a product of values and embeddings, to which queries are applied.

A program forms the position lambdas of a patch of queries, transposed: rows (b v), columns (n k). The
columns need the same embeddings for all its examples.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .blocks import entry, instance, number, places, step, steps, window


@triton.jit
def output_program(
    q, v, e, y, c,
    q_b, q_h, q_n, q_k, v_b, v_m, v_v, v_u, e_z, e_y, e_x, e_k, e_u, y_b, y_h, y_n, y_v, c_b, c_k, c_v,
    B, H, K, V, U, NZ, NY, NX, MZ, MY, MX, LZ, LY, LX, CZ, CY, CX,
    BB: tl.constexpr, BH: tl.constexpr, NTY: tl.constexpr, NTX: tl.constexpr, MTY: tl.constexpr,
    MTX: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, CONTENT: tl.constexpr, INDEX: tl.constexpr,
    SUM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y (b h n v) for a patch of queries, BH heads, BV values, of BB examples.

    If CONTENT, content lambdas c (b k v) are added to the position lambdas.
    """
    BN: tl.constexpr = NTY * NTX
    BM: tl.constexpr = MTY * MTX
    grid, other, table, centre = (NZ, NY, NX), (MZ, MY, MX), (LZ, LY, LX), (CZ, CY, CX)
    n, v0, h0, b0 = instance(grid, V, H, NTY, NTX, BV, BH, BB)
    row, column = tl.arange(0, BB * BV), tl.arange(0, BN * BK)
    b, d, k = b0 + row // BV, v0 + row % BV, column % BK
    row_mask = (b < B) & (d < V)
    ny, nx, column_mask = places(column // BK, n, grid, NTX)
    column_mask &= k < K
    met = window(n, grid, other, table, centre, NTY, NTX)
    lambdas = tl.zeros([BB * BV, BN * BK], SUM)
    for i in range(U * steps(met, MTY, MTX)):
        u, m = step(i, met, MTY, MTX)
        my, mx, m_mask = places(tl.arange(0, BM), m, other, MTX)
        of_values = (b.to(INDEX) * v_b + d.to(INDEX) * v_v)[:, None]
        of_values += (number(m[0], my, mx, other, INDEX) * v_m)[None, :]
        values = tl.load(
            v + u.to(INDEX) * v_u + of_values, mask=row_mask[:, None] & m_mask[None, :], other=0.0
        )
        oy, ox = my[:, None] - ny[None, :] + CY, mx[:, None] - nx[None, :] + CX
        where, inside = entry((e_z, e_y, e_x), m[0] - n[0] + CZ, oy, ox, table, INDEX)
        some = tl.load(
            e + u.to(INDEX) * e_u + where + (k.to(INDEX) * e_k)[None, :],
            mask=inside & column_mask[None, :],
            other=0.0,
        )
        lambdas += tl.dot(values, some, input_precision=PRECISION, out_dtype=SUM)
    if CONTENT:
        of_content = (b.to(INDEX) * c_b + d.to(INDEX) * c_v)[:, None] + (k.to(INDEX) * c_k)[None, :]
        lambdas += tl.load(c + of_content, mask=row_mask[:, None] & (k < K)[None, :], other=0.0).to(SUM)
    # One product applies the queries of all positions: each to the lambdas of its own, zeros to the others'.
    of_head = tl.arange(0, BH * BN)
    h, own = h0 + of_head // BN, of_head % BN
    own_y, own_x, own_mask = places(own, n, grid, NTX)
    own_mask &= h < H
    of_own = h.to(INDEX) * q_h + number(n[0], own_y, own_x, grid, INDEX) * q_n
    example = b0 + tl.arange(0, BB)
    queries = tl.load(
        q
        + (example.to(INDEX) * q_b)[:, None, None]
        + ((k.to(INDEX) * q_k)[:, None] + of_own[None, :])[None, :, :],
        mask=(example < B)[:, None, None]
        & ((k < K)[:, None] & own_mask[None, :] & ((column // BK)[:, None] == own[None, :]))[None, :, :],
        other=0.0,
    )
    applied = tl.dot(
        tl.reshape(lambdas.to(q.dtype.element_ty), [BB, BV, BN * BK]),
        queries,
        input_precision=PRECISION,
        out_dtype=SUM,
    )
    of_own = h.to(INDEX) * y_h + number(n[0], own_y, own_x, grid, INDEX) * y_n
    tl.store(
        y + (b.to(INDEX) * y_b + d.to(INDEX) * y_v)[:, None] + of_own[None, :],
        tl.reshape(applied, [BB * BV, BH * BN]).to(y.dtype.element_ty),
        mask=row_mask[:, None] & own_mask[None, :],
    )
