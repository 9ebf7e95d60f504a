"""Attention on a grid whose position logits are a row's and a column's, without a map of all pairs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 2**20
"""Elements of the attention maps that a CPU forms at once: 4 MiB in float32 stay in its cache."""
SMALL = 32
"""Rows and columns up to which, in half precision, one product is faster than adding their logits."""


def separable_attention(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """softmax_m(q[n] . k[m] + rows[n, y_m] + columns[n, x_m]) v[m], exact, in memory linear in n.

    On a CPU in blocks of queries, whose maps stay in its cache, in half precision and on small grids with the
    position logits in the same product as the content's; elsewhere by PyTorch's fused attention.

    Args:
        q: Scaled queries of shape (b h n d).
        k: Keys of shape (b h m d), m = height * width.
        v: Values of shape (b h m d).
        rows: The logit of each query for each row, of shape (b h n height).
        columns: The logit of each query for each column, of shape (b h n width).

    Returns:
        Tensor of shape (b h n d).
    """
    if q.device.type != "cpu" or torch.compiler.is_exporting():  # a file holds no blocks of this machine's
        return fused(q, k, v, rows, columns)
    if q.dtype.itemsize < 4 and rows.shape[-1] + columns.shape[-1] <= SMALL:
        return _InBlocks.apply(*_with_positions(q, k, rows, columns), v)
    return _InBlocks.apply(q, k, v, rows, columns)


def fused(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The same as one call of PyTorch's attention, without a bias."""
    queries, keys = _with_positions(q, k, rows, columns)
    # The fused kernels want queries, keys and values of one depth.
    values = F.pad(v, (0, queries.shape[-1] - v.shape[-1]))
    y = F.scaled_dot_product_attention(queries, keys, values, scale=1.0)
    return y[..., : v.shape[-1]]


def _with_positions(q: Tensor, k: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys whose product holds the position logits: with height + width more channels.

    They are the query's logit of each row and column, and which row and column the key is in.
    """
    height, width = rows.shape[-1], columns.shape[-1]
    row, column = (torch.arange(size, device=q.device) for size in (height, width))
    in_row = (row[:, None] == row)[:, None].expand(-1, width, -1).flatten(0, 1)
    in_column = (column[:, None] == column)[None].expand(height, -1, -1).flatten(0, 1)
    place = torch.cat([in_row, in_column], dim=1).to(q.dtype).expand(*k.shape[:2], -1, -1)
    return torch.cat([q, rows, columns], dim=-1), torch.cat([k, place], dim=-1)


def _bias(rows: Tensor, columns: Tensor) -> Tensor:
    return (rows[..., None] + columns[..., None, :]).flatten(3)


def _blocks(q: Tensor, k: Tensor, *by_query: Tensor) -> list[tuple[Tensor, ...]]:
    """Queries, and what else has their axis, in blocks whose maps fit `BLOCK`."""
    step = max(1, BLOCK // max(1, q.shape[0] * q.shape[1] * k.shape[2]))
    return list(zip(*(x.split(step, dim=2) for x in (q, *by_query)), strict=True))


class _InBlocks(torch.autograd.Function):
    """Block by block, the map formed again in the backward pass."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, *of_axes: Tensor
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, *of_axes)
        if of_axes:
            parts = [
                F.scaled_dot_product_attention(some, k, v, attn_mask=_bias(*by_axis), scale=1.0)
                for some, *by_axis in _blocks(q, k, *of_axes)
            ]
        else:
            keys, values = k.flatten(0, 1).mT, v.flatten(0, 1)
            maps = (torch.bmm(some.flatten(0, 1), keys).softmax(-1) for (some,) in _blocks(q, k))
            parts = [torch.bmm(weights, values).unflatten(0, q.shape[:2]) for weights in maps]
        return torch.cat(parts, dim=2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        q, k, v, *of_axes = ctx.saved_tensors
        heads, grid = q.shape[:2], tuple(x.shape[-1] for x in of_axes)
        keys, values = k.flatten(0, 1), v.flatten(0, 1)
        # Summed over blocks in float32 at least: in half precision a long sum stops growing.
        wide = torch.promote_types(q.dtype, torch.float32)
        dk, dv = torch.zeros_like(keys, dtype=wide), torch.zeros_like(values, dtype=wide)
        by_block = []
        for some, upstream, *by_axis in _blocks(q, k, g, *of_axes):
            some, upstream = some.flatten(0, 1), upstream.flatten(0, 1)
            if by_axis:
                logits = torch.baddbmm(_bias(*by_axis).flatten(0, 1), some, keys.mT)
            else:
                logits = torch.bmm(some, keys.mT)
            weights = logits.softmax(-1)
            _add_product(dv, weights.mT, upstream)
            dweights = torch.bmm(upstream, values.mT)
            dlogits = torch.ops.aten._softmax_backward_data(dweights, weights, -1, weights.dtype)
            _add_product(dk, dlogits.mT, some)
            gradients = [torch.bmm(dlogits, keys).unflatten(0, heads)]
            if by_axis:
                on_grid = dlogits.unflatten(0, heads).unflatten(-1, grid)
                gradients += [on_grid.sum(-1), on_grid.sum(-2)]
            by_block.append(gradients)
        dq, *of_axes = (torch.cat(parts, dim=2) for parts in zip(*by_block, strict=True))
        return dq, dk.to(k.dtype).view_as(k), dv.to(v.dtype).view_as(v), *of_axes


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.baddbmm_(left, right)
    else:
        total += torch.bmm(left, right)
