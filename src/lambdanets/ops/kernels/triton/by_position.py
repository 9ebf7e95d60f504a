"""Attention order by positions: the map of BN queries is formed one position at a time, for several examples.

For one position the queries of all heads and examples meet the same embeddings, (b h) k times k m; for one
example those of all heads and positions meet the same values, (h n) m times m v. Between the two products the
map is turned from n (b h) m to b (h n) m. No offset is computed that no pair has.
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
    n, k, d = n0 + tl.arange(0, BN), tl.arange(0, BK), v0 + tl.arange(0, BV)
    of_head = tl.arange(0, BB * BH)
    b, h = (b0 + of_head // BH).to(tl.int64), of_head % BH
    head_mask, n_mask = (b < B) & (h < H), n < NY * NX
    queries = tl.load(
        q
        + (b * q_b + h.to(tl.int64) * q_h)[None, :, None]
        + n.to(tl.int64)[:, None, None] * q_n
        + k[None, None, :] * q_k,
        mask=n_mask[:, None, None] & head_mask[None, :, None] & (k < K)[None, None, :],
        other=0.0,
    )
    ny, nx = n // NX, n % NX
    last_y = tl.minimum(NY - 1, (n0 + BN - 1) // NX)
    start = tl.maximum(0, n0 // NX - CY) * MX
    stop = tl.minimum(MY, last_y - CY + LY) * MX
    example = b0.to(tl.int64) + tl.arange(0, BB)
    total = tl.zeros([BB, BH * BN, BV], SUM)
    for u in range(U):
        for m0 in range(start, stop, BM):
            m = m0 + tl.arange(0, BM)
            my, mx = m // MX, m % MX
            oy, ox = my[None, :] - ny[:, None] + CY, mx[None, :] - nx[:, None] + CX
            inside = (oy >= 0) & (oy < LY) & (ox >= 0) & (ox < LX) & (my < MY)[None, :]
            embeddings = tl.load(
                e + (oy.to(tl.int64) * e_y + ox * e_x)[:, :, None] + k[None, None, :] * e_k + u * e_u,
                mask=inside[:, :, None] & (k < K)[None, None, :],
                other=0.0,
            )
            by_position = tl.dot(
                queries, tl.permute(embeddings, (0, 2, 1)), input_precision=PRECISION, out_dtype=SUM
            )
            turned = tl.permute(by_position.to(queries.dtype), (1, 0, 2))
            some = tl.load(
                v
                + example[:, None, None] * v_b
                + m.to(tl.int64)[None, :, None] * v_m
                + d[None, None, :] * v_v
                + u * v_u,
                mask=(example < B)[:, None, None] & (my < MY)[None, :, None] & (d < V)[None, None, :],
                other=0.0,
            )
            total += tl.dot(
                tl.reshape(turned, [BB, BH * BN, BM]), some, input_precision=PRECISION, out_dtype=SUM
            )
    row = tl.arange(0, BH * BN)
    row_h, row_n = row // BN, n0 + row % BN
    row_mask = (row_h < H) & (row_n < NY * NX)
    tl.store(
        y
        + example[:, None, None] * y_b
        + (row_h.to(tl.int64) * y_h + row_n.to(tl.int64) * y_n)[None, :, None]
        + d[None, None, :] * y_v,
        total.to(y.dtype.element_ty),
        mask=(example < B)[:, None, None] & row_mask[None, :, None] & (d < V)[None, None, :],
    )


def tile_sizes(problem: Problem) -> dict[str, int]:
    """Sizes of a program's tiles: BB examples, all heads, BN queries, BM context elements, BV values."""
    heads = power(problem.num_heads, 1, 1 << 30)
    return {
        "BB": max(1, 16 // heads),
        "BH": heads,
        "BN": max(1, 64 // heads),
        "BM": 32,
        "BK": power(problem.dim_k, 16, 1 << 30),
        "BV": power(problem.dim_v, 16, 64),
    }


def output_call(q: Tensor, v: Tensor, e: Tensor, problem: Problem, y: Tensor) -> Call:
    """What writes the position part into y."""
    return of_examples(output_program, tile_sizes(problem), q, v, e, problem, y)


def output(q: Tensor, v: Tensor, e: Tensor, problem: Problem, y: Tensor) -> None:
    """Write the position part into y (b h n v), from q (b h n k), v (b m v u) and a table."""
    output_call(q, v, e, problem, y).launch()
