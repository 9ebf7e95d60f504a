"""The maps of one lambda layer for one input: A, its content and position part, and figures of both.

    A[h,n,m,u] = sum_k q[h,n,k] (kbar[m,k,u] + E[n,m,k,u])        y[h,n,:] = sum_{m,u} A[h,n,m,u] v[m,:,u]

Nothing nonlinear follows A, so the output is this weighted sum of the values: A is the layer, no estimate.
Queries, keys, values and the table are stored, (h + 1) n k numbers and more, and never A itself, which has
h n m: it is computed for the queries that are asked for. Letters are those of `lambdanets.ops.reference`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lambdanets.nn.operands import Operands
from lambdanets.ops.hardware import log_norm_dtype
from lambdanets.ops.position_table import offset_indices
from lambdanets.ops.reference import positions

PARTS = ("content", "position", "sum")
"""The parts of a map: by content, by position, and their sum."""
CHUNK = 1 << 23  # elements of the largest intermediate tensor
CLIPPED = 0.02  # fraction of a map's values beyond the end of its colour scale
SCALE_QUERIES = 64  # queries from which a colour scale is taken
REACH = 0.9  # fraction of a table's magnitude within its radius


class Reach(NamedTuple):
    """How far the position table of a layer reaches.

    Attributes:
        distances: Distances from the query, in positions of the layer's grid.
        magnitudes: Mean |E| of the table's entries at each distance, rounded to whole positions.
        radius: Least distance within which the entries have 90 % of the sum of |E|.
    """

    distances: list[int]
    magnitudes: list[float]
    radius: float


class Shares(NamedTuple):
    """Squared norms over the value channels of the two parts of a layer's output, `[h, *grid]` each.

    Attributes:
        content: Of the content part.
        position: Of the position part.
    """

    content: Tensor
    position: Tensor

    @property
    def fraction(self) -> Tensor:
        """Content's fraction of both, from 0 to 1, `[h, *grid]`; NaN where both are zero."""
        return self.content / (self.content + self.position)


class LayerMaps:
    """The maps of one call of a lambda layer, for one example of the batch.

    Args:
        name: Name of the layer in the model.
        operands: The call's operands.
        example: Index of the example.

    Attributes:
        name: Name of the layer.
        q: Queries `[h, n, k]`.
        keys: Keys `[g, m, k, u]` of g sets: kbar, which are normalised; under a causal order as projected,
            since each query normalises them over the past (`log_norm`). None without a content part.
        log_norm: Under a causal order, logarithm of what query n divides by, `[g, n, k, u]`; else None.
        v: Values `[m, v, u]`, zero where the mask hides them.
        table: Position table `[*offsets, k, u]`, or None.
        bias: Constant lambda `[k]`, or None.
        context: The grids, and the offsets of the table's entries.
        mask: Booleans `[m]`, False at hidden elements; None if all are visible.
        decay: Rates `[k, u]` at which content is forgotten, or None.
    """

    def __init__(self, name: str, operands: Operands, example: int) -> None:
        dtype = torch.promote_types(operands.v.dtype, torch.float32)
        self.name, self.context, self.normalize = name, operands.context, operands.normalize
        self.q = operands.q[example].detach().to(dtype)
        self.mask = None if operands.mask is None else operands.mask[example]
        hidden = None if self.mask is None else ~self.mask
        self.v = operands.v[example].detach().to(dtype)
        if hidden is not None:
            self.v = self.v.masked_fill(hidden[:, None, None], 0)
        parameters = (operands.e, operands.position_bias, operands.decay)
        self.table, self.bias, self.decay = (None if x is None else x.detach().to(dtype) for x in parameters)
        self.keys = self.log_norm = None
        if operands.k is not None:
            dim_k = self.q.shape[2]
            self.keys = (
                operands.k[example].detach().to(dtype).unflatten(1, (-1, dim_k)).movedim(1, 0)
            )  # [g, m, k, u]
            if self.context.causal:
                self.log_norm = self._causal_norm(hidden)
            else:
                self.keys = _normalized(self.keys, hidden, self.normalize)
        # [m] coordinates per axis
        self._query_positions = positions(self.grid, self.q.device)
        self._key_positions = positions(self.context_grid, self.q.device)

    @property
    def grid(self) -> tuple[int, ...]:
        """Sizes of the grid of queries."""
        return self.context.grid

    @property
    def context_grid(self) -> tuple[int, ...]:
        """Sizes of the grid of the context."""
        return self.context.key_grid

    @property
    def causal(self) -> bool:
        """Whether each query sees only itself and the elements before it."""
        return self.context.causal

    @property
    def num_heads(self) -> int:
        """Number of heads, h."""
        return self.q.shape[0]

    @property
    def dim_u(self) -> int:
        """Intra-depth, u."""
        return self.v.shape[2]

    @property
    def stored_bytes(self) -> int:
        """Bytes of all stored tensors."""
        tensors = (self.q, self.keys, self.log_norm, self.v, self.table)
        return sum(x.numel() * x.element_size() for x in tensors if x is not None)

    def weights(self, queries: Tensor, part: str = "sum") -> Tensor:
        """Return A `[h, queries, m, u]` of some queries.

        Args:
            queries: Row-major indices of queries, int64.
            part: One of `PARTS`.
        """
        shape = (self.num_heads, len(queries), len(self.v), self.dim_u)
        found = None
        if part != "position" and self.keys is not None:
            found = self._content(queries)
        if part != "content" and self.table is not None:
            by_position = self._position(queries)
            found = by_position if found is None else found + by_position
        return self.q.new_zeros(shape) if found is None else found

    def _content(self, queries: Tensor) -> Tensor:
        assert self.keys is not None
        sets = len(self.keys)
        q = self.q[:, queries].unflatten(0, (sets, -1))  # [g, h / g, n, k]
        if self.log_norm is None:
            return torch.einsum("ghnk,gmku->ghnmu", q, self.keys).flatten(0, 1)
        return torch.einsum("ghnk,gnmku->ghnmu", q, self.causal_keys(queries)).flatten(0, 1)

    def causal_keys(self, queries: Tensor) -> Tensor:
        """Return kbar `[g, queries, m, k, u]` under a causal order, normalised over each query's past."""
        assert self.keys is not None
        assert self.log_norm is not None
        distance = queries[:, None] - torch.arange(len(self.v), device=queries.device)  # [n, m]
        seen = distance >= 0
        if self.mask is not None:
            seen = seen & self.mask
        exponents = -self.log_norm[:, queries, None]  # [g, n, 1, k, u]
        if self.decay is not None:
            exponents = exponents - distance[..., None, None] * self.decay
        if self.normalize == "softmax":
            found = (exponents + self.keys[:, None]).exp()
        else:
            found = exponents.exp() * self.keys[:, None]
        return found.masked_fill(~seen[..., None, None], 0)

    def _causal_norm(self, hidden: Tensor | None) -> Tensor:
        """Return the logarithm of each query's divisor `[g, n, k, u]`, 0 without a normalisation."""
        assert self.keys is not None
        if self.normalize == "none":
            return torch.zeros_like(self.keys)
        # The sum over the past of exp(terms), by a cumulative sum that needs the precision of float64.
        factor, exact = 1 if self.normalize == "softmax" else 2, log_norm_dtype(self.keys.device.type)
        terms = self.keys.to(exact) if factor == 1 else 2 * self.keys.to(exact).abs().log()
        if hidden is not None:
            terms = terms.masked_fill(hidden[:, None, None], -torch.inf)
        forgotten = terms.new_zeros(())
        if self.decay is not None:
            steps = torch.arange(len(self.v), device=terms.device)
            forgotten = factor * steps[:, None, None] * self.decay.to(exact)
        summed = torch.logcumsumexp(terms + forgotten, dim=1) - forgotten
        # A query that sees no element, or only keys of zero, divides zeros by 1.
        return (summed / factor).masked_fill(summed == -torch.inf, 0).to(self.keys.dtype)

    def _position(self, queries: Tensor) -> Tensor:
        assert self.table is not None
        entries = self.table.flatten(0, -3)  # [offsets, k, u]
        filters = torch.einsum("hnk,oku->hnou", self.q[:, queries], entries)
        # The index of a pair without an entry is the number of entries: there is a zero.
        filters = F.pad(filters, (0, 0, 0, 1))
        index = self._table_index(queries)
        index = index[None, :, :, None].expand(len(filters), -1, -1, filters.shape[3])
        found = filters.gather(2, index)
        return found if self.mask is None else found * self.mask[:, None]

    def _table_index(self, queries: Tensor) -> Tensor:
        """Return the flat index in the table `[n, m]` of pairs, the number of entries for pairs without."""
        axes = zip(self._query_positions, self._key_positions, strict=True)
        return offset_indices(self.context, [m[None] - n[queries, None] for n, m in axes])

    def chunks(self) -> Iterator[Tensor]:
        """Yield the indices of all queries in parts that bound the memory of A."""
        entries = 0 if self.table is None else math.prod(self.table.shape[:-2])
        width = self.num_heads * self.dim_u * max(len(self.v), entries)
        if self.log_norm is not None and self.keys is not None:
            width = max(width, self.keys.numel())
        yield from torch.arange(self.q.shape[1], device=self.q.device).split(max(1, CHUNK // width))

    def apply(self, weights: Tensor) -> Tensor:
        """Return weights `[h, n, m, u]` times the values, `[h, n, v]`."""
        return torch.einsum("hnmu,mvu->hnv", weights, self.v)

    def output(self) -> tuple[Tensor, Shares]:
        """Return the operator's output `[h, n, v]`, summed over all maps, and the shares of its parts."""
        outputs, shares = [], []
        for queries in self.chunks():
            parts = [self.apply(self.weights(queries, part)) for part in ("content", "position")]
            shares.append([part.square().sum(-1) for part in parts])
            outputs.append(parts[0] + parts[1])
        y = torch.cat(outputs, dim=1)
        if self.bias is not None:
            y = y + (self.q @ self.bias)[..., None]
        content, position = (
            torch.cat(part, dim=1).unflatten(1, self.grid) for part in zip(*shares, strict=True)
        )
        return y, Shares(content, position)

    def scales(self) -> dict[str, list[float]]:
        """Return the end of the colour scale of each part and head: at most 2 % of the values are beyond it.

        It is the same for all queries: 64 of them, spread evenly, give it. Zeros are left out, since most
        pairs have no entry in a small table. The scale of the sum is at least that of each part, as otherwise
        many small weights by content would hide few large ones by position.
        """
        n = self.q.shape[1]
        chosen = torch.linspace(0, n - 1, min(n, SCALE_QUERIES)).round().long().to(self.q.device)
        found: dict[str, list[float]] = {}
        for part in PARTS:
            rows: list[list[Tensor]] = [[] for _ in range(self.num_heads)]
            for query in chosen:
                weights = self.weights(query[None], part).abs().flatten(1)
                for row, values in zip(rows, weights, strict=True):
                    row.append(values[values > 0])
            found[part] = [_beyond(torch.cat(row)) for row in rows]
        found["sum"] = [max(ends) for ends in zip(*found.values(), strict=True)]
        return found

    def columns(self) -> Tensor:
        """Return kbar as pictures `[g * k * u, *context_grid]`: of all queries, or of the last causal one."""
        if self.keys is None:
            return self.q.new_zeros(0, *self.context_grid)
        keys = self.keys
        if self.log_norm is not None:
            last = torch.tensor([self.q.shape[1] - 1], device=self.q.device)
            keys = self.causal_keys(last)[:, 0]
        return keys.movedim(1, -1).flatten(0, -2).unflatten(1, self.context_grid)

    def reach(self) -> Reach | None:
        """Return the mean |E| against the distance, of offsets within the grids; None without a table."""
        if self.table is None:
            return None
        entries = self.context.reachable_entries()
        table = self.table[entries].abs().flatten(-2).mean(-1)
        axes = [
            (torch.arange(part.start, part.stop) - centre) * step
            for part, centre, step in zip(entries, self.context.centre, self.context.step, strict=True)
        ]
        offsets = torch.meshgrid(*axes, indexing="ij")
        distance = torch.stack([axis.double() for axis in offsets]).square().sum(0).sqrt().flatten()
        values = table.cpu().double().flatten()
        order = distance.argsort()
        within = values[order].cumsum(0)
        first = int((within >= REACH * within[-1]).int().argmax())
        rounded = distance.round().long()
        distances = rounded.unique()
        means = [float(values[rounded == each].mean()) for each in distances]
        return Reach(distances.tolist(), means, float(distance[order][first]))


def _normalized(keys: Tensor, hidden: Tensor | None, normalize: str) -> Tensor:
    """Return keys `[g, m, k, u]` normalised over the visible elements, zero at hidden ones."""
    mask = None if hidden is None else hidden[:, None, None]
    if normalize == "softmax":
        if mask is None:
            return keys.softmax(1)
        if bool(mask.all()):
            return torch.zeros_like(keys)
        return keys.masked_fill(mask, -torch.inf).softmax(1)
    visible = keys if mask is None else keys.masked_fill(mask, 0)
    return F.normalize(visible, dim=1) if normalize == "l2" else visible


def _beyond(values: Tensor) -> float:
    """Return the value beyond which 2 % of some values are; a very small one if there are none."""
    if not len(values):
        return 1e-30
    rank = max(1, math.ceil((1 - CLIPPED) * len(values)))
    return float(values.kthvalue(rank).values)
