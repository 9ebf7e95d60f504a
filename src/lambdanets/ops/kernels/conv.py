"""Lambda convolution: position lambdas as a plain 2- or 3-D convolution, with v folded into the batch.

The table is the convolution's weight (k output channels, u input channels), so any grid works and the
embeddings take no more memory than the table. Source: section 3.4 and appendix B.1, where v is a spatial axis
of a convolution with one more dimension; folding v into the batch computes the same without that axis. The
kernel takes one block of examples and value channels at a time, so that only its lambdas are in memory. They
have k last (channels last), the order in which queries multiply them. The backward pass recomputes them.

In shapes, `*grid` are the axes of the query grid or of the context's grid.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..context import RelativeContext
from ..hardware import (
    GPU_RATES,
    ONEDNN,
    compute_dtype,
    gemm_seconds,
    large_gemm_rate,
    move_seconds,
    on_gpu,
)
from ..position_table import trim_table
from ..problem import Cost, Problem

NAME = "conv"
MAX_AXES = 3
BLOCK = 2**24  # bytes of the position lambdas that are in memory at once
HALF_RATE_TAPS = 30  # a convolution whose window has this many taps (entries times u) runs at half the rate
GRADIENT_RATE = 17e9 if ONEDNN else 9e9  # operations per second of a convolution's gradients, for any window


def output(q: Tensor, v: Tensor, e: Tensor, problem: Problem, y: Tensor) -> None:
    """Write the position part into y."""
    q, convolution = q.contiguous(), Convolution.of(e, problem.context)
    for batch, depth in blocks(q, v):
        images = convolution.images(v[batch, :, depth])
        lambdas = convolution.lambdas(images, batch.stop - batch.start)  # [b, n, k, v]
        for i, of_example in zip(range(batch.start, batch.stop), lambdas, strict=True):
            y[i, :, :, depth] = torch.bmm(q[i].transpose(0, 1), of_example).transpose(0, 1)


def gradients(
    g: Tensor, q: Tensor, v: Tensor, e: Tensor, problem: Problem, needs_grad: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of q, v and e."""
    q, convolution = q.contiguous(), Convolution.of(e, problem.context)
    accumulator = torch.promote_types(q.dtype, torch.float32)  # dtype of the sums over blocks
    dq = q.new_zeros(q.shape, dtype=accumulator) if needs_grad[0] else None
    dv = v.new_empty(v.shape) if needs_grad[1] else None
    de = None
    if needs_grad[2]:
        de = torch.zeros_like(e, dtype=accumulator, memory_format=torch.contiguous_format)
    for batch, depth in blocks(q, v):
        images = convolution.images(v[batch, :, depth])
        if dq is not None:
            lambdas = convolution.lambdas(images, batch.stop - batch.start)  # [b, n, k, v]
            for i, of_example in zip(range(batch.start, batch.stop), lambdas, strict=True):
                upstream = g[i, :, :, depth].transpose(0, 1)  # [n, h, v]
                dq[i] += torch.bmm(upstream, of_example.mT).transpose(0, 1)
        if dv is None and de is None:
            continue
        upstream = g[batch, :, :, depth].permute(0, 2, 3, 1).flatten(0, 1)  # [b n, v, h]
        dlambdas = torch.bmm(upstream, q[batch].transpose(1, 2).flatten(0, 1))  # [b n, v, k]
        if dv is not None:
            dimages = convolution.images_gradient(dlambdas, images)
            dv[batch, :, depth] = convolution.values(dimages, v.shape[3], dlambdas.shape[1])
        if de is not None:
            convolution.add_table_gradient(de, dlambdas, v[batch, :, depth])
    return dq, dv, de


def blocks(q: Tensor, v: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield slices of the batch and of v whose lambdas [b, n, k, v] take at most `BLOCK` bytes.

    A block has at least one channel of one example, which may take more.
    """
    b, _, n, k = q.shape
    dim_v = v.shape[2]
    images = max(1, BLOCK // max(1, n * k * q.element_size()))
    batch, depth = max(1, images // dim_v), min(images, dim_v)
    for start in range(0, b, batch):
        for first in range(0, dim_v, depth):
            yield slice(start, min(start + batch, b)), slice(first, min(first + depth, dim_v))


@dataclass(frozen=True)
class Convolution:
    """The table as a convolution's weight, with the padding that aligns offset 0 with the query's position.

    A grid of one axis is convolved as the second of two axes, since only those have a channels-last format.

    Attributes:
        context: The geometry.
        dtype: Dtype of the lambdas; the weight's may be wider.
        weight: The table's entries that some pair reads, [k, u, *entries].
        entries: Their slices in the table, per axis of the grid.
        before: Padding before the context's grid, per axis; negative to crop.
        after: Padding after the context's grid, per axis; negative to crop.
        step: Dilation, per axis.
    """

    context: RelativeContext
    dtype: torch.dtype
    weight: Tensor
    entries: tuple[slice, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    step: tuple[int, ...]

    @classmethod
    def of(cls, e: Tensor, context: RelativeContext, largest: RelativeContext | None = None) -> Convolution:
        """Return the convolution of a table.

        Args:
            e: The table [*offsets, k, u].
            context: The geometry; its sizes may be symbols of torch.export.
            largest: The context whose pairs decide which entries are read, `context` by default.
        """
        largest = largest or context
        table, centre = trim_table(e, largest)
        weight = table.movedim((-2, -1), (0, 1))  # [k, u, *offsets]
        steps = context.step
        before = [c * step for c, step in zip(centre, steps, strict=True)]
        after = [
            queries - keys + (length - 1) * step - first
            for queries, keys, length, step, first in zip(
                context.grid, context.key_grid, weight.shape[2:], steps, before, strict=True
            )
        ]
        if len(context.grid) == 1:
            weight, before, after, steps = weight.unsqueeze(2), [0, *before], [0, *after], (1, *steps)
        if weight.ndim == 5 and weight.device.type == "cpu":
            # On some grids of three axes oneDNN leaves parts of half-precision lambdas unwritten.
            weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
        weight = weight.contiguous(memory_format=_channels_last(weight.ndim))
        entries = largest.reachable_entries()
        return cls(context, e.dtype, weight, entries, tuple(before), tuple(after), tuple(steps))

    def images(self, v: Tensor) -> Tensor:
        """Return values [b, m, v, u] as images [b v, u, *grid].

        They are padded here where the two sides of an axis need different padding, which PyTorch's
        convolutions do not support.
        """
        images = v.permute(0, 2, 1, 3).reshape(-1, *self._key_grid, v.shape[3]).movedim(-1, 1)
        images = images.to(self.weight.dtype)
        return images if self._padding else F.pad(images, self._pads)

    @property
    def _pads(self) -> list[int]:
        """Padding as `F.pad` takes it: before and after each axis, the last axis first."""
        sides = zip(reversed(self.before), reversed(self.after), strict=True)
        return [size for side in sides for size in side]

    @property
    def _padding(self) -> list[int] | None:
        """Padding as a convolution takes it, per axis; None if the two sides of an axis differ."""
        return list(self.before) if self.before == self.after else None

    def lambdas(self, images: Tensor, examples: int) -> Tensor:
        """Return the position lambdas [b, n, k, v] of some examples from their images [b v, u, *grid]."""
        convolution = F.conv2d if images.ndim == 4 else F.conv3d
        x = convolution(images, self.weight, padding=self._padding or 0, dilation=self.step).to(self.dtype)
        x = x.movedim(1, -1).flatten(1, -2)  # [b v, n, k]
        return x.unflatten(0, (examples, -1)).permute(0, 2, 3, 1)

    def images_gradient(self, dlambdas: Tensor, images: Tensor) -> Tensor:
        """Return the gradient of the images, [b v, u, *grid], from that of the lambdas, [b n, v, k]."""
        x = dlambdas.unflatten(0, (-1, self.context.num_queries)).transpose(1, 2).flatten(0, 1)  # [b v, n, k]
        x = x.unflatten(1, self._grid).movedim(-1, 1).to(self.weight.dtype)  # [b v, k, *grid]
        axes = len(self.step)
        # PyTorch's own loops, which serve a single image, need contiguous weights.
        weight = self.weight.contiguous()
        dimages, _, _ = torch.ops.aten.convolution_backward(
            x, images, weight, None, [1] * axes, self._padding or [0] * axes, list(self.step),
            False, [0] * axes, 1, [True, False, False],
        )  # fmt: skip
        return dimages

    def add_table_gradient(self, de: Tensor, dlambdas: Tensor, v: Tensor) -> None:
        """Add the gradient of the table to de [*offsets, k, u], one row of values at a time.

        A row has one position on the grid's first axis. The table has `first` entries on that axis, so a row
        of values contributes to `first` rows of lambdas. The row's term of the gradient is one matrix
        product, left^T right. left are the row's windows along the other axes, [b v others, entries u]; right
        are the gradients of those rows of lambdas, [b v others, first k]. Here `others` are query positions
        on the other axes and `entries` the table's entries on them. Windows are copied for as many entries of
        the second axis at once as `BLOCK` bytes hold.

        Args:
            de: The gradient of the table, changed in place.
            dlambdas: The gradient of the position lambdas, [b n, v, k].
            v: The values, [b, m, v, u].
        """
        rows, *others = self._grid
        first, *pads = zip(self.before, self.after, strict=True)
        (length, *lengths), (step, *steps) = self.weight.shape[2:], self.step
        x = dlambdas.unflatten(0, (len(v), rows, -1)).permute(0, 3, 2, 1, 4)  # [b, v, others, rows, k]
        before = (length - 1) * step - first[0]
        after = self._key_grid[0] + first[0] - rows
        x = F.pad(x, [0, 0, before, after]).flatten(1, 2)  # [b, v others, rows, k]
        images = v.unflatten(1, self._key_grid).movedim(-2, 1)  # [b, v, rows, *others, u]
        images = F.pad(images, [0, 0, *(size for side in reversed(pads) for size in side)])
        for axis, (size, distance) in enumerate(zip(lengths, steps, strict=True), start=3):
            images = images.unfold(axis, (size - 1) * distance + 1, 1)[..., ::distance]
        first_entry = 3 + len(others)  # the first axis of entries in [b, v, rows, *others, *entries, u]
        windows = images.movedim(first_entry, -1)
        per_entry = windows[:, :, :1].numel() * windows.element_size() // lengths[0]
        at_once = max(1, BLOCK // max(1, per_entry))
        table = (de if len(self.context.grid) > 1 else de.unsqueeze(0))[self._padded_entries]
        for start in range(0, lengths[0], at_once):
            part = windows.narrow(first_entry, start, min(at_once, lengths[0] - start))
            shape = part.shape[first_entry:]  # [*entries, u]
            total = de.new_zeros(math.prod(shape), length * x.shape[-1])  # [entries u, first k]
            for row in range(self._key_grid[0]):
                left = part[:, :, row].reshape(len(v), -1, math.prod(shape))  # [b, v others, entries u]
                # [b, v others, first k]
                right = x[:, :, row : row + (length - 1) * step + 1 : step].flatten(2)
                total += torch.bmm(left.mT, right).sum(0, dtype=de.dtype)
            gradient = total.view(*shape, length, -1).flip(-2)  # [*entries, u, first, k]
            table[:, start : start + at_once] += gradient.movedim(-2, 0).transpose(-2, -1)

    def values(self, images: Tensor, u: int, dim_v: int) -> Tensor:
        """Return images [b v, u, *grid] as values [b, m, v, u]: the inverse of `images`."""
        images = images if self._padding else F.pad(images, [-size for size in self._pads])
        return images.movedim(1, -1).reshape(-1, dim_v, self.context.num_context, u).transpose(1, 2)

    @property
    def _padded_entries(self) -> tuple[slice, ...]:
        """`entries`, with a first axis if the grid has one axis only."""
        return self.entries if len(self.entries) > 1 else (slice(None), *self.entries)

    @property
    def _grid(self) -> tuple[int, ...]:
        """The query grid, with a first axis of length 1 if it has one axis only."""
        return self.context.grid if len(self.context.grid) > 1 else (1, *self.context.grid)

    @property
    def _key_grid(self) -> tuple[int, ...]:
        """The context's grid, with a first axis of length 1 if it has one axis only."""
        return self.context.key_grid if len(self.context.key_grid) > 1 else (1, *self.context.key_grid)


def _channels_last(ndim: int) -> torch.memory_format:
    return torch.channels_last if ndim == 4 else torch.channels_last_3d


def unsupported(problem: Problem) -> list[str]:
    """Return the reasons for which the kernel cannot serve a problem."""
    reasons = []
    if not problem.relative:
        reasons.append(
            "a convolution needs relative positions: a table of offsets, not dense embeddings or none"
        )
    if len(problem.grid) > MAX_AXES:
        reasons.append(f"convolutions have at most {MAX_AXES} axes, the grid has {len(problem.grid)}")
    return reasons


def cost(problem: Problem, *, backward: bool = False) -> Cost:
    """Return the cost of the convolution and of the queries' products, with one block's lambdas in memory.

    Operations are those of pairs inside the grid; the time includes the products with padding.
    """
    p = problem
    lambdas = p.batch * p.num_queries * p.dim_k * p.dim_v
    pairs = p.context.num_pairs
    convolved = 2 * p.batch * pairs * p.dim_k * p.dim_v * p.dim_u
    applied = 2 * p.num_heads * lambdas
    products = p.num_queries * p.batch
    taps = math.prod(part.stop - part.start for part in p.context.reachable_entries()) * p.dim_u
    rate = large_gemm_rate(compute_dtype(p.dtype, p.device).itemsize)
    # On a GPU, a twentieth of the rate of products: a guess.
    rate = GPU_RATES[p.itemsize] / 20 if on_gpu(p) else rate * taps / (taps + HALF_RATE_TAPS)
    padded = 2 * lambdas * taps  # PyTorch's convolutions multiply with the padding too
    seconds = padded / rate + gemm_seconds(p, p.num_heads, p.dim_k, p.dim_v, products)
    seconds += move_seconds(p, p.itemsize * 4 * lambdas, calls=25)
    flops, moved = convolved + applied, 2 * p.itemsize * lambdas
    if backward:
        gradient_rate = rate if on_gpu(p) else GRADIENT_RATE
        seconds += 2 * padded / gradient_rate + move_seconds(p, p.itemsize * 8 * lambdas, calls=40)
        seconds += gemm_seconds(p, p.dim_v, p.num_heads, p.dim_k, products)
        flops, moved = 3 * convolved + 2 * applied, 5 * p.itemsize * lambdas
    block = min(p.itemsize * lambdas, max(BLOCK, p.itemsize * p.num_queries * p.dim_k))
    # The padded images of a block. In float64 PyTorch also stores every window of up to 8 images.
    folded = max(1, block // max(1, p.itemsize * p.num_queries * p.dim_k))
    images = p.itemsize * folded * p.num_context * p.dim_u * 4
    if p.itemsize == 8:
        images += p.itemsize * p.num_queries * taps * min(folded, 8)
    return Cost(
        flops=flops,
        bytes=moved + p.io_bytes,
        peak_bytes=block * (3 if backward else 2) + images * (2 if backward else 1),
        seconds=seconds,
    )
