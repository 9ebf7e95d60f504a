"""Tables of relative position embeddings: their shape for a scope or a grid, other sizes of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.context import Grid, as_grid

_MODES = {1: "linear", 2: "bicubic", 3: "trilinear"}


def table_shape(scope: Grid | None, grid: Grid | None, rank: int) -> tuple[int, ...]:
    """Entries per axis: the scope, or every offset of the grid (2 * grid - 1).

    Raises:
        ValueError: If neither or both are given, or their axes are not `rank`.
    """
    if (scope is None) == (grid is None):
        raise ValueError(
            f"positions need either scope (local) or grid (global, the size the table is made for), "
            f"got scope={scope} and grid={grid}; position=False needs neither"
        )
    if scope is not None:
        return as_grid(scope, "scope", rank)
    assert grid is not None
    return tuple(2 * size - 1 for size in as_grid(grid, "grid", rank))


def resize_table(table: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Interpolate a table of shape (*offsets, k, u) to other lengths, ends and centre kept in place.

    Linear on one axis, bicubic on two, trilinear on three; computed in float32 at least.
    """
    rank = len(shape)
    k, u = table.shape[-2:]
    wide = table.to(torch.promote_types(table.dtype, torch.float32))
    for axis, length in enumerate(shape):
        if length == 1:  # a single entry is offset 0; interpolation would take the first end
            wide = wide.narrow(axis, wide.shape[axis] // 2, 1)
    channels_first = wide.flatten(-2).movedim(-1, 0)[None]
    resized = F.interpolate(channels_first, size=shape, mode=_MODES[rank], align_corners=True)
    return resized[0].movedim(0, -1).unflatten(-1, (k, u)).to(table.dtype)


def crop_table(table: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The entries of a table of shape (*offsets, k, u) for the offsets of another; zero where there are none.

    Offset 0 stands at half the length, rounded down, whether a table is local or global. Trailing axes may be
    others than k and u.
    """
    cropped = table.new_zeros((*shape, *table.shape[len(shape) :]))
    source, target = [], []
    for have, need in zip(table.shape, shape, strict=False):
        first = have // 2 - need // 2
        start, stop = max(first, 0), min(first + need, have)
        source.append(slice(start, stop))
        target.append(slice(start - first, stop - first))
    cropped[tuple(target)] = table[tuple(source)]
    return cropped
