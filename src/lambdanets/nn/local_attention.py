"""Local self-attention on images: each position attends to the window around it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention_base import Projections, SelfAttention2d, attend
from .memory_format import merge_heads

MAX_WINDOWS_OF_ONE_TILE = 2
"""An axis of at most this many windows is a single tile: a tile of one window has keys of almost two."""


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """Division of one axis into tiles of queries, each with the keys that the windows of its queries contain.

    Attributes:
        length: Number of positions on the axis.
        window: Number of positions in a window.
        count: Number of tiles.
        tile: Number of queries in a tile.
        keys: Number of keys of a tile.
        first: Position of the first key of a tile, relative to its first query.
    """

    length: int
    window: int
    count: int
    tile: int
    keys: int
    first: int

    @classmethod
    def of(cls, length: int, window: int) -> _Axis:
        if length <= MAX_WINDOWS_OF_ONE_TILE * window:
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
        """Number of keys to pad before and after the axis, so that all tiles have equally many."""
        return -self.first, (self.count - 1) * self.tile + self.first + self.keys - self.length

    def geometry(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return, for each query and key of a tile, the key's index in the window, and whether it is visible.

        The index `[tile, keys]` is the same for all tiles, and is clamped for keys outside the window; the
        booleans `[count, tile, keys]` are False for these and for keys beyond the border.
        """
        query = torch.arange(self.tile, device=device)[:, None]
        key = torch.arange(self.keys, device=device)[None, :] + self.first
        index = key - query + self.window // 2
        position = key + self.tile * torch.arange(self.count, device=device)[:, None, None]
        visible = (index >= 0) & (index < self.window) & (position >= 0) & (position < self.length)
        return index.clamp(0, self.window - 1), visible


@torch.fx.wrap
def _local_attention(
    qkv: Tensor, positions_height: Tensor, positions_width: Tensor, x: Tensor, window: int
) -> Tensor:
    """Compute the output from `[b, 3, h, d, height, width]`: one node in a graph of torch.fx.

    Shapes below: s and t count the tiles along height and width; y and x are positions in a tile, n = y x its
    queries and m its keys.
    """
    rows, columns = (_Axis.of(length, window) for length in x.shape[-2:])
    q = F.pad(
        qkv[:, 0],
        (0, columns.count * columns.tile - columns.length, 0, rows.count * rows.tile - rows.length),
    )
    q = q.unflatten(4, (columns.count, columns.tile)).unflatten(3, (rows.count, rows.tile))
    q = q.permute(0, 3, 5, 1, 4, 6, 2) * qkv.shape[3] ** -0.5  # [b, s, t, h, y, x, d]
    kv = F.pad(qkv[:, 1:], (*columns.padding, *rows.padding))
    kv = kv.unfold(4, rows.keys, rows.tile).unfold(5, columns.keys, columns.tile)
    k, v = kv.permute(1, 0, 4, 5, 2, 6, 7, 3).flatten(5, 6).flatten(1, 3)  # [b * s * t, h, m, d] each
    bias = _position_logits(q, positions_height, positions_width, rows, columns)
    y = attend(q.flatten(4, 5).flatten(0, 2), k, v, bias)  # [b * s * t, h, n, d]
    y = y.unflatten(2, (rows.tile, columns.tile)).unflatten(0, (x.shape[0], rows.count, columns.count))
    y = y.permute(0, 3, 1, 4, 2, 5, 6).flatten(4, 5).flatten(2, 3)  # [b, h, height, width, d], padded
    y = y[:, :, : rows.length, : columns.length].flatten(2, 3)  # [b, h, height * width, d]
    return merge_heads(y, x)


def _position_logits(
    q: Tensor, positions_height: Tensor, positions_width: Tensor, rows: _Axis, columns: _Axis
) -> Tensor:
    """Return position logits `[b * s * t, h, n, m]`, with a large negative value where m is hidden."""
    # Finite, since the softmax of a padded query without visible keys would be NaN. A quarter of the smallest
    # value, since the sum of the logits of row, column and content must not overflow.
    hidden = torch.finfo(q.dtype).min / 4
    by_row, by_column = q.split(q.shape[-1] // 2, dim=-1)
    index, visible = rows.geometry(q.device)
    of_rows = torch.einsum("bsthyxd,hyjd->bsthyxj", by_row, positions_height.to(q.dtype)[:, index])
    of_rows = of_rows.masked_fill(~visible[:, None, None, :, None], hidden)
    index, visible = columns.geometry(q.device)
    of_columns = torch.einsum("bsthyxd,hxjd->bsthyxj", by_column, positions_width.to(q.dtype)[:, index])
    of_columns = of_columns.masked_fill(~visible[:, None, None], hidden)
    bias = of_rows[..., None] + of_columns[..., None, :]  # [b, s, t, h, y, x, row of m, column of m]
    return bias.flatten(6).flatten(4, 5).flatten(0, 2)


class LocalAttention2d(SelfAttention2d):
    """Local self-attention: each position attends to the window around it, by content and relative position.

    `y[n] = sum_{m in window(n)} softmax_m(q[n] . (k[m] + [rows[y_m-y_n], columns[x_m-x_n]]) / sqrt(d)) v[m]`
    in each head of depth d: half of the channels of a query multiply the embedding of the row, the other half
    that of the column. Positions beyond the border are not attended to. Projections have no bias and no norm.
    Parameters: 3 * dim * dim_out weights and window * dim_out embeddings.

    Queries are processed in tiles about as large as the window, as in HaloNet, but with an exact mask. For a
    window of 7, a tile of 7x7 queries has 13x13 keys, so memory holds each key about 3.4 times; without tiles
    it would hold each key 49 times.

    Args:
        dim: Channels of the input.
        dim_out: Channels of the output; `dim` by default.
        num_heads: Heads, each with an even number of channels.
        window: Side of the window; an even one extends one position further up and to the left.
        device: Device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        ValueError: If an argument is out of range, or arguments contradict each other.

    Differences from the source:
        The source projects each group of channels separately. Here, as in its parameter counts and in public
        implementations, projections see all channels.

    References:
        Stand-Alone Self-Attention in Vision Models (Ramachandran et al., 2019), section 3.2;
        Scaling Local Self-Attention for Parameter Efficient Visual Backbones (Vaswani et al., 2021), tiles.

    Example:
        >>> layer = LocalAttention2d(32, num_heads=4, window=7)
        >>> layer(torch.randn(2, 32, 14, 14)).shape
        torch.Size([2, 32, 14, 14])
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
        qkv = self.projections(x)
        return _local_attention(qkv, self.positions_height, self.positions_width, x, self.window)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, window={self.window}"
