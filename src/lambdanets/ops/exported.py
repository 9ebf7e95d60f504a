"""The position part in PyTorch's own operators, for graphs of torch.export and ONNX.

An exported graph runs without this package, where its custom operators do not exist. The queries multiply the
embeddings of all pairs; where these are large, a local table becomes the weight of a convolution.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import torch
from torch import Tensor

from .context import RelativeContext
from .kernels.conv import MAX_AXES, Convolution
from .position_table import gather_embeddings, pair_indices, trim_table

# Elements of the embeddings [n, m, k, u] beyond which a local table becomes a convolution: 32 MiB in float32.
MAX_EMBEDDINGS = 2**23
# Entries of a table that becomes a convolution in a graph for any grid, whose context has any size.
MAX_TAPS = 1024


def exported_output(q: Tensor, v: Tensor, e: Tensor, context: RelativeContext | None) -> Tensor:
    """Return the position part [b, h, n, v].

    Args:
        q: Queries [b, h, n, k].
        v: Values [b, m, v, u].
        e: A table [*offsets, k, u], or dense embeddings [n, m, k, u].
        context: The table's geometry, None for dense embeddings. Its sizes may be symbols of torch.export.
    """
    if context is not None and len(context.grid) <= MAX_AXES and _prefers_convolution(e, context):
        lambdas = convolved_lambdas(v, e, context)
        return torch.matmul(q.transpose(1, 2), lambdas).transpose(1, 2)
    embeddings = e.mT if context is None else gather_embeddings(e, pair_indices(context, e.device))
    pairs = torch.einsum("bhnk,nmuk->bhnmu", q, embeddings)
    return torch.einsum("bhnmu,bmvu->bhnv", pairs, v)


def _prefers_convolution(e: Tensor, context: RelativeContext) -> bool:
    """Return whether the embeddings of all pairs are large, and the table is smaller than the context."""
    sizes = (*context.grid, *context.key_grid, *e.shape[-2:])
    if not all(isinstance(size, int) for size in sizes):
        return math.prod(e.shape[:-2]) <= MAX_TAPS
    taps = math.prod(trim_table(e, context)[0].shape[:-2])
    return math.prod(sizes) > MAX_EMBEDDINGS and taps <= context.num_context


def convolved_lambdas(v: Tensor, e: Tensor, context: RelativeContext) -> Tensor:
    """Return the position lambdas [b, n, k, v] of a table by a convolution."""
    # A table that serves any grid is not trimmed to one.
    grid, key_grid = (
        tuple(size if isinstance(size, int) else sys.maxsize for size in sizes)
        for sizes in (context.grid, context.key_grid)
    )
    convolution = Convolution.of(e, context, largest=replace(context, grid=grid, context_grid=key_grid))
    return convolution.lambdas(convolution.images(v), v.shape[0])
