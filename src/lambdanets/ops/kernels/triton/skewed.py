"""Attention order in one program: queries meet a slice of the table, the map is shifted, then meets the values.

For the queries of a row and the context elements of a row all embeddings are neighbours in the table. One
product gives the map by offsets, a shift of each of its rows makes it one by context elements. All sums are
float32 (float64 for float64); every element of an output or a gradient is summed by one program in one order,
so results are the same from run to run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...problem import Problem
from .geometry import as_plane, power, precision, sizes
from .tiles import entries, query_rows, store_query_rows, to_elements, to_offsets, values


@triton.jit
def output_program(
    q, v, e, y,
    q_b, q_h, q_n, q_k, v_b, v_m, v_v, v_u, e_y, e_x, e_k, e_u, y_b, y_h, y_n, y_v,
    H, K, V, U, NY, NX, MY, MX, LY, LX, CY, CX,
    BH: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    SUM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y for BN queries of a row, all heads, BV values, of one example."""
    across = tl.cdiv(NX, BN)
    ny, n0 = tl.program_id(0) // across, tl.program_id(0) % across * BN
    v0, b = tl.program_id(1) * BV, tl.program_id(2).to(tl.int64)
    queries = query_rows(q + b * q_b, q_h, q_n, q_k, ny, n0, NX, H, K, 0, BH, BN, BK)
    total = tl.zeros([BH * BN, BV], SUM)
    last_y = tl.minimum(MY, ny - CY + LY)
    for u in range(U):
        for my in range(tl.maximum(0, ny - CY), last_y, BC):
            for m0 in range(tl.maximum(0, n0 - CX), tl.minimum(MX, n0 + BN - 1 - CX + LX), BN):
                oy, ox = my - ny + CY, m0 - n0 - (BN - 1) + CX
                embeddings = entries(e + u * e_u, e_y, e_x, e_k, oy, ox, LY, LX, MY - my, K, BC, 2 * BN, BK)
                by_offset = tl.dot(queries, tl.trans(embeddings), input_precision=PRECISION, out_dtype=SUM)
                pairs = to_elements(by_offset.to(queries.dtype), BH, BN, BC)
                some = values(v + b * v_b + u * v_u, v_m, v_v, my, m0, MY, MX, V, v0, BC, BN, BV)
                total += tl.dot(pairs, some, input_precision=PRECISION, out_dtype=SUM)
    store_query_rows(y + b * y_b, total, y_h, y_n, y_v, ny, n0, NX, H, V, v0, BH, BN, BV)


@triton.jit
def query_gradient_program(
    g, v, e, dq,
    g_b, g_h, g_n, g_v, v_b, v_m, v_v, v_u, e_y, e_x, e_k, e_u, q_b, q_h, q_n, q_k,
    H, K, V, U, NY, NX, MY, MX, LY, LX, CY, CX,
    BH: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    SUM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq for BN queries of a row and all heads of one example: the map's gradient is g v, by offset times E."""
    across = tl.cdiv(NX, BN)
    ny, n0 = tl.program_id(0) // across, tl.program_id(0) % across * BN
    b = tl.program_id(1).to(tl.int64)
    total = tl.zeros([BH * BN, BK], SUM)
    for u in range(U):
        for my in range(tl.maximum(0, ny - CY), tl.minimum(MY, ny - CY + LY), BC):
            for m0 in range(tl.maximum(0, n0 - CX), tl.minimum(MX, n0 + BN - 1 - CX + LX), BN):
                pairs = tl.zeros([BH * BN, BC * BN], SUM)
                for v0 in range(0, V, BV):
                    upstream = query_rows(g + b * g_b, g_h, g_n, g_v, ny, n0, NX, H, V, v0, BH, BN, BV)
                    some = values(v + b * v_b + u * v_u, v_m, v_v, my, m0, MY, MX, V, v0, BC, BN, BV)
                    pairs += tl.dot(upstream, tl.trans(some), input_precision=PRECISION, out_dtype=SUM)
                by_offset = to_offsets(pairs.to(e.dtype.element_ty), BH, BN, BC)
                oy, ox = my - ny + CY, m0 - n0 - (BN - 1) + CX
                embeddings = entries(e + u * e_u, e_y, e_x, e_k, oy, ox, LY, LX, MY - my, K, BC, 2 * BN, BK)
                total += tl.dot(by_offset, embeddings, input_precision=PRECISION, out_dtype=SUM)
    store_query_rows(dq + b * q_b, total, q_h, q_n, q_k, ny, n0, NX, H, K, 0, BH, BN, BK)


@triton.jit
def value_gradient_program(
    g, q, e, dv,
    g_b, g_h, g_n, g_v, q_b, q_h, q_n, q_k, e_y, e_x, e_k, e_u, v_b, v_m, v_v, v_u,
    H, K, V, U, NY, NX, MY, MX, LY, LX, CY, CX,
    BH: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    SUM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dv for BC rows of BN context elements and BV values of one example: the map, transposed, times g."""
    across = tl.cdiv(MX, BN)
    my, m0 = tl.program_id(0) // across * BC, tl.program_id(0) % across * BN
    v0, u, b = tl.program_id(1) // U * BV, tl.program_id(1) % U, tl.program_id(2).to(tl.int64)
    total = tl.zeros([BC * BN, BV], SUM)
    last_x = tl.minimum(NX, m0 + BN + CX)
    for ny in range(tl.maximum(0, my + CY - LY + 1), tl.minimum(NY, my + BC + CY)):
        for n0 in range(tl.maximum(0, m0 + CX - LX + 1), last_x, BN):
            queries = query_rows(q + b * q_b, q_h, q_n, q_k, ny, n0, NX, H, K, 0, BH, BN, BK)
            oy, ox = my - ny + CY, m0 - n0 - (BN - 1) + CX
            embeddings = entries(e + u * e_u, e_y, e_x, e_k, oy, ox, LY, LX, MY - my, K, BC, 2 * BN, BK)
            by_offset = tl.dot(queries, tl.trans(embeddings), input_precision=PRECISION, out_dtype=SUM)
            pairs = to_elements(by_offset.to(queries.dtype), BH, BN, BC)
            upstream = query_rows(g + b * g_b, g_h, g_n, g_v, ny, n0, NX, H, V, v0, BH, BN, BV)
            total += tl.dot(tl.trans(pairs), upstream, input_precision=PRECISION, out_dtype=SUM)
    element, d = tl.arange(0, BC * BN), v0 + tl.arange(0, BV)
    at_y, at_x = my + element // BN, m0 + element % BN
    mask = (at_y < MY) & (at_x < MX)
    where = (at_y * MX + at_x).to(tl.int64) * v_m
    tl.store(
        dv + b * v_b + u * v_u + where[:, None] + d[None, :] * v_v,
        total.to(dv.dtype.element_ty),
        mask=mask[:, None] & (d < V)[None, :],
    )


@triton.jit
def table_gradient_program(
    g, q, v, de,
    g_b, g_h, g_n, g_v, q_b, q_h, q_n, q_k, v_b, v_m, v_v, v_u, e_s, e_y, e_x, e_k, e_u,
    B, H, K, V, U, NY, NX, MY, MX, LY, LX, CY, CX,
    BH: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    SUM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """de for BN entries of a row of the table, summed over the queries of some of the examples.

    Every program sums alone into a part of its own; the parts are added afterwards. For BN queries and BN
    offsets the context elements are 2 BN - 1 neighbours.
    """
    across = tl.cdiv(LX, BN)
    oy, o0 = tl.program_id(0) // across, tl.program_id(0) % across * BN
    u, part = tl.program_id(1), tl.program_id(2)
    x, offset = tl.arange(0, BH * BN) % BN, tl.arange(0, BN)
    total = tl.zeros([BN, BK], SUM)
    for i in range(tl.cdiv(B - part, tl.num_programs(2))):
        b = part.to(tl.int64) + i * tl.num_programs(2)
        for ny in range(tl.maximum(0, CY - oy), tl.minimum(NY, MY + CY - oy)):
            for n0 in range(0, NX, BN):
                pairs = tl.zeros([BH * BN, 2 * BN], SUM)
                for v0 in range(0, V, BV):
                    upstream = query_rows(g + b * g_b, g_h, g_n, g_v, ny, n0, NX, H, V, v0, BH, BN, BV)
                    m0 = n0 + o0 - CX
                    some = values(
                        v + b * v_b + u * v_u, v_m, v_v, ny + oy - CY, m0, MY, MX, V, v0, 1, 2 * BN, BV
                    )
                    pairs += tl.dot(upstream, tl.trans(some), input_precision=PRECISION, out_dtype=SUM)
                by_offset = tl.gather(pairs.to(q.dtype.element_ty), x[:, None] + offset[None, :], 1)
                queries = query_rows(q + b * q_b, q_h, q_n, q_k, ny, n0, NX, H, K, 0, BH, BN, BK)
                total += tl.dot(tl.trans(by_offset), queries, input_precision=PRECISION, out_dtype=SUM)
    k = tl.arange(0, BK)
    where = part.to(tl.int64) * e_s + oy.to(tl.int64) * e_y + (o0 + offset).to(tl.int64) * e_x
    tl.store(
        de + where[:, None] + k[None, :] * e_k + u * e_u,
        total,
        mask=(o0 + offset < LX)[:, None] & (k < K)[None, :],
    )


PARTS = 8  # of the batch, each with a table of its own before they are added


def tile_sizes(problem: Problem) -> dict[str, int]:
    """Sizes of a program's tiles: BN neighbours of a row, BC rows of the context, all heads, all of k."""
    width = max(problem.grid[-1], (problem.context_grid or problem.grid)[-1])
    return {
        "BH": power(problem.num_heads, 1, 1 << 30),
        "BN": power(width, 16, 16),
        "BC": power(1 if len(problem.grid) == 1 else problem.grid[0], 1, 4),
        "BK": power(problem.dim_k, 16, 1 << 30),
        "BV": power(problem.dim_v, 16, 128),
    }


def _types(q: Tensor) -> dict[str, object]:
    wide = tl.float64 if q.dtype == torch.float64 else tl.float32
    return {"SUM": wide, "PRECISION": precision(q.dtype)}


def output(q: Tensor, v: Tensor, e: Tensor, problem: Problem, y: Tensor) -> None:
    """Write the position part into y (b h n v), from q (b h n k), v (b m v u) and a table."""
    e, geometry, tile = as_plane(e), sizes(problem), tile_sizes(problem)
    b, h, _, k = q.shape
    dim_v, u = v.shape[2:]
    programs = (geometry[0] * triton.cdiv(geometry[1], tile["BN"]), triton.cdiv(dim_v, tile["BV"]), b)
    output_program[programs](
        q, v, e, y, *q.stride(), *v.stride(), *e.stride(), *y.stride(), h, k, dim_v, u, *geometry,
        **tile, **_types(q),
    )  # fmt: skip


def gradients(
    g: Tensor, q: Tensor, v: Tensor, e: Tensor, problem: Problem, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of q, v and e, each where it is wanted, from that of the position part."""
    table, geometry, tile = as_plane(e), sizes(problem), tile_sizes(problem)
    b, h, _, k = q.shape
    dim_v, u = v.shape[2:]
    rest = (h, k, dim_v, u, *geometry)
    ny, nx, my, mx, ly, lx = geometry[:6]
    dq = dv = de = None
    if wanted[0]:
        dq = torch.empty_like(q)
        query_gradient_program[(ny * triton.cdiv(nx, tile["BN"]), b)](
            g, v, table, dq, *g.stride(), *v.stride(), *table.stride(), *dq.stride(), *rest,
            **tile, **_types(q),
        )  # fmt: skip
    if wanted[1]:
        dv = torch.empty_like(v)
        tiles_of_context = triton.cdiv(my, tile["BC"]) * triton.cdiv(mx, tile["BN"])
        value_gradient_program[(tiles_of_context, triton.cdiv(dim_v, tile["BV"]) * u, b)](
            g, q, table, dv, *g.stride(), *q.stride(), *table.stride(), *dv.stride(), *rest,
            **tile, **_types(q),
        )  # fmt: skip
    if wanted[2]:
        wide = torch.promote_types(e.dtype, torch.float32)
        parts = max(1, min(PARTS, b))
        summed = table.new_zeros(parts, *table.shape, dtype=wide)
        of_entries = {name: size for name, size in tile.items() if name != "BC"}
        table_gradient_program[(ly * triton.cdiv(lx, tile["BN"]), u, parts)](
            g, q, v, summed, *g.stride(), *q.stride(), *v.stride(), *summed.stride(), b, *rest,
            **of_entries, **_types(q),
        )  # fmt: skip
        de = summed.sum(0).view(e.shape)
    return dq, dv, de
