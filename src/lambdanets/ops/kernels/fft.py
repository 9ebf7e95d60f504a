"""Fourier order: along the longest axis of the grid, positions are summed in the frequency domain.

A convolution along an axis is a product per frequency. The transform of the values along one axis, the sum
over the other axes (for each frequency a matrix, since an offset's embedding is the same everywhere) and the
transform back are all matrix products here. So are the transforms: with some hundred points, a product with
the matrix of cosines and sines is faster than a fast Fourier transform, and forms only the points in use.
A block of query rows goes from the frequencies to the output before the next one starts, so that of the
position lambdas (n k v) only a block's exist, in the backward pass too, where they are formed again.

A long axis is folded first: a sequence of n elements is a grid of sqrt(n / 2) rows, an offset in it one of
rows and one within a row. A global context then costs n^1.5 k v products and memory linear in n. Not in the
paper, which sums over the context directly.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..context import RelativeContext
from ..fourier import Layout
from ..machine import gemm_seconds, move_seconds
from ..problem import Cost, Problem
from ..products import product, products
from ..scratch import Scratch
from ..tables import collect

NAME = "fft"
APPLIES_CONTENT = False
ROWS = 64  # rows of a block's matrix product: query rows times k
COLUMNS = 512  # columns of it: batch times v
BLOCK = 2**24  # bytes of the matrices of a block of queries for some frequencies


def output(q: Tensor, v: Tensor, e: Tensor, problem: Problem, y: Tensor) -> None:
    """Write the position part into y (b h n v) from q (b h n k), v (b m v u), a table e (*offsets k u)."""
    work = Work.of(q, v, e, problem.context)
    rows = work.queries.new_empty(*work.queries.shape[:-1], v.shape[2])
    for block in work.blocks():
        for batch in work.batches(v):
            lambdas = block.lambdas(batch)
            for one in batch:
                part = work.bmm(block.rows_of(work.queries, one), lambdas[:, :, one - batch.start])
                block.set_rows(rows, one, part)
    y.copy_(work.layout.from_queries(rows))


def gradients(
    g: Tensor, q: Tensor, v: Tensor, e: Tensor, problem: Problem, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of q, v and e, each where it is wanted, from that of the position part."""
    work = Work.of(q, v, e, problem.context)
    layout = work.layout
    upstream = layout.to_queries(g.to(work.queries.dtype))
    dq = torch.empty_like(work.queries) if wanted[0] else None
    dfrequencies = torch.zeros_like(work.frequencies) if wanted[1] else None
    dspectrum = torch.zeros_like(work.spectrum) if wanted[2] else None
    for block in work.blocks():
        for batch in work.batches(v):
            if dq is not None:
                lambdas = block.lambdas(batch)
                for one in batch:
                    part = work.bmm(block.rows_of(upstream, one), lambdas[:, :, one - batch.start].mT)
                    block.set_rows(dq, one, part)
            if dfrequencies is None and dspectrum is None:
                continue
            dlambdas = block.new_lambdas(len(batch))
            for one in batch:
                some = block.rows_of(work.queries, one).mT
                dlambdas[:, :, one - batch.start] = work.bmm(some, block.rows_of(upstream, one))
            dproducts = block.dproducts(dlambdas)
            for part, matrices in block.matrices():
                if dfrequencies is not None:
                    into = block.met(dfrequencies, part, batch)
                    into += work.bmm(matrices.mT, dproducts[part]).view(into.shape)
                if dspectrum is not None:
                    met = block.met(work.frequencies, part, batch).flatten(1, -2)
                    block.add_spectrum(dspectrum[part], work.bmm(dproducts[part], met.mT))
    de = None
    if dspectrum is not None:
        index = layout.index(e.device)
        de = collect(layout.from_spectrum(dspectrum), index, e.shape)
    return (
        None if dq is None else layout.from_queries(dq),
        None if dfrequencies is None else layout.from_frequencies(dfrequencies, v),
        de,
    )


@dataclass(frozen=True)
class Work:
    """The arguments laid out: queries b l *lead h k, frequencies f 2 u *lead bv, spectrum f 2 k u *lead.

    In float32 at least: in half precision the rounding of a frequency would reach every position.
    """

    layout: Layout
    queries: Tensor
    frequencies: Tensor
    spectrum: Tensor
    transform_back: Tensor
    dim_v: int
    scratch: Scratch

    @classmethod
    def of(cls, q: Tensor, v: Tensor, e: Tensor, context: RelativeContext) -> Work:
        layout = Layout.of(context)
        queries = layout.to_queries(q.contiguous().to(torch.promote_types(q.dtype, torch.float32)))
        return cls(
            layout,
            queries,
            layout.to_frequencies(v, queries),
            layout.to_spectrum(e, queries),
            layout.transform_back(queries),
            v.shape[2],
            Scratch(queries),
        )

    def bmm(self, a: Tensor, b: Tensor) -> Tensor:
        """A product per batch entry, in memory that the next one of these takes again."""
        return products(a, b, out=self.scratch.take("part", len(a), a.shape[1], b.shape[2]))

    def blocks(self) -> Iterator[Block]:
        first = self.layout.lead[0]
        rows = _rows(self.layout, self.spectrum.shape[2])
        for start in range(0, first.queries, rows):
            yield Block(self, slice(start, min(start + rows, first.queries)))

    def batches(self, v: Tensor) -> Iterator[range]:
        size = _examples(self.layout, self.spectrum.shape[2], v.shape[2])
        for start in range(0, v.shape[0], size):
            yield range(start, min(start + size, v.shape[0]))


@dataclass(frozen=True)
class Block:
    """Some rows of queries on the first lead axis, with all of the other axes."""

    work: Work
    rows: slice

    @cached_property
    def keys(self) -> slice:
        """The rows of the context that some query of the block sees."""
        axis = self.work.layout.lead[0]
        start = min(axis.keys, max(0, self.rows.start - axis.before))
        return slice(start, max(start, min(axis.keys, self.rows.stop + axis.after)))

    def rows_of(self, x: Tensor, one: int) -> Tensor:
        """One example's rows of x (b l *lead h c) as (l rows) h c."""
        return x[one, :, self.rows].flatten(0, -3)

    def set_rows(self, x: Tensor, one: int, part: Tensor) -> None:
        """Write what `rows_of` would read."""
        into = x[one, :, self.rows]
        into.copy_(part.view(into.shape))

    def met(self, frequencies: Tensor, part: slice, batch: range) -> Tensor:
        """The frequencies (f 2 u *lead bv) of some examples that the block meets: a view."""
        dim_v = self.work.dim_v
        return frequencies[part, :, :, self.keys, ..., batch.start * dim_v : batch.stop * dim_v]

    def matrices(self) -> Iterator[tuple[slice, Tensor]]:
        """For some frequencies at a time, the matrices (f, 2 rows k, 2 u keys) that act on the values."""
        yield from self._kept or self._build()

    @cached_property
    def _kept(self) -> list[tuple[slice, Tensor]]:
        """All matrices, where they are small enough to be kept for every batch."""
        return list(self._build()) if self._step >= self.work.layout.frequencies else []

    @cached_property
    def _step(self) -> int:
        _, _, k, u, *_ = self.work.spectrum.shape
        keys = (self.keys.stop - self.keys.start) * math.prod(a.keys for a in self.work.layout.lead[1:])
        one = self.work.queries.element_size() * 4 * len(self._places) * k * u * keys
        return max(1, BLOCK // max(1, one))

    @cached_property
    def _places(self) -> list[tuple[tuple[slice, ...], tuple[slice, ...]]]:
        """For each query row the part of the table, and the part of the context it stands for."""
        first, *others = self.work.layout.lead
        sides = [(range(self.rows.start, self.rows.stop), first, self.keys.start, self.keys.stop)]
        sides += [(range(a.queries), a, 0, a.keys) for a in others]
        windows = []
        for queries, axis, low, high in sides:
            of_axis = []
            for n in queries:
                start, stop = max(low, n - axis.before), min(high, n + axis.after + 1)
                shift = axis.before - n
                stop = max(start, stop)
                of_axis.append((slice(start + shift, stop + shift), slice(start - low, stop - low)))
            windows.append(of_axis)
        rows = itertools.product(*windows)
        return [(tuple(o for o, _ in row), tuple(c for _, c in row)) for row in rows]

    def _build(self) -> Iterator[tuple[slice, Tensor]]:
        spectrum = self.work.spectrum
        _, _, k, u, *_ = spectrum.shape
        keys = [self.keys.stop - self.keys.start, *(a.keys for a in self.work.layout.lead[1:])]
        for start in range(0, len(spectrum), self._step):
            part = slice(start, min(start + self._step, len(spectrum)))
            real, imaginary = spectrum[part].unbind(1)
            table = torch.stack(
                [torch.stack([real, -imaginary], 2), torch.stack([imaginary, real], 2)], 1
            )  # f 2 k 2 u *lead offsets
            shape = (len(real), 2, len(self._places), k, 2, u, *keys)
            matrices = self.work.scratch.take("matrices", *shape).zero_()
            for row, (offsets, context) in enumerate(self._places):
                matrices[:, :, row, :, :, :, *context] = table[:, :, :, :, :, *offsets]
            yield part, matrices.flatten(4).flatten(1, 3)

    def lambdas(self, batch: range) -> Tensor:
        """The position lambdas of some examples, of shape (l rows) k b v."""
        layout = self.work.layout
        x = self._new_products(len(batch))
        for part, matrices in self.matrices():
            met = self.met(self.work.frequencies, part, batch).flatten(1, -2)
            products(matrices, met, out=x[part])
        lambdas = self.new_lambdas(len(batch))
        there = lambdas.view(layout.last.queries, -1)
        product(self.work.transform_back, x.view(2 * layout.frequencies, -1), out=there)
        return lambdas

    def new_lambdas(self, examples: int) -> Tensor:
        """Room for the position lambdas of some examples, (l rows) k b v: that of the last time."""
        k, rows = self.work.spectrum.shape[2], len(self._places)
        shape = (self.work.layout.last.queries * rows, k, examples, self.work.dim_v)
        return self.work.scratch.take("lambdas", *shape)

    def _new_products(self, examples: int) -> Tensor:
        """Room for what `lambdas` transforms back, (f, 2 rows k, b v): that of the last time."""
        k, rows = self.work.spectrum.shape[2], len(self._places)
        shape = (self.work.layout.frequencies, 2 * rows * k, examples * self.work.dim_v)
        return self.work.scratch.take("products", *shape)

    def dproducts(self, dlambdas: Tensor) -> Tensor:
        """The gradient of what `lambdas` transforms back, of shape (f, 2 rows k, b v)."""
        layout = self.work.layout
        x = self._new_products(dlambdas.shape[2])
        there = x.view(2 * layout.frequencies, -1)
        product(self.work.transform_back.mT, dlambdas.view(layout.last.queries, -1), out=there)
        return x

    def add_spectrum(self, dspectrum: Tensor, dmatrices: Tensor) -> None:
        """Add the gradient of the matrices of some frequencies to that of their part of the spectrum."""
        _, _, k, u, *_ = dspectrum.shape
        keys = [self.keys.stop - self.keys.start, *(a.keys for a in self.work.layout.lead[1:])]
        d = dmatrices.view(len(dspectrum), 2, len(self._places), k, 2, u, *keys)
        both = torch.stack([d[:, 0, :, :, 0] + d[:, 1, :, :, 1], d[:, 1, :, :, 0] - d[:, 0, :, :, 1]], 1)
        for row, (offsets, context) in enumerate(self._places):
            dspectrum[:, :, :, :, *offsets] += both[:, :, row, :, :, *context]


def _rows(layout: Layout, dim_k: int) -> int:
    """Query rows of the first lead axis in a block."""
    inner = math.prod(a.queries for a in layout.lead[1:])
    return min(layout.lead[0].queries, max(1, ROWS // (inner * dim_k)))


def _examples(layout: Layout, dim_k: int, dim_v: int) -> int:
    """Examples of the batch that a block of queries meets at once."""
    inner = math.prod(a.queries for a in layout.lead[1:])
    one = 4 * 2 * layout.frequencies * _rows(layout, dim_k) * inner * dim_k * dim_v
    return max(1, min(COLUMNS // dim_v, BLOCK // one))


def unsupported(problem: Problem) -> list[str]:
    """Why this kernel cannot serve the problem; empty if it can."""
    if problem.relative:
        return []
    return ["the Fourier order needs relative positions: a table of offsets, not dense embeddings or none"]


def cost(problem: Problem, *, backward: bool = False) -> Cost:
    """The products over the lead axes for each frequency, and the transforms; a block's lambdas exist."""
    p, layout = problem, Layout.of(problem.context)
    itemsize = max(4, p.itemsize)
    first, *others = layout.lead
    length, period = layout.last.queries, 2 * layout.frequencies
    rows, examples = _rows(layout, p.dim_k), min(p.batch, _examples(layout, p.dim_k, p.dim_v))
    blocks, batches = -(-first.queries // rows), -(-p.batch // max(1, examples))
    places = rows * math.prod(a.queries for a in others)
    keys = min(first.keys, rows + first.before + first.after) * math.prod(a.keys for a in others) * p.dim_u
    columns = examples * p.dim_v
    values = math.prod(a.keys for a in layout.lead) * p.dim_u * p.batch * p.dim_v
    table = math.prod(a.offsets for a in layout.lead) * p.dim_k * p.dim_u
    queries = length * math.prod(a.queries for a in layout.lead) * p.batch

    def gemm(rows: int, inner: int, columns: int, count: int = 1) -> tuple[int, float]:
        seconds = gemm_seconds(p, rows, inner, columns, count, itemsize=itemsize)
        return 2 * rows * inner * columns * count, seconds

    there = [gemm(period, layout.last.keys, values), gemm(period, layout.last.offsets, table)]
    times = blocks * batches
    met = gemm(2 * places * p.dim_k, 2 * keys, columns, layout.frequencies)
    back = gemm(length, period, places * p.dim_k * columns)
    applied = gemm(p.num_heads, p.dim_k, p.dim_v, queries)
    matrices = itemsize * layout.frequencies * 4 * places * p.dim_k * keys
    formed = itemsize * period * places * p.dim_k * columns
    steps = [*there, applied, *[(f * times, s * times) for f, s in (met, back)]]
    moved = blocks * (2 * matrices + 4 * batches * formed) + 6 * itemsize * period * values
    whole = period * (values + 3 * table)
    calls = blocks * (places * 2 + 20 * batches + 2 * p.batch) + 110
    if backward:
        steps = [*steps, *steps, applied, *[(f * times, s * times) for f, s in (met,)]]
        moved = 2 * moved + blocks * (2 * matrices + 3 * batches * formed)
        calls = 3 * calls
    return Cost(
        flops=sum(flops for flops, _ in steps),
        bytes=moved + p.io_bytes,
        peak_bytes=itemsize * (whole * (2 if backward else 1) + queries * (p.dim_v + p.dim_k) * p.num_heads)
        + min(matrices, max(BLOCK, matrices // layout.frequencies)) * (2 if backward else 1)
        + 2 * formed,
        seconds=sum(seconds for _, seconds in steps) + move_seconds(p, moved, calls),
    )
