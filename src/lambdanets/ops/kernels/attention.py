"""Attention order: queries meet the position embeddings first, the values come last.

There is no softmax over positions, so the sums may be swapped: (q E) of shape b h n m, then times v. For h
queries per position this is h (k + v) products per pair instead of k v, and no position lambda is formed. The
map is formed for a block of queries at a time (at least a row of the first axis), over the part of the
context that the block reaches, and formed again in the backward pass. Not in the paper, which contracts m
first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..context import RelativeContext
from ..machine import gemm_seconds, move_seconds, on_gpu
from ..problem import Cost, Problem
from ..products import ONEDNN, products
from ..scratch import Scratch
from ..tables import box_entries, collect, read

NAME = "attention"
APPLIES_CONTENT = False
# Bytes of the map and of the embeddings of a block of several rows: they stay in a core's own cache.
# Where each example is a call of its own, larger blocks cost less, if a smaller one would skip no context.
BLOCK = 2**21
WHOLE = 8 if ONEDNN else 1
GPU_BLOCK = 2**28  # the same on a GPU, where a call costs more than a cache saves; not measured


@dataclass(frozen=True)
class Block:
    """Some rows of queries on the grid's first axis, and the rows of the context that they reach."""

    queries: slice
    context: slice
    rows: tuple[int, int]
    context_rows: tuple[int, int]


def output(q: Tensor, v: Tensor, e: Tensor, problem: Problem, y: Tensor) -> None:
    """Write the position part into y (b h n v), from q (b h n k), v (b m v u) and a table or dense e."""
    context = problem.context if problem.relative else None
    q = q.contiguous()
    b, h = q.shape[:2]
    dim_v = v.shape[2]
    values = v.transpose(2, 3)  # b m u v
    scratch = Scratch(q)
    for block in blocks(problem):
        embeddings, _ = _embeddings(e, context, block)
        pairs = _pairs(q[:, :, block.queries], embeddings, scratch)  # b (h n) (m u)
        part = scratch.take("part", b, pairs.shape[1], dim_v)
        products(pairs, values[:, block.context].flatten(1, 2), out=part)
        y[:, :, block.queries] = part.unflatten(1, (h, -1))


def gradients(
    g: Tensor, q: Tensor, v: Tensor, e: Tensor, problem: Problem, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of q, v and e, each where it is wanted, from that of the position part."""
    context = problem.context if problem.relative else None
    q = q.contiguous()
    b, h = q.shape[:2]
    m, dim_v, u = v.shape[1:]
    wide = torch.promote_types(q.dtype, torch.float32)  # of what is summed over blocks
    values = v.transpose(2, 3)
    dq = torch.empty_like(q, memory_format=torch.contiguous_format) if wanted[0] else None
    dv = v.new_zeros(b, m, u, dim_v, dtype=wide) if wanted[1] else None
    de = torch.zeros_like(e, dtype=wide, memory_format=torch.contiguous_format) if wanted[2] else None
    scratch = Scratch(q)
    for block in blocks(problem):
        embeddings, index = _embeddings(e, context, block)
        some = q[:, :, block.queries]
        upstream = g[:, :, block.queries].flatten(1, 2)  # b (h n) v
        if dv is not None:
            pairs = _pairs(some, embeddings, scratch)
            part = scratch.take("part", b, pairs.shape[2], dim_v)
            products(pairs.mT, upstream, out=part)
            dv[:, block.context] += part.unflatten(1, (-1, u))
        if dq is None and de is None:
            continue
        dpairs = scratch.take("map", b, upstream.shape[1], embeddings.shape[1])
        products(upstream, values[:, block.context].flatten(1, 2).mT, out=dpairs)
        dpairs = dpairs.view(b * h, some.shape[2], dpairs.shape[2]).transpose(0, 1)  # n (b h) (m u)
        if dq is not None:
            _by_position(dq[:, :, block.queries]).copy_(torch.bmm(dpairs, embeddings))
        if de is not None:
            dembeddings = torch.bmm(dpairs.mT, _by_position(some)).unflatten(1, (-1, u)).to(wide)
            if context is None or index is None:
                de[block.queries, block.context] = dembeddings.mT
            else:
                de += collect(dembeddings, index, e.shape)
    return dq, None if dv is None else dv.transpose(2, 3), de


def blocks(problem: Problem) -> Iterator[Block]:
    """Cut the queries along the grid's first axis; several rows together form at most `BLOCK` bytes."""
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
    """Rows of queries in a block, and rows of the context that it may reach."""
    p = problem
    keys = p.context_grid or p.grid
    reach = sum(_reach(p))
    per_pair = p.itemsize * p.dim_u * (p.batch * p.num_heads + p.dim_k)
    budget = BLOCK if reach < keys[0] else BLOCK * WHOLE
    if on_gpu(p):
        budget = GPU_BLOCK
    area = budget // max(
        1, per_pair * math.prod(p.grid[1:]) * math.prod(keys[1:])
    )  # rows of both, multiplied
    within = (math.isqrt(reach * reach + 4 * area) - reach) // 2 if reach < keys[0] else 0
    rows = min(p.grid[0], max(1, within, area // keys[0]))
    return rows, min(keys[0], rows + reach)


def _reach(problem: Problem) -> tuple[int, int]:
    """How far a query sees on the first axis, backwards and forwards."""
    keys = problem.context_grid or problem.grid
    if not problem.relative:
        return problem.grid[0], keys[0]
    context = problem.context
    part, centre, step = context.reach()[0], context.centre[0], context.step[0]
    return max(0, (centre - part.start) * step), max(0, (part.stop - 1 - centre) * step)


def _embeddings(e: Tensor, context: RelativeContext | None, block: Block) -> tuple[Tensor, Tensor | None]:
    """Embeddings of shape n (m u) k of a block, and the index they were read with."""
    if context is None:
        return e[block.queries, block.context].mT.flatten(1, 2), None
    grid = (block.rows, *((0, size) for size in context.grid[1:]))
    keys = (block.context_rows, *((0, size) for size in context.key_grid[1:]))
    index = box_entries(context, grid, keys, e.device)
    return read(e, index).flatten(1, 2), index


def _by_position(q: Tensor) -> Tensor:
    """A view of queries b h n k, or of some of them, as n (b h) k."""
    return q.flatten(0, 1).transpose(0, 1)


def _pairs(q: Tensor, embeddings: Tensor, scratch: Scratch) -> Tensor:
    """The map q E of shape b (h n) (m u): a product per position, turned while it is in the cache.

    PyTorch runs products into anything but contiguous memory one by one, on a single thread.
    """
    b, h, n, _ = q.shape
    reached = embeddings.shape[1]
    by_position = scratch.take("by position", n, b * h, reached)
    torch.bmm(_by_position(q), embeddings.mT, out=by_position)
    pairs = scratch.take("map", b * h, n, reached).copy_(by_position.transpose(0, 1))
    return pairs.view(b, h * n, reached)


def unsupported(problem: Problem) -> list[str]:
    """Why this kernel cannot serve the problem; empty if it can."""
    return []


def cost(problem: Problem, *, backward: bool = False) -> Cost:
    """h (k + v) products per pair, over the blocks' rectangles of pairs; a block's map is stored."""
    p = problem
    if not p.position:
        return Cost(flops=0, bytes=p.io_bytes, peak_bytes=0, seconds=0.0)
    rows, span = _block_size(p)
    count = -(-p.grid[0] // rows)
    queries = rows * math.prod(p.grid[1:])
    context = span * math.prod((p.context_grid or p.grid)[1:]) * p.dim_u
    pairs = queries * context
    pair_map, heads = p.batch * p.num_heads * pairs, p.batch * p.num_heads
    first = gemm_seconds(p, heads, p.dim_k, context, queries)
    second = gemm_seconds(p, p.num_heads * queries, context, p.dim_v, p.batch)
    read = 8 * pairs // p.dim_u + p.itemsize * 2 * pairs * p.dim_k
    moved = read + p.itemsize * 2 * pair_map
    seconds = first + second + move_seconds(p, moved, 35)
    flops = 2 * pair_map * (p.dim_k + p.dim_v)
    if backward:
        seconds = 3 * first + 2 * second + move_seconds(p, 2 * moved + 8 * pairs * p.dim_k, 60)
        flops = 2 * pair_map * (3 * p.dim_k + 2 * p.dim_v)
        moved = 3 * moved
    return Cost(
        flops=flops * count,
        bytes=moved * count + p.io_bytes,
        peak_bytes=2 * p.itemsize * (pair_map + pairs * p.dim_k) + 8 * pairs // p.dim_u,
        seconds=seconds * count,
    )
