"""Global self-attention on images with relative positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops.context import Grid
from .attending import Projections, SelfAttention2d, offsets_table
from .layout import to_channels
from .positions import table_shape
from .separable import separable_attention


@torch.fx.wrap
def _operate(qkv: Tensor, positions_height: Tensor, positions_width: Tensor, x: Tensor) -> Tensor:
    """Compute the output from projections (b 3 h d height width): one node in a graph of torch.fx."""
    q, k, v = qkv.flatten(4).mT.contiguous().unbind(1)  # b h n d
    q = q * q.shape[-1] ** -0.5
    height, width = x.shape[-2:]
    # The logit that each query gives to each row (b h n height) and to each column (b h n width).
    on_grid = q.unflatten(2, (height, width))
    by_height = offsets_table(positions_height.to(q.dtype), height)
    by_width = offsets_table(positions_width.to(q.dtype), width)
    rows = torch.einsum("bhyxd,yjd->bhyxj", on_grid, by_height).flatten(2, 3)
    columns = torch.einsum("bhyxd,xjd->bhyxj", on_grid, by_width).flatten(2, 3)
    return to_channels(separable_attention(q, k, v, rows, columns), x)


class GlobalAttention2d(SelfAttention2d):
    """Every position attends to every other, by content and by relative height and width.

    `y[b,h,n] = sum_m softmax_m(q[n] . (k[m] + rows[y_m - y_n] + columns[x_m - x_n]) / sqrt(d)) v[m]` in each
    head h of depth d. Projections have no bias and no norm. Parameters: 3 * dim * dim_out weights and
    d * (2 * height - 1 + 2 * width - 1) embeddings, shared by the heads.

    No map of n x m needs to be in memory: the position logits depend on m through its row and its column
    alone, so n * (height + width) of them say it all. See `separable_attention`.

    Args:
        dim: Channels of the input.
        dim_out: Channels of the output; `dim` by default.
        num_heads: Heads, a divisor of `dim_out`.
        grid: The grid (int or tuple) that the embeddings are made for. Other grids work: they use the middle
            of the tables, or see content alone beyond them.
        device: Device of the parameters.
        dtype: Element type of the parameters.

    Raises:
        ValueError: If the arguments do not fit together.

    Differences from the source: attention takes the whole place of a convolution, rather than some of its
    channels, and the 1x1 convolution that mixes the heads is the one that follows in the block.

    References:
        Attention Augmented Convolutional Networks (Bello et al., 2019), section 3.1.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        *,
        num_heads: int = 8,
        grid: Grid,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, dim_out, num_heads)
        factory = {"device": device, "dtype": dtype}
        self.projections = Projections(dim, self.dim_out, num_heads, **factory)
        height, width = table_shape(None, grid, 2)
        self.positions_height = nn.Parameter(torch.empty(height, self.dim_head, **factory))
        self.positions_width = nn.Parameter(torch.empty(width, self.dim_head, **factory))
        self.reset_parameters()

    def _attend(self, x: Tensor) -> Tensor:
        return _operate(self.projections(x), self.positions_height, self.positions_width, x)

    def extra_repr(self) -> str:
        grid = tuple((len(table) + 1) // 2 for table in (self.positions_height, self.positions_width))
        return f"{super().extra_repr()}, grid={grid}"
