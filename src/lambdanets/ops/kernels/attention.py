"""Attention order: queries meet the position embeddings first, the values come last.

There is no softmax over positions, so the sums may be swapped: (q E) of shape b h n m, then times v. For h
queries per position this is h (k + v) products per pair instead of k v, and no position lambda is formed; the
price is a map of shape b h n m, which suits small grids. Not in the paper, which contracts m first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..content import content_output
from ..context import Context, RelativeContext
from ..problem import Cost, Problem
from ..tables import dense

NAME = "attention"


def apply(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    e: Tensor | None,
    *,
    context: Context,
    mask: Tensor | None,
    content: bool,
) -> Tensor:
    """The operator of shape b h n v; see `lambda_layer`."""
    if mask is not None:
        v = v.masked_fill(~mask[:, :, None, None], 0)
    if e is None:
        return content_output(q, k, v, context, mask)
    y = position_output(q, v, embeddings(e, context))
    return y + content_output(q, k, v, context, mask) if content else y


def embeddings(e: Tensor, context: Context) -> Tensor:
    """Position embeddings of shape n k m u, zero where a query does not look."""
    if isinstance(context, RelativeContext) and context.is_table(e):
        return dense(e, context)
    visible = context.visible(e.shape[1], e.device)
    return (e if visible is None else e.masked_fill(~visible[:, :, None, None], 0)).transpose(1, 2)


def position_output(q: Tensor, v: Tensor, e: Tensor) -> Tensor:
    """The position part of shape b h n v from q (b h n k), v (b m v u) and embeddings (n k m u)."""
    b, h, n, dim_k = q.shape
    m, dim_v, u = v.shape[1:]
    by_position = q.permute(2, 0, 1, 3).reshape(n, b * h, dim_k)
    pairs = torch.bmm(by_position, e.flatten(2))  # n (b h) (m u)
    values = v.transpose(2, 3).reshape(b, 1, m * u, dim_v).expand(-1, h, -1, -1).reshape(b * h, m * u, dim_v)
    return torch.bmm(pairs.transpose(0, 1), values).unflatten(0, (b, h))


def unsupported(problem: Problem) -> list[str]:
    """Why this kernel cannot serve the problem; empty if it can."""
    return []


def rate(problem: Problem) -> float:
    """Operations per second."""
    return 40e12 if problem.device == "cuda" else 80e9


def cost(problem: Problem) -> Cost:
    """h (k + v) products per pair; the map and the dense embeddings are stored whole."""
    p = problem
    if not p.position:
        return Cost(flops=p.content_flops, bytes=p.io_bytes, peak_bytes=p.content_peak)
    pairs = p.num_queries * p.num_context * p.dim_u
    pair_map = p.batch * p.num_heads * pairs
    flops = 2 * pair_map * (p.dim_k + p.dim_v) + p.content_flops
    embeddings_ = pairs * p.dim_k
    # The windows of the table are copied three times, with strides that a cache does not like.
    bytes_ = p.itemsize * (12 * embeddings_ + 2 * pair_map) + p.io_bytes
    peak = p.itemsize * (2 * embeddings_ + pair_map) * (2 if p.train else 1) + p.content_peak
    return Cost(flops=flops, bytes=bytes_, peak_bytes=peak)
