"""The operands of a call of a lambda layer: what its operator multiplies, before any kernel runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lambdanets.ops.context import GlobalContext, LocalContext, RelativeContext

from .fuse_batch_norm import project_concatenated
from .lambda_layer import LambdaLayer
from .lambda_layer_1d import LambdaLayer1d
from .layer_output import checked_source
from .memory_format import merge_heads
from .rows import PaddedRows
from .states import LambdaState


@dataclass(frozen=True, kw_only=True)
class Operands:
    """Everything that determines the output of a lambda layer for one input.

    `finish(y)` with the operator's output
    `y[b,h,n,v] = sum_k q[b,h,n,k] (bias[k] + sum_{m,u} (kbar[b,m,k,u] + E[n,m,k,u]) v[b,m,v,u])` is the
    output of the layer.

    Attributes:
        q: Queries `[b, h, n, k]`, after their norm.
        k: Keys `[b, m, g * k, u]` of g sets, not normalised; None without a content part.
        v: Values `[b, m, v, u]`, after their norm.
        e: Position table `[*offsets, k, u]`, or None without a position part.
        position_bias: Lambda `[k]` that is added at all positions, or None.
        context: The grids, and the offsets of the table's entries.
        mask: Booleans `[b, m]`, False at elements that have no effect; None if all are visible.
        normalize: Normalisation of the keys over the elements that a query sees: "softmax", "l2" or "none".
        decay: Rates `[k, u]` at which the content forgets, or None.
        undefined: Booleans `[b, n]`, True at queries whose output has no meaning; None if all have one.
        finish: Function from the operator's output `[b, h, n, v]` to that of the layer.
    """

    q: Tensor
    k: Tensor | None
    v: Tensor
    e: Tensor | None
    position_bias: Tensor | None
    context: RelativeContext
    mask: Tensor | None
    normalize: str
    decay: Tensor | None
    undefined: Tensor | None
    finish: Callable[[Tensor], Tensor]


def layer_operands(layer: LambdaLayer, x: Tensor, *args: Any, **options: Any) -> Operands:
    """Return the operands of the call `layer(x, *args, **options)`.

    Args:
        layer: The layer.
        x: Input `[b, dim, *grid]`.
        *args: Further positional arguments of the call.
        **options: Its keyword arguments.

    Raises:
        ValueError: If the call continues a sequence from a state, or has packed sequences.
    """
    context, mask, *_ = (*args, *[None] * 2)
    context, mask = options.get("context", context), options.get("mask", mask)
    if options.get("cu_seqlens") is not None:
        raise ValueError("packed sequences (cu_seqlens) have no single map: give the sequences one by one")
    if options.get("state") is not None or isinstance(context, LambdaState):
        raise ValueError("a call that continues from a state has no past to show: give the whole sequence")
    source = checked_source(x, context, layer.dim, layer.rank)
    rows, decay = None, None
    if isinstance(layer, LambdaLayer1d) and layer.short_conv is not None:
        if mask is not None:
            rows = PaddedRows.of(mask, x)
        queries, keys, values = _convolved(layer, x, rows)
    else:
        queries, keys, values = layer._projections(x, source)
    if isinstance(layer, LambdaLayer1d) and layer.log_decay is not None:
        decay = layer.log_decay.exp()
    dtype = values.dtype if keys is None else keys.dtype
    q = queries.flatten(2).unflatten(1, (layer.num_heads, layer.dim_k)).mT.to(dtype)
    grid, context_grid = tuple(x.shape[2:]), tuple(source.shape[2:])
    geometry: RelativeContext
    if layer.positions is None:
        geometry = GlobalContext(grid, context_grid=context_grid, causal=layer.causal)
    else:
        scope = tuple(layer.positions.shape[:-2])
        geometry = LocalContext(
            grid, scope, dilation=layer.dilation, context_grid=context_grid, causal=layer.causal
        )
    both = layer.normalize == "softmax_both"
    mask = None if mask is None else mask.flatten(1)
    return Operands(
        q=q.softmax(-1) if both else q,
        k=None if keys is None else _columns(keys, layer.dim_u),
        v=_columns(values, layer.dim_u).to(dtype),
        e=None if layer.positions is None else layer.positions.to(dtype),
        position_bias=None if layer.position_bias is None else layer.position_bias.to(dtype),
        context=geometry,
        mask=mask,
        normalize="softmax" if both else layer.normalize,
        decay=decay,
        undefined=~mask if mask is not None and layer.causal else None,
        finish=lambda y: _finished(layer, y, x),
    )


def _columns(x: Tensor, dim_u: int) -> Tensor:
    """Return channels `[b, c * u, *grid]` as `[b, m, c, u]`."""
    return x.flatten(2).unflatten(1, (-1, dim_u)).permute(0, 3, 1, 2)


def _convolved(
    layer: LambdaLayer1d, x: Tensor, rows: PaddedRows | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return queries, keys and values `[b, c, n]` after the short convolution and the norms."""
    parts = project_concatenated(x, layer._parts())
    if rows is not None:
        parts = [rows.move_left(part.mT).mT for part in parts]
    parts, _ = layer._convolve(parts, None, None)
    if rows is not None:
        parts = [rows.move_back(part.mT).mT for part in parts]
    queries, values, *keys = parts
    return layer.norm_queries(queries), keys[0] if keys else None, layer.norm_values(values)


def _finished(layer: LambdaLayer, y: Tensor, x: Tensor) -> Tensor:
    """Return the output of a layer from that of its operator, `[b, h, n, v]`."""
    merged = merge_heads(y, x)
    return layer._finish(merged, x) if isinstance(layer, LambdaLayer1d) else merged
