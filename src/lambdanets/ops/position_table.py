"""Lookups in the table of position embeddings: the entry of each relative offset.

Kernels gather embeddings by index, and the gradient of the table is summed through the same index. The index
alone describes the geometry: borders, dilation, causal order, a separate grid of the context.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .context import RelativeContext


def trim_table(e: Tensor, context: RelativeContext) -> tuple[Tensor, tuple[int, ...]]:
    """Return the entries of a table [*offsets, k, u] that some pair reads, and the index of offset 0 in them.

    The entries are a view [*fewer offsets, k, u]; the index has one number per axis.
    """
    entries = context.reachable_entries()
    centre = tuple(c - part.start for c, part in zip(context.centre, entries, strict=True))
    return e[entries], centre


def pair_indices(context: RelativeContext, device: torch.device) -> Tensor:
    """Return the table index [n, m] (see `offset_indices`) of every query and context element."""
    queries = [(0, size) for size in context.grid]
    return box_indices(context, queries, [(0, size) for size in context.key_grid], device)


def box_indices(
    context: RelativeContext,
    queries: Sequence[tuple[int, int]],
    keys: Sequence[tuple[int, int]],
    device: torch.device,
) -> Tensor:
    """Return the table index [n, m] (see `offset_indices`) of a box of queries and a box of the context.

    Args:
        context: The geometry.
        queries: The n queries: a range (start, stop) per axis of the grid.
        keys: The m context elements: a range (start, stop) per axis of the context's grid.
        device: Device of the result.
    """
    rank = len(context.grid)
    # The offsets of a grid axis have length 1 on all axes of [*queries, *keys] but its own two: most steps of
    # `offset_indices` then run on small tensors that broadcast.
    offsets = []
    for axis, (query_range, key_range) in enumerate(zip(queries, keys, strict=True)):
        shape = [1] * (2 * rank)
        shape[axis], shape[rank + axis] = query_range[1] - query_range[0], key_range[1] - key_range[0]
        n, m = torch.arange(*query_range, device=device), torch.arange(*key_range, device=device)
        offsets.append((m[None, :] - n[:, None]).view(shape))
    return offset_indices(context, offsets).flatten(rank).flatten(0, rank - 1)


def offset_indices(context: RelativeContext, offsets: Sequence[Tensor]) -> Tensor:
    """Return the flat index of each offset's entry, or the table's length for an offset without one.

    Args:
        context: The geometry.
        offsets: For each axis, offsets position(m) - position(n); their shapes broadcast.

    Returns:
        Indices (int64) into the flattened table, of the broadcast shape.
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


def gather_embeddings(e: Tensor, index: Tensor) -> Tensor:
    """Return the embeddings [*index.shape, u, k] of a table [*offsets, k, u].

    They are zero where the index (of `offset_indices`) is the table's length.
    """
    rows = e.flatten(0, -3).mT.flatten(1)  # [offsets, u k]
    rows = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
    return torch.embedding(rows, index).unflatten(-1, (e.shape[-1], e.shape[-2]))


def scatter_gradient(gradient: Tensor, index: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the gradient of a table from that of its gathered embeddings.

    Args:
        gradient: Gradient of the embeddings, [*index.shape, u, k].
        index: The index that they were gathered with.
        shape: Shape of the table, [*offsets, k, u].
    """
    *table, k, u = shape
    rows = gradient.new_zeros(math.prod(table) + 1, u * k)
    rows.index_add_(0, index.flatten(), gradient.reshape(-1, u * k))
    return rows[:-1].unflatten(1, (u, k)).mT.reshape(*table, k, u)
