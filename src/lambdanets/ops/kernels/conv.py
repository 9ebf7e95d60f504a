"""Lambda convolution: position lambdas as a plain 1-, 2- or 3-D convolution with v folded into the batch.

The table is the convolution's weight (k output channels, u input channels), so any grid works and the memory
of the embeddings is that of the table. Source: section 3.4 and appendix B.1, there with v as a spatial axis
of a convolution of one more dimension; folding v into the batch is the same function without that axis.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..content import content_output
from ..context import Context, RelativeContext
from ..problem import Cost, Problem
from ..tables import trimmed

NAME = "conv"

_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)


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
    assert isinstance(context, RelativeContext)
    assert e is not None
    if mask is not None:
        v = v.masked_fill(~mask[:, :, None, None], 0)
    lambdas = position_lambdas(v, e, context)
    y = torch.einsum("bhnk,bvkn->bhnv", q, lambdas)
    return y + content_output(q, k, v, context, mask) if content else y


def position_lambdas(v: Tensor, e: Tensor, context: RelativeContext) -> Tensor:
    """Position lambdas of shape b v k n from values (b m v u) and a table (*offsets, k, u)."""
    b, _, dim_v, u = v.shape
    rank = len(context.grid)
    table, centre = trimmed(e, context)
    weight = table.movedim((-2, -1), (0, 1)).contiguous()
    before = [c * step for c, step in zip(centre, context.step, strict=True)]
    spans = [(length - 1) * step for length, step in zip(table.shape, context.step, strict=False)]
    after = [
        queries - keys + span - first
        for queries, keys, span, first in zip(context.grid, context.key_grid, spans, before, strict=True)
    ]
    folded = v.permute(0, 2, 3, 1).reshape(b * dim_v, u, *context.key_grid)
    if before == after:
        padding = before
    else:
        padding = [0] * rank
        pads = [size for pair in zip(reversed(before), reversed(after), strict=True) for size in pair]
        folded = F.pad(folded, pads)
    lambdas = _CONVOLUTIONS[rank - 1](folded, weight, padding=padding, dilation=context.step)
    return lambdas.reshape(b, dim_v, e.shape[-2], context.num_queries)


def unsupported(problem: Problem) -> list[str]:
    """Why this kernel cannot serve the problem; empty if it can."""
    reasons = []
    if not problem.relative:
        reasons.append(
            "a convolution needs relative positions: a table of offsets, not dense embeddings or none"
        )
    if len(problem.grid) > len(_CONVOLUTIONS):
        reasons.append(f"convolutions have at most 3 axes, the grid has {len(problem.grid)}")
    return reasons


def rate(problem: Problem) -> float:
    """Operations per second: less in the backward of a convolution, and on one axis."""
    if problem.device == "cuda":
        return 8e12 if problem.train else 20e12
    if problem.train:
        return 18e9
    return 20e9 if len(problem.grid) == 1 else 120e9


def cost(problem: Problem) -> Cost:
    """The pairs of query and context element inside the grid; the position lambdas are stored whole."""
    p = problem
    per_lambda = p.dim_k * p.dim_v
    lambdas = p.batch * p.num_queries * per_lambda
    pairs = math.prod([_pairs(*axis) for axis in _axes(p.context)])
    flops = 2 * p.batch * pairs * per_lambda * p.dim_u + 2 * p.num_heads * lambdas + p.content_flops
    bytes_ = p.itemsize * 4 * lambdas + p.io_bytes
    return Cost(
        flops=flops, bytes=bytes_, peak_bytes=p.itemsize * lambdas * (3 if p.train else 2) + p.content_peak
    )


def _axes(context: RelativeContext) -> list[tuple[int, int, int, int, int]]:
    """For each axis: queries, context elements, entries before and after offset 0, and their distance."""
    reach = context.reach()
    return [
        (queries, keys, centre - part.start, part.stop - 1 - centre, step)
        for queries, keys, centre, part, step in zip(
            context.grid, context.key_grid, context.centre, reach, context.step, strict=True
        )
    ]


def _pairs(queries: int, keys: int, before: int, after: int, step: int) -> int:
    """About how many pairs one axis has inside the grid: a convolution does not multiply by padding."""
    # Offset o has min(queries, keys) places, fewer where it is beyond what one grid is longer than the other:
    # on each side of offset 0 the missing ones are an arithmetic series.
    shorter = min(queries, keys)
    ahead = max(0, after * step - (keys - shorter))
    behind = max(0, before * step - (queries - shorter))
    missing = ahead * (ahead + step) + behind * (behind + step)
    return shorter * (before + after + 1) - missing // (2 * step)
