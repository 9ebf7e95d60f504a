"""The lambda layer as a module: 1x1 projections and norms around the operator `lambda_layer`."""

from __future__ import annotations

import math
import warnings
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.modules.batchnorm import _BatchNorm

from lambdanets.ops.checks import NORMALIZATIONS, unknown_name
from lambdanets.ops.context import Grid, as_grid
from lambdanets.ops.hardware import available_memory
from lambdanets.ops.kernels import KERNELS
from lambdanets.ops.planner import CHOICES
from lambdanets.ops.problem import Problem

from .fuse_batch_norm import Projection, can_fuse, project_concatenated, project_fused
from .layer_output import checked_source, layer_output
from .pointwise import ChannelRMSNorm
from .positions import resize_table, table_shape

# One node each in a graph of torch.fx.
torch.fx.wrap("checked_source")
torch.fx.wrap("layer_output")

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
NORMS = ("batch", "rms", None)
"""The norms that may follow the projections to queries and values."""


class LambdaLayer(nn.Module):
    """Base class of `LambdaLayer1d`, `LambdaLayer2d` and `LambdaLayer3d`, for grids of one to three axes.

    Use it in `isinstance` and in type annotations; only its subclasses can be instantiated.

    At each position the layer summarises the context, by content and by relative position, as a linear
    function: the lambda. The lambda is applied to the queries of the position. Queries, keys and values are
    1x1 convolutions without bias; queries and values pass a norm, keys a softmax over the context. The
    equation is in `lambdanets.lambda_layer`, the functional form.

    Norm, causal order and padding: in training, `norm="batch"`, the paper's choice, takes its statistics over
    all positions of the batch. With `causal=True` outputs therefore depend on later positions, and with a
    mask they depend on padding. `norm="rms"` or None avoids both, since they normalise each position
    separately. In evaluation, and with these norms also in training, hidden positions have no effect beyond
    rounding, as long as they are finite: a causal order multiplies them by zero.

    Graphs: in-place operations may follow the layer. `torch.fx` traces the projections and norms as modules
    and the operator as one function. `torch.jit.script` compiles the layer; the process that loads such a
    file must import `lambdanets`.

    Attributes:
        rank: Number of axes of the grid.
        dim_v: Depth of values per head, v = dim_out / num_heads.
        local: Whether positions are local (`scope`).
        positions: Position table, a parameter `[*offsets, k, u]`; None without a position part.
        position_bias: Bias of the position lambdas, a parameter `[k]`, or None.

    Differences from the paper:
        The paper initialises with N(0, d^-1/2). Here d^-1/2 is the standard deviation rather than the
        variance, since the paper calls the initialisation fan-in. `position_bias` is not in the paper;
        weights that were trained with other packages need it.

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
        """Create a layer with initialised parameters.

        Args:
            dim (int): Channels of the input.
            dim_out (int, optional): Channels of the output, a multiple of `num_heads`. Default: `dim`.
            dim_k (int): Depth of queries and keys, k. Default: 16.
            num_heads (int): Queries per position, h. The heads share the lambda of their position; the depth
                of values is v = dim_out / num_heads. Default: 4.
            dim_u (int): Intra-depth, u: keys and values have u columns per position, whose lambdas are
                summed. Default: 1.
            scope (int | tuple[int, ...], optional): Size of a local position table, in positions per axis.
                Each position then has embeddings for a window of this size around it; a window of even size
                has one more position before the centre than after it. With `causal=True` the window ends at
                the position. Default: None, global positions, which need `grid`.
            grid (int | tuple[int, ...], optional): For global positions, the size of the grid that the table
                covers: the table has 2 * grid - 1 offsets per axis, or `grid` with `causal=True`. Inputs on
                other grids work: a smaller one uses the offsets that it has, and on a larger one offsets
                beyond the table contribute nothing. Default: None.
            dilation (int | tuple[int, ...]): Distance between the neighbours within a local scope, per axis.
                Default: 1.
            content (bool): Whether lambdas have a content part. Default: True.
            position (bool): Whether lambdas have a position part. Without one, neither `scope` nor `grid` is
                needed. Default: True.
            causal (bool): Whether each position sees only itself and earlier positions; for one axis only.
                Default: False.
            normalize (str): Normalisation of keys over the context: "softmax"; "softmax_both", which also
                applies a softmax to the k channels of each query; "l2", division by the L2 norm; or "none".
                Default: "softmax".
            norm (str, optional): Norm after the projections to queries and values: "batch"; "rms", over the
                channels at each position; or None. Default: "batch".
            position_bias (bool): Whether one learned lambda `[k]`, equal for all value channels and
                initialised to zero, is added to all position lambdas, as the bias of the position
                convolution in other packages is. Default: False.
            kernel (str): Kernel of the operator: "auto", "measured", or a name; see
                `lambdanets.lambda_layer`. Default: "auto".
            device (torch.device | str, optional): Device of the parameters. Default: None, PyTorch's.
            dtype (torch.dtype, optional): dtype of the parameters. Default: None, PyTorch's.

        Shape:
            Input `[b, dim, *grid]`, optionally a context `[b, dim, *context_grid]` and its mask; output
            `[b, dim_out, *grid]`. The grid is `[n]`, `[h, w]` or `[d, h, w]`, of any size.

        Raises:
            ValueError: If an argument is out of range, or arguments contradict each other.
            MemoryError: If the parameters need more memory than is available.
            TypeError: If the class is `LambdaLayer` itself.

        Example:
            >>> layer = LambdaLayer2d(64, 128, scope=23)
            >>> layer(torch.randn(2, 64, 28, 28)).shape
            torch.Size([2, 128, 28, 28])
        """
        if not hasattr(type(self), "rank"):
            raise TypeError(
                f"{type(self).__name__} is a base class: use LambdaLayer1d (sequences), LambdaLayer2d "
                "(images) or LambdaLayer3d (volumes, video)"
            )
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
        table = table_shape(scope, grid, self.rank, causal=causal) if position else None

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
        # Of this class: a subclass initialises the parameters that it adds itself.
        LambdaLayer.reset_parameters(self)

    def _make_norm(self, channels: int, **factory: Any) -> _BatchNorm | ChannelRMSNorm | nn.Identity:
        """Return the layer's kind of norm for a number of channels."""
        if self.norm is None:
            return nn.Identity()
        # The epsilon of batch norms, since the default of nn.RMSNorm depends on the dtype: 1e-3 in float16.
        return (
            ChannelRMSNorm(channels, eps=1e-5, **factory)
            if self.norm == "rms"
            else _BATCH_NORMS[self.rank](channels, **factory)
        )

    def _check_memory(
        self, table: tuple[int, ...] | None, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        """Raise `MemoryError` if the parameters need more memory than there is, before their allocation."""
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
                f"bytes, {limit:,} are available"
            )

    def reset_parameters(self) -> None:
        """Initialise all parameters as the paper does.

        Weights are normal: with standard deviation dim^-1/2 for keys and values, (dim k)^-1/2 for queries, 1
        for position embeddings. Norms get their defaults, the position bias zeros.
        """
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
            x: Input `[b, dim, *grid]`, on a grid of any size.
            context: Source of keys and values, `[b, dim, *context_grid]`. Default: `x`.
            mask: Boolean tensor `[b, *context_grid]` or `[b, m]`, True where the context may be seen.

        Returns:
            Output `[b, dim_out, *grid]`, in the memory format of `x`.

        Raises:
            ValueError: If a shape does not match the layer or the other inputs.
        """
        if torch.jit.is_scripting():  # pyright: ignore[reportPrivateImportUsage]
            return self._scripted(x, context, mask)
        else:
            return self._forward(x, context, mask)

    def _scripted(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        """Apply the layer in TorchScript, which calls `layer_output` as a library operator."""
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
        """Apply the layer outside TorchScript: checks, projections and norms, the operator."""
        source = checked_source(x, context, self.dim, self.rank)
        # Not under torch.fx, whose graph may run in another mode than it was traced in, nor in a compiled
        # graph, which cannot warn.
        if not (isinstance(x, Proxy) or torch.compiler.is_compiling()):
            self._check_statistics(x, source, mask)
        queries, keys, values = self._projections(x, source)
        return layer_output(
            queries,
            keys,
            values,
            self._table(),
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

    def _table(self) -> Tensor | None:
        """Return the position table of a call, `[*offsets, k, u]`, or None."""
        return self.positions

    def _projections(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return normalised queries, keys and normalised values.

        Queries are `[b, h * k, *grid]`, keys `[b, k * u, *context_grid]` or None without a content part,
        values `[b, v * u, *context_grid]`.
        """
        of_context = [self.to_values] if self.to_keys is None else [self.to_values, self.to_keys]
        if not can_fuse(x, [self.to_queries, *of_context], [self.norm_queries, self.norm_values]):
            if source is x:
                queries, values, *keys = project_concatenated(x, [self.to_queries, *of_context])
            else:
                (queries,) = project_concatenated(x, [self.to_queries])
                values, *keys = project_concatenated(source, of_context)
            queries, values = self.norm_queries(queries), self.norm_values(values)
            return queries, keys[0] if keys else None, values
        assert isinstance(self.norm_queries, _BatchNorm)
        assert isinstance(self.norm_values, _BatchNorm)
        to_queries: list[Projection] = [(self.to_queries.weight, self.to_queries.bias, self.norm_queries)]
        norms = (self.norm_values, None)
        to_context: list[Projection] = [
            (p.weight, p.bias, norm) for p, norm in zip(of_context, norms, strict=False)
        ]
        if source is x:
            queries, values, *keys = project_fused(x, [*to_queries, *to_context])
        else:
            (queries,), (values, *keys) = project_fused(x, to_queries), project_fused(source, to_context)
        return queries, keys[0] if keys else None, values

    def _check_statistics(self, x: Tensor, source: Tensor, mask: Tensor | None) -> None:
        """Check batch norms in training.

        Raise ValueError if there is a single value per channel; warn if statistics include hidden positions.
        """
        batched = [
            (name, part)
            for name, norm, part in (("x", self.norm_queries, x), ("context", self.norm_values, source))
            if isinstance(norm, _BatchNorm) and norm.training
        ]
        if not batched:
            return
        # A synchronised norm may have one value in each process.
        synchronised = isinstance(self.norm_queries, nn.SyncBatchNorm)
        for name, part in batched:
            if part.shape[0] * math.prod(part.shape[2:]) == 1 and not synchronised:
                raise ValueError(
                    f"norm='batch' needs more than one value per channel in training, but {name} of shape "
                    f"{tuple(part.shape)} has one; give a larger batch or grid, or take norm='rms' or None"
                )
        if self.causal or mask is not None:
            hidden = "later positions (causal=True)" if self.causal else "positions that the mask hides"
            warnings.warn(
                f"in training norm='batch' includes {hidden} in its statistics, so outputs depend on them; "
                "norm='rms' normalises each position separately",
                stacklevel=1,
            )

    @torch.no_grad()
    def resize_positions(self, grid: Grid) -> None:
        """Interpolate the global position table to another grid; `positions` becomes a new parameter.

        Resize before the optimiser is created: an existing one would keep the old parameter.

        Args:
            grid: The new grid, an int for all axes or a tuple.

        Raises:
            ValueError: If the layer has no global table. A local table needs no resizing.
        """
        if self.positions is None or self.local:
            kind = "local positions, which serve every grid" if self.local else "no positions"
            raise ValueError(f"resize_positions needs a global position table; this layer has {kind}")
        shape = table_shape(None, grid, self.rank, causal=self.causal)
        if shape != tuple(self.positions.shape[:-2]):
            resized = resize_table(self.positions, shape, causal=self.causal)
            self.positions = nn.Parameter(resized, requires_grad=self.positions.requires_grad)

    def extra_repr(self) -> str:
        parts = [
            f"{self.dim}, {self.dim_out}, dim_k={self.dim_k}, num_heads={self.num_heads}, dim_u={self.dim_u}"
        ]
        if self.positions is not None:
            table = tuple(self.positions.shape[:-2])
            grid = table if self.causal else tuple((size + 1) // 2 for size in table)
            parts.append(f"scope={table}" if self.local else f"grid={grid}")
        if max(self.dilation) > 1:
            parts.append(f"dilation={self.dilation}")
        if not self.content:
            parts.append("content=False")
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


class LambdaLayer2d(LambdaLayer):
    """Lambda layer on images: `[b, dim, h, w]` to `[b, dim_out, h, w]`.

    At each position, a linear function that summarises the context by content and relative position, the
    lambda, is applied to the queries. `__init__` documents the arguments, `LambdaLayer` norms and masks.

    Example:
        >>> local_layer = LambdaLayer2d(64, scope=23)
        >>> local_layer(torch.randn(2, 64, 28, 28)).shape
        torch.Size([2, 64, 28, 28])
        >>> global_layer = LambdaLayer2d(64, 128, dim_k=16, num_heads=8, grid=(28, 28))
        >>> global_layer(torch.randn(2, 64, 28, 28)).shape
        torch.Size([2, 128, 28, 28])
    """

    rank = 2


class LambdaLayer3d(LambdaLayer):
    """Lambda layer on volumes or video: `[b, dim, d, h, w]` to `[b, dim_out, d, h, w]`.

    At each position, a linear function that summarises the context by content and relative position, the
    lambda, is applied to the queries. `__init__` documents the arguments, `LambdaLayer` norms and masks.

    Example:
        >>> layer = LambdaLayer3d(32, scope=(3, 7, 7))
        >>> layer(torch.randn(1, 32, 4, 14, 14)).shape
        torch.Size([1, 32, 4, 14, 14])
    """

    rank = 3
