"""Lambda convolution: position lambdas as a plain 2- or 3-D convolution with v folded into the batch.

The table is the convolution's weight (k output channels, u input channels), so any grid works and the memory
of the embeddings is that of the table. Source: section 3.4 and appendix B.1, there with v as a spatial axis
of a convolution of one more dimension; folding v into the batch is the same function without that axis. A
block of batch and v goes through at a time, so that only its lambdas are stored, k last: the channels-last
order is the one in which queries meet them. The backward pass forms them again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..context import RelativeContext
from ..machine import GPU, gemm_seconds, large_product, move_seconds, on_gpu
from ..problem import Cost, Problem
from ..products import ONEDNN, product_dtype
from ..tables import trimmed

NAME = "conv"
APPLIES_CONTENT = False
BLOCK = 2**24  # bytes of the position lambdas formed at once
TAPS = 50  # a window of this many products per lambda runs at half the rate
# Operations per second of the gradients of a convolution, however many taps.
BACKWARD = 12e9 if ONEDNN else 6e9


def output(q: Tensor, v: Tensor, e: Tensor, problem: Problem, y: Tensor) -> None:
    """Write the position part into y (b h n v) from q (b h n k), v (b m v u), a table e (*offsets k u)."""
    q, window = q.contiguous(), Window.of(e, problem.context)
    for batch, depth in blocks(q, v):
        lambdas = window.lambdas(window.images(v[batch, :, depth]), batch.stop - batch.start)  # b n k v
        for one, of_one in zip(batch_range(batch), lambdas, strict=True):
            y[one, :, :, depth] = torch.bmm(q[one].transpose(0, 1), of_one).transpose(0, 1)


def gradients(
    g: Tensor, q: Tensor, v: Tensor, e: Tensor, problem: Problem, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of q, v and e, each where it is wanted, from that of the position part."""
    q, window = q.contiguous(), Window.of(e, problem.context)
    wide = torch.promote_types(q.dtype, torch.float32)  # of what is summed over blocks
    dq = q.new_zeros(q.shape, dtype=wide) if wanted[0] else None
    dv = v.new_empty(v.shape) if wanted[1] else None
    de = torch.zeros_like(e, dtype=wide, memory_format=torch.contiguous_format) if wanted[2] else None
    for batch, depth in blocks(q, v):
        images = window.images(v[batch, :, depth])
        if dq is not None:
            lambdas = window.lambdas(images, batch.stop - batch.start)
            for one, of_one in zip(batch_range(batch), lambdas, strict=True):
                upstream = g[one, :, :, depth].transpose(0, 1)
                dq[one] += torch.bmm(upstream, of_one.mT).transpose(0, 1)
        if dv is None and de is None:
            continue
        by_query = g[batch, :, :, depth].permute(0, 2, 3, 1).flatten(0, 1)  # (b n) v h
        dlambdas = torch.bmm(by_query, q[batch].transpose(1, 2).flatten(0, 1))  # (b n) v k
        if dv is not None:
            dimages = window.images_gradient(dlambdas, images)
            dv[batch, :, depth] = window.values(dimages, v.shape[3], dlambdas.shape[1])
        if de is not None:
            window.add_table_gradient(de, dlambdas, v[batch, :, depth])
    return dq, dv, de


def batch_range(batch: slice) -> range:
    return range(batch.start, batch.stop)


def blocks(q: Tensor, v: Tensor) -> Iterator[tuple[slice, slice]]:
    """Parts of the batch and of v whose lambdas stay below `BLOCK`."""
    b, _, n, k = q.shape
    dim_v = v.shape[2]
    images = max(1, BLOCK // max(1, n * k * q.element_size()))
    batch, depth = max(1, images // dim_v), min(images, dim_v)
    for start in range(0, b, batch):
        for first in range(0, dim_v, depth):
            yield slice(start, min(start + batch, b)), slice(first, min(first + depth, dim_v))


@dataclass(frozen=True)
class Window:
    """The table as a convolution's weight, with the padding that places offset 0.

    One axis is convolved as the second of two, which has a channels-last order.
    """

    context: RelativeContext
    dtype: torch.dtype
    weight: Tensor
    reach: tuple[slice, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    step: tuple[int, ...]

    @classmethod
    def of(cls, e: Tensor, context: RelativeContext) -> Window:
        table, centre = trimmed(e, context)
        weight = table.movedim((-2, -1), (0, 1))
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
            # oneDNN leaves parts of the lambdas unwritten in half precision on some grids of three axes.
            weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
        weight = weight.contiguous(memory_format=_channels_last(weight.ndim))
        return cls(context, e.dtype, weight, context.reach(), tuple(before), tuple(after), tuple(steps))

    def images(self, v: Tensor) -> Tensor:
        """Values b m v u as images ((b v), u, *grid), padded where a convolution cannot pad by itself."""
        images = v.permute(0, 2, 1, 3).reshape(-1, *self._key_grid, v.shape[3]).movedim(-1, 1)
        images = images.to(self.weight.dtype)
        return images if self._padding else F.pad(images, self._pads)

    @property
    def _pads(self) -> list[int]:
        sides = zip(reversed(self.before), reversed(self.after), strict=True)
        return [size for side in sides for size in side]

    @property
    def _padding(self) -> list[int] | None:
        return list(self.before) if self.before == self.after else None

    def lambdas(self, images: Tensor, examples: int) -> Tensor:
        """Position lambdas of shape b n k v of some examples."""
        convolution = F.conv2d if images.ndim == 4 else F.conv3d
        x = convolution(images, self.weight, padding=self._padding or 0, dilation=self.step).to(self.dtype)
        return x.movedim(1, -1).flatten(1, -2).unflatten(0, (examples, -1)).permute(0, 2, 3, 1)

    def images_gradient(self, dlambdas: Tensor, images: Tensor) -> Tensor:
        """The gradient of the images from that of the lambdas, (b n) v k."""
        x = dlambdas.unflatten(0, (-1, self.context.num_queries)).transpose(1, 2).flatten(0, 1)  # (b v) n k
        x = x.unflatten(1, self._grid).movedim(-1, 1).to(self.weight.dtype)
        axes = len(self.step)
        weight = self.weight.contiguous()  # for one image PyTorch's own loops know no other order
        dimages, _, _ = torch.ops.aten.convolution_backward(
            x, images, weight, None, [1] * axes, self._padding or [0] * axes, list(self.step),
            False, [0] * axes, 1, [True, False, False],
        )  # fmt: skip
        return dimages

    def add_table_gradient(self, de: Tensor, dlambdas: Tensor, v: Tensor) -> None:
        """Add to de (*offsets k u) what values b m v u and the gradient of their lambdas, (b n) v k, give.

        A row of values on the first axis meets as many rows of lambdas as the table has entries there: a
        matrix product, whose other side are the row's windows along the other axes. Of the second axis, as
        many entries at once as `BLOCK` bytes hold.
        """
        rows, *others = self._grid
        first, *pads = zip(self.before, self.after, strict=True)
        (length, *lengths), (step, *steps) = self.weight.shape[2:], self.step
        x = dlambdas.unflatten(0, (len(v), rows, -1)).permute(0, 3, 2, 1, 4)  # b v others rows k
        before = (length - 1) * step - first[0]
        after = self._key_grid[0] + first[0] - rows
        x = F.pad(x, [0, 0, before, after]).flatten(1, 2)
        images = v.unflatten(1, self._key_grid).movedim(-2, 1)  # b v rows *others u
        images = F.pad(images, [0, 0, *(size for side in reversed(pads) for size in side)])
        for axis, (size, between) in enumerate(zip(lengths, steps, strict=True), start=3):
            images = images.unfold(axis, (size - 1) * between + 1, 1)[..., ::between]
        entries = 3 + len(others)  # the first axis of entries in the windows b v rows *others *entries u
        windows = images.movedim(entries, -1)
        per_entry = windows[:, :, :1].numel() * windows.element_size() // lengths[0]
        at_once = max(1, BLOCK // max(1, per_entry))
        table = (de if len(self.context.grid) > 1 else de.unsqueeze(0))[self._whole_reach]
        for start in range(0, lengths[0], at_once):
            some = windows.narrow(entries, start, min(at_once, lengths[0] - start))
            shape = some.shape[entries:]  # *entries u
            total = de.new_zeros(math.prod(shape), length * x.shape[-1])
            for row in range(self._key_grid[0]):
                left = some[:, :, row].reshape(len(v), -1, math.prod(shape))
                right = x[:, :, row : row + (length - 1) * step + 1 : step].flatten(2)
                total += torch.bmm(left.mT, right).sum(0, dtype=de.dtype)
            found = total.view(*shape, length, -1).flip(-2)  # *entries u first k
            table[:, start : start + at_once] += found.movedim(-2, 0).transpose(-2, -1)

    def values(self, images: Tensor, u: int, dim_v: int) -> Tensor:
        """Images ((b v), u, *grid), padded as they were, as values b m v u."""
        images = images if self._padding else F.pad(images, [-size for size in self._pads])
        return images.movedim(1, -1).reshape(-1, dim_v, self.context.num_context, u).transpose(1, 2)

    @property
    def _whole_reach(self) -> tuple[slice, ...]:
        return self.reach if len(self.reach) > 1 else (slice(None), *self.reach)

    @property
    def _grid(self) -> tuple[int, ...]:
        return self.context.grid if len(self.context.grid) > 1 else (1, *self.context.grid)

    @property
    def _key_grid(self) -> tuple[int, ...]:
        return self.context.key_grid if len(self.context.key_grid) > 1 else (1, *self.context.key_grid)


def _channels_last(ndim: int) -> torch.memory_format:
    return torch.channels_last if ndim == 4 else torch.channels_last_3d


def unsupported(problem: Problem) -> list[str]:
    """Why this kernel cannot serve the problem; empty if it can."""
    reasons = []
    if not problem.relative:
        reasons.append(
            "a convolution needs relative positions: a table of offsets, not dense embeddings or none"
        )
    if len(problem.grid) > 3:
        reasons.append(f"convolutions have at most 3 axes, the grid has {len(problem.grid)}")
    return reasons


def cost(problem: Problem, *, backward: bool = False) -> Cost:
    """The pairs of query and context element inside the grid; a block's position lambdas are stored."""
    p = problem
    lambdas = p.batch * p.num_queries * p.dim_k * p.dim_v
    pairs = p.context.num_pairs
    convolved = 2 * p.batch * pairs * p.dim_k * p.dim_v * p.dim_u
    applied = 2 * p.num_heads * lambdas
    small = p.num_queries * p.batch
    # The library multiplies by the padding too.
    taps = math.prod(part.stop - part.start for part in p.context.reach()) * p.dim_u
    rate = large_product(product_dtype(p.dtype, p.device).itemsize)
    rate = GPU[p.itemsize] / 20 if on_gpu(p) else rate * taps / (taps + TAPS)
    padded = 2 * lambdas * taps
    seconds = padded / rate + gemm_seconds(p, p.num_heads, p.dim_k, p.dim_v, small)
    seconds += move_seconds(p, p.itemsize * 4 * lambdas, 25)
    flops, moved = convolved + applied, 2 * p.itemsize * lambdas
    if backward:
        slow = rate if on_gpu(p) else BACKWARD
        seconds += 2 * padded / slow + move_seconds(p, p.itemsize * 8 * lambdas, 40)
        seconds += gemm_seconds(p, p.dim_v, p.num_heads, p.dim_k, small)
        flops, moved = 3 * convolved + 2 * applied, 5 * p.itemsize * lambdas
    block = min(p.itemsize * lambdas, max(BLOCK, p.itemsize * p.num_queries * p.dim_k))
    # Padded images of a block; where the library has no convolution of its own it unfolds every window.
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
