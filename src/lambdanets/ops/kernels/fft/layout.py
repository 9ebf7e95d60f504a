"""The memory layout of kernel "fft": one axis of the grid in the frequency domain, the others as they are.

The transformed axis is the longest one, of length l after folding; the other axes, and the rows that folding
makes of a long axis, are the lead axes. A real signal of `period` points has f = period / 2 + 1 complex
frequencies (`frequencies`), stored as pairs (real, imaginary). The period is long enough that no offset wraps
around.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...context import RelativeContext
from ...matmul import matmul
from ...position_table import gather_embeddings, offset_indices


@dataclass(frozen=True)
class Axis:
    """An axis of the layout.

    Attributes:
        queries: Number of queries on the axis.
        keys: Number of context elements on the axis.
        before: Number of positions before its own that a query sees.
        after: Number of positions after its own that a query sees.
    """

    queries: int
    keys: int
    before: int
    after: int

    @property
    def offsets(self) -> int:
        """Number of offsets within reach."""
        return self.before + 1 + self.after


@dataclass(frozen=True)
class FrequencyLayout:
    """The axes of a grid as kernel "fft" arranges them.

    Args:
        context: The geometry.
        axis: The grid's axis that is transformed.
        fold: The length of a row if that axis is folded, else 0.
        lead: The other axes; the rows of a folded axis come last.
        last: The axis that is transformed, one row of it if it is folded.
    """

    context: RelativeContext
    axis: int
    fold: int
    lead: tuple[Axis, ...]
    last: Axis

    @classmethod
    def of(cls, context: RelativeContext) -> FrequencyLayout:
        """Return the layout of a geometry: which axis is transformed, and whether it is folded."""
        axes = []
        for queries, keys, entries, centre, step in zip(
            context.grid,
            context.key_grid,
            context.reachable_entries(),
            context.centre,
            context.step,
            strict=True,
        ):
            before = min(queries - 1, max(0, (centre - entries.start) * step))
            after = min(keys - 1, max(0, (entries.stop - 1 - centre) * step))
            axes.append(Axis(queries, keys, before, after))
        axis = max(range(len(axes)), key=lambda i: axes[i].queries)
        last = axes.pop(axis)
        # Operations per query, k and v: 8 for each visible row of l elements, and 4 l for the inverse
        # transform. The sum 8 visible / l + 4 l is least for l = sqrt(2 visible).
        visible = math.prod(min(a.keys, a.offsets) for a in (*axes, last))
        fold = math.ceil(math.sqrt(2 * visible))
        # An axis of less than 1.5 rows is not folded, nor one along which queries see only a part of it.
        if axes and (3 * fold > 2 * last.queries or last.offsets < last.queries):
            return cls(context, axis, 0, tuple(axes), last)
        fold = min(fold, last.queries)
        rows = Axis(
            -(-last.queries // fold),
            -(-last.keys // fold),
            min(-(-last.queries // fold) - 1, (last.before + fold - 1) // fold),
            min(-(-last.keys // fold) - 1, (last.after + fold - 1) // fold),
        )
        return cls(context, axis, fold, (*axes, rows), Axis(fold, fold, fold - 1, fold - 1))

    @property
    def period(self) -> int:
        """Points of the transform, even, so that no offset wraps around."""
        shortest = max(self.last.after + self.last.queries, self.last.before + self.last.keys)
        return shortest + shortest % 2

    @property
    def frequencies(self) -> int:
        """Number of complex frequencies."""
        return self.period // 2 + 1

    def waves(self, positions: Tensor) -> Tensor:
        """Return cosines and sines [f, 2, positions], in float64 on the CPU: not every device has float64."""
        frequencies = torch.arange(self.frequencies, dtype=torch.float64)
        # Whole turns are removed while products are exact integers, so that the angle keeps its precision.
        turns = torch.outer(frequencies, positions.to(torch.float64)).remainder(self.period)
        angle = turns * (2 * math.pi / self.period)
        return torch.stack([angle.cos(), angle.sin()], dim=1)

    def transform(self, like: Tensor) -> Tensor:
        """Return the matrix [f 2, l] from values to frequencies, of the dtype and device of `like`."""
        waves = self.waves(torch.arange(self.last.keys))
        waves[:, 1] *= -1
        return waves.flatten(0, 1).to(like)

    def inverse_transform(self, like: Tensor) -> Tensor:
        """Return the matrix [l, f 2] from frequencies to queries, of the dtype and device of `like`."""
        waves = self.waves(torch.arange(self.last.queries)) * (2 / self.period)
        waves[:, 1] *= -1
        waves[0] /= 2
        waves[-1] /= 2
        return waves.flatten(0, 1).T.to(like).contiguous()

    def table_transform(self, like: Tensor) -> Tensor:
        """Return the matrix [f 2, offsets] from a table to the complex conjugates of its frequencies."""
        offsets = torch.arange(-self.last.before, self.last.after + 1)
        return self.waves(offsets).flatten(0, 1).to(like)

    def table_indices(self, device: torch.device) -> Tensor:
        """Return the table index [last offsets, *lead offsets] (see `offset_indices`)."""
        ranges = [torch.arange(-a.before, a.after + 1, device=device) for a in (self.last, *self.lead)]
        last, *offsets = torch.meshgrid(*ranges, indexing="ij")
        if self.fold:
            last = offsets.pop() * self.fold + last
        offsets.insert(self.axis, last)
        return offset_indices(self.context, offsets)

    def split(self, x: Tensor, start: int, size: int) -> Tensor:
        """Return x [..., *grid, ...] as [..., *lead, l, ...], padded with zeros to whole rows if folded.

        Args:
            x: A tensor with all axes of the grid.
            start: Index of the first of them.
            size: Length of the transformed axis in x.
        """
        x = x.movedim(start + self.axis, start + len(self.context.grid) - 1)
        if not self.fold:
            return x
        end = start + len(self.context.grid) - 1
        padding = -size % self.fold
        if padding:
            x = F.pad(x, [0, 0] * (x.ndim - end - 1) + [0, padding])
        return x.unflatten(end, (-1, self.fold))

    def join(self, x: Tensor, start: int, size: int) -> Tensor:
        """Return x [..., *lead, l, ...], a result of `split`, as [..., *grid, ...]."""
        end = start + len(self.context.grid) - 1
        if self.fold:
            x = x.flatten(end, end + 1).narrow(end, 0, size)
        return x.movedim(end, start + self.axis)

    def to_queries(self, x: Tensor) -> Tensor:
        """Return [b, h, n, c] as [b, l, *lead, h, c]."""
        grid = self.context.grid
        x = self.split(x.unflatten(2, grid), 2, grid[self.axis])  # [b, h, *lead, l, c]
        return x.movedim(-2, 1).movedim(2, -2).contiguous()

    def from_queries(self, x: Tensor) -> Tensor:
        """Return [b, l, *lead, h, c] as [b, h, n, c]."""
        x = self.join(x.movedim(-2, 1).movedim(2, -2), 2, self.context.grid[self.axis])
        return x.flatten(2, -2)

    def to_frequencies(self, v: Tensor, like: Tensor) -> Tensor:
        """Return values [b, m, v, u] as frequencies [f, 2, u, *lead, b v] in the dtype of `like`."""
        b, _, dim_v, u = v.shape
        keys = self.context.key_grid
        x = self.split(v.unflatten(1, keys).to(like.dtype), 1, keys[self.axis])  # [b, *lead, l, v, u]
        x = x.movedim((-3, -1), (0, 1)).movedim(2, -2)  # [l, u, *lead, b, v]
        lead = [a.keys for a in self.lead]
        x = matmul(self.transform(like), x.reshape(self.last.keys, -1))
        return x.view(self.frequencies, 2, u, *lead, b * dim_v)

    def from_frequencies(self, x: Tensor, v: Tensor) -> Tensor:
        """Apply the adjoint (transposed map) of `to_frequencies`.

        Args:
            x: Gradient of the frequencies, [f, 2, u, *lead, b v].
            v: The values, for their shape [b, m, v, u].

        Returns:
            Gradient of the values, [b, m, v, u].
        """
        b, _, dim_v, u = v.shape
        lead = [a.keys for a in self.lead]
        x = matmul(self.transform(x).mT, x.flatten(0, 1).flatten(1))
        x = x.view(self.last.keys, u, *lead, b, dim_v).movedim(-2, 2).movedim((0, 1), (-3, -1))
        keys = self.context.key_grid
        return self.join(x, 1, keys[self.axis]).flatten(1, -3)

    def to_spectrum(self, e: Tensor, like: Tensor) -> Tensor:
        """Return the conjugate frequencies [f, 2, k, u, *lead offsets] of a table [*offsets, k, u]."""
        # [offsets, *lead offsets, u, k]
        x = gather_embeddings(e.to(like.dtype), self.table_indices(e.device))
        x = x.movedim((-1, -2), (1, 2))  # [offsets, k, u, *lead offsets]
        shape = x.shape[1:]
        return matmul(self.table_transform(like), x.reshape(len(x), -1)).view(self.frequencies, 2, *shape)

    def from_spectrum(self, x: Tensor) -> Tensor:
        """Apply the adjoint (transposed map) of `to_spectrum`, before the embeddings are summed per entry.

        Args:
            x: Gradient of the spectrum, [f, 2, k, u, *lead offsets].

        Returns:
            Gradient of the gathered embeddings, [offsets, *lead offsets, u, k].
        """
        shape = x.shape[2:]
        x = matmul(self.table_transform(x).mT, x.flatten(0, 1).flatten(1)).view(-1, *shape)
        return x.movedim((1, 2), (-1, -2))
