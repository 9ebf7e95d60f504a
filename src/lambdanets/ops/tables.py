"""The position table in the forms that kernels work with: views or small copies, all differentiable."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .context import RelativeContext


def trimmed(e: Tensor, context: RelativeContext) -> tuple[Tensor, tuple[int, ...]]:
    """The part of a table (*offsets, k, u) that the grid can meet, and its entry of offset 0 per axis."""
    reach = context.reach()
    centre = tuple(c - part.start for c, part in zip(context.centre, reach, strict=True))
    return e[reach], centre


def full(e: Tensor, context: RelativeContext) -> Tensor:
    """The table with an entry for every offset of the grid, of shape (*(grid + context_grid - 1), k, u).

    Zero stands where nothing is seen: beyond the scope, between dilated entries, in the future.
    """
    table, centre = trimmed(e, context)
    for axis, step in enumerate(context.step):
        if step > 1:
            length = table.shape[axis]
            spread = table.new_zeros(*table.shape[: axis + 1], step, *table.shape[axis + 1 :])
            spread.select(axis + 1, 0).copy_(table)
            table = spread.flatten(axis, axis + 1).narrow(axis, 0, (length - 1) * step + 1)
    pads: list[int] = []
    axes = zip(context.grid, context.key_grid, centre, context.step, strict=True)
    for axis, (queries, keys, middle, step) in enumerate(axes):
        left = queries - 1 - middle * step
        pads[:0] = [left, queries + keys - 1 - left - table.shape[axis]]
    return F.pad(table, [0, 0, 0, 0, *pads])


def dense(e: Tensor, context: RelativeContext) -> Tensor:
    """Position embeddings of shape (n, k, m, u): for (n, m) the table's entry of position(m) - position(n).

    Along an axis the entries met by one query are a window of the full table, and the next query's window
    starts one entry earlier, so the embeddings are the table's windows in reverse order. The copies are made
    in float32 at least, because the gradient of an entry is a sum over up to n of them.
    """
    table = full(e.to(torch.promote_types(e.dtype, torch.float32)), context)
    rank = len(context.grid)
    for axis, keys in enumerate(context.key_grid):
        table = table.unfold(axis, keys, 1)  # *n k u *m
    windows = table.flip(tuple(range(rank))).movedim(rank + 1, -1)  # *n k *m u
    return windows.reshape(context.num_queries, e.shape[-2], context.num_context, e.shape[-1]).to(e.dtype)
