"""A Triton kernel that computes lambdas first, in registers, and applies them to the queries.

A program computes the position lambdas of a patch of queries, transposed: rows (b v), columns (n k). All its
examples share the embeddings of the columns.

Letters of shapes: BB examples, BH heads, BN = NTY * NTX queries, BM = MTY * MTX context elements, BK query
depth, BV value channels. `by_position` describes the arguments.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .indexing import (
    entry_offsets,
    linear_index,
    num_window_patches,
    output_block,
    patch_coords,
    visible_window,
    window_patch,
)


@triton.jit
def output_kernel(
    q, v, e, y, c,
    q_b, q_h, q_n, q_k, v_b, v_m, v_v, v_u, e_z, e_y, e_x, e_k, e_u, y_b, y_h, y_n, y_v, c_b, c_k, c_v,
    B, H, K, V, U, NZ, NY, NX, MZ, MY, MX, LZ, LY, LX, CZ, CY, CX,
    BB: tl.constexpr, BH: tl.constexpr, NTY: tl.constexpr, NTX: tl.constexpr, MTY: tl.constexpr,
    MTX: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, CONTENT: tl.constexpr, INDEX: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write y [b, h, n, v] for a patch of queries, BH heads, BV values and BB examples.

    If CONTENT, the content lambdas c [b, k, v] are added to the position lambdas.
    """
    BN: tl.constexpr = NTY * NTX
    BM: tl.constexpr = MTY * MTX
    grid, context_grid, table, centre = (NZ, NY, NX), (MZ, MY, MX), (LZ, LY, LX), (CZ, CY, CX)
    n, v0, h0, b0 = output_block(grid, V, H, NTY, NTX, BV, BH, BB)
    row, column = tl.arange(0, BB * BV), tl.arange(0, BN * BK)  # [BB BV], [BN BK]
    b, d, k = b0 + row // BV, v0 + row % BV, column % BK  # [BB BV], [BB BV], [BN BK]
    row_mask = (b < B) & (d < V)  # [BB BV]
    n_y, n_x, column_mask = patch_coords(column // BK, n, grid, NTX)  # [BN BK]
    column_mask &= k < K
    window = visible_window(n, grid, context_grid, table, centre, NTY, NTX)
    lambdas = tl.zeros([BB * BV, BN * BK], ACC)  # [BB BV, BN BK]
    for i in range(U * num_window_patches(window, MTY, MTX)):
        u, m = window_patch(i, window, MTY, MTX)
        m_y, m_x, m_mask = patch_coords(tl.arange(0, BM), m, context_grid, MTX)  # [BM]
        offsets = (b.to(INDEX) * v_b + d.to(INDEX) * v_v)[:, None]  # [BB BV, 1]
        offsets += (linear_index(m[0], m_y, m_x, context_grid, INDEX) * v_m)[None, :]  # [BB BV, BM]
        mask = row_mask[:, None] & m_mask[None, :]  # [BB BV, BM]
        values = tl.load(v + u.to(INDEX) * v_u + offsets, mask=mask, other=0.0)  # [BB BV, BM]
        o_y, o_x = m_y[:, None] - n_y[None, :] + CY, m_x[:, None] - n_x[None, :] + CX  # [BM, BN BK]
        # [BM, BN BK]
        offsets, inside = entry_offsets((e_z, e_y, e_x), m[0] - n[0] + CZ, o_y, o_x, table, INDEX)
        ptrs = e + u.to(INDEX) * e_u + offsets + (k.to(INDEX) * e_k)[None, :]  # [BM, BN BK]
        embeddings = tl.load(ptrs, mask=inside & column_mask[None, :], other=0.0)  # [BM, BN BK]
        lambdas += tl.dot(values, embeddings, input_precision=PRECISION, out_dtype=ACC)  # [BB BV, BN BK]
    if CONTENT:
        # [BB BV, BN BK]
        offsets = (b.to(INDEX) * c_b + d.to(INDEX) * c_v)[:, None] + (k.to(INDEX) * c_k)[None, :]
        mask = row_mask[:, None] & (k < K)[None, :]  # [BB BV, BN BK]
        lambdas += tl.load(c + offsets, mask=mask, other=0.0).to(ACC)  # [BB BV, BN BK]
    # One product serves the queries of all positions: a query has zeros where lambdas are of other positions.
    query = tl.arange(0, BH * BN)  # [BH BN]
    h, position = h0 + query // BN, query % BN  # [BH BN]
    q_y, q_x, query_mask = patch_coords(position, n, grid, NTX)  # [BH BN]
    query_mask &= h < H
    of_queries = h.to(INDEX) * q_h + linear_index(n[0], q_y, q_x, grid, INDEX) * q_n  # [BH BN]
    example = b0 + tl.arange(0, BB)  # [BB]
    offsets = (k.to(INDEX) * q_k)[:, None] + of_queries[None, :]  # [BN BK, BH BN]
    same_position = (column // BK)[:, None] == position[None, :]  # [BN BK, BH BN]
    mask = (k < K)[:, None] & query_mask[None, :] & same_position  # [BN BK, BH BN]
    queries = tl.load(
        q + (example.to(INDEX) * q_b)[:, None, None] + offsets[None, :, :],
        mask=(example < B)[:, None, None] & mask[None, :, :],
        other=0.0,
    )  # [BB, BN BK, BH BN]
    lambdas = tl.reshape(lambdas.to(q.dtype.element_ty), [BB, BV, BN * BK])  # [BB, BV, BN BK]
    applied = tl.dot(lambdas, queries, input_precision=PRECISION, out_dtype=ACC)  # [BB, BV, BH BN]
    of_outputs = h.to(INDEX) * y_h + linear_index(n[0], q_y, q_x, grid, INDEX) * y_n  # [BH BN]
    offsets = (b.to(INDEX) * y_b + d.to(INDEX) * y_v)[:, None] + of_outputs[None, :]  # [BB BV, BH BN]
    applied = tl.reshape(applied, [BB * BV, BH * BN])  # [BB BV, BH BN]
    mask = row_mask[:, None] & query_mask[None, :]  # [BB BV, BH BN]
    tl.store(y + offsets, applied.to(y.dtype.element_ty), mask=mask)  # [BB BV, BH BN]
