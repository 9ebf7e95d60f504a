"""Attention order by positions: the map between queries and context is formed one position at a time.

For one position the queries of all heads and examples meet the same embeddings, (b h) k times k m; for one
example those of all heads and positions meet the same values, (h n) m times m v. Between the two products the
map is turned from n (b h) m to b (h n) m, inside the program. The gradients are the same two steps in another
order, with the map q E or its gradient g v formed again. Every sum belongs to one program: no atomics, the
same bits every time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .blocks import (
    ONE,
    by_example,
    by_position,
    corner,
    entries,
    instance,
    of_lambdas,
    patches,
    read,
    step,
    steps,
    window,
    write,
)


@triton.jit
def output_program(
    q, v, e, y, c,
    q_b, q_h, q_n, q_k, v_b, v_m, v_v, v_u, e_z, e_y, e_x, e_k, e_u, y_b, y_h, y_n, y_v, c_b, c_k, c_v,
    B, H, K, V, U, NZ, NY, NX, MZ, MY, MX, LZ, LY, LX, CZ, CY, CX,
    BB: tl.constexpr, BH: tl.constexpr, NTY: tl.constexpr, NTX: tl.constexpr, MTY: tl.constexpr,
    MTX: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, CONTENT: tl.constexpr, INDEX: tl.constexpr,
    SUM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y (b h n v) for a patch of queries, BH heads, BV values, of BB examples: (q E) turned, times v.

    And, if CONTENT, q times content lambdas c (b k v).
    """
    BN: tl.constexpr = NTY * NTX
    BM: tl.constexpr = MTY * MTX
    grid, other, table, centre = (NZ, NY, NX), (MZ, MY, MX), (LZ, LY, LX), (CZ, CY, CX)
    n, v0, h0, b0 = instance(grid, V, H, NTY, NTX, BV, BH, BB)
    at = by_position((q_b, q_h, q_n, q_k), b0, h0, n, (B, H, K), grid, BB, BH, NTY, NTX, BK, INDEX)
    queries = read(q, at)
    met = window(n, grid, other, table, centre, NTY, NTX)
    total = tl.zeros([BB, BH * BN, BV], SUM)
    for i in range(U * steps(met, MTY, MTX)):
        u, m = step(i, met, MTY, MTX)
        of_pairs = entries((e_z, e_y, e_x, e_k), n, m, table, centre, K, NTY, NTX, MTY, MTX, BK, INDEX)
        some = read(e + u.to(INDEX) * e_u, of_pairs)
        pairs = tl.dot(queries, tl.permute(some, (0, 2, 1)), input_precision=PRECISION, out_dtype=SUM)
        turned = tl.reshape(tl.permute(pairs.to(queries.dtype), (1, 0, 2)), [BB, BH * BN, BM])
        of_context = by_example(
            (v_b, 0, v_m, v_v), b0, 0, m, v0, (B, 1, V), other, BB, ONE, MTY, MTX, BV, INDEX
        )
        values = read(v + u.to(INDEX) * v_u, of_context)
        total += tl.dot(turned, values, input_precision=PRECISION, out_dtype=SUM)
    if CONTENT:
        at = by_example((q_b, q_h, q_n, q_k), b0, h0, n, 0, (B, H, K), grid, BB, BH, NTY, NTX, BK, INDEX)
        lambdas = read(c, of_lambdas((c_b, c_k, c_v), b0, v0, (B, K, V), BB, BK, BV, INDEX))
        total += tl.dot(read(q, at), lambdas, input_precision=PRECISION, out_dtype=SUM)
    of_output = by_example((y_b, y_h, y_n, y_v), b0, h0, n, v0, (B, H, V), grid, BB, BH, NTY, NTX, BV, INDEX)
    write(y, of_output, total)


@triton.jit
def query_gradient_program(
    g, v, e, dq, c,
    g_b, g_h, g_n, g_v, v_b, v_m, v_v, v_u, e_z, e_y, e_x, e_k, e_u, q_b, q_h, q_n, q_k, c_b, c_k, c_v,
    B, H, K, V, U, NZ, NY, NX, MZ, MY, MX, LZ, LY, LX, CZ, CY, CX,
    BB: tl.constexpr, BH: tl.constexpr, NTY: tl.constexpr, NTX: tl.constexpr, MTY: tl.constexpr,
    MTX: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, CONTENT: tl.constexpr, INDEX: tl.constexpr,
    SUM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq (b h n k) for a patch of queries, BH heads, of BB examples: (g v) turned, times E.

    And, if CONTENT, g times content lambdas c (b k v), transposed.
    """
    BN: tl.constexpr = NTY * NTX
    BM: tl.constexpr = MTY * MTX
    grid, other, table, centre = (NZ, NY, NX), (MZ, MY, MX), (LZ, LY, LX), (CZ, CY, CX)
    n, _, h0, b0 = instance(grid, ONE, H, NTY, NTX, BV, BH, BB)
    met = window(n, grid, other, table, centre, NTY, NTX)
    total = tl.zeros([BN, BB * BH, BK], SUM)
    for v0 in range(0, V, BV):
        of_output = by_example(
            (g_b, g_h, g_n, g_v), b0, h0, n, v0, (B, H, V), grid, BB, BH, NTY, NTX, BV, INDEX
        )
        upstream = read(g, of_output)
        for i in range(U * steps(met, MTY, MTX)):
            u, m = step(i, met, MTY, MTX)
            of_context = by_example(
                (v_b, 0, v_m, v_v), b0, 0, m, v0, (B, 1, V), other, BB, ONE, MTY, MTX, BV, INDEX
            )
            values = read(v + u.to(INDEX) * v_u, of_context)
            pairs = tl.dot(upstream, tl.permute(values, (0, 2, 1)), input_precision=PRECISION, out_dtype=SUM)
            turned = tl.permute(tl.reshape(pairs.to(upstream.dtype), [BB * BH, BN, BM]), (1, 0, 2))
            of_pairs = entries((e_z, e_y, e_x, e_k), n, m, table, centre, K, NTY, NTX, MTY, MTX, BK, INDEX)
            some = read(e + u.to(INDEX) * e_u, of_pairs)
            total += tl.dot(turned, some, input_precision=PRECISION, out_dtype=SUM)
        if CONTENT:
            lambdas = read(c, of_lambdas((c_b, c_k, c_v), b0, v0, (B, K, V), BB, BK, BV, INDEX))
            own = tl.dot(upstream, tl.permute(lambdas, (0, 2, 1)), input_precision=PRECISION, out_dtype=SUM)
            total += tl.permute(tl.reshape(own, [BB * BH, BN, BK]), (1, 0, 2))
    at = by_position((q_b, q_h, q_n, q_k), b0, h0, n, (B, H, K), grid, BB, BH, NTY, NTX, BK, INDEX)
    write(dq, at, total)


@triton.jit
def value_gradient_program(
    g, q, e, dv,
    g_b, g_h, g_n, g_v, q_b, q_h, q_n, q_k, e_z, e_y, e_x, e_k, e_u, v_b, v_m, v_v, v_u,
    B, H, K, V, U, NZ, NY, NX, MZ, MY, MX, LZ, LY, LX, CZ, CY, CX,
    BB: tl.constexpr, BH: tl.constexpr, NTY: tl.constexpr, NTX: tl.constexpr, MTY: tl.constexpr,
    MTX: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, INDEX: tl.constexpr, SUM: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dv (b m v u) for a patch of the context, BV values, of BB examples: (q E) turned over, times g."""
    BN: tl.constexpr = NTY * NTX
    BM: tl.constexpr = MTY * MTX
    grid, other, table, centre = (NZ, NY, NX), (MZ, MY, MX), (LZ, LY, LX), (CZ, CY, CX)
    rest = tl.program_id(0) // patches(other, MTY, MTX)
    m = corner(tl.program_id(0) % patches(other, MTY, MTX), other, MTY, MTX)
    v0, rest = rest % tl.cdiv(V, BV) * BV, rest // tl.cdiv(V, BV)
    u, b0 = rest % U, rest // U * BB
    mirrored = (LZ - 1 - CZ, LY - 1 - CY, LX - 1 - CX)
    met = window(m, other, grid, table, mirrored, MTY, MTX)
    total = tl.zeros([BB, BM, BV], SUM)
    for i in range(tl.cdiv(H, BH) * steps(met, NTY, NTX)):
        heads, n = step(i, met, NTY, NTX)
        h0 = heads * BH
        at = by_position((q_b, q_h, q_n, q_k), b0, h0, n, (B, H, K), grid, BB, BH, NTY, NTX, BK, INDEX)
        queries = read(q, at)
        of_pairs = entries((e_z, e_y, e_x, e_k), n, m, table, centre, K, NTY, NTX, MTY, MTX, BK, INDEX)
        some = read(e + u.to(INDEX) * e_u, of_pairs)
        pairs = tl.dot(queries, tl.permute(some, (0, 2, 1)), input_precision=PRECISION, out_dtype=SUM)
        turned = tl.permute(tl.reshape(pairs.to(queries.dtype), [BN, BB, BH, BM]), (1, 3, 2, 0))
        of_output = by_example(
            (g_b, g_h, g_n, g_v), b0, h0, n, v0, (B, H, V), grid, BB, BH, NTY, NTX, BV, INDEX
        )
        upstream = read(g, of_output)
        total += tl.dot(
            tl.reshape(turned, [BB, BM, BH * BN]), upstream, input_precision=PRECISION, out_dtype=SUM
        )
    of_context = by_example((v_b, 0, v_m, v_v), b0, 0, m, v0, (B, 1, V), other, BB, ONE, MTY, MTX, BV, INDEX)
    write(dv + u.to(INDEX) * v_u, of_context, total)


@triton.jit
def apart(L, C, T: tl.constexpr):
    """On one axis: how many patches of queries and of the context can be apart, backwards, and in all."""
    before = tl.cdiv(C, T)
    return before, before + 1 + tl.cdiv(L - 1 - C, T)


@triton.jit
def both(j, N, M, T: tl.constexpr):
    """On one axis: where there are patches of queries with a patch of the context j patches on."""
    return tl.maximum(0, -j) * T, tl.minimum(tl.cdiv(N, T), tl.cdiv(M, T) - j) * T


@triton.jit
def table_gradient_program(
    g, q, v, parts,
    g_b, g_h, g_n, g_v, q_b, q_h, q_n, q_k, v_b, v_m, v_v, v_u,
    PARTS, B, H, K, V, U, NZ, NY, NX, MZ, MY, MX, LZ, LY, LX, CZ, CY, CX,
    BB: tl.constexpr, BH: tl.constexpr, NTY: tl.constexpr, NTX: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, INDEX: tl.constexpr, SUM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The table's gradient between all patches (jy, jx) patches apart, pair by pair of their positions.

    Patches of queries and of the context are alike, so position a of the one and c of the other are the same
    offset apart in all of them: (g v) turned, transposed, times q is added up over patches and examples. What
    is left to add are the pairs of one offset, by `table_sum_program`.
    """
    BN: tl.constexpr = NTY * NTX
    grid, other = (NZ, NY, NX), (MZ, MY, MX)
    before_y, down = apart(LY, CY, NTY)
    before_x, across = apart(LX, CX, NTX)
    rest = tl.program_id(0)
    jx, rest = rest % across - before_x, rest // across
    jy, rest = rest % down - before_y, rest // down
    oz, rest = rest % LZ, rest // LZ
    u, part = rest % U, rest // U
    z0, z1 = tl.maximum(0, CZ - oz), tl.minimum(NZ, MZ + CZ - oz)
    y0, y1 = both(jy, NY, MY, NTY)
    x0, x1 = both(jx, NX, MX, NTX)
    with_context = (z0, y0, x0, z1, y1, x1)
    rounds = tl.cdiv(tl.cdiv(B, BB) - part, PARTS) * tl.cdiv(H, BH)
    total = tl.zeros([BN, BN, BK], SUM)
    for v0 in range(0, V, BV):
        for i in range(rounds * steps(with_context, NTY, NTX)):
            done, n = step(i, with_context, NTY, NTX)
            h0, b0 = done % tl.cdiv(H, BH) * BH, (part + done // tl.cdiv(H, BH) * PARTS) * BB
            of_output = by_example(
                (g_b, g_h, g_n, g_v), b0, h0, n, v0, (B, H, V), grid, BB, BH, NTY, NTX, BV, INDEX
            )
            upstream = read(g, of_output)
            m = (n[0] + oz - CZ, n[1] + jy * NTY, n[2] + jx * NTX)
            of_context = by_example(
                (v_b, 0, v_m, v_v), b0, 0, m, v0, (B, 1, V), other, BB, ONE, NTY, NTX, BV, INDEX
            )
            values = read(v + u.to(INDEX) * v_u, of_context)
            pairs = tl.dot(upstream, tl.permute(values, (0, 2, 1)), input_precision=PRECISION, out_dtype=SUM)
            turned = tl.permute(tl.reshape(pairs.to(upstream.dtype), [BB * BH, BN, BN]), (1, 2, 0))
            at = by_position((q_b, q_h, q_n, q_k), b0, h0, n, (B, H, K), grid, BB, BH, NTY, NTX, BK, INDEX)
            queries = read(q, at)
            total += tl.dot(turned, queries, input_precision=PRECISION, out_dtype=SUM)
    a, k = tl.arange(0, BN), tl.arange(0, BK)
    within = (a[:, None] * BN + a[None, :])[:, :, None] * BK + k[None, None, :]
    tl.store(parts + tl.program_id(0).to(INDEX) * (BN * BN * BK) + within, total)


@triton.jit
def table_sum_program(
    parts, de,
    e_z, e_y, e_x, e_k, e_u,
    PARTS, K, U, LZ, LY, LX, CY, CX,
    NTY: tl.constexpr, NTX: tl.constexpr, BO: tl.constexpr, BK: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """de for BO entries of the table: what `table_gradient_program` left, over the pairs of each offset."""
    BN: tl.constexpr = NTY * NTX
    before_y, down = apart(LY, CY, NTY)
    before_x, across = apart(LX, CX, NTX)
    rest = tl.program_id(0)
    o0, rest = rest % tl.cdiv(LX, BO) * BO, rest // tl.cdiv(LX, BO)
    oy, rest = rest % LY, rest // LY
    oz, u = rest % LZ, rest // LZ
    ox, a, k = o0 + tl.arange(0, BO), tl.arange(0, BN), tl.arange(0, BK)
    # Position a of a patch and the element at this offset from it: which patch that is in, and where.
    at_y = oy - CY + before_y * NTY + a // NTX
    at_x = (ox - CX + before_x * NTX)[:, None] + (a % NTX)[None, :]
    jy, jx = at_y // NTY, at_x // NTX
    c = (at_y % NTY * NTX)[None, :] + at_x % NTX
    here = (ox < LX)[:, None] & (k < K)[None, :]
    total = tl.zeros([BO, BK], parts.dtype.element_ty)
    for part in range(PARTS):
        row = (((part * U + u) * LZ + oz) * down + jy).to(INDEX)[None, :]
        where = ((row * across + jx) * BN + a[None, :]) * BN + c
        some = tl.load(parts + where[:, :, None] * BK + k[None, None, :], mask=here[:, None, :], other=0.0)
        total += tl.sum(some, 1)
    row = oz.to(INDEX) * e_z + oy.to(INDEX) * e_y + u.to(INDEX) * e_u
    where = row + (ox.to(INDEX) * e_x)[:, None] + (k.to(INDEX) * e_k)[None, :]
    tl.store(de + where, total.to(de.dtype.element_ty), mask=here)
