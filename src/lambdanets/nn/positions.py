"""Tables of relative position embeddings: their shape, and their conversion to other sizes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lambdanets.ops.context import Grid, as_grid

_MODES = {1: "linear", 2: "bicubic", 3: "trilinear"}


def table_shape(scope: Grid | None, grid: Grid | None, rank: int, *, causal: bool = False) -> tuple[int, ...]:
    """Return the number of offsets per axis of a position table: the scope, or 2 * grid - 1 for a grid.

    Args:
        scope: Size of a local table, or None.
        grid: Grid of a global table, or None.
        rank: Number of axes.
        causal: Whether offsets are at most 0, of which a grid has as many as positions.

    Raises:
        ValueError: If not exactly one of scope and grid is given, or it has another number of axes.
    """
    if (scope is None) == (grid is None):
        raise ValueError(
            f"positions need either scope (local) or grid (global, the size the table is made for), "
            f"got scope={scope} and grid={grid}; position=False needs neither"
        )
    if scope is not None:
        return as_grid(scope, "scope", rank)
    assert grid is not None
    return tuple(size if causal else 2 * size - 1 for size in as_grid(grid, "grid", rank))


def resize_table(table: Tensor, shape: tuple[int, ...], *, causal: bool = False) -> Tensor:
    """Interpolate a position table to other lengths.

    The first, the middle and the last entry of an axis remain the first, the middle and the last one
    (`align_corners=True`). The interpolation is linear on one axis, bicubic on two, trilinear on three, and
    computed in float32 or wider.

    Args:
        table: Position table `[*offsets, k, u]`.
        shape: The new number of offsets per axis.
        causal: Whether the last entry is for offset 0, not the middle one.

    Returns:
        Table `[*shape, k, u]`.
    """
    rank = len(shape)
    k, u = table.shape[-2:]
    values = table.to(torch.promote_types(table.dtype, torch.float32))
    for axis, length in enumerate(shape):
        # A table of one entry is for offset 0, but interpolation to length 1 takes the first entry.
        if length == 1:
            entries = values.shape[axis]
            values = values.narrow(axis, entries - 1 if causal else entries // 2, 1)
    channels_first = values.flatten(-2).movedim(-1, 0)[None]  # [1, k * u, *offsets]
    resized = F.interpolate(channels_first, size=shape, mode=_MODES[rank], align_corners=True)
    return resized[0].movedim(0, -1).unflatten(-1, (k, u)).to(table.dtype)


def crop_table(table: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return a position table of another size: entries of the same offsets, zeros for new offsets.

    Args:
        table: Position table `[*offsets, ...]`, local or global; offset 0 is at half the length, rounded
            down.
        shape: The new number of offsets per axis.

    Returns:
        Table `[*shape, ...]`.
    """
    cropped = table.new_zeros((*shape, *table.shape[len(shape) :]))
    source, target = [], []
    for length, new_length in zip(table.shape, shape, strict=False):
        first = length // 2 - new_length // 2
        start, stop = max(first, 0), min(first + new_length, length)
        source.append(slice(start, stop))
        target.append(slice(start - first, stop - first))
    cropped[tuple(target)] = table[tuple(source)]
    return cropped
