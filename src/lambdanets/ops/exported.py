"""The position part in PyTorch's own operators, for graphs of torch.export and ONNX.

An exported graph runs without this package, where its custom operators do not exist. It has one of three
forms (`preferred_form`): the queries multiply the embeddings of all pairs; or, where these are large, the
table itself, one row of queries at a time; or the table is the weight of a convolution.
"""

from __future__ import annotations

import itertools
import math
import sys
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .context import GlobalContext, RelativeContext
from .kernels.conv import MAX_AXES, Convolution
from .position_table import gather_embeddings, pair_indices, trim_table

# Elements of the embeddings [n, m, k, u] beyond which another form is faster and smaller: 4 MiB in float32.
MAX_EMBEDDINGS = 2**20
# Entries of a table that becomes a convolution in a graph for any grid, whose context has any size.
MAX_TAPS = 1024
# A multiply-add of a convolution takes this many times as long as one of the other forms.
CONVOLUTION_SLOWDOWN = 2
# Queries that the last axis of a grid may have without being cut into several rows.
ROW = 64
# Rows of queries in a graph, which has eight nodes for each.
MAX_ROWS = 256


def exported_output(q: Tensor, v: Tensor, e: Tensor, context: RelativeContext | None) -> Tensor:
    """Return the position part [b, h, n, v].

    Args:
        q: Queries [b, h, n, k].
        v: Values [b, m, v, u].
        e: A table [*offsets, k, u], or dense embeddings [n, m, k, u].
        context: The table's geometry, None for dense embeddings. Its sizes may be symbols of torch.export.
    """
    form = "pairs" if context is None else preferred_form(q, v, e, context)
    if context is not None and form == "convolution":
        lambdas = convolved_lambdas(v, e, context)
        return torch.matmul(q.transpose(1, 2), lambdas).transpose(1, 2)
    if context is not None and form == "rows":
        return output_by_rows(q, v, e, context)
    embeddings = e.mT if context is None else gather_embeddings(e, pair_indices(context, e.device))
    pairs = torch.einsum("bhnk,nmuk->bhnmu", q, embeddings)
    return torch.einsum("bhnmu,bmvu->bhnv", pairs, v)


def preferred_form(q: Tensor, v: Tensor, e: Tensor, context: RelativeContext) -> str:
    """Return "pairs", "rows" or "convolution", the form of the graph for a table."""
    convolves = len(context.grid) <= MAX_AXES
    sizes = (*context.grid, *context.key_grid, *e.shape[-2:])
    if not all(isinstance(size, int) for size in sizes):
        return "convolution" if convolves and math.prod(e.shape[:-2]) <= MAX_TAPS else "pairs"
    if math.prod(sizes) <= MAX_EMBEDDINGS:
        return "pairs"
    taps = math.prod(trim_table(e, context)[0].shape[:-2])
    if math.prod(context.step) > 1 or len(_rows(context.grid)) > MAX_ROWS:
        return "convolution" if convolves and taps <= context.num_context else "pairs"
    # Multiply-adds for each query. A row multiplies about two entries of the table for each element.
    heads, k, dim_v = q.shape[1], q.shape[3], v.shape[2]
    by_rows = heads * context.num_context * (2 * k + dim_v)
    convolved = CONVOLUTION_SLOWDOWN * taps * k * dim_v
    return "convolution" if convolves and convolved < by_rows else "rows"


def convolved_lambdas(v: Tensor, e: Tensor, context: RelativeContext) -> Tensor:
    """Return the position lambdas [b, n, k, v] of a table by a convolution."""
    # A table that serves any grid is not trimmed to one.
    grid, key_grid = (
        tuple(size if isinstance(size, int) else sys.maxsize for size in sizes)
        for sizes in (context.grid, context.key_grid)
    )
    convolution = Convolution.of(e, context, largest=replace(context, grid=grid, context_grid=key_grid))
    return convolution.lambdas(convolution.images(v), v.shape[0])


def output_by_rows(q: Tensor, v: Tensor, e: Tensor, context: RelativeContext) -> Tensor:
    """Return the position part [b, h, n, v], computed for one row of queries at a time, on the last axis.

    In the flat table, the entry of query x of a row and element m has the index first(m) - x. The row
    multiplies one part of the table, and the products of query x are moved by x to the left: rows of c + 1
    products are read as rows of c. Gathered embeddings would be constants, which onnxruntime computes and
    stores when it loads a file.
    """
    grid, key_grid, u = context.grid, context.key_grid, e.shape[-1]
    shape = GlobalContext(grid, context_grid=key_grid).table_shape
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    table = _global_table(e, context).flatten(1)  # [k, offsets u]
    values = v.transpose(2, 3).flatten(1, 2)[:, None]  # [b, 1, m u, v]
    rows = _rows(grid)
    parts = []
    for queries, (w, last) in zip(q.split([w for w, _ in rows], dim=2), rows, strict=True):
        # The box of entries from that of the context's first element to that of its last, for one query.
        spans = (key_grid[0], *shape[1:]) if len(shape) > 1 else (key_grid[0] + w - 1,)
        c = math.prod(spans) * u
        first = u * sum((size - 1 - i) * step for size, i, step in zip(grid, last, strides, strict=True))
        products = torch.matmul(queries, table[:, first : first + c + u])  # [b, h, w, c + u]
        moved = products.flatten(2)[:, :, (w - 1) * u : (w - 1) * u + w * c]  # [b, h, w c]
        pairs = moved.unflatten(2, (w, *spans, u))
        for axis, size in enumerate(key_grid, start=3):
            pairs = pairs.narrow(axis, 0, size)  # [b, h, w, *key_grid, u]
        parts.append(torch.matmul(pairs.flatten(3), values))  # [b, h, w, v]
    return torch.cat(parts, dim=2)


def _rows(grid: tuple[int, ...]) -> list[tuple[int, tuple[int, ...]]]:
    """Return the number of queries of every row, and the position of its last query."""
    width = min(grid[-1], max(ROW, -(-math.prod(grid) // ROW)))
    rows = []
    for *leading, x in itertools.product(*map(range, grid[:-1]), range(0, grid[-1], width)):
        stop = min(x + width, grid[-1])
        rows.append((stop - x, (*leading, stop - 1)))
    return rows


def _global_table(e: Tensor, context: RelativeContext) -> Tensor:
    """Return a table as [k, *offsets, u] with all offsets between the grids, zero where `e` has no entry.

    The first axis has one further entry, as the parts of `output_by_rows` reach beyond the last offset.
    """
    table, centre = trim_table(e, context)
    every = GlobalContext(context.grid, context_grid=context.key_grid)
    before = [wide - narrow for wide, narrow in zip(every.centre, centre, strict=True)]
    lengths = zip(every.table_shape, table.shape[:-2], before, strict=True)
    after = [wide - length - missing for wide, length, missing in lengths]
    after[0] += 1
    pads = [size for sides in zip(reversed(before), reversed(after), strict=True) for size in sides]
    return F.pad(table.movedim(-2, 0), [0, 0, *pads])
