"""Cases of `lambdanets bench op`: the sizes of a layer and of its input, by name and in groups."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from lambdanets.ops import Problem

# Results are compared with the definition in float64 on a crop of the case, which has n x m pairs in memory.
# Largest side of the crop's grid by number of axes, and its largest batch and value depth.
CROP_SIDE = {1: 97, 2: 11, 3: 5}
CROP_BATCH, CROP_DEPTH = 2, 3


@dataclass(frozen=True, kw_only=True)
class Case:
    """The sizes of a layer and of its input: one row of a table, or one point of a curve.

    Attributes:
        name: Name in `--cases`, in tables and in the CSV.
        grid: Sizes of the grid.
        scope: Entries of the position table per axis, None for global positions.
        batch: Batch size, b.
        dim: Channels of input and output.
        num_heads: Queries per position, h; the value depth is `dim / num_heads`.
        dim_k: Query and key depth, k.
        dim_u: Intra-depth, u.
        series: Name of the curve to which it belongs as a point, or "".
    """

    name: str
    grid: tuple[int, ...]
    scope: tuple[int, ...] | None = None
    batch: int = 1
    dim: int = 64
    num_heads: int = 4
    dim_k: int = 16
    dim_u: int = 1
    series: str = ""

    def __post_init__(self) -> None:
        if not 1 <= len(self.grid) <= 3:
            raise ValueError(f"grid must have one to three axes, got {self.grid}")
        for name in ("batch", "dim", "num_heads", "dim_k", "dim_u"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.dim % self.num_heads:
            raise ValueError(f"dim must be a multiple of num_heads={self.num_heads}, got {self.dim}")
        self.problem()  # checks the sizes against one another

    @property
    def rank(self) -> int:
        return len(self.grid)

    @property
    def positions(self) -> int:
        return math.prod(self.grid)

    @property
    def dim_v(self) -> int:
        return self.dim // self.num_heads

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the input."""
        return (self.batch, self.dim, *self.grid)

    def problem(
        self, *, train: bool = False, dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> Problem:
        """Return the layer's problem for `lambdanets.plan`.

        A layer passes its global position table as a local one whose scope covers all offsets.
        """
        return Problem(
            grid=self.grid,
            context_grid=self.grid,
            scope=self.scope or tuple(2 * size - 1 for size in self.grid),
            dilation=(1,) * self.rank,
            num_heads=self.num_heads,
            dim_k=self.dim_k,
            dim_v=self.dim_v,
            dim_u=self.dim_u,
            batch=self.batch,
            dtype=dtype,
            device=torch.device(device).type,
            train=train,
        )

    def crop(self) -> Case:
        """Return the case with few positions and channels, small enough for the definition in float64."""
        return replace(
            self,
            batch=min(self.batch, CROP_BATCH),
            dim=self.num_heads * min(self.dim_v, CROP_DEPTH),
            grid=tuple(min(size, CROP_SIDE[self.rank]) for size in self.grid),
        )

    def __str__(self) -> str:
        scope = self.scope and "x".join(map(str, self.scope))
        if self.scope and len(set(self.scope)) == 1:
            scope = str(self.scope[0])
        sizes = "x".join(map(str, self.grid)) if self.rank > 1 else f"{self.grid[0]:,}"
        return f"{self.batch}x{self.dim}, {sizes} {f'scope {scope}' if scope else 'global'}"


def _square(name: str, batch: int, dim: int, side: int, scope: int | None = None, series: str = "") -> Case:
    local = None if scope is None else (scope, scope)
    return Case(name=name, batch=batch, dim=dim, grid=(side, side), scope=local, series=series)


SIDES = (8, 16, 32, 64, 128)
LARGE_SIDE = 256

_LAYERS = (
    _square("g7", 32, 512, 7),
    _square("g14", 32, 256, 14),
    _square("g28", 8, 128, 28),
    _square("g64", 1, 256, 64),
    _square("r7@14", 32, 256, 14, 7),
    _square("r23@28", 8, 128, 28, 23),
    _square("r23@56", 4, 64, 56, 23),
    _square("r23@64", 1, 256, 64, 23),
)
# The stages of a ResNet-50 on images of 224 pixels, at a batch for one GPU.
_STAGES = (
    _square("c2", 128, 64, 56, 23),
    _square("c3", 128, 128, 28, 23),
    _square("c4", 128, 256, 14, 23),
    _square("c5", 128, 512, 7, 23),
    _square("c4-global", 128, 256, 14),
    _square("c5-global", 128, 512, 7),
)
_GLOBAL_STAGES = (
    _square("c2-global", 128, 64, 56),
    _square("c3-global", 128, 128, 28),
    *_STAGES[-2:],
)
_WIDE = (_square("g64", 1, 256, 64), _square("g96", 1, 256, 96), _square("g128", 1, 256, 128))
_GLOBAL = tuple(_square(f"global-{s}", 1, 64, s, series="global") for s in (*SIDES, LARGE_SIDE))
_LOCAL = tuple(_square(f"local-{s}", 1, 64, s, 23, series="scope 23") for s in (*SIDES, LARGE_SIDE))

CASES: dict[str, Case] = {
    case.name: case for group in (_LAYERS, _STAGES, _GLOBAL_STAGES, _WIDE, _GLOBAL, _LOCAL) for case in group
}
GROUPS: dict[str, tuple[str, ...]] = {
    "layers": tuple(case.name for case in _LAYERS),
    "stages": tuple(case.name for case in _STAGES),
    "stages-global": tuple(case.name for case in _GLOBAL_STAGES),
    "wide": tuple(case.name for case in _WIDE),
    "series-global": tuple(case.name for case in _GLOBAL),
    "series-local": tuple(case.name for case in _LOCAL),
}


def select(names: Iterable[str], *, large: bool = False) -> list[Case]:
    """Return the cases with the given names, and those of the given groups, without repetition.

    Args:
        names: Keys of `CASES` and `GROUPS`.
        large: Whether a series includes its largest point, which takes minutes.

    Raises:
        ValueError: A name is neither a case nor a group.
    """
    chosen: dict[str, Case] = {}
    for name in names:
        if name in CASES:
            chosen[name] = CASES[name]
        elif name in GROUPS:
            cases = [CASES[member] for member in GROUPS[name]]
            small = [case for case in cases if large or not case.series or case.grid[0] < LARGE_SIDE]
            chosen |= {case.name: case for case in small}
        else:
            known = ", ".join([*GROUPS, *CASES])
            raise ValueError(f"there is no case {name!r}; there are {known}")
    return list(chosen.values())
