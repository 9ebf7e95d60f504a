"""The position table as kernels look it up: which entry stands for an offset.

A table is read by index, and its gradient is the sum over all places that read an entry, so one function
serves every geometry: borders, dilation, causal order, a grid of its own for the context.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .context import RelativeContext


def trimmed(e: Tensor, context: RelativeContext) -> tuple[Tensor, tuple[int, ...]]:
    """The part of a table (*offsets, k, u) that the grid can meet, and its entry of offset 0 per axis."""
    reach = context.reach()
    centre = tuple(c - part.start for c, part in zip(context.centre, reach, strict=True))
    return e[reach], centre


def pair_entries(context: RelativeContext, device: torch.device) -> Tensor:
    """The flat index (see `entries`), of shape n m, between all queries and all context elements."""
    grid = [(0, size) for size in context.grid]
    return box_entries(context, grid, [(0, size) for size in context.key_grid], device)


def box_entries(
    context: RelativeContext,
    queries: Sequence[tuple[int, int]],
    keys: Sequence[tuple[int, int]],
    device: torch.device,
) -> Tensor:
    """The flat index (see `entries`), of shape n m, between two boxes of (start, stop) per axis."""
    rank = len(context.grid)
    offsets = []  # each on its own two of the axes (*queries, *keys): most steps are on small tensors
    for axis, (of_queries, of_keys) in enumerate(zip(queries, keys, strict=True)):
        shape = [1] * (2 * rank)
        shape[axis], shape[rank + axis] = of_queries[1] - of_queries[0], of_keys[1] - of_keys[0]
        n, m = torch.arange(*of_queries, device=device), torch.arange(*of_keys, device=device)
        offsets.append((m[None, :] - n[:, None]).view(shape))
    return entries(context, offsets).flatten(rank).flatten(0, rank - 1)


def entries(context: RelativeContext, offsets: Sequence[Tensor]) -> Tensor:
    """The flat index of each offset's entry, or the table's length where an offset has none.

    Args:
        context: The geometry.
        offsets: For each axis, offsets position(m) - position(n), of shapes that broadcast.
    """
    index = torch.zeros((), dtype=torch.long, device=offsets[0].device)
    found = torch.ones((), dtype=torch.bool, device=offsets[0].device)
    axes = zip(offsets, context.table_shape, context.centre, context.step, strict=True)
    for offset, length, centre, step in axes:
        entry = offset.div(step, rounding_mode="floor") + centre
        found = found & (entry >= 0) & (entry < length)
        if step > 1:
            found = found & (offset % step == 0)
        if context.causal:
            found = found & (offset <= 0)
        index = index * length + entry
    return index.where(found, math.prod(context.table_shape))


def read(e: Tensor, index: Tensor) -> Tensor:
    """Embeddings of shape (*index, u, k) from a table (*offsets, k, u); zero where there is no entry."""
    rows = e.flatten(0, -3).mT.flatten(1)
    rows = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
    return torch.embedding(rows, index).unflatten(-1, (e.shape[-1], e.shape[-2]))


def collect(gradient: Tensor, index: Tensor, shape: Sequence[int]) -> Tensor:
    """The gradient of a table of this shape (*offsets, k, u) from that of what `read` gave."""
    *table, k, u = shape
    rows = gradient.new_zeros(math.prod(table) + 1, u * k)
    rows.index_add_(0, index.flatten(), gradient.reshape(-1, u * k))
    return rows[:-1].unflatten(1, (u, k)).mT.reshape(*table, k, u)
