"""Attention order in one program: queries meet a slice of the table, the map, shifted, the values.

For the queries of a row and the context elements of a row all embeddings are neighbours in the table. One
product gives the map by offsets, a shift of each of its rows makes it one by context elements. All sums are
float32 (float64 for float64); every element of an output or a gradient is summed by one program in one order,
so results are the same from run to run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...problem import Problem
from .call import Call
from .geometry import arithmetic, as_plane, power, sizes, unsupported
from .tiles import entries, looked_up, query_rows, store_query_rows, to_elements, to_offsets, values

ONE_ROW = tl.constexpr(1)

__all__ = ["gradients", "output", "unsupported"]


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
    """dq for BN queries of a row and all heads of one example: that of the map is g v, by offset times E."""
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
                        v + b * v_b + u * v_u, v_m, v_v, ny + oy - CY, m0, MY, MX, V, v0, ONE_ROW, 2 * BN, BV
                    )
                    pairs += tl.dot(upstream, tl.trans(some), input_precision=PRECISION, out_dtype=SUM)
                by_offset = looked_up(
                    pairs.to(q.dtype.element_ty), x[:, None] + offset[None, :], BH * BN, 2 * BN
                )
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
    return {
        "BH": power(problem.num_heads, 1, 1 << 30),
        "BN": 16,
        "BC": power(1 if len(problem.grid) == 1 else problem.grid[0], 1, 4),
        "BK": power(problem.dim_k, 16, 1 << 30),
        "BV": power(problem.dim_v, 16, 128),
    }


def _constants(problem: Problem) -> dict[str, Any]:
    return tile_sizes(problem) | arithmetic(problem.dtype)


def _numbers(problem: Problem) -> tuple[int, ...]:
    return (problem.num_heads, problem.dim_k, problem.dim_v, problem.dim_u, *sizes(problem))


def output_call(q: Tensor, v: Tensor, e: Tensor, problem: Problem, y: Tensor) -> Call:
    """What writes the position part into y."""
    e, constants = as_plane(e), _constants(problem)
    ny, nx, *_ = sizes(problem)
    instances = (
        ny * triton.cdiv(nx, constants["BN"]),
        triton.cdiv(problem.dim_v, constants["BV"]),
        problem.batch,
    )
    strides = (*q.stride(), *v.stride(), *e.stride(), *y.stride())
    return Call(output_program, instances, (q, v, e, y, *strides, *_numbers(problem)), constants)


def query_gradient_call(g: Tensor, v: Tensor, e: Tensor, problem: Problem, dq: Tensor) -> Call:
    """What writes the gradient of q."""
    e, constants = as_plane(e), _constants(problem)
    ny, nx, *_ = sizes(problem)
    instances = (ny * triton.cdiv(nx, constants["BN"]), problem.batch)
    strides = (*g.stride(), *v.stride(), *e.stride(), *dq.stride())
    return Call(query_gradient_program, instances, (g, v, e, dq, *strides, *_numbers(problem)), constants)


def value_gradient_call(g: Tensor, q: Tensor, e: Tensor, problem: Problem, dv: Tensor) -> Call:
    """What writes the gradient of v."""
    e, constants = as_plane(e), _constants(problem)
    _, _, my, mx, *_ = sizes(problem)
    instances = (
        triton.cdiv(my, constants["BC"]) * triton.cdiv(mx, constants["BN"]),
        triton.cdiv(problem.dim_v, constants["BV"]) * problem.dim_u,
        problem.batch,
    )
    strides = (*g.stride(), *q.stride(), *e.stride(), *dv.stride())
    return Call(value_gradient_program, instances, (g, q, e, dv, *strides, *_numbers(problem)), constants)


def table_gradient_call(g: Tensor, q: Tensor, v: Tensor, problem: Problem, de: Tensor) -> Call:
    """What writes the gradient of the table in parts (*parts offsets offsets k u), each of some examples."""
    constants = _constants(problem)
    del constants["BC"]
    *_, ly, lx, _, _ = sizes(problem)
    instances = (ly * triton.cdiv(lx, constants["BN"]), problem.dim_u, len(de))
    strides = (*g.stride(), *q.stride(), *v.stride(), *de.stride())
    numbers = (problem.batch, *_numbers(problem))
    return Call(table_gradient_program, instances, (g, q, v, de, *strides, *numbers), constants)


def output(q: Tensor, v: Tensor, e: Tensor, problem: Problem, y: Tensor) -> None:
    """Write the position part into y (b h n v), from q (b h n k), v (b m v u) and a table."""
    output_call(q, v, e, problem, y).launch()


def gradients(
    g: Tensor, q: Tensor, v: Tensor, e: Tensor, problem: Problem, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of q, v and e, each where it is wanted, from that of the position part."""
    dq = dv = de = None
    if wanted[0]:
        dq = torch.empty_like(q)
        query_gradient_call(g, v, e, problem, dq).launch()
    if wanted[1]:
        dv = torch.empty_like(v)
        value_gradient_call(g, q, e, problem, dv).launch()
    if wanted[2]:
        parts = table_parts(e, problem)
        table_gradient_call(g, q, v, problem, parts).launch()
        de = parts.sum(0).view(e.shape)
    return dq, dv, de


def table_parts(e: Tensor, problem: Problem) -> Tensor:
    """Zeros for the parts of the table's gradient; entries that no query may see stay so."""
    wide = torch.promote_types(e.dtype, torch.float32)
    return e.new_zeros(max(1, min(PARTS, problem.batch)), *as_plane(e).shape, dtype=wide)
