"""Exact attention on a grid, for position logits that are the sum of a row and a column logit.

No attention map of all pairs is in memory.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_SIZE = 2**20
"""Elements of the attention maps that a CPU computes at once: 4 MiB in float32, which stay in its cache."""
MAX_JOINT_SIDE = 32
"""Height + width up to which, in half precision, one product computes content and position logits."""


def separable_attention(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return softmax_m(q[n] . k[m] + rows[n, y_m] + columns[n, x_m]) v[m]; memory is linear in n.

    On a CPU, queries are processed in blocks whose attention maps fit into its cache. In half precision and
    on small grids, the position logits are computed in the same product as the content logits. On other
    devices, PyTorch's fused attention is used.

    Args:
        q: Scaled queries `[b, h, n, d]`.
        k: Keys `[b, h, m, d]`, with m = height * width.
        v: Values `[b, h, m, d]`.
        rows: Logit of each query for each row, `[b, h, n, height]`.
        columns: Logit of each query for each column, `[b, h, n, width]`.

    Returns:
        Tensor `[b, h, n, d]`.
    """
    # Blocks are for the cache of this machine's CPU; an exported graph may run on another device.
    if q.device.type != "cpu" or torch.compiler.is_exporting():
        return fused(q, k, v, rows, columns)
    if q.dtype.itemsize < 4 and rows.shape[-1] + columns.shape[-1] <= MAX_JOINT_SIDE:
        return _BlockwiseAttention.apply(*_append_positions(q, k, rows, columns), v)
    return _BlockwiseAttention.apply(q, k, v, rows, columns)


def fused(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Compute `separable_attention` with one call of PyTorch's attention, without a bias."""
    queries, keys = _append_positions(q, k, rows, columns)
    # The fused kernels need queries, keys and values of the same depth.
    values = F.pad(v, (0, queries.shape[-1] - v.shape[-1]))
    y = F.scaled_dot_product_attention(queries, keys, values, scale=1.0)
    return y[..., : v.shape[-1]]


def _append_positions(q: Tensor, k: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return queries and keys with height + width additional channels, whose product includes the logits.

    The channels of a query are its logits of all rows and columns; those of a key are the one-hot encoding of
    its row and column.
    """
    height, width = rows.shape[-1], columns.shape[-1]
    row, column = (torch.arange(size, device=q.device) for size in (height, width))
    in_row = (row[:, None] == row)[:, None].expand(-1, width, -1).flatten(0, 1)
    in_column = (column[:, None] == column)[None].expand(height, -1, -1).flatten(0, 1)
    one_hot = torch.cat([in_row, in_column], dim=1).to(q.dtype).expand(*k.shape[:2], -1, -1)
    return torch.cat([q, rows, columns], dim=-1), torch.cat([k, one_hot], dim=-1)


def _bias(rows: Tensor, columns: Tensor) -> Tensor:
    """Return the position logits `[b, h, n, m]`."""
    return (rows[..., None] + columns[..., None, :]).flatten(3)


def _blocks(q: Tensor, k: Tensor, *by_query: Tensor) -> list[tuple[Tensor, ...]]:
    """Split `q`, and tensors with its axis n, into blocks whose maps have at most `BLOCK_SIZE` elements."""
    step = max(1, BLOCK_SIZE // max(1, q.shape[0] * q.shape[1] * k.shape[2]))
    return list(zip(*(x.split(step, dim=2) for x in (q, *by_query)), strict=True))


class _BlockwiseAttention(torch.autograd.Function):
    """Attention block by block; the backward pass recomputes the maps.

    Arguments are as in `separable_attention`; without row and column logits there is no bias.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, *position_logits: Tensor
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, *position_logits)
        if position_logits:
            blocks = [
                F.scaled_dot_product_attention(queries, k, v, attn_mask=_bias(*logits), scale=1.0)
                for queries, *logits in _blocks(q, k, *position_logits)
            ]
        else:
            keys, values = k.flatten(0, 1).mT, v.flatten(0, 1)
            maps = (torch.bmm(queries.flatten(0, 1), keys).softmax(-1) for (queries,) in _blocks(q, k))
            blocks = [torch.bmm(weights, values).unflatten(0, q.shape[:2]) for weights in maps]
        return torch.cat(blocks, dim=2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        q, k, v, *position_logits = ctx.saved_tensors
        heads, grid = q.shape[:2], tuple(x.shape[-1] for x in position_logits)
        keys, values = k.flatten(0, 1), v.flatten(0, 1)
        # Accumulated in float32 or wider: in half precision, small terms of a long sum are lost.
        accumulator_dtype = torch.promote_types(q.dtype, torch.float32)
        dk = torch.zeros_like(keys, dtype=accumulator_dtype)
        dv = torch.zeros_like(values, dtype=accumulator_dtype)
        by_block = []
        for queries, upstream, *logits_of_block in _blocks(q, k, g, *position_logits):
            queries, upstream = queries.flatten(0, 1), upstream.flatten(0, 1)
            if logits_of_block:
                logits = torch.baddbmm(_bias(*logits_of_block).flatten(0, 1), queries, keys.mT)
            else:
                logits = torch.bmm(queries, keys.mT)
            weights = logits.softmax(-1)
            _add_product(dv, weights.mT, upstream)
            dweights = torch.bmm(upstream, values.mT)
            dlogits = torch.ops.aten._softmax_backward_data(dweights, weights, -1, weights.dtype)
            _add_product(dk, dlogits.mT, queries)
            gradients = [torch.bmm(dlogits, keys).unflatten(0, heads)]
            if logits_of_block:
                on_grid = dlogits.unflatten(0, heads).unflatten(-1, grid)  # [b, h, n, height, width]
                gradients += [on_grid.sum(-1), on_grid.sum(-2)]
            by_block.append(gradients)
        dq, *dposition_logits = (torch.cat(blocks, dim=2) for blocks in zip(*by_block, strict=True))
        return dq, dk.to(k.dtype).view_as(k), dv.to(v.dtype).view_as(v), *dposition_logits


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to `total`, which may be of a wider dtype."""
    if total.dtype == left.dtype:
        total.baddbmm_(left, right)
    else:
        total += torch.bmm(left, right)
