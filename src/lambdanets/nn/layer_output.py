"""From the projections of a lambda layer to its output, and the check of its inputs, as functions.

In a graph of torch.fx each is one node; TorchScript calls `layer_output` as an operator of a library.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from lambdanets.ops.context import GlobalContext, LocalContext
from lambdanets.ops.functional import lambda_layer

from .memory_format import match_gradient_format, merge_heads


def checked_source(x: Tensor, context: Tensor | None, dim: int, rank: int) -> Tensor:
    """Return the source of keys and values, `context` or else `x`; raise ValueError if a shape is wrong."""
    source = x if context is None else context
    for name, given in (("x", x), ("context", source)):
        if not isinstance(given, Tensor):
            hint = "; pad the sequences and give mask=" if isinstance(given, PackedSequence) else ""
            raise ValueError(f"{name} must be a tensor, got {type(given).__name__}{hint}")
        if given.ndim != rank + 2 or given.shape[1] != dim:
            grid = {1: "n", 2: "h w", 3: "d h w"}[rank]
            raise ValueError(f"{name} must be of shape (b {dim} {grid}), got {tuple(given.shape)}")
        if 0 in given.shape[2:]:
            raise ValueError(f"{name} has no positions: it is of shape {tuple(given.shape)}")
    if source.shape[0] != x.shape[0]:
        raise ValueError(f"context must have the batch size of x, {x.shape[0]}, got {source.shape[0]}")
    return source


def layer_output(
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
    """Compute the output `[b, dim_out, *grid]` from a layer's projections: one node in a graph of torch.fx.

    Args:
        queries: Normalised queries `[b, h * k, *grid]`.
        keys: Keys `[b, k * u, *context_grid]`, None without a content part.
        values: Normalised values `[b, v * u, *context_grid]`.
        positions: Position table `[*offsets, k, u]`, None without a position part.
        position_bias: Bias of the position lambdas `[k]`, or None.
        x: Input of the layer; the output has its memory format.
        source: Source of keys and values.
        mask: Mask as in the layer's `forward`.
        num_heads: h.
        dim_k: k.
        dim_u: u.
        dilation: Distance between the neighbours of a local scope, per axis.
        causal: Whether positions see only earlier positions and themselves.
        content: Whether lambdas have a content part.
        normalize: Normalisation of keys, and of queries with "softmax_both".
        kernel: Kernel of the operator.

    Raises:
        ValueError: If the context of a causal layer is not as long as `x`, or the mask has a wrong shape.
    """
    if causal and source.shape[2] != x.shape[2]:
        raise ValueError(
            f"causal=True needs a context as long as x, {x.shape[2]} positions, got {source.shape[2]}: both "
            "begin at position 0; for the outputs of the last positions apply the layer to the whole sequence"
        )
    queries, values = match_gradient_format(queries), match_gradient_format(values)
    q = queries.flatten(2).unflatten(1, (num_heads, dim_k)).mT  # [b, h, n, k]
    if normalize == "softmax_both":
        q = q.softmax(-1)
    v = values.flatten(2).unflatten(1, (-1, dim_u)).permute(0, 3, 1, 2)  # [b, m, v, u]
    if keys is None:  # without a content part the operator reads only the shape of the keys
        k = v.new_zeros(()).expand(*v.shape[:2], dim_k, dim_u)  # [b, m, k, u]
    else:
        k = keys.flatten(2).unflatten(1, (dim_k, dim_u)).permute(0, 3, 1, 2)  # [b, m, k, u]
    # Under autocast norms and projections may differ in dtype; the operator needs a single one.
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
        # einsum, since onnxruntime 1.32 computes a wrong product of a transposed matrix and a vector.
        y = y + torch.einsum("bhnk,k->bhn", q.to(dtype), position_bias.to(dtype))[..., None]
    return merge_heads(y, x)


torch.library.define("lambdanets::layer_output", torch.library.infer_schema(layer_output, mutates_args=()))
torch.library.impl("lambdanets::layer_output", "CompositeImplicitAutograd", layer_output)


def _flat_mask(mask: Tensor, source: Tensor) -> Tensor:
    """Return a mask `[b, *context_grid]` or `[b, m]` as `[b, m]`; raise ValueError if it is neither."""
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
