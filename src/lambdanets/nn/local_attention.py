"""Local self-attention: every position attends to the window round it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attending import Projections, SelfAttention2d, attend
from .layout import to_channels

ONE_TILE = 2
"""Windows up to which an axis is one tile: there a halo is as much as the rest of the axis."""


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """How one axis is cut into tiles of queries, each with the keys that its windows reach.

    Attributes:
        length: Positions on the axis.
        window: Positions in a window.
        count: Tiles.
        tile: Queries of a tile.
        keys: Keys of a tile.
        first: Position of a tile's first key, relative to its first query.
    """

    length: int
    window: int
    count: int
    tile: int
    keys: int
    first: int

    @classmethod
    def of(cls, length: int, window: int) -> _Axis:
        if length <= ONE_TILE * window:
            return cls(length=length, window=window, count=1, tile=length, keys=length, first=0)
        count = -(-length // window)
        tile = -(-length // count)
        return cls(
            length=length,
            window=window,
            count=count,
            tile=tile,
            keys=tile + window - 1,
            first=-(window // 2),
        )

    @property
    def padding(self) -> tuple[int, int]:
        """Keys before the axis and after it, so that every tile has as many."""
        return -self.first, (self.count - 1) * self.tile + self.first + self.keys - self.length

    def geometry(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The window's entry for each pair of a tile (tile keys), and whom each may see (count tile keys)."""
        query = torch.arange(self.tile, device=device)[:, None]
        key = torch.arange(self.keys, device=device)[None, :] + self.first
        entry = key - query + self.window // 2
        place = key + self.tile * torch.arange(self.count, device=device)[:, None, None]
        visible = (entry >= 0) & (entry < self.window) & (place >= 0) & (place < self.length)
        return entry.clamp(0, self.window - 1), visible


@torch.fx.wrap
def _operate(
    qkv: Tensor, positions_height: Tensor, positions_width: Tensor, x: Tensor, window: int
) -> Tensor:
    """Compute the output from projections (b 3 h d height width): one node in a graph of torch.fx."""
    high, wide = (_Axis.of(length, window) for length in x.shape[-2:])
    q = F.pad(qkv[:, 0], (0, wide.count * wide.tile - wide.length, 0, high.count * high.tile - high.length))
    q = q.unflatten(4, (wide.count, wide.tile)).unflatten(3, (high.count, high.tile))
    q = q.permute(0, 3, 5, 1, 4, 6, 2) * qkv.shape[3] ** -0.5  # b s t h y x d, in tile s t
    kv = F.pad(qkv[:, 1:], (*wide.padding, *high.padding))
    kv = kv.unfold(4, high.keys, high.tile).unfold(5, wide.keys, wide.tile)
    k, v = kv.permute(1, 0, 4, 5, 2, 6, 7, 3).flatten(5, 6).flatten(1, 3)  # (b s t) h m d
    bias = _position_logits(q, positions_height, positions_width, high, wide)
    y = attend(q.flatten(4, 5).flatten(0, 2), k, v, bias)
    y = y.unflatten(2, (high.tile, wide.tile)).unflatten(0, (x.shape[0], high.count, wide.count))
    y = y.permute(0, 3, 1, 4, 2, 5, 6).flatten(4, 5).flatten(2, 3)  # b h height width d
    y = y[:, :, : high.length, : wide.length].flatten(2, 3)
    return to_channels(y, x)


def _position_logits(
    q: Tensor, positions_height: Tensor, positions_width: Tensor, high: _Axis, wide: _Axis
) -> Tensor:
    """The logits (b s t) h n m that queries give by position, far below all others where m is hidden."""
    # Finite, as a query of the padding may see nothing; hidden rows and columns and the content add up.
    far = torch.finfo(q.dtype).min / 4
    by_row, by_column = q.split(q.shape[-1] // 2, dim=-1)
    entry, visible = high.geometry(q.device)
    rows = torch.einsum("bsthyxd,hyjd->bsthyxj", by_row, positions_height.to(q.dtype)[:, entry])
    rows = rows.masked_fill(~visible[:, None, None, :, None], far)
    entry, visible = wide.geometry(q.device)
    columns = torch.einsum("bsthyxd,hxjd->bsthyxj", by_column, positions_width.to(q.dtype)[:, entry])
    columns = columns.masked_fill(~visible[:, None, None], far)
    bias = rows[..., None] + columns[..., None, :]
    return bias.flatten(6).flatten(4, 5).flatten(0, 2)


class LocalAttention2d(SelfAttention2d):
    """Every position attends to the window round it, by content and relative position.

    `y[n] = sum_{m in window(n)} softmax_m(q[n] . (k[m] + [rows[y_m-y_n], columns[x_m-x_n]]) / sqrt(d)) v[m]`
    in each head of depth d: half of a query's channels meet the embedding of the row, half that of the
    column. Positions beyond the border are not attended to. Projections have no bias and no norm.
    Parameters: 3 * dim * dim_out weights and window * dim_out embeddings.

    Queries are taken in tiles about as large as the window, each with the keys that its windows reach (as in
    HaloNet) but under an exact mask: a key stands in memory about 3.4 times, not once for each of the 49
    positions of a window of 7.

    Args:
        dim: Channels of the input.
        dim_out: Channels of the output; `dim` by default.
        num_heads: Heads, of an even number of channels each.
        window: Side of the window; an even one reaches one position further up and left.
        device: Device of the parameters.
        dtype: Element type of the parameters.

    Raises:
        ValueError: If the arguments do not fit together.

    Differences from the source: it projects each group of channels by itself; here, as in its parameter
    counts and its public implementations, projections see all channels.

    References:
        Stand-Alone Self-Attention in Vision Models (Ramachandran et al., 2019), section 3.2;
        Scaling Local Self-Attention for Parameter Efficient Visual Backbones (Vaswani et al., 2021), tiles.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        *,
        num_heads: int = 8,
        window: int = 7,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, dim_out, num_heads)
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        if self.dim_out % (2 * num_heads):
            raise ValueError(
                f"each head needs an even number of channels, half for rows and half for columns: dim_out "
                f"must be a multiple of 2 * num_heads={2 * num_heads}, got {self.dim_out}"
            )
        self.window = window
        factory = {"device": device, "dtype": dtype}
        self.projections = Projections(dim, self.dim_out, num_heads, **factory)
        table = (num_heads, window, self.dim_head // 2)
        self.positions_height = nn.Parameter(torch.empty(table, **factory))
        self.positions_width = nn.Parameter(torch.empty(table, **factory))
        self.reset_parameters()

    def _attend(self, x: Tensor) -> Tensor:
        return _operate(self.projections(x), self.positions_height, self.positions_width, x, self.window)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, window={self.window}"
