"""Lambdas first, in registers: a product of values and embeddings, to which queries are applied.

A program forms the position lambdas of BN queries, transposed: rows (b v), columns (n k). Their columns need
the same embeddings for all its BB examples, fetched from the table entry by entry.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ...problem import Problem
from .call import Call, of_examples
from .geometry import power, unsupported

__all__ = ["output", "output_call", "unsupported"]


@triton.jit
def output_program(
    q, v, e, y,
    q_b, q_h, q_n, q_k, v_b, v_m, v_v, v_u, e_y, e_x, e_k, e_u, y_b, y_h, y_n, y_v,
    B, H, K, V, U, NY, NX, MY, MX, LY, LX, CY, CX,
    BB: tl.constexpr, BH: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, SUM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y for BN queries, neighbours in their order, all heads, BV values, of BB examples."""
    n0, v0, b0 = tl.program_id(0) * BN, tl.program_id(1) * BV, tl.program_id(2) * BB
    row = tl.arange(0, BB * BV)
    b, d = (b0 + row // BV).to(tl.int64), v0 + row % BV
    row_mask = (b < B) & (d < V)
    column = tl.arange(0, BN * BK)
    n, k = n0 + column // BK, column % BK
    column_mask = (n < NY * NX) & (k < K)
    ny, nx = n // NX, n % NX
    last_y = tl.minimum(NY - 1, (n0 + BN - 1) // NX)
    start = tl.maximum(0, n0 // NX - CY) * MX
    stop = tl.minimum(MY, last_y - CY + LY) * MX
    lambdas = tl.zeros([BB * BV, BN * BK], SUM)
    for u in range(U):
        for m0 in range(start, stop, BM):
            m = m0 + tl.arange(0, BM)
            my, mx = m // MX, m % MX
            some = tl.load(
                v + (b * v_b + d * v_v)[:, None] + m.to(tl.int64)[None, :] * v_m + u * v_u,
                mask=row_mask[:, None] & (m < MY * MX)[None, :],
                other=0.0,
            )
            oy, ox = my[:, None] - ny[None, :] + CY, mx[:, None] - nx[None, :] + CX
            inside = (oy >= 0) & (oy < LY) & (ox >= 0) & (ox < LX) & (my < MY)[:, None]
            embeddings = tl.load(
                e + oy.to(tl.int64) * e_y + ox * e_x + k[None, :] * e_k + u * e_u,
                mask=inside & column_mask[None, :],
                other=0.0,
            )
            lambdas += tl.dot(some, embeddings, input_precision=PRECISION, out_dtype=SUM)
    of_query = tl.arange(0, BH * BN)
    h, at = of_query // BN, n0 + of_query % BN
    example = b0.to(tl.int64) + tl.arange(0, BB)
    where = n.to(tl.int64)[:, None] * q_n + h.to(tl.int64)[None, :] * q_h + k[:, None] * q_k
    same = (n[:, None] == at[None, :]) & column_mask[:, None] & (h < H)[None, :]
    queries = tl.load(
        q + example[:, None, None] * q_b + where[None, :, :],
        mask=same[None, :, :] & (example < B)[:, None, None],
        other=0.0,
    )
    applied = tl.dot(
        tl.reshape(lambdas.to(q.dtype.element_ty), [BB, BV, BN * BK]),
        queries,
        input_precision=PRECISION,
        out_dtype=SUM,
    )
    result = tl.reshape(applied, [BB * BV, BH * BN])
    tl.store(
        y + (b * y_b + d * y_v)[:, None] + (h.to(tl.int64) * y_h + at.to(tl.int64) * y_n)[None, :],
        result.to(y.dtype.element_ty),
        mask=row_mask[:, None] & ((h < H) & (at < NY * NX))[None, :],
    )


def tile_sizes(problem: Problem) -> dict[str, int]:
    """Sizes of a program's tiles: BB examples, all heads, BN queries, BM context elements, BV values."""
    dim_k = power(problem.dim_k, 16, 1 << 30)
    dim_v = power(problem.dim_v, 16, 64)
    heads = power(problem.num_heads, 1, 1 << 30)
    return {
        "BB": power(problem.batch, 1, 128 // dim_v),
        "BH": heads,
        "BN": max(128 // dim_k, 16 // heads, 1),
        "BM": 64,
        "BK": dim_k,
        "BV": dim_v,
    }


def output_call(q: Tensor, v: Tensor, e: Tensor, problem: Problem, y: Tensor) -> Call:
    """What writes the position part into y."""
    return of_examples(output_program, tile_sizes(problem), q, v, e, problem, y)


def output(q: Tensor, v: Tensor, e: Tensor, problem: Problem, y: Tensor) -> None:
    """Write the position part into y (b h n v), from q (b h n k), v (b m v u) and a table."""
    output_call(q, v, e, problem, y).launch()
