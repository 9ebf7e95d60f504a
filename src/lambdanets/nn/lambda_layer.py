"""The lambda layer as a module: projections and norms around the operator. One class, three ranks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.rnn import PackedSequence

from ..ops.checks import NORMALIZATIONS, unknown_name
from ..ops.context import GlobalContext, Grid, LocalContext, as_grid
from ..ops.functional import lambda_layer
from ..ops.hardware import available_memory
from ..ops.kernels import KERNELS
from ..ops.planner import CHOICES
from ..ops.problem import Problem
from .folding import Part, foldable, project, project_apart
from .layout import ordered_gradient, to_channels
from .positions import resize_table, table_shape

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
NORMS = ("batch", "rms", None)
"""What queries and values may be normalised by after their projections."""


class ChannelRMSNorm(nn.RMSNorm):
    """RMS norm over the channels of b c *grid, at each position by itself."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` of shape (b c *grid)."""
        weight = self.weight.to(x.dtype)  # under autocast they differ, and PyTorch would warn
        return F.rms_norm(x.movedim(1, -1), self.normalized_shape, weight, self.eps).movedim(-1, 1)


class LambdaLayer(nn.Module):
    """Every position transforms its queries by a lambda that summarises the context by content and position.

    Queries, keys and values are 1x1 projections without bias; queries and values pass a norm, keys a softmax
    over the context. See `lambda_layer` for the equation.

    Causal order and padding: `norm="batch"`, the paper's, takes its statistics in training over all positions
    of the batch, so outputs depend on later positions under `causal=True`, and on padding under a mask. Take
    `norm="rms"` (or None) there, which sees one position at a time. In evaluation, or with `norm="rms"` or
    None, nothing hidden has an effect beyond rounding, as long as it is finite: a causal order multiplies
    what it hides by zero.

    In-place operations may follow the layer. `torch.fx` traces it: the projections and norms are nodes of
    their own, the operator is one function. `torch.jit.script` compiles it; a saved file needs this package
    to be imported where it is loaded.

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
        norm: What queries and values are normalised by after their projections: "batch", a batch norm; "rms",
            an RMS norm over their channels at each position; or None.
        position_bias: Whether one learned lambda, the same for every value channel, is added to the position
            lambdas of all, as the position convolutions of other implementations do. It starts at zero.
        kernel: "auto", "measured" or the name of the operator's implementation; see `lambda_layer`.
        device: Device of the parameters.
        dtype: Element type of the parameters.

    Raises:
        ValueError: If the arguments do not fit together.
        MemoryError: If the parameters would take more memory than the machine has.

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
        norm: str | None = "batch",
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
        if norm not in NORMS:
            raise ValueError(f"norm must be 'batch', 'rms' or None, got {norm!r}")
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
        self.normalize, self.norm = normalize, norm
        table = table_shape(scope, grid, self.rank) if position else None

        factory = {"device": device, "dtype": dtype}
        self._check_memory(table, device, dtype)
        projection = _CONVOLUTIONS[self.rank]
        self.to_queries = projection(dim, num_heads * dim_k, 1, bias=False, **factory)
        self.to_keys = projection(dim, dim_k * dim_u, 1, bias=False, **factory) if content else None
        self.to_values = projection(dim, self.dim_v * dim_u, 1, bias=False, **factory)
        self.norm_queries = self._make_norm(num_heads * dim_k, **factory)
        self.norm_values = self._make_norm(self.dim_v * dim_u, **factory)
        if table is not None:
            self.positions = nn.Parameter(torch.empty(*table, dim_k, dim_u, **factory))
        else:
            self.register_parameter("positions", None)
        if position_bias:
            self.position_bias = nn.Parameter(torch.empty(dim_k, **factory))
        else:
            self.register_parameter("position_bias", None)
        self.reset_parameters()

    def _make_norm(self, channels: int, **factory: Any) -> _BatchNorm | ChannelRMSNorm | nn.Identity:
        if self.norm is None:
            return nn.Identity()
        # The epsilon of the batch norms: that of PyTorch's RMS norm is the dtype's, 1e-3 in float16.
        return (
            ChannelRMSNorm(channels, eps=1e-5, **factory)
            if self.norm == "rms"
            else _BATCH_NORMS[self.rank](channels, **factory)
        )

    def _check_memory(
        self, table: tuple[int, ...] | None, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        """Raise `MemoryError` where the weights take more memory than there is, before they are allocated."""
        columns = self.dim_k * self.dim_u
        channels = self.num_heads * self.dim_k + self.dim_v * self.dim_u + (columns if self.content else 0)
        elements = self.dim * channels + (0 if table is None else math.prod(table) * columns)
        needed = elements * (torch.get_default_dtype() if dtype is None else dtype).itemsize
        where = torch.get_default_device() if device is None else torch.device(device)
        limit = available_memory(where.type)
        if limit is not None and needed > limit:
            raise MemoryError(
                f"the parameters of a lambda layer with dim={self.dim}, dim_out={self.dim_out}, "
                f"dim_k={self.dim_k}, num_heads={self.num_heads}, dim_u={self.dim_u} and "
                f"{'no position table' if table is None else f'a position table of {table}'} take {needed:,} "
                f"bytes, the machine has {limit:,}"
            )

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
        if torch.jit.is_scripting():  # pyright: ignore[reportPrivateImportUsage]
            return self._scripted(x, context, mask)
        else:
            return self._forward(x, context, mask)

    def _scripted(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        """Apply the layer in TorchScript, which knows `_operate` as a library operator."""
        source = x if context is None else context
        keys: Tensor | None = None
        if self.to_keys is not None:
            keys = self.to_keys(source)
        return torch.ops.lambdanets.layer_output(
            self.norm_queries(self.to_queries(x)),
            keys,
            self.norm_values(self.to_values(source)),
            self.positions,
            self.position_bias,
            x,
            source,
            mask,
            self.num_heads,
            self.dim_k,
            self.dim_u,
            self.dilation,
            self.causal,
            self.content,
            self.normalize,
            self.kernel,
        )

    def _forward(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        source = _checked_source(x, context, self.dim, self.rank)
        # A graph of torch.fx may be traced in training and run in evaluation; a compiled one cannot warn.
        if not (isinstance(x, Proxy) or torch.compiler.is_compiling()):
            self._check_statistics(x, source, mask)
        queries, keys, values = self._projections(x, source)
        return _operate(
            queries,
            keys,
            values,
            self.positions,
            self.position_bias,
            x,
            source,
            mask,
            self.num_heads,
            self.dim_k,
            self.dim_u,
            self.dilation,
            self.causal,
            self.content,
            self.normalize,
            self.kernel,
        )

    def _projections(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Queries (b hk *grid), keys (b ku *context_grid) and values (b vu *context_grid)."""
        of_context = [self.to_values] if self.to_keys is None else [self.to_values, self.to_keys]
        if not foldable(x, [self.to_queries, *of_context], [self.norm_queries, self.norm_values]):
            if source is x:
                queries, values, *keys = project_apart(x, [self.to_queries, *of_context])
            else:
                queries, (values, *keys) = self.to_queries(x), project_apart(source, of_context)
            queries, values = self.norm_queries(queries), self.norm_values(values)
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

    def _check_statistics(self, x: Tensor, source: Tensor, mask: Tensor | None) -> None:
        """Refuse or warn where batch norms in training see too little or too much."""
        batched = [
            (name, part)
            for name, norm, part in (("x", self.norm_queries, x), ("context", self.norm_values, source))
            if isinstance(norm, _BatchNorm) and norm.training
        ]
        if not batched:
            return
        synchronised = isinstance(self.norm_queries, nn.SyncBatchNorm)  # over processes, each with one value
        for name, part in batched:
            if part.shape[0] * math.prod(part.shape[2:]) == 1 and not synchronised:
                raise ValueError(
                    f"norm='batch' needs more than one value per channel in training, but {name} of shape "
                    f"{tuple(part.shape)} has one; give a larger batch or grid, or take norm='rms' or None"
                )
        if self.causal or mask is not None:
            hidden = "later positions under causal=True" if self.causal else "what the mask hides"
            warnings.warn(
                f"norm='batch' takes its statistics in training over {hidden} too, so outputs depend on it; "
                "norm='rms' normalises each position by itself",
                stacklevel=1,
            )

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
        if self.norm != "batch":
            parts.append(f"norm={self.norm!r}")
        if self.position_bias is not None:
            parts.append("position_bias=True")
        return ", ".join(parts)


@torch.fx.wrap
def _checked_source(x: Tensor, context: Tensor | None, dim: int, rank: int) -> Tensor:
    """Return where keys and values come from: the context, or `x` without one.

    Raises:
        ValueError: If they do not fit the layer or each other.
    """
    source = x if context is None else context
    for name, given in (("x", x), ("context", source)):
        if not isinstance(given, Tensor):
            hint = "; pad the sequences and give mask=" if isinstance(given, PackedSequence) else ""
            raise ValueError(f"{name} must be a tensor, got {type(given).__name__}{hint}")
        if given.ndim != rank + 2 or given.shape[1] != dim:
            axes = " ".join(["b", str(dim), *"dhw"[3 - rank :]])
            raise ValueError(f"{name} must be of shape ({axes}), got {tuple(given.shape)}")
        if 0 in given.shape[2:]:
            raise ValueError(f"{name} has no positions: it is of shape {tuple(given.shape)}")
    if source.shape[0] != x.shape[0]:
        raise ValueError(f"context must have the batch size of x, {x.shape[0]}, got {source.shape[0]}")
    return source


@torch.fx.wrap
def _operate(
    queries: Tensor,
    keys: Tensor | None,
    values: Tensor,
    positions: Tensor | None,
    position_bias: Tensor | None,
    x: Tensor,
    source: Tensor,
    mask: Tensor | None,
    num_heads: int,
    dim_k: int,
    dim_u: int,
    dilation: Sequence[int],
    causal: bool,
    content: bool,
    normalize: str,
    kernel: str,
) -> Tensor:
    """Compute the output (b, dim_out, *grid) from a layer's projections: one node in a graph of torch.fx.

    Args:
        queries: Normed queries of shape (b, h k, *grid).
        keys: Keys of shape (b, k u, *context_grid), None without a content part.
        values: Normed values of shape (b, v u, *context_grid).
        positions: Table of shape (*offsets, k, u), None without a position part.
        position_bias: The bias of the position lambdas, of shape (k), or None.
        x: Input of the layer, in whose memory format the output is.
        source: Context of the layer.
        mask: As in the layer's `forward`.
        num_heads: h.
        dim_k: k.
        dim_u: u.
        dilation: As in the layer, as are all that follow.

    Raises:
        ValueError: If a causal layer gets a context of another length, or the mask does not fit.
    """
    if causal and source.shape[2] != x.shape[2]:
        raise ValueError(
            f"causal=True needs a context as long as x, {x.shape[2]} positions, got {source.shape[2]}: both "
            "begin at position 0; for the outputs of the last positions apply the layer to the whole sequence"
        )
    queries, values = ordered_gradient(queries), ordered_gradient(values)
    q = queries.flatten(2).unflatten(1, (num_heads, dim_k)).mT
    if normalize == "softmax_both":
        q = q.softmax(-1)
    v = values.flatten(2).unflatten(1, (-1, dim_u)).permute(0, 3, 1, 2)
    if keys is None:  # the operator reads no keys without a content part
        k = v.new_zeros(()).expand(*v.shape[:2], dim_k, dim_u)
    else:
        k = keys.flatten(2).unflatten(1, (dim_k, dim_u)).permute(0, 3, 1, 2)
    # Under autocast the norms and the projections may differ in type; the operator takes one.
    dtype = k.dtype
    grid, context_grid = tuple(x.shape[2:]), tuple(source.shape[2:])
    geometry: GlobalContext | LocalContext
    if positions is None:
        geometry = GlobalContext(grid, context_grid=context_grid, causal=causal)
    else:
        scope = tuple(positions.shape[:-2])
        geometry = LocalContext(
            grid, scope, dilation=tuple(dilation), context_grid=context_grid, causal=causal
        )
    y = lambda_layer(
        q.to(dtype),
        k,
        v.to(dtype),
        None if positions is None else positions.to(dtype),
        context=geometry,
        mask=None if mask is None else _flat_mask(mask, source),
        content=content,
        normalize="softmax" if normalize == "softmax_both" else normalize,
        kernel=kernel,
    )
    if position_bias is not None:
        # No product of a matrix and a vector: onnxruntime 1.32 gives a wrong one of a transposed matrix.
        y = y + torch.einsum("bhnk,k->bhn", q.to(dtype), position_bias.to(dtype))[..., None]
    return to_channels(y, x)


torch.library.define("lambdanets::layer_output", torch.library.infer_schema(_operate, mutates_args=()))
torch.library.impl("lambdanets::layer_output", "CompositeImplicitAutograd", _operate)


def _flat_mask(mask: Tensor, source: Tensor) -> Tensor:
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


class LambdaLayer1d(LambdaLayer):
    """The lambda layer on sequences: b dim n. See `LambdaLayer`."""

    rank = 1


class LambdaLayer2d(LambdaLayer):
    """The lambda layer on images: b dim h w. See `LambdaLayer`."""

    rank = 2


class LambdaLayer3d(LambdaLayer):
    """The lambda layer on volumes or video: b dim d h w. See `LambdaLayer`."""

    rank = 3
