"""The lambda layer as a module: projections and norms around the operator. One class, three ranks."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..ops.checks import NORMALIZATIONS, unknown_name
from ..ops.context import GlobalContext, Grid, LocalContext, as_grid
from ..ops.functional import lambda_layer
from ..ops.kernels import KERNELS
from ..ops.planner import CHOICES
from ..ops.problem import Problem
from .folding import Part, foldable, project, project_apart
from .layout import ordered_gradient, to_channels
from .positions import resize_table, table_shape

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class LambdaLayer(nn.Module):
    """Every position transforms its queries by a lambda that summarises the context by content and position.

    Queries, keys and values are 1x1 projections without bias; queries and values pass a batch norm, keys a
    softmax over the context, unless told otherwise. See `lambda_layer` for the equation.

    In training the batch norms take their statistics over all positions of the batch, as any batch norm does:
    over padding too, and over what a causal order hides. In evaluation nothing hidden has an effect beyond
    rounding, as long as it is finite: a causal order multiplies what it hides by zero.

    Args:
        dim: Channels of the input.
        dim_out: Channels of the output, a multiple of `num_heads`; `dim` by default.
        dim_k: Query and key depth, k.
        num_heads: Queries per position, h, which share its lambda; the value depth is `dim_out / num_heads`.
        dim_u: Intra-depth, u.
        scope: Entries of a local position table per axis (int or tuple), or None for global positions.
        grid: For global positions, the grid (int or tuple) that the table is made for. Other grids work: they
            use the middle of the table, or see nothing beyond it.
        dilation: Distance between the neighbours of a local scope, per axis (int or tuple).
        content: Whether lambdas have a content part.
        position: Whether lambdas have a position part; without it neither scope nor grid is needed.
        causal: On one axis, each position sees itself and what comes before it.
        normalize: What keys are normalised by, over the context: "softmax"; "softmax_both" (and queries by a
            softmax over their k channels, in each head); "l2", their norm; or "none".
        batch_norm: Whether queries and values pass a batch norm.
        position_bias: Whether one learned lambda, the same for every value channel, is added to the position
            lambdas of all, as the position convolutions of other implementations do. It starts at zero.
        kernel: "auto", "measured" or the name of the operator's implementation; see `lambda_layer`.
        device: Device of the parameters.
        dtype: Element type of the parameters.

    Raises:
        ValueError: If the arguments do not fit together.

    Differences from the paper:
        The initialisation's N(0, d^-1/2) is read as a standard deviation (the text calls it fan-in).
        `position_bias` is not the paper's; weights trained elsewhere need it.

    References:
        LambdaNetworks (Bello, 2021), sections 3.1-3.4, appendix E.1 (initialisation, batch norms), Tables 10
        and 12 (content, position, normalisations).
    """

    rank: ClassVar[int]

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        *,
        dim_k: int = 16,
        num_heads: int = 4,
        dim_u: int = 1,
        scope: Grid | None = None,
        grid: Grid | None = None,
        dilation: Grid = 1,
        content: bool = True,
        position: bool = True,
        causal: bool = False,
        normalize: str = "softmax",
        batch_norm: bool = True,
        position_bias: bool = False,
        kernel: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dim_out = dim if dim_out is None else dim_out
        sizes = {"dim": dim, "dim_out": dim_out, "dim_k": dim_k, "num_heads": num_heads, "dim_u": dim_u}
        for name, size in sizes.items():
            if type(size) is not int:
                raise ValueError(f"{name} must be an int, got {size!r}")
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if dim_out % num_heads:
            raise ValueError(f"dim_out must be a multiple of num_heads={num_heads}, got {dim_out}")
        if not content and not position:
            raise ValueError("content=False and position=False leave nothing to compute")
        if causal and self.rank != 1:
            raise ValueError(f"causal=True needs one axis (an order), this layer has {self.rank}")
        if normalize not in (*NORMALIZATIONS, "softmax_both"):
            raise unknown_name("normalize", normalize, [*NORMALIZATIONS, "softmax_both"])
        if not content and normalize in ("l2", "none"):
            raise ValueError(f"normalize={normalize!r} is for keys, which content=False leaves out")
        if kernel not in (*CHOICES, *KERNELS):
            raise unknown_name("kernel", kernel, [*CHOICES, *KERNELS])
        if not position and (scope is not None or grid is not None):
            raise ValueError(f"position=False has no use for scope={scope} or grid={grid}")
        if not position and position_bias:
            raise ValueError("position=False has no use for position_bias=True")
        if not position and kernel in KERNELS:
            reasons = KERNELS[kernel].unsupported(Problem(grid=(1,) * self.rank, position=False))
            if reasons:
                raise ValueError(f"kernel={kernel!r} cannot serve position=False: {'; '.join(reasons)}")
        self.dim, self.dim_out, self.dim_k, self.num_heads, self.dim_u = dim, dim_out, dim_k, num_heads, dim_u
        self.dim_v = dim_out // num_heads
        self.dilation = as_grid(dilation, "dilation", self.rank)
        if scope is None and max(self.dilation) > 1:
            raise ValueError(f"dilation={dilation} needs a scope: only local positions are dilated")
        self.local = scope is not None
        self.content, self.causal, self.kernel = content, causal, kernel
        self.normalize = normalize

        factory = {"device": device, "dtype": dtype}
        projection = _CONVOLUTIONS[self.rank]
        norm = _NORMS[self.rank]
        self.to_queries = projection(dim, num_heads * dim_k, 1, bias=False, **factory)
        self.to_keys = projection(dim, dim_k * dim_u, 1, bias=False, **factory) if content else None
        self.to_values = projection(dim, self.dim_v * dim_u, 1, bias=False, **factory)
        self.norm_queries = norm(num_heads * dim_k, **factory) if batch_norm else nn.Identity()
        self.norm_values = norm(self.dim_v * dim_u, **factory) if batch_norm else nn.Identity()
        if position:
            shape = table_shape(scope, grid, self.rank)
            self.positions = nn.Parameter(torch.empty(*shape, dim_k, dim_u, **factory))
        else:
            self.register_parameter("positions", None)
        if position_bias:
            self.position_bias = nn.Parameter(torch.empty(dim_k, **factory))
        else:
            self.register_parameter("position_bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The paper's initialisation: fan-in, for queries also scaled by k^-1/2; N(0, 1) for positions."""
        nn.init.normal_(self.to_queries.weight, std=(self.dim_k * self.dim) ** -0.5)
        if self.to_keys is not None:
            nn.init.normal_(self.to_keys.weight, std=self.dim**-0.5)
        nn.init.normal_(self.to_values.weight, std=self.dim**-0.5)
        for norm in (self.norm_queries, self.norm_values):
            if not isinstance(norm, nn.Identity):
                norm.reset_parameters()
        if self.positions is not None:
            nn.init.normal_(self.positions)
        if self.position_bias is not None:
            nn.init.zeros_(self.position_bias)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Apply the layer.

        Args:
            x: Input of shape (b, dim, *grid), any grid.
            context: Where keys and values come from, of shape (b, dim, *context_grid); `x` by default.
            mask: Boolean tensor of shape (b, *context_grid) or (b, m), True where the context may be seen.

        Returns:
            Tensor of shape (b, dim_out, *grid), in the memory format of `x`.

        Raises:
            ValueError: If a shape does not fit.
        """
        source = x if context is None else context
        self._check_input("x", x)
        self._check_input("context", source)
        if source.shape[0] != x.shape[0]:
            raise ValueError(f"context must have the batch size of x, {x.shape[0]}, got {source.shape[0]}")
        grid, context_grid = tuple(x.shape[2:]), tuple(source.shape[2:])
        queries, keys, values = self._projections(x, source)
        q = queries.flatten(2).unflatten(1, (self.num_heads, self.dim_k)).mT
        if self.normalize == "softmax_both":
            q = q.softmax(-1)
        v = values.flatten(2).unflatten(1, (self.dim_v, self.dim_u)).permute(0, 3, 1, 2)
        if keys is None:  # without content nobody looks at the keys
            k = v.new_zeros(()).expand(*v.shape[:2], self.dim_k, self.dim_u)
        else:
            k = keys.flatten(2).unflatten(1, (self.dim_k, self.dim_u)).permute(0, 3, 1, 2)
        # Under autocast the norms and the projections may differ in type; the operator takes one.
        dtype = k.dtype
        e = None if self.positions is None else self.positions.to(dtype)
        geometry: GlobalContext | LocalContext
        if self.positions is None:
            geometry = GlobalContext(grid, context_grid=context_grid, causal=self.causal)
        else:
            geometry = LocalContext(
                grid,
                tuple(self.positions.shape[:-2]),
                dilation=self.dilation,
                context_grid=context_grid,
                causal=self.causal,
            )
        y = lambda_layer(
            q.to(dtype),
            k,
            v.to(dtype),
            e,
            context=geometry,
            mask=None if mask is None else self._flat_mask(mask, source),
            content=self.content,
            normalize="softmax" if self.normalize == "softmax_both" else self.normalize,
            kernel=self.kernel,
        )
        if self.position_bias is not None:
            # No product of a matrix and a vector: onnxruntime 1.32 gives a wrong one of a transposed matrix.
            y = y + torch.einsum("bhnk,k->bhn", q.to(dtype), self.position_bias.to(dtype))[..., None]
        return to_channels(y, x)

    def _projections(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Queries (b hk *grid), keys (b ku *context_grid) and values (b vu *context_grid)."""
        of_context = [self.to_values] if self.to_keys is None else [self.to_values, self.to_keys]
        if not foldable([self.to_queries, *of_context], [self.norm_queries, self.norm_values]):
            if source is x:
                queries, values, *keys = project_apart(x, [self.to_queries, *of_context])
            else:
                queries, (values, *keys) = self.to_queries(x), project_apart(source, of_context)
            queries = ordered_gradient(self.norm_queries(queries))
            values = ordered_gradient(self.norm_values(values))
            return queries, keys[0] if keys else None, values
        assert isinstance(self.norm_queries, _BatchNorm)
        assert isinstance(self.norm_values, _BatchNorm)
        to_queries: list[Part] = [(self.to_queries.weight, self.to_queries.bias, self.norm_queries)]
        norms = (self.norm_values, None)
        to_context: list[Part] = [
            (p.weight, p.bias, norm) for p, norm in zip(of_context, norms, strict=False)
        ]
        if source is x:
            queries, values, *keys = project(x, [*to_queries, *to_context])
        else:
            (queries,), (values, *keys) = project(x, to_queries), project(source, to_context)
        return queries, keys[0] if keys else None, values

    def _check_input(self, name: str, x: Tensor) -> None:
        if x.ndim != self.rank + 2 or x.shape[1] != self.dim:
            axes = " ".join(["b", str(self.dim), *"dhw"[3 - self.rank :]])
            raise ValueError(f"{name} must be of shape ({axes}), got {tuple(x.shape)}")
        if 0 in x.shape[2:]:
            raise ValueError(f"{name} has no positions: it is of shape {tuple(x.shape)}")

    def _flat_mask(self, mask: Tensor, source: Tensor) -> Tensor:
        grid_shape = (source.shape[0], *source.shape[2:])
        if mask.dtype != torch.bool or tuple(mask.shape) not in (
            grid_shape,
            (source.shape[0], math.prod(source.shape[2:])),
        ):
            raise ValueError(
                f"mask must be a bool tensor of shape (b, *context_grid) = {grid_shape}, True where the "
                f"context may be seen; got {mask.dtype} of shape {tuple(mask.shape)}"
            )
        return mask.flatten(1)

    @torch.no_grad()
    def resize_positions(self, grid: Grid) -> None:
        """Interpolate a global position table to another grid: `positions` becomes a new parameter.

        An optimiser made before keeps the old one, so resize first.

        Args:
            grid: The new grid, an int for all axes or a tuple.

        Raises:
            ValueError: If the layer has no global table (a local one serves every grid as it is).
        """
        if self.positions is None or self.local:
            kind = "local positions, which serve every grid" if self.local else "no positions"
            raise ValueError(f"resize_positions needs a global position table; this layer has {kind}")
        shape = table_shape(None, grid, self.rank)
        if shape != tuple(self.positions.shape[:-2]):
            resized = resize_table(self.positions, shape)
            self.positions = nn.Parameter(resized, requires_grad=self.positions.requires_grad)

    def extra_repr(self) -> str:
        parts = [
            f"{self.dim}, {self.dim_out}, dim_k={self.dim_k}, num_heads={self.num_heads}, dim_u={self.dim_u}"
        ]
        if self.positions is not None:
            table = tuple(self.positions.shape[:-2])
            parts.append(f"scope={table}" if self.local else f"grid={tuple((s + 1) // 2 for s in table)}")
        if max(self.dilation) > 1:
            parts.append(f"dilation={self.dilation}")
        parts += [f"{name}={value}" for name, value in (("content", self.content),) if not value]
        if self.positions is None:
            parts.append("position=False")
        if self.causal:
            parts.append("causal=True")
        if self.normalize != "softmax":
            parts.append(f"normalize={self.normalize!r}")
        if isinstance(self.norm_queries, nn.Identity):
            parts.append("batch_norm=False")
        if self.position_bias is not None:
            parts.append("position_bias=True")
        return ", ".join(parts)


class LambdaLayer1d(LambdaLayer):
    """The lambda layer on sequences: b dim n. See `LambdaLayer`."""

    rank = 1


class LambdaLayer2d(LambdaLayer):
    """The lambda layer on images: b dim h w. See `LambdaLayer`."""

    rank = 2


class LambdaLayer3d(LambdaLayer):
    """The lambda layer on volumes or video: b dim d h w. See `LambdaLayer`."""

    rank = 3
