"""Fourier order: along the longest axis of the grid, positions are summed in the frequency domain.

A correlation along an axis is a product per frequency. There are three steps, all of them matrix products:
transform the values along that axis; for each frequency, multiply them by a matrix that sums over the other
axes (one matrix serves the whole transformed axis, since an embedding depends on the offset alone); transform
the sums back. With some hundred points, a product with the matrix of cosines and sines is faster than a fast
Fourier transform, and computes only the points in use. A block of query rows is computed from the frequencies
to the output before the next block starts, so that only a block of the position lambdas [n, k, v] is in
memory at once, also in the backward pass, which recomputes them.

A long axis is folded first: a sequence of n elements becomes a grid of about sqrt(n / 2) rows, and an offset
in the sequence becomes an offset between rows and one within a row. A global context then costs about
n^1.5 k v multiply-adds and memory linear in n. Not in the paper, which sums over the context directly.

Letters of shapes (`layout`): f frequencies, with an axis 2 of real and imaginary parts; l positions on the
transformed axis; *lead the other axes; rows the query positions of a block on the lead axes; keys the context
elements on the lead axes that a block sees.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ...context import RelativeContext
from ...hardware import gemm_seconds, move_seconds
from ...matmul import Scratch, batched_matmul, matmul
from ...position_table import scatter_gradient
from ...problem import Cost, Problem
from .layout import FrequencyLayout

NAME = "fft"
ROWS = 64  # rows of a block's matrix product (query positions times k), unless one query row has more
COLUMNS = 512  # columns of that product (examples times v), unless one example has more
BLOCK = 2**24  # bytes of a block's matrices that are in memory at once, and of its products with values


def output(q: Tensor, v: Tensor, e: Tensor, problem: Problem, y: Tensor) -> None:
    """Write the position part into y."""
    operands = Operands.of(q, v, e, problem.context)
    rows = operands.queries.new_empty(*operands.queries.shape[:-1], v.shape[2])  # [b, l, *lead, h, v]
    for block in operands.blocks():
        for batch in operands.batches(v):
            lambdas = block.lambdas(batch)  # [l rows, k, b, v]
            for i in batch:
                of_example = lambdas[:, :, i - batch.start]  # [l rows, k, v]
                block.set_rows(rows, i, operands.bmm(block.rows_of(operands.queries, i), of_example))
    y.copy_(operands.layout.from_queries(rows))


def gradients(
    g: Tensor, q: Tensor, v: Tensor, e: Tensor, problem: Problem, needs_grad: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of q, v and e."""
    operands = Operands.of(q, v, e, problem.context)
    layout = operands.layout
    upstream = layout.to_queries(g.to(operands.queries.dtype))  # [b, l, *lead, h, v]
    dq = torch.empty_like(operands.queries) if needs_grad[0] else None
    dfrequencies = torch.zeros_like(operands.frequencies) if needs_grad[1] else None
    dspectrum = torch.zeros_like(operands.spectrum) if needs_grad[2] else None
    for block in operands.blocks():
        for batch in operands.batches(v):
            if dq is not None:
                lambdas = block.lambdas(batch)  # [l rows, k, b, v]
                for i in batch:
                    of_example = lambdas[:, :, i - batch.start]  # [l rows, k, v]
                    block.set_rows(dq, i, operands.bmm(block.rows_of(upstream, i), of_example.mT))
            if dfrequencies is None and dspectrum is None:
                continue
            dlambdas = block.lambda_buffer(len(batch))
            for i in batch:
                queries = block.rows_of(operands.queries, i).mT  # [l rows, k, h]
                dlambdas[:, :, i - batch.start] = operands.bmm(queries, block.rows_of(upstream, i))
            dproducts = block.product_gradient(dlambdas)
            for part, matrices in block.matrices():
                if dfrequencies is not None:
                    target = block.visible(dfrequencies, part, batch)
                    target += operands.bmm(matrices.mT, dproducts[part]).view(target.shape)
                if dspectrum is not None:
                    values = block.visible(operands.frequencies, part, batch).flatten(1, -2)
                    block.add_spectrum(dspectrum[part], operands.bmm(dproducts[part], values.mT))
    de = None
    if dspectrum is not None:
        index = layout.table_indices(e.device)
        de = scatter_gradient(layout.from_spectrum(dspectrum), index, e.shape)
    return (
        None if dq is None else layout.from_queries(dq),
        None if dfrequencies is None else layout.from_frequencies(dfrequencies, v),
        de,
    )


@dataclass(frozen=True)
class Operands:
    """The arguments in the frequency layout, in float32 at least.

    In half precision the rounding error of one frequency would affect every position.

    Attributes:
        layout: The layout.
        queries: [b, l, *lead, h, k].
        frequencies: The values as frequencies, [f, 2, u, *lead, b v].
        spectrum: The complex conjugates of the table's frequencies, [f, 2, k, u, *lead offsets]: conjugates,
            since the sum over m of E[m - n] v[m] is a correlation.
        inverse_transform: The matrix from frequencies to queries, [l, f 2].
        dim_v: The value depth.
        scratch: Buffers of one call.
    """

    layout: FrequencyLayout
    queries: Tensor
    frequencies: Tensor
    spectrum: Tensor
    inverse_transform: Tensor
    dim_v: int
    scratch: Scratch

    @classmethod
    def of(cls, q: Tensor, v: Tensor, e: Tensor, context: RelativeContext) -> Operands:
        """Return the arguments of a call in the frequency layout."""
        layout = FrequencyLayout.of(context)
        queries = layout.to_queries(q.contiguous().to(torch.promote_types(q.dtype, torch.float32)))
        return cls(
            layout,
            queries,
            layout.to_frequencies(v, queries),
            layout.to_spectrum(e, queries),
            layout.inverse_transform(queries),
            v.shape[2],
            Scratch(queries),
        )

    def bmm(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a times b, a batched product, in a buffer that the next call overwrites."""
        return batched_matmul(a, b, out=self.scratch.take("part", len(a), a.shape[1], b.shape[2]))

    def blocks(self) -> Iterator[Block]:
        """Cut the queries into blocks along the first lead axis."""
        first = self.layout.lead[0]
        rows = _block_rows(self.layout, self.spectrum.shape[2])
        for start in range(0, first.queries, rows):
            yield Block(self, slice(start, min(start + rows, first.queries)))

    def batches(self, v: Tensor) -> Iterator[range]:
        """Yield ranges of the examples of v [b, m, v, u] that a block computes at once."""
        size = _block_examples(self.layout, self.spectrum.shape[2], v.shape[2])
        for start in range(0, v.shape[0], size):
            yield range(start, min(start + size, v.shape[0]))


@dataclass(frozen=True)
class Block:
    """Some rows of queries on the first lead axis, with all elements of the other axes."""

    operands: Operands
    rows: slice

    @cached_property
    def keys(self) -> slice:
        """Rows of the context that some query of the block sees."""
        axis = self.operands.layout.lead[0]
        start = min(axis.keys, max(0, self.rows.start - axis.before))
        return slice(start, max(start, min(axis.keys, self.rows.stop + axis.after)))

    @cached_property
    def key_shape(self) -> list[int]:
        """Sizes of the visible context on the lead axes."""
        return [self.keys.stop - self.keys.start, *(a.keys for a in self.operands.layout.lead[1:])]

    def rows_of(self, x: Tensor, example: int) -> Tensor:
        """Return the block's rows of one example of x [b, l, *lead, h, c] as [l rows, h, c]."""
        return x[example, :, self.rows].flatten(0, -3)

    def set_rows(self, x: Tensor, example: int, rows: Tensor) -> None:
        """Write rows [l rows, h, c] to x, the inverse of `rows_of`."""
        target = x[example, :, self.rows]
        target.copy_(rows.view(target.shape))

    def visible(self, frequencies: Tensor, part: slice, batch: range) -> Tensor:
        """Return a view of the frequencies [f, 2, u, *lead, b v] that the block's queries see.

        Args:
            frequencies: All frequencies of all examples.
            part: The frequencies to return.
            batch: The examples to return.
        """
        dim_v = self.operands.dim_v
        return frequencies[part, :, :, self.keys, ..., batch.start * dim_v : batch.stop * dim_v]

    def matrices(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of the frequencies, with the matrices [f, 2 rows k, 2 u keys] that act on the values.

        All share one buffer: a result is valid until the next one is yielded.
        """
        yield from self._cached_matrices or self._build_matrices()

    @cached_property
    def _cached_matrices(self) -> list[tuple[slice, Tensor]]:
        """All matrices, if they take at most `BLOCK` bytes, so that all batches use them; else none."""
        return list(self._build_matrices()) if self._step >= self.operands.layout.frequencies else []

    @cached_property
    def _step(self) -> int:
        """Number of frequencies, at least one, whose matrices take at most `BLOCK` bytes."""
        _, _, k, u, *_ = self.operands.spectrum.shape
        matrix_elements = 4 * len(self._windows) * k * u * math.prod(self.key_shape)
        return max(1, BLOCK // max(1, self.operands.queries.element_size() * matrix_elements))

    @cached_property
    def _windows(self) -> list[tuple[tuple[slice, ...], tuple[slice, ...]]]:
        """For each query position on the lead axes, the offsets that it sees and the context at them.

        Both are slices per lead axis: of the spectrum's offsets, and of the context that the block sees.
        """
        first, *others = self.operands.layout.lead
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
        return [(tuple(offsets for offsets, _ in row), tuple(context for _, context in row)) for row in rows]

    def _build_matrices(self) -> Iterator[tuple[slice, Tensor]]:
        """Build the matrices of `_step` frequencies at a time, in one buffer."""
        spectrum = self.operands.spectrum
        _, _, k, u, *_ = spectrum.shape
        for start in range(0, len(spectrum), self._step):
            part = slice(start, min(start + self._step, len(spectrum)))
            real, imaginary = spectrum[part].unbind(1)
            # A complex product as a real one: [f, 2, k, 2, u, *lead offsets].
            table = torch.stack([torch.stack([real, -imaginary], 2), torch.stack([imaginary, real], 2)], 1)
            shape = (len(real), 2, len(self._windows), k, 2, u, *self.key_shape)
            matrices = self.operands.scratch.take("matrices", *shape).zero_()
            for row, (offsets, context) in enumerate(self._windows):
                matrices[:, :, row, :, :, :, *context] = table[:, :, :, :, :, *offsets]
            yield part, matrices.flatten(4).flatten(1, 3)

    def lambdas(self, batch: range) -> Tensor:
        """Return the position lambdas [l rows, k, b, v] of some examples."""
        layout = self.operands.layout
        x = self._product_buffer(len(batch))
        for part, matrices in self.matrices():
            values = self.visible(self.operands.frequencies, part, batch).flatten(1, -2)  # [f, 2 u keys, b v]
            batched_matmul(matrices, values, out=x[part])
        lambdas = self.lambda_buffer(len(batch))
        target = lambdas.view(layout.last.queries, -1)
        matmul(self.operands.inverse_transform, x.view(2 * layout.frequencies, -1), out=target)
        return lambdas

    def lambda_buffer(self, examples: int) -> Tensor:
        """Return the buffer of the position lambdas of some examples, [l rows, k, b, v]."""
        k, rows = self.operands.spectrum.shape[2], len(self._windows)
        shape = (self.operands.layout.last.queries * rows, k, examples, self.operands.dim_v)
        return self.operands.scratch.take("lambdas", *shape)

    def _product_buffer(self, examples: int) -> Tensor:
        """Return the buffer of the position lambdas' frequencies, [f, 2 rows k, b v]."""
        k, rows = self.operands.spectrum.shape[2], len(self._windows)
        shape = (self.operands.layout.frequencies, 2 * rows * k, examples * self.operands.dim_v)
        return self.operands.scratch.take("products", *shape)

    def product_gradient(self, dlambdas: Tensor) -> Tensor:
        """Return the gradient of the lambdas' frequencies, [f, 2 rows k, b v], from that of the lambdas."""
        layout = self.operands.layout
        x = self._product_buffer(dlambdas.shape[2])
        target = x.view(2 * layout.frequencies, -1)
        matmul(self.operands.inverse_transform.mT, dlambdas.view(layout.last.queries, -1), out=target)
        return x

    def add_spectrum(self, dspectrum: Tensor, dmatrices: Tensor) -> None:
        """Add the gradient of some frequencies' matrices to that of the spectrum, in place.

        Args:
            dspectrum: Gradient of the spectrum at these frequencies, [f, 2, k, u, *lead offsets].
            dmatrices: Gradient of their matrices, [f, 2 rows k, 2 u keys].
        """
        _, _, k, u, *_ = dspectrum.shape
        d = dmatrices.view(len(dspectrum), 2, len(self._windows), k, 2, u, *self.key_shape)
        both = torch.stack([d[:, 0, :, :, 0] + d[:, 1, :, :, 1], d[:, 1, :, :, 0] - d[:, 0, :, :, 1]], 1)
        for row, (offsets, context) in enumerate(self._windows):
            dspectrum[:, :, :, :, *offsets] += both[:, :, row, :, :, *context]


def _block_rows(layout: FrequencyLayout, dim_k: int) -> int:
    """Return the query rows of a block on the first lead axis."""
    inner = math.prod(a.queries for a in layout.lead[1:])
    return min(layout.lead[0].queries, max(1, ROWS // (inner * dim_k)))


def _block_examples(layout: FrequencyLayout, dim_k: int, dim_v: int) -> int:
    """Return the number of examples that a block of queries computes at once."""
    inner = math.prod(a.queries for a in layout.lead[1:])
    example_bytes = 4 * 2 * layout.frequencies * _block_rows(layout, dim_k) * inner * dim_k * dim_v
    return max(1, min(COLUMNS // dim_v, BLOCK // example_bytes))


def unsupported(problem: Problem) -> list[str]:
    """Return the reasons for which the kernel cannot serve a problem."""
    if problem.relative:
        return []
    return ["a Fourier transform needs relative positions: a table of offsets, not dense embeddings or none"]


def cost(problem: Problem, *, backward: bool = False) -> Cost:
    """Return the cost of the transforms and of a matrix per frequency, with one block's lambdas in memory."""
    p, layout = problem, FrequencyLayout.of(problem.context)
    itemsize = max(4, p.itemsize)
    first, *others = layout.lead
    length, period = layout.last.queries, 2 * layout.frequencies
    rows = _block_rows(layout, p.dim_k)
    examples = min(p.batch, _block_examples(layout, p.dim_k, p.dim_v))
    blocks, batches = -(-first.queries // rows), -(-p.batch // max(1, examples))
    windows = rows * math.prod(a.queries for a in others)
    keys = min(first.keys, rows + first.before + first.after) * math.prod(a.keys for a in others) * p.dim_u
    # Columns of a block's products, of the transforms of values and table; query positions of all examples.
    columns = examples * p.dim_v
    values = math.prod(a.keys for a in layout.lead) * p.dim_u * p.batch * p.dim_v
    table = math.prod(a.offsets for a in layout.lead) * p.dim_k * p.dim_u
    queries = length * math.prod(a.queries for a in layout.lead) * p.batch

    def gemm(rows: int, inner: int, columns: int, count: int = 1, times: int = 1) -> tuple[int, float]:
        """Return the operations and the seconds of `times` calls of `count` products each."""
        seconds = gemm_seconds(p, rows, inner, columns, count, itemsize=itemsize)
        return 2 * rows * inner * columns * count * times, seconds * times

    forward = [gemm(period, layout.last.keys, values), gemm(period, layout.last.offsets, table)]
    applied = gemm(p.num_heads, p.dim_k, p.dim_v, queries)
    summed = gemm(2 * windows * p.dim_k, 2 * keys, columns, layout.frequencies, blocks * batches)
    inverse = gemm(length, period, windows * p.dim_k * columns, times=blocks * batches)
    matrices = itemsize * layout.frequencies * 4 * windows * p.dim_k * keys
    products = itemsize * period * windows * p.dim_k * columns
    steps = [*forward, applied, summed, inverse]
    moved = blocks * (2 * matrices + 4 * batches * products) + 6 * itemsize * period * values
    transformed = period * (values + 3 * table)
    # PyTorch calls: in each block per window, per batch and per example; and those outside of blocks.
    calls = blocks * (windows * 2 + 20 * batches + 2 * p.batch) + 110
    if backward:
        steps = [*steps, *steps, applied, summed]
        moved = 2 * moved + blocks * (2 * matrices + 3 * batches * products)
        calls = 3 * calls
    # Copies of queries and output in the frequency layout.
    copied = queries * (p.dim_v + p.dim_k) * p.num_heads
    return Cost(
        flops=sum(flops for flops, _ in steps),
        bytes=moved + p.io_bytes,
        peak_bytes=itemsize * (transformed * (2 if backward else 1) + copied)
        + min(matrices, max(BLOCK, matrices // layout.frequencies)) * (2 if backward else 1)
        + 2 * products,
        seconds=sum(seconds for _, seconds in steps) + move_seconds(p, moved, calls),
    )
