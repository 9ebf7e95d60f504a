"""One table of operator problems: ugly sizes, every context, every option. A test takes those it can use.

Sizes are different primes where they can be, so that two axes swapped by mistake cannot pass.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lambdanets.ops import GlobalContext, LocalContext, MaskedContext

Grid = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Case:
    """An operator problem by its sizes; `masked` is by a `MaskedContext`, `padded` by a padding mask."""

    name: str
    grid: Grid
    context_grid: Grid | None = None
    scope: Grid | None = None
    dilation: Grid | None = None
    centre: Grid | None = None
    causal: bool = False
    dense: bool = False
    masked: bool = False
    padded: bool = False
    content: bool = True
    position: bool = True
    batch: int = 2
    num_heads: int = 3
    dim_k: int = 5
    dim_v: int = 7
    dim_u: int = 1

    @property
    def n(self) -> int:
        return math.prod(self.grid)

    @property
    def m(self) -> int:
        return math.prod(self.context_grid or self.grid)

    @property
    def shapes(self) -> dict[str, Grid]:
        """Shapes of the differentiable inputs by name."""
        shapes = {
            "q": (self.batch, self.num_heads, self.n, self.dim_k),
            "k": (self.batch, self.m, self.dim_k, self.dim_u),
            "v": (self.batch, self.m, self.dim_v, self.dim_u),
        }
        if self.position and self.dense:
            shapes["e"] = (self.n, self.m, self.dim_k, self.dim_u)
        elif self.position and self.scope is not None:
            shapes["e"] = (*self.scope, self.dim_k, self.dim_u)
        elif self.position:
            context_grid = self.context_grid or self.grid
            offsets = (g + c - 1 for g, c in zip(self.grid, context_grid, strict=True))
            shapes["e"] = (*offsets, self.dim_k, self.dim_u)
        return shapes

    def inputs(
        self, dtype: torch.dtype = torch.float64, device: str = "cpu", seed: int = 0
    ) -> dict[str, Tensor]:
        """Random q, k, v and, with positions, e. The same numbers for every dtype, each rounded to it."""
        generator = torch.Generator().manual_seed(seed)
        return {
            name: torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)
            for name, shape in self.shapes.items()
        }

    def upstream(self, dtype: torch.dtype = torch.float64, device: str = "cpu", seed: int = 1) -> Tensor:
        """A random gradient for the output."""
        generator = torch.Generator().manual_seed(seed)
        shape = (self.batch, self.num_heads, self.n, self.dim_v)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    def visible(self, device: str = "cpu") -> Tensor | None:
        """The mask (n, m) of a masked context: about half is visible, and the last query sees nothing."""
        if not self.masked:
            return None
        visible = torch.rand(self.n, self.m, generator=torch.Generator().manual_seed(2)) < 0.5
        visible[-1] = False
        return visible.to(device)

    def mask(self, device: str = "cpu") -> Tensor | None:
        """A padding mask (b, m) that hides the first element of the first example and all of the last."""
        if not self.padded:
            return None
        mask = torch.rand(self.batch, self.m, generator=torch.Generator().manual_seed(3)) < 0.7
        mask[0, 0] = False
        mask[0, -1] = True
        mask[-1] = False
        return mask.to(device)

    def context(self, device: str = "cpu") -> GlobalContext | LocalContext | MaskedContext:
        """The package's description of who sees whom."""
        if self.masked:
            return MaskedContext(self.visible(device))
        options: dict[str, Any] = {"causal": self.causal, "context_grid": self.context_grid}
        if self.scope is None:
            return GlobalContext(self.grid, **options)
        return LocalContext(self.grid, self.scope, dilation=self.dilation or 1, centre=self.centre, **options)

    def call(self, function: Callable[..., Tensor], inputs: dict[str, Tensor], **options: Any) -> Tensor:
        """Call the package's operator (or one with its signature) on `inputs`."""
        device = inputs["q"].device
        return function(
            **inputs, context=self.context(device), mask=self.mask(device), content=self.content, **options
        )

    def call_oracle(self, oracle: Callable[..., Tensor], inputs: dict[str, Tensor], **options: Any) -> Tensor:
        """Call a function of `oracles.py`, which knows nothing of the package's contexts."""
        device = inputs["q"].device
        return oracle(
            **inputs,
            grid=self.grid,
            context_grid=self.context_grid,
            scope=self.scope,
            dilation=self.dilation,
            centre=self.centre,
            dense=self.dense,
            causal=self.causal,
            visible=self.visible(device),
            mask=self.mask(device),
            content=self.content,
            **options,
        )

    def __str__(self) -> str:
        return self.name


def _global() -> list[Case]:
    return [
        Case(name="global-1d", grid=(11,)),
        Case(name="global-1d-one", grid=(1,)),
        Case(name="global-2d", grid=(3, 5)),
        Case(name="global-2d-row", grid=(1, 7)),
        Case(name="global-2d-column", grid=(7, 1)),
        Case(name="global-2d-ones", grid=(1, 1)),
        Case(name="global-3d", grid=(3, 2, 5)),
        Case(name="global-all-ones", grid=(1, 1), batch=1, num_heads=1, dim_k=1, dim_v=1),
        Case(name="global-31", grid=(31,), dim_k=2, dim_v=3),
        Case(name="global-33", grid=(33,), dim_k=2, dim_v=3),
        Case(name="global-u4", grid=(3, 5), dim_u=4),
        Case(name="global-cross-1d-shorter", grid=(11,), context_grid=(7,)),
        Case(name="global-cross-1d-longer", grid=(7,), context_grid=(13,)),
        Case(name="global-cross-2d", grid=(3, 5), context_grid=(7, 2)),
        Case(name="global-cross-3d", grid=(2, 3, 1), context_grid=(1, 5, 2)),
        Case(name="global-dense-1d", grid=(11,), dense=True),
        Case(name="global-dense-2d", grid=(3, 5), dense=True, dim_u=2),
        Case(name="global-dense-cross", grid=(3, 5), context_grid=(7, 2), dense=True),
        Case(name="global-content-only", grid=(3, 5), position=False),
        Case(name="global-position-only", grid=(3, 5), content=False),
        Case(name="global-position-only-u4", grid=(11,), content=False, dim_u=4),
        Case(name="global-padded", grid=(3, 5), padded=True),
        Case(name="global-padded-u4", grid=(11,), padded=True, dim_u=4),
        Case(name="global-padded-content-only", grid=(11,), padded=True, position=False),
        Case(name="global-padded-position-only", grid=(3, 5), padded=True, content=False),
        Case(name="global-padded-cross", grid=(3, 5), context_grid=(7, 2), padded=True),
    ]


def _local() -> list[Case]:
    return [
        Case(name="local-1d-odd", grid=(11,), scope=(3,)),
        Case(name="local-1d-even", grid=(11,), scope=(4,)),
        Case(name="local-1d-scope-one", grid=(11,), scope=(1,)),
        Case(name="local-1d-scope-two", grid=(11,), scope=(2,)),
        Case(name="local-1d-larger", grid=(5,), scope=(13,)),
        Case(name="local-1d-larger-even", grid=(5,), scope=(14,)),
        Case(name="local-1d-one", grid=(1,), scope=(3,)),
        Case(name="local-2d", grid=(5, 7), scope=(3, 3)),
        Case(name="local-2d-rectangle", grid=(5, 7), scope=(3, 4)),
        Case(name="local-2d-even", grid=(7, 5), scope=(2, 4)),
        Case(name="local-2d-larger", grid=(2, 3), scope=(7, 8)),
        Case(name="local-2d-row", grid=(1, 11), scope=(3, 5)),
        Case(name="local-3d", grid=(2, 3, 5), scope=(3, 2, 3)),
        Case(name="local-3d-flat", grid=(3, 1, 5), scope=(2, 3, 7)),
        Case(name="local-all-ones", grid=(1,), scope=(1,), batch=1, num_heads=1, dim_k=1, dim_v=1),
        Case(name="local-32", grid=(32,), scope=(5,), dim_k=2, dim_v=3),
        Case(name="local-u4-1d", grid=(11,), scope=(4,), dim_u=4),
        Case(name="local-u4-2d", grid=(3, 5), scope=(3, 2), dim_u=4),
        Case(name="local-u2-3d", grid=(2, 3, 2), scope=(3, 2, 1), dim_u=2),
        Case(name="local-dilated-1d", grid=(13,), scope=(3,), dilation=(2,)),
        Case(name="local-dilated-even", grid=(13,), scope=(4,), dilation=(3,)),
        Case(name="local-dilated-larger", grid=(5,), scope=(7,), dilation=(2,)),
        Case(name="local-dilated-2d", grid=(5, 7), scope=(3, 4), dilation=(2, 2)),
        Case(name="local-dilated-2d-uneven", grid=(5, 7), scope=(3, 2), dilation=(1, 3)),
        Case(name="local-cross-1d", grid=(7,), context_grid=(11,), scope=(5,)),
        Case(name="local-cross-1d-shorter", grid=(11,), context_grid=(5,), scope=(4,)),
        Case(name="local-cross-2d", grid=(3, 5), context_grid=(7, 2), scope=(3, 4)),
        Case(name="local-cross-dilated", grid=(3, 5), context_grid=(7, 2), scope=(3, 2), dilation=(2, 2)),
        Case(name="local-first-centre", grid=(11,), scope=(4,), centre=(0,)),
        Case(name="local-last-centre", grid=(5, 7), scope=(3, 4), centre=(2, 3)),
        Case(name="local-continued", grid=(5,), context_grid=(11,), scope=(4,), dilation=(2,), centre=(0,)),
        Case(name="local-content-only", grid=(3, 5), scope=(3, 3), position=False),
        Case(name="local-position-only", grid=(5, 7), scope=(3, 4), content=False),
        Case(name="local-padded", grid=(3, 5), scope=(3, 3), padded=True),
        Case(name="local-padded-u4", grid=(11,), scope=(4,), padded=True, dim_u=4),
        Case(name="local-padded-position-only", grid=(3, 5), scope=(2, 3), padded=True, content=False),
    ]


def _causal() -> list[Case]:
    return [
        Case(name="causal", grid=(11,), causal=True),
        Case(name="causal-one", grid=(1,), causal=True),
        Case(name="causal-u4", grid=(11,), causal=True, dim_u=4),
        Case(name="causal-dense", grid=(11,), causal=True, dense=True),
        Case(name="causal-shorter", grid=(11,), context_grid=(7,), causal=True),
        Case(name="causal-longer", grid=(7,), context_grid=(11,), causal=True),
        Case(name="causal-padded", grid=(11,), causal=True, padded=True),
        Case(name="causal-content-only", grid=(11,), causal=True, position=False),
        Case(name="causal-position-only", grid=(11,), causal=True, content=False),
        Case(name="causal-64", grid=(64,), causal=True, batch=1, dim_k=2, dim_v=3),
        Case(name="causal-65", grid=(65,), causal=True, batch=1, dim_k=2, dim_v=3),
        Case(name="causal-131-padded", grid=(131,), causal=True, padded=True, dim_k=2, dim_v=1, num_heads=1),
        Case(
            name="causal-131-cross", grid=(131,), context_grid=(67,), causal=True, batch=1, dim_k=2, dim_v=1
        ),
        Case(name="causal-local-odd", grid=(11,), scope=(5,), causal=True),
        Case(name="causal-local-even", grid=(11,), scope=(4,), causal=True),
        Case(name="causal-local-larger", grid=(5,), scope=(13,), causal=True),
        Case(name="causal-local-dilated", grid=(13,), scope=(5,), dilation=(2,), causal=True),
        Case(name="causal-local-cross", grid=(7,), context_grid=(11,), scope=(5,), causal=True),
        Case(name="causal-local-u4", grid=(11,), scope=(5,), causal=True, dim_u=4),
        Case(name="causal-local-padded", grid=(11,), scope=(4,), causal=True, padded=True),
        Case(name="causal-local-centred", grid=(11,), scope=(5,), centre=(2,), causal=True),
        Case(name="causal-local-content-only", grid=(11,), scope=(5,), causal=True, position=False),
        Case(name="causal-local-position-only", grid=(11,), scope=(5,), causal=True, content=False),
    ]


def _masked() -> list[Case]:
    return [
        Case(name="masked", grid=(11,), masked=True, dense=True),
        Case(name="masked-one", grid=(1,), masked=True, dense=True),
        Case(name="masked-u4", grid=(11,), masked=True, dense=True, dim_u=4),
        Case(name="masked-cross", grid=(7,), context_grid=(13,), masked=True, dense=True),
        Case(name="masked-padded", grid=(11,), masked=True, dense=True, padded=True),
        Case(name="masked-content-only", grid=(11,), masked=True, position=False),
        Case(
            name="masked-position-only", grid=(7,), context_grid=(11,), masked=True, dense=True, content=False
        ),
    ]


CASES = _global() + _local() + _causal() + _masked()
BY_NAME = {case.name: case for case in CASES}

# Options of a layer, each of another kind, for inputs of any grid.
LAYER_OPTIONS = [
    {"scope": 3},
    {"scope": 4, "dim_u": 2},
    {"grid": (5, 7)},
    {"position": False},
    {"scope": 3, "content": False},
]
