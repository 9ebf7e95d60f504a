"""Attention order: queries multiply the position embeddings first, then the values.

There is no softmax over positions, so the sums may be swapped: first the map q E [b, h, n, m, u], then the
map times v. With h queries per position this takes h (k + v) multiply-adds per pair (n, m) instead of k v,
and no position lambda is computed. The map is computed for one block of queries at a time (at least one row
of the first axis), over the context within the block's reach, and recomputed in the backward pass. Not in the
paper, which contracts m first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..context import RelativeContext
from ..hardware import gemm_seconds, move_seconds, on_gpu
from ..matmul import Scratch, batched_matmul
from ..position_table import box_indices, gather_embeddings, scatter_gradient
from ..problem import Cost, Problem

NAME = "attention"
# Bytes of a block's map and embeddings, so that they stay in a core's own cache, and that the C library does
# not return their memory to the system after each call. One row may take more.
BLOCK = 2**21
GPU_BLOCK = 2**28  # BLOCK on a GPU, where a call costs more than a cache saves; not measured


@dataclass(frozen=True)
class Block:
    """Some rows of queries on the grid's first axis, and the rows of the context within their reach.

    Attributes:
        queries: Slice of n.
        context: Slice of m.
        rows: (start, stop) of the queries on the first axis of the grid.
        context_rows: (start, stop) of the context on the first axis of its grid.
    """

    queries: slice
    context: slice
    rows: tuple[int, int]
    context_rows: tuple[int, int]


def output(q: Tensor, v: Tensor, e: Tensor, problem: Problem, y: Tensor) -> None:
    """Write the position part into y."""
    context = problem.context if problem.relative else None
    q = q.contiguous()
    b, h = q.shape[:2]
    dim_v = v.shape[2]
    values = v.transpose(2, 3)  # [b, m, u, v]
    scratch = Scratch(q)
    transposed = y.stride(2) < y.stride(3)
    for block in blocks(problem):
        embeddings, _ = _embeddings(e, context, block)
        pairs = _pairs(q[:, :, block.queries], embeddings, scratch)  # [b, h n, m u]
        seen = values[:, block.context].flatten(1, 2)  # [b, m u, v]
        if transposed:
            # In the order of y, which would else be copied element by element.
            part = scratch.take("part", b, dim_v, pairs.shape[1])  # [b, v, h n]
            batched_matmul(seen.mT, pairs.mT, out=part)
            y[:, :, block.queries] = part.unflatten(2, (h, -1)).permute(0, 2, 3, 1)
        else:
            part = scratch.take("part", b, pairs.shape[1], dim_v)  # [b, h n, v]
            batched_matmul(pairs, seen, out=part)
            y[:, :, block.queries] = part.unflatten(1, (h, -1))


def gradients(
    g: Tensor, q: Tensor, v: Tensor, e: Tensor, problem: Problem, needs_grad: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of q, v and e."""
    context = problem.context if problem.relative else None
    q = q.contiguous()
    b, h = q.shape[:2]
    m, dim_v, u = v.shape[1:]
    accumulator = torch.promote_types(q.dtype, torch.float32)  # dtype of the sums over blocks
    values = v.transpose(2, 3)  # [b, m, u, v]
    dq = torch.empty_like(q, memory_format=torch.contiguous_format) if needs_grad[0] else None
    dv = v.new_zeros(b, m, u, dim_v, dtype=accumulator) if needs_grad[1] else None
    de = None
    if needs_grad[2]:
        de = torch.zeros_like(e, dtype=accumulator, memory_format=torch.contiguous_format)
    scratch = Scratch(q)
    for block in blocks(problem):
        embeddings, index = _embeddings(e, context, block)
        queries = q[:, :, block.queries]
        upstream = g[:, :, block.queries].flatten(1, 2)  # [b, h n, v]
        if dv is not None:
            pairs = _pairs(queries, embeddings, scratch)  # [b, h n, m u]
            part = scratch.take("part", b, pairs.shape[2], dim_v)  # [b, m u, v]
            batched_matmul(pairs.mT, upstream, out=part)
            dv[:, block.context] += part.unflatten(1, (-1, u))
        if dq is None and de is None:
            continue
        dpairs = scratch.take("map", b, upstream.shape[1], embeddings.shape[1])  # [b, h n, m u]
        batched_matmul(upstream, values[:, block.context].flatten(1, 2).mT, out=dpairs)
        dpairs = dpairs.view(b * h, queries.shape[2], dpairs.shape[2]).transpose(0, 1)  # [n, b h, m u]
        if dq is not None:
            _by_position(dq[:, :, block.queries]).copy_(torch.bmm(dpairs, embeddings))
        if de is not None:
            # [n, m, u, k]
            dembeddings = torch.bmm(dpairs.mT, _by_position(queries)).unflatten(1, (-1, u)).to(accumulator)
            if context is None or index is None:
                de[block.queries, block.context] = dembeddings.mT  # [n, m, k, u]
            else:
                de += scatter_gradient(dembeddings, index, e.shape)
    return dq, None if dv is None else dv.transpose(2, 3), de


def blocks(problem: Problem) -> Iterator[Block]:
    """Cut the queries along the grid's first axis; blocks of several rows take at most `BLOCK` bytes."""
    grid, keys = problem.grid, problem.context_grid or problem.grid
    per_row, per_key_row = math.prod(grid[1:]), math.prod(keys[1:])
    before, after = _reach(problem)
    rows, _ = _block_size(problem)
    for first in range(0, grid[0], rows):
        last = min(first + rows, grid[0])
        low = min(keys[0], max(0, first - before))
        high = max(low, min(keys[0], last + after))
        yield Block(
            queries=slice(first * per_row, last * per_row),
            context=slice(low * per_key_row, high * per_key_row),
            rows=(first, last),
            context_rows=(low, high),
        )


def _block_size(problem: Problem) -> tuple[int, int]:
    """Return the rows of queries in a block, and the most rows of the context within its reach."""
    p = problem
    keys = p.context_grid or p.grid
    reach = sum(_reach(p))
    skips = reach < keys[0]  # whether some block needs only a part of the context
    budget = GPU_BLOCK if on_gpu(p) else BLOCK
    per_pair = p.itemsize * p.dim_u * (p.batch * p.num_heads + p.dim_k)
    per_row_pair = per_pair * math.prod(p.grid[1:]) * math.prod(keys[1:])
    area = budget // max(1, per_row_pair)  # rows of queries times rows of the context
    # The largest number of rows with rows * (rows + reach) <= area.
    fitting = (math.isqrt(reach * reach + 4 * area) - reach) // 2 if skips else 0
    rows = min(p.grid[0], max(1, fitting, area // keys[0]))
    return rows, min(keys[0], rows + reach)


def _reach(problem: Problem) -> tuple[int, int]:
    """Return how many rows before and after its own a query sees, on the first axis."""
    keys = problem.context_grid or problem.grid
    if not problem.relative:
        return problem.grid[0], keys[0]
    context = problem.context
    entries, centre, step = context.reachable_entries()[0], context.centre[0], context.step[0]
    return max(0, (centre - entries.start) * step), max(0, (entries.stop - 1 - centre) * step)


def _embeddings(e: Tensor, context: RelativeContext | None, block: Block) -> tuple[Tensor, Tensor | None]:
    """Return the embeddings [n, m u, k] of a block, and the table index they were gathered with."""
    if context is None:
        return e[block.queries, block.context].mT.flatten(1, 2), None
    queries = (block.rows, *((0, size) for size in context.grid[1:]))
    keys = (block.context_rows, *((0, size) for size in context.key_grid[1:]))
    index = box_indices(context, queries, keys, e.device)
    return gather_embeddings(e, index).flatten(1, 2), index


def _by_position(q: Tensor) -> Tensor:
    """Return a view of queries [b, h, n, k] as [n, b h, k]."""
    return q.flatten(0, 1).transpose(0, 1)


def _pairs(q: Tensor, embeddings: Tensor, scratch: Scratch) -> Tensor:
    """Return the map q E [b, h n, m u] of queries [b, h, n, k] and embeddings [n, m u, k].

    The product is batched over positions, [n, b h, m u], and then copied to [b h, n, m u], while the block is
    in the cache. It is not written to a transposed view directly: into a non-contiguous output, PyTorch
    computes a batched product one matrix at a time, on a single thread. The result is valid until the next
    call.
    """
    b, h, n, _ = q.shape
    columns = embeddings.shape[1]
    by_position = scratch.take("by position", n, b * h, columns)  # [n, b h, m u]
    torch.bmm(_by_position(q), embeddings.mT, out=by_position)
    pairs = scratch.take("map", b * h, n, columns).copy_(by_position.transpose(0, 1))  # [b h, n, m u]
    return pairs.view(b, h * n, columns)


def unsupported(problem: Problem) -> list[str]:
    """Return no reasons: the kernel serves every problem."""
    return []


def cost(problem: Problem, *, backward: bool = False) -> Cost:
    """Return the cost of h (k + v) multiply-adds per pair, with the map of one block in memory.

    All pairs of a block's queries and the block's context are counted, also those out of a query's reach.
    """
    p = problem
    if not p.position:
        return Cost(flops=0, bytes=p.io_bytes, peak_bytes=0, seconds=0.0)
    rows, span = _block_size(p)
    count = -(-p.grid[0] // rows)
    queries = rows * math.prod(p.grid[1:])
    context = span * math.prod((p.context_grid or p.grid)[1:]) * p.dim_u
    pairs = queries * context
    pair_map, heads = p.batch * p.num_heads * pairs, p.batch * p.num_heads
    map_seconds = gemm_seconds(p, heads, p.dim_k, context, queries)  # q E
    value_seconds = gemm_seconds(p, p.num_heads * queries, context, p.dim_v, p.batch)  # the map times v
    # The table index (int64) and the gathered embeddings.
    read = 8 * pairs // p.dim_u + p.itemsize * 2 * pairs * p.dim_k
    moved = read + p.itemsize * 2 * pair_map
    seconds = map_seconds + value_seconds + move_seconds(p, moved, calls=35)
    flops = 2 * pair_map * (p.dim_k + p.dim_v)
    if backward:
        seconds = 3 * map_seconds + 2 * value_seconds
        seconds += move_seconds(p, 2 * moved + 8 * pairs * p.dim_k, calls=60)
        flops = 2 * pair_map * (3 * p.dim_k + 2 * p.dim_v)
        moved = 3 * moved
    return Cost(
        flops=flops * count,
        bytes=moved * count + p.io_bytes,
        peak_bytes=2 * p.itemsize * (pair_map + pairs * p.dim_k) + 8 * pairs // p.dim_u,
        seconds=seconds * count,
    )
