"""Contexts: which elements each query sees, and which offset each entry of a position table stands for.

`GlobalContext` and `LocalContext` are grids with a table of relative offsets; `MaskedContext` is any boolean
mask of queries by context elements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

Grid = int | tuple[int, ...]


def as_grid(value: Grid, name: str, rank: int | None = None) -> tuple[int, ...]:
    """Return an int or a tuple as a tuple of sizes, one per axis; an int is repeated over `rank` axes.

    Args:
        value: The size or sizes.
        name: The argument's name, for errors.
        rank: Number of axes, None for any.

    Raises:
        ValueError: If a size is not a positive integer or the number of axes is not `rank`.
    """
    if type(value) is tuple and value and rank in (None, len(value)):
        for size in value:
            if type(size) is not int or size < 1:
                break
        else:
            return value  # the usual case, on a fast path: a layer calls this many times
    if isinstance(value, (int, torch.SymInt, torch.Tensor)):
        sizes = (value,) * (rank or 1)
    else:
        sizes = tuple(value) if isinstance(value, (tuple, list)) else ()
    # While torch.jit.trace records, sizes are tensors; the geometry is fixed to that of the example.
    sizes = tuple(int(s) if isinstance(s, torch.Tensor) else s for s in sizes)
    if not sizes or any(isinstance(s, bool) or not isinstance(s, (int, torch.SymInt)) for s in sizes):
        raise ValueError(f"{name} must be an int or a tuple of ints, got {value!r}")
    if any(s < 1 for s in sizes):
        raise ValueError(f"{name} must hold positive sizes, got {value!r}")
    if rank is not None and len(sizes) != rank:
        raise ValueError(f"{name} must have {rank} axes, got {value!r}")
    return sizes


def as_sizes(x: torch.Tensor) -> tuple[int, ...]:
    """Return a tensor's shape as ints, also while torch.jit.trace records and sizes are tensors."""
    return tuple(int(s) if isinstance(s, torch.Tensor) else s for s in x.shape)


class Context:
    """The context elements that each of `num_queries` queries may see."""

    num_queries: int

    def visible(self, num_context: int, device: torch.device) -> torch.Tensor | None:
        """Return booleans [n, m], True where query n sees element m; None if all queries see all elements.

        Args:
            num_context: Number of context elements, m.
            device: Device of the result.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class RelativeContext(Context):
    """A grid of queries, a grid of context elements, and a table with one entry per relative offset.

    An offset is o = position(m) - position(n), per axis. Entry j on an axis of the table stands for the
    offset `step * (j - centre)`; offsets without an entry have no position embedding.
    """

    grid: tuple[int, ...]
    context_grid: tuple[int, ...] | None = field(default=None, kw_only=True)
    causal: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        grid = as_grid(self.grid, "grid")
        object.__setattr__(self, "grid", grid)
        context_grid = (
            grid if self.context_grid is None else as_grid(self.context_grid, "context_grid", len(grid))
        )
        object.__setattr__(self, "context_grid", context_grid)
        if self.causal and len(grid) != 1:
            raise ValueError(f"a causal context needs a grid of one axis (an order), got {grid}")

    @property
    def key_grid(self) -> tuple[int, ...]:
        """The grid of the context elements."""
        return self.context_grid or self.grid

    @property
    def num_queries(self) -> int:  # type: ignore[override]
        """Number of queries, n."""
        return math.prod(self.grid)

    @property
    def num_context(self) -> int:
        """Number of context elements, m."""
        return math.prod(self.key_grid)

    def visible(self, num_context: int, device: torch.device) -> torch.Tensor | None:
        """Return booleans [n, m], True where m <= n, for a causal order; else None."""
        if not self.causal:
            return None
        n = torch.arange(self.num_queries, device=device)
        m = torch.arange(num_context, device=device)
        return m[None, :] <= n[:, None]

    @property
    def table_shape(self) -> tuple[int, ...]:
        """Number of entries of the table, per axis."""
        raise NotImplementedError

    @property
    def centre(self) -> tuple[int, ...]:
        """Index of the entry that stands for offset 0, per axis."""
        raise NotImplementedError

    @property
    def step(self) -> tuple[int, ...]:
        """Distance on the grid between neighbouring entries of the table, per axis."""
        return (1,) * len(self.grid)

    def is_table(self, e: torch.Tensor) -> bool:
        """Return whether embeddings are a table of offsets rather than dense, of shape [n, m, k, u]."""
        return tuple(e.shape[:-2]) == self.table_shape

    def reachable_entries(self) -> tuple[slice, ...]:
        """Return, per axis, the slice of table entries whose offset some query and context element have."""
        slices = []
        for queries, keys, length, centre, step in zip(
            self.grid, self.key_grid, self.table_shape, self.centre, self.step, strict=True
        ):
            first = max(0, centre - (queries - 1) // step)
            last = min(length - 1, centre if self.causal else centre + (keys - 1) // step)
            slices.append(slice(first, last + 1))
        return tuple(slices)

    @property
    def num_pairs(self) -> int:
        """Number of pairs (n, m) with an entry; approximate if dilated and the two grids differ."""
        axes = zip(self.grid, self.key_grid, self.reachable_entries(), self.centre, self.step, strict=True)
        return math.prod(
            _axis_pairs(queries, keys, centre - part.start, part.stop - 1 - centre, step)
            for queries, keys, part, centre, step in axes
        )


def _axis_pairs(queries: int, keys: int, before: int, after: int, step: int) -> int:
    """Return the number of pairs on one axis that have an entry.

    Args:
        queries: Queries on the axis.
        keys: Context elements on the axis.
        before: Entries for negative offsets.
        after: Entries for positive offsets.
        step: Distance between neighbouring entries.
    """
    # Offset o >= 0 has min(queries, keys - o) pairs: `shorter` up to o = keys - shorter, then one fewer for
    # each further position. For negative offsets queries and keys are exchanged. The missing pairs of the
    # entries thus form an arithmetic series on either side of offset 0.
    shorter = min(queries, keys)
    ahead = max(0, after * step - (keys - shorter))
    behind = max(0, before * step - (queries - shorter))
    missing = ahead * (ahead + step) + behind * (behind + step)
    return shorter * (before + after + 1) - missing // (2 * step)


def default_centre(scope: tuple[int, ...], causal: bool) -> tuple[int, ...]:
    """Return the index of the entry for offset 0 of a local table: the middle, or the last one if causal."""
    return tuple(size - 1 if causal else size // 2 for size in scope)


@dataclass(frozen=True)
class GlobalContext(RelativeContext):
    """Every query sees every context element, or under a causal order every earlier one and its own.

    Args:
        grid: Sizes of the query grid (int or tuple); n is their product, positions are row-major.
        context_grid: Sizes of the context's grid, the query grid by default; both have the same origin.
        causal: Query n sees only the elements m <= n, in content and in positions; needs one axis.

    The table has `grid + context_grid - 1` entries per axis (`2 * grid - 1` if the grids are equal); offset o
    has index `o + grid - 1`. Without a table, any number m of context elements is accepted unless causal.

    Raises:
        ValueError: If a size is not a positive integer, or the numbers of axes do not match.
    """

    @property
    def table_shape(self) -> tuple[int, ...]:
        """Number of entries of the table, per axis: one for each offset between the grids."""
        return tuple(queries + keys - 1 for queries, keys in zip(self.grid, self.key_grid, strict=True))

    @property
    def centre(self) -> tuple[int, ...]:
        """Index of the entry that stands for offset 0, per axis."""
        return tuple(queries - 1 for queries in self.grid)


@dataclass(frozen=True)
class LocalContext(RelativeContext):
    """Position lambdas sum over `scope` elements per axis; the content lambda stays global.

    Args:
        grid: Sizes of the query grid (int or tuple); n is their product, positions are row-major.
        scope: Entries of the table per axis (an int for all), even or odd, also larger than the grid.
        dilation: Distance on the grid between neighbouring entries per axis (an int for all).
        centre: Index of the entry for offset 0, per axis (an int for all). Default: `scope // 2`, a window
            around the query; under a causal order `scope - 1`, a window that ends at the query.
        context_grid: Sizes of the context's grid, the query grid by default; both have the same origin.
        causal: Query n sees only the elements m <= n, in content and in positions; needs one axis.

    The offset `dilation * j` has index `j + centre`. At the borders of the grid sums run over fewer elements,
    which equals zero padding, and are not renormalised.

    Raises:
        ValueError: If a size is not a positive integer, the centre is not an index of the table, or the
            numbers of axes do not match.
    """

    scope: tuple[int, ...] = field()
    dilation: Grid = field(default=1, kw_only=True)
    centre: Grid | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        rank = len(self.grid)
        object.__setattr__(self, "scope", as_grid(self.scope, "scope", rank))
        object.__setattr__(self, "dilation", as_grid(self.dilation, "dilation", rank))
        if self.centre is None:
            centre = default_centre(self.scope, self.causal)
        else:
            # Indices, which unlike sizes may be 0.
            given = (self.centre,) * rank if isinstance(self.centre, int) else tuple(self.centre)
            centre = tuple(size - 1 for size in as_grid(tuple(i + 1 for i in given), "centre", rank))
            if any(i >= size for i, size in zip(centre, self.scope, strict=True)):
                raise ValueError(f"centre must be an index of the table {self.scope}, got {self.centre}")
        object.__setattr__(self, "centre", centre)

    @property
    def table_shape(self) -> tuple[int, ...]:
        """Number of entries of the table, per axis: the scope."""
        return self.scope

    @property
    def step(self) -> tuple[int, ...]:
        """Distance on the grid between neighbouring entries of the table, per axis: the dilation."""
        assert isinstance(self.dilation, tuple)  # since __post_init__
        return self.dilation


@dataclass(frozen=True, eq=False)
class MaskedContext(Context):
    """Query n sees context element m where `mask[n, m]` is True, in content and in positions.

    Args:
        mask: Boolean tensor of shape [n, m], shared by the batch.

    Position embeddings, if any, are dense, of shape [n, m, k, u].

    Raises:
        ValueError: If the mask is not a boolean tensor with two axes.
    """

    mask: torch.Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.mask, torch.Tensor) or self.mask.dtype != torch.bool or self.mask.ndim != 2:
            found = (
                f"{self.mask.dtype} of shape {tuple(self.mask.shape)}"
                if isinstance(self.mask, torch.Tensor)
                else type(self.mask).__name__
            )
            raise ValueError(f"mask must be a bool tensor of shape (n, m), True where visible; got {found}")

    @property
    def num_queries(self) -> int:  # type: ignore[override]
        """Number of queries, n."""
        return self.mask.shape[0]

    def visible(self, num_context: int, device: torch.device) -> torch.Tensor | None:
        """Return the mask [n, m]."""
        return self.mask
