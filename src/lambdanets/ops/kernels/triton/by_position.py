"""Triton kernels in the attention order: the map between queries and context is computed tile by tile.

For one position the queries of all heads and examples multiply the same embeddings, [b h, k] times [k, m];
for one example those of all heads and positions multiply the same values, [h n, m] times [m, v]. Between the
two products the map is transposed from [n, b h, m] to [b, h n, m], inside the program. The gradients are the
same two steps in another order, with the map q E or its gradient g v recomputed. Every sum belongs to one
program: there are no atomics, so results repeat bit for bit.

Letters of shapes: BB examples, BH heads, BN = NTY * NTX queries, BM = MTY * MTX context elements, BK query
depth, BV value channels, BO table entries. They are the sizes of a program's tile (`tiling.Tile`).

Arguments: pointers to tensors, their strides in elements (q_b is the stride of axis b of q), sizes
(`tiling.kernel_sizes`), and compile-time constants: the tile, CONTENT (whether c is given), INDEX (dtype of
memory offsets), ACC (dtype of sums) and PRECISION (of float32 products, "ieee" or "tf32").
"""

from __future__ import annotations

import triton
import triton.language as tl

from .indexing import (
    ONE,
    example_tile,
    lambda_tile,
    masked_load,
    masked_store,
    num_patches,
    num_window_patches,
    output_block,
    patch_origin,
    position_tile,
    table_tile,
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
    """Write y [b, h, n, v] for a patch of queries, BH heads, BV values and BB examples: (q E) times v.

    If CONTENT, add q times the content lambdas c [b, k, v].
    """
    BN: tl.constexpr = NTY * NTX
    BM: tl.constexpr = MTY * MTX
    grid, context_grid, table, centre = (NZ, NY, NX), (MZ, MY, MX), (LZ, LY, LX), (CZ, CY, CX)
    n, v0, h0, b0 = output_block(grid, V, H, NTY, NTX, BV, BH, BB)
    query_tile = position_tile((q_b, q_h, q_n, q_k), b0, h0, n, (B, H, K), grid, BB, BH, NTY, NTX, BK, INDEX)
    queries = masked_load(q, query_tile)  # [BN, BB BH, BK]
    window = visible_window(n, grid, context_grid, table, centre, NTY, NTX)
    acc = tl.zeros([BB, BH * BN, BV], ACC)  # [BB, BH BN, BV]
    for i in range(U * num_window_patches(window, MTY, MTX)):
        u, m = window_patch(i, window, MTY, MTX)
        embedding_tile = table_tile(
            (e_z, e_y, e_x, e_k), n, m, table, centre, K, NTY, NTX, MTY, MTX, BK, INDEX
        )
        embeddings = masked_load(e + u.to(INDEX) * e_u, embedding_tile)  # [BN, BM, BK]
        embeddings = tl.permute(embeddings, (0, 2, 1))  # [BN, BK, BM]
        pairs = tl.dot(queries, embeddings, input_precision=PRECISION, out_dtype=ACC)  # [BN, BB BH, BM]
        pairs = tl.permute(pairs.to(queries.dtype), (1, 0, 2))  # [BB BH, BN, BM]
        pairs = tl.reshape(pairs, [BB, BH * BN, BM])  # [BB, BH BN, BM]
        value_tile = example_tile(
            (v_b, 0, v_m, v_v), b0, 0, m, v0, (B, 1, V), context_grid, BB, ONE, MTY, MTX, BV, INDEX
        )
        values = masked_load(v + u.to(INDEX) * v_u, value_tile)  # [BB, BM, BV]
        acc += tl.dot(pairs, values, input_precision=PRECISION, out_dtype=ACC)  # [BB, BH BN, BV]
    if CONTENT:
        query_tile = example_tile(
            (q_b, q_h, q_n, q_k), b0, h0, n, 0, (B, H, K), grid, BB, BH, NTY, NTX, BK, INDEX
        )
        queries = masked_load(q, query_tile)  # [BB, BH BN, BK]
        content_tile = lambda_tile((c_b, c_k, c_v), b0, v0, (B, K, V), BB, BK, BV, INDEX)
        lambdas = masked_load(c, content_tile)  # [BB, BK, BV]
        acc += tl.dot(queries, lambdas, input_precision=PRECISION, out_dtype=ACC)  # [BB, BH BN, BV]
    output_tile = example_tile(
        (y_b, y_h, y_n, y_v), b0, h0, n, v0, (B, H, V), grid, BB, BH, NTY, NTX, BV, INDEX
    )
    masked_store(y, output_tile, acc)  # [BB, BH BN, BV]


@triton.jit
def query_gradient_kernel(
    g, v, e, dq, c,
    g_b, g_h, g_n, g_v, v_b, v_m, v_v, v_u, e_z, e_y, e_x, e_k, e_u, q_b, q_h, q_n, q_k, c_b, c_k, c_v,
    B, H, K, V, U, NZ, NY, NX, MZ, MY, MX, LZ, LY, LX, CZ, CY, CX,
    BB: tl.constexpr, BH: tl.constexpr, NTY: tl.constexpr, NTX: tl.constexpr, MTY: tl.constexpr,
    MTX: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, CONTENT: tl.constexpr, INDEX: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write dq [b, h, n, k] for a patch of queries, BH heads and BB examples: (g v) times E.

    If CONTENT, add g times the transposed content lambdas c [b, k, v].
    """
    BN: tl.constexpr = NTY * NTX
    BM: tl.constexpr = MTY * MTX
    grid, context_grid, table, centre = (NZ, NY, NX), (MZ, MY, MX), (LZ, LY, LX), (CZ, CY, CX)
    n, _, h0, b0 = output_block(grid, ONE, H, NTY, NTX, BV, BH, BB)
    window = visible_window(n, grid, context_grid, table, centre, NTY, NTX)
    acc = tl.zeros([BN, BB * BH, BK], ACC)  # [BN, BB BH, BK]
    for v0 in range(0, V, BV):
        upstream_tile = example_tile(
            (g_b, g_h, g_n, g_v), b0, h0, n, v0, (B, H, V), grid, BB, BH, NTY, NTX, BV, INDEX
        )
        upstream = masked_load(g, upstream_tile)  # [BB, BH BN, BV]
        for i in range(U * num_window_patches(window, MTY, MTX)):
            u, m = window_patch(i, window, MTY, MTX)
            value_tile = example_tile(
                (v_b, 0, v_m, v_v), b0, 0, m, v0, (B, 1, V), context_grid, BB, ONE, MTY, MTX, BV, INDEX
            )
            values = masked_load(v + u.to(INDEX) * v_u, value_tile)  # [BB, BM, BV]
            values = tl.permute(values, (0, 2, 1))  # [BB, BV, BM]
            pairs = tl.dot(upstream, values, input_precision=PRECISION, out_dtype=ACC)  # [BB, BH BN, BM]
            pairs = tl.reshape(pairs.to(upstream.dtype), [BB * BH, BN, BM])  # [BB BH, BN, BM]
            pairs = tl.permute(pairs, (1, 0, 2))  # [BN, BB BH, BM]
            embedding_tile = table_tile(
                (e_z, e_y, e_x, e_k), n, m, table, centre, K, NTY, NTX, MTY, MTX, BK, INDEX
            )
            embeddings = masked_load(e + u.to(INDEX) * e_u, embedding_tile)  # [BN, BM, BK]
            acc += tl.dot(pairs, embeddings, input_precision=PRECISION, out_dtype=ACC)  # [BN, BB BH, BK]
        if CONTENT:
            content_tile = lambda_tile((c_b, c_k, c_v), b0, v0, (B, K, V), BB, BK, BV, INDEX)
            lambdas = tl.permute(masked_load(c, content_tile), (0, 2, 1))  # [BB, BV, BK]
            part = tl.dot(upstream, lambdas, input_precision=PRECISION, out_dtype=ACC)  # [BB, BH BN, BK]
            part = tl.reshape(part, [BB * BH, BN, BK])  # [BB BH, BN, BK]
            acc += tl.permute(part, (1, 0, 2))  # [BN, BB BH, BK]
    gradient_tile = position_tile(
        (q_b, q_h, q_n, q_k), b0, h0, n, (B, H, K), grid, BB, BH, NTY, NTX, BK, INDEX
    )
    masked_store(dq, gradient_tile, acc)  # [BN, BB BH, BK]


@triton.jit
def value_gradient_kernel(
    g, q, e, dv,
    g_b, g_h, g_n, g_v, q_b, q_h, q_n, q_k, e_z, e_y, e_x, e_k, e_u, v_b, v_m, v_v, v_u,
    B, H, K, V, U, NZ, NY, NX, MZ, MY, MX, LZ, LY, LX, CZ, CY, CX,
    BB: tl.constexpr, BH: tl.constexpr, NTY: tl.constexpr, NTX: tl.constexpr, MTY: tl.constexpr,
    MTX: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Write dv [b, m, v, u] for a patch of the context, one u, BV values, BB examples: (q E)^T times g."""
    BN: tl.constexpr = NTY * NTX
    BM: tl.constexpr = MTY * MTX
    grid, context_grid, table, centre = (NZ, NY, NX), (MZ, MY, MX), (LZ, LY, LX), (CZ, CY, CX)
    rest = tl.program_id(0) // num_patches(context_grid, MTY, MTX)
    m = patch_origin(tl.program_id(0) % num_patches(context_grid, MTY, MTX), context_grid, MTY, MTX)
    v0, rest = rest % tl.cdiv(V, BV) * BV, rest // tl.cdiv(V, BV)
    u, b0 = rest % U, rest // U * BB
    mirrored = (LZ - 1 - CZ, LY - 1 - CY, LX - 1 - CX)
    window = visible_window(m, context_grid, grid, table, mirrored, MTY, MTX)
    acc = tl.zeros([BB, BM, BV], ACC)  # [BB, BM, BV]
    for i in range(tl.cdiv(H, BH) * num_window_patches(window, NTY, NTX)):
        heads, n = window_patch(i, window, NTY, NTX)
        h0 = heads * BH
        query_tile = position_tile(
            (q_b, q_h, q_n, q_k), b0, h0, n, (B, H, K), grid, BB, BH, NTY, NTX, BK, INDEX
        )
        queries = masked_load(q, query_tile)  # [BN, BB BH, BK]
        embedding_tile = table_tile(
            (e_z, e_y, e_x, e_k), n, m, table, centre, K, NTY, NTX, MTY, MTX, BK, INDEX
        )
        embeddings = masked_load(e + u.to(INDEX) * e_u, embedding_tile)  # [BN, BM, BK]
        embeddings = tl.permute(embeddings, (0, 2, 1))  # [BN, BK, BM]
        pairs = tl.dot(queries, embeddings, input_precision=PRECISION, out_dtype=ACC)  # [BN, BB BH, BM]
        pairs = tl.reshape(pairs.to(queries.dtype), [BN, BB, BH, BM])  # [BN, BB, BH, BM]
        pairs = tl.permute(pairs, (1, 3, 2, 0))  # [BB, BM, BH, BN]
        upstream_tile = example_tile(
            (g_b, g_h, g_n, g_v), b0, h0, n, v0, (B, H, V), grid, BB, BH, NTY, NTX, BV, INDEX
        )
        upstream = masked_load(g, upstream_tile)  # [BB, BH BN, BV]
        pairs = tl.reshape(pairs, [BB, BM, BH * BN])  # [BB, BM, BH BN]
        acc += tl.dot(pairs, upstream, input_precision=PRECISION, out_dtype=ACC)  # [BB, BM, BV]
    gradient_tile = example_tile(
        (v_b, 0, v_m, v_v), b0, 0, m, v0, (B, 1, V), context_grid, BB, ONE, MTY, MTX, BV, INDEX
    )
    masked_store(dv + u.to(INDEX) * v_u, gradient_tile, acc)  # [BB, BM, BV]


@triton.jit
def patch_distances(L, C, T: tl.constexpr):
    """Return, on one axis, how many patch distances with table entries are negative, and how many there are.

    The distance of a query patch and a context patch is counted in patches; T is the length of a patch.
    """
    before = tl.cdiv(C, T)
    return before, before + 1 + tl.cdiv(L - 1 - C, T)


@triton.jit
def patch_range(j, N, M, T: tl.constexpr):
    """Return, on one axis, the range of the query patches with a context patch j patches further on.

    The range is (start, stop) in positions, multiples of the patch's length T.
    """
    return tl.maximum(0, -j) * T, tl.minimum(tl.cdiv(N, T), tl.cdiv(M, T) - j) * T


@triton.jit
def table_gradient_kernel(
    g, q, v, parts,
    g_b, g_h, g_n, g_v, q_b, q_h, q_n, q_k, v_b, v_m, v_v, v_u,
    PARTS, B, H, K, V, U, NZ, NY, NX, MZ, MY, MX, LZ, LY, LX, CZ, CY, CX,
    BB: tl.constexpr, BH: tl.constexpr, NTY: tl.constexpr, NTX: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write partial sums of the table's gradient, for patches at a distance (oz - CZ, jy, jx), to `parts`.

    Patches of queries and of the context have the same shape. The offset between position a of a query patch
    and position c of a context patch depends on their distance alone, so the gradient of the embedding
    between them, (g v) times q, is summed over all such patches and over examples and heads: [a, c, k].
    `table_sum_kernel` then sums the pairs (a, c) of each offset.
    """
    BN: tl.constexpr = NTY * NTX
    grid, context_grid = (NZ, NY, NX), (MZ, MY, MX)
    before_y, down = patch_distances(LY, CY, NTY)
    before_x, across = patch_distances(LX, CX, NTX)
    rest = tl.program_id(0)
    jx, rest = rest % across - before_x, rest // across
    jy, rest = rest % down - before_y, rest // down
    oz, rest = rest % LZ, rest // LZ
    u, part = rest % U, rest // U
    z0, z1 = tl.maximum(0, CZ - oz), tl.minimum(NZ, MZ + CZ - oz)
    y0, y1 = patch_range(jy, NY, MY, NTY)
    x0, x1 = patch_range(jx, NX, MX, NTX)
    window = (z0, y0, x0, z1, y1, x1)
    rounds = tl.cdiv(tl.cdiv(B, BB) - part, PARTS) * tl.cdiv(H, BH)
    acc = tl.zeros([BN, BN, BK], ACC)  # [BN, BN, BK]
    for v0 in range(0, V, BV):
        for i in range(rounds * num_window_patches(window, NTY, NTX)):
            round_, n = window_patch(i, window, NTY, NTX)
            h0, b0 = round_ % tl.cdiv(H, BH) * BH, (part + round_ // tl.cdiv(H, BH) * PARTS) * BB
            upstream_tile = example_tile(
                (g_b, g_h, g_n, g_v), b0, h0, n, v0, (B, H, V), grid, BB, BH, NTY, NTX, BV, INDEX
            )
            upstream = masked_load(g, upstream_tile)  # [BB, BH BN, BV]
            m = (n[0] + oz - CZ, n[1] + jy * NTY, n[2] + jx * NTX)
            value_tile = example_tile(
                (v_b, 0, v_m, v_v), b0, 0, m, v0, (B, 1, V), context_grid, BB, ONE, NTY, NTX, BV, INDEX
            )
            values = masked_load(v + u.to(INDEX) * v_u, value_tile)  # [BB, BN, BV]
            values = tl.permute(values, (0, 2, 1))  # [BB, BV, BN]
            pairs = tl.dot(upstream, values, input_precision=PRECISION, out_dtype=ACC)  # [BB, BH BN, BN]
            pairs = tl.reshape(pairs.to(upstream.dtype), [BB * BH, BN, BN])  # [BB BH, BN, BN]
            pairs = tl.permute(pairs, (1, 2, 0))  # [BN, BN, BB BH]
            query_tile = position_tile(
                (q_b, q_h, q_n, q_k), b0, h0, n, (B, H, K), grid, BB, BH, NTY, NTX, BK, INDEX
            )
            queries = masked_load(q, query_tile)  # [BN, BB BH, BK]
            acc += tl.dot(pairs, queries, input_precision=PRECISION, out_dtype=ACC)  # [BN, BN, BK]
    a, k = tl.arange(0, BN), tl.arange(0, BK)  # [BN], [BK]
    offsets = (a[:, None] * BN + a[None, :])[:, :, None] * BK + k[None, None, :]  # [BN, BN, BK]
    tl.store(parts + tl.program_id(0).to(INDEX) * (BN * BN * BK) + offsets, acc)  # [BN, BN, BK]


@triton.jit
def table_sum_kernel(
    parts, de,
    e_z, e_y, e_x, e_k, e_u,
    PARTS, K, U, LZ, LY, LX, CY, CX,
    NTY: tl.constexpr, NTX: tl.constexpr, BO: tl.constexpr, BK: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Write de for BO entries along x: `parts`, summed over the pairs of an offset and parts of the batch."""
    BN: tl.constexpr = NTY * NTX
    before_y, down = patch_distances(LY, CY, NTY)
    before_x, across = patch_distances(LX, CX, NTX)
    rest = tl.program_id(0)
    o0, rest = rest % tl.cdiv(LX, BO) * BO, rest // tl.cdiv(LX, BO)
    oy, rest = rest % LY, rest // LY
    oz, u = rest % LZ, rest // LZ
    ox, a, k = o0 + tl.arange(0, BO), tl.arange(0, BN), tl.arange(0, BK)  # [BO], [BN], [BK]
    # The context element at this offset from position a of a query patch: its patch, as a distance (jy, jx)
    # counted from the first one, and its position c in that patch.
    at_y = oy - CY + before_y * NTY + a // NTX  # [BN]
    at_x = (ox - CX + before_x * NTX)[:, None] + (a % NTX)[None, :]  # [BO, BN]
    jy, jx = at_y // NTY, at_x // NTX  # [BN], [BO, BN]
    c = (at_y % NTY * NTX)[None, :] + at_x % NTX  # [BO, BN]
    mask = (ox < LX)[:, None] & (k < K)[None, :]  # [BO, BK]
    acc = tl.zeros([BO, BK], parts.dtype.element_ty)  # [BO, BK]
    for part in range(PARTS):
        row = (((part * U + u) * LZ + oz) * down + jy).to(INDEX)[None, :]  # [1, BN]
        offsets = ((row * across + jx) * BN + a[None, :]) * BN + c  # [BO, BN]
        offsets = offsets[:, :, None] * BK + k[None, None, :]  # [BO, BN, BK]
        pairs = tl.load(parts + offsets, mask=mask[:, None, :], other=0.0)  # [BO, BN, BK]
        acc += tl.sum(pairs, 1)  # [BO, BK]
    row = oz.to(INDEX) * e_z + oy.to(INDEX) * e_y + u.to(INDEX) * e_u
    offsets = row + (ox.to(INDEX) * e_x)[:, None] + (k.to(INDEX) * e_k)[None, :]  # [BO, BK]
    tl.store(de + offsets, acc.to(de.dtype.element_ty), mask=mask)  # [BO, BK]
