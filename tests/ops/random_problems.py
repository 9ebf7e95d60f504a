"""Random problems of the operator: sizes, grids, contexts, masks, dtypes, layouts in memory, gradients."""

import random
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from cases import Case

ELEMENTS = 150_000  # of b n m k u, which the oracle forms whole
DTYPES = (torch.float64, torch.float32, torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = ("contiguous", "contiguous", "permuted", "gaps", "expanded", "ones")


@dataclass(frozen=True, kw_only=True)
class Drawn(Case):
    """A problem with the options that `cases.Case` leaves to its tests."""

    seed: int
    dtype: torch.dtype
    normalize: str = "softmax"
    padding: str = "some"
    autocast: bool = False
    threads: int = 1
    spread: float = 1.0
    layouts: dict[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()

    def mask(self, device: str = "cpu") -> Tensor | None:
        if not self.padded:
            return None
        mask = torch.rand(self.batch, self.m, generator=torch.Generator().manual_seed(self.seed)) < 0.7
        if self.padding == "all":
            mask[:] = False
        elif self.padding == "none":
            mask[:] = True
        elif self.padding == "one":
            mask[:] = False
            mask[:, self.seed % self.m] = True
        return mask.to(device)

    def line(self) -> str:
        """Return the options that differ from the defaults, on one line."""
        parts = []
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name != "name" and value != each.default:
                parts.append(f"{each.name}={value}")
        return ", ".join(parts)


def draw(seed: int, index: int) -> Drawn:
    """Return the problem of a seed and an index."""
    r = random.Random(f"{seed}:{index}")
    while True:
        case = _draw(r, index)
        table = tuple(g + c - 1 for g, c in zip(case.grid, case.context_grid or case.grid, strict=True))
        if case.dense and not case.masked and table == (case.n, case.m):
            continue  # dense embeddings of this shape are read as a table
        # An empty batch has embeddings, too.
        pairs = max(1, case.batch) * case.n * case.m * case.dim_k * case.dim_u
        if (
            pairs <= ELEMENTS
            and case.batch * case.num_heads * case.n * max(case.dim_k, case.dim_v) <= ELEMENTS
        ):
            return case


def _draw(r: random.Random, index: int) -> Drawn:
    axes = r.choice([1, 2, 2, 2, 3])
    kind = r.choice(["global", "global", "local", "local", "local", "dense", "masked", "causal", "content"])
    if kind == "causal":
        axes = 1
    most = {1: 70, 2: 33, 3: 9}[axes]

    def side() -> int:
        return r.choice([1, 2, 3, r.randint(1, 7), r.randint(1, most)])

    grid = tuple(side() for _ in range(axes))
    if axes == 2 and r.random() < 0.25:  # upright and thin, where most libraries are tried least
        grid = (r.randint(8, most), r.choice([1, 1, 2, 4, 6]))
    options: dict[str, Any] = {"grid": grid, "causal": kind == "causal"}
    if r.random() < 0.35:
        options["context_grid"] = tuple(r.choice([size, side(), 1]) for size in grid)
    if kind == "local" or (kind == "causal" and r.random() < 0.5):
        whole = r.random() < 0.25  # a table that was made for another grid
        options["scope"] = tuple(
            2 * r.randint(1, most // 2 + 1) - 1 if whole else r.randint(1, 2 * g + 2) for g in grid
        )
        if not whole and r.random() < 0.4:
            options["dilation"] = tuple(r.randint(1, 3) for _ in grid)
        if r.random() < 0.3:
            options["centre"] = tuple(r.randrange(size) for size in options["scope"])
    elif kind in ("dense", "masked") or (kind == "causal" and r.random() < 0.2):
        options |= {"dense": True, "masked": kind == "masked"}
    position = kind != "content" and r.random() < 0.95
    content = not position or r.random() < 0.75
    dtype = r.choice(DTYPES)
    names = ["q", "k", "v", *(["e"] if position else [])]
    needs = tuple(names) if r.random() < 0.7 else tuple(name for name in names if r.random() < 0.5)
    return Drawn(
        **options,
        name=str(index),
        seed=r.randrange(2**31),
        position=position,
        content=content,
        padded=r.random() < 0.35,
        padding=r.choice(["some", "some", "all", "none", "one"]),
        batch=r.choice([0, 1, 1, 2, 2, 3]),
        num_heads=r.randint(1, 4),
        dim_k=r.choice([1, 1, 2, 3, 4, 5, 8, 16]),
        dim_v=r.choice([1, 2, 3, 4, 5, 8, 9]),
        dim_u=r.choice([1, 1, 2, 3, 4]),
        normalize=r.choice(["softmax", "softmax", "l2", "none"]) if content else "softmax",
        dtype=dtype,
        autocast=dtype == torch.float32 and r.random() < 0.1,
        threads=r.choice([1, 1, 1, 2]),
        spread=r.choice([1.0, 1.0, 1.0, 8.0]),
        layouts={name: r.choice(LAYOUTS) for name in (*names, "upstream")},
        needs=needs,
    )


def laid_out(x: Tensor, layout: str, r: random.Random) -> Tensor:
    """Return the values of x in another memory layout; "expanded" repeats the first along an axis."""
    if layout == "permuted":
        order = r.sample(range(x.ndim), x.ndim)
        return x.permute(order).contiguous().permute([order.index(axis) for axis in range(x.ndim)])
    if layout == "gaps":
        axis = r.randrange(x.ndim)
        wide = torch.full((*x.shape[:axis], x.shape[axis] + 3, *x.shape[axis + 1 :]), 7.0, dtype=x.dtype)
        return wide.narrow(axis, r.randint(0, 3), x.shape[axis]).copy_(x)
    if layout == "expanded" and x.numel():
        axis = r.randrange(x.ndim)
        return x.narrow(axis, 0, 1).expand(x.shape)
    if layout == "ones":  # the stride of an axis of one element means nothing, and may be anything
        strides = [
            r.choice([0, 1, s, 1000]) if n == 1 else s for n, s in zip(x.shape, x.stride(), strict=True)
        ]
        return x.as_strided(x.shape, strides)
    return x


def inputs_of(case: Drawn) -> tuple[dict[str, Tensor], Tensor]:
    """Return q, k, v, with positions also e, and a gradient of the output."""
    r = random.Random(case.seed)
    found = case.inputs(case.dtype, seed=case.seed)
    found["k"] = (found["k"] * case.spread).to(case.dtype)
    upstream = case.upstream(case.dtype, seed=case.seed + 1)
    found = {name: laid_out(x.contiguous(), case.layouts[name], r) for name, x in found.items()}
    return found, laid_out(upstream, case.layouts["upstream"], r)
