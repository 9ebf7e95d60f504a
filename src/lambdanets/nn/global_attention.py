"""Global self-attention on images with relative positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lambdanets.ops.context import Grid

from .attention_base import Projections, SelfAttention2d, pairwise_embeddings
from .memory_format import merge_heads
from .positions import table_shape
from .separable import separable_attention


@torch.fx.wrap
def _global_attention(qkv: Tensor, positions_height: Tensor, positions_width: Tensor, x: Tensor) -> Tensor:
    """Compute the output from `[b, 3, h, d, height, width]`: one node in a graph of torch.fx."""
    q, k, v = qkv.flatten(4).mT.contiguous().unbind(1)  # [b, h, n, d] each
    q = q * q.shape[-1] ** -0.5
    height, width = x.shape[-2:]
    on_grid = q.unflatten(2, (height, width))  # [b, h, height, width, d]
    by_height = pairwise_embeddings(positions_height.to(q.dtype), height)  # [height, height, d]
    by_width = pairwise_embeddings(positions_width.to(q.dtype), width)  # [width, width, d]
    rows = torch.einsum("bhyxd,yjd->bhyxj", on_grid, by_height).flatten(2, 3)  # [b, h, n, height]
    columns = torch.einsum("bhyxd,xjd->bhyxj", on_grid, by_width).flatten(2, 3)  # [b, h, n, width]
    return merge_heads(separable_attention(q, k, v, rows, columns), x)


class GlobalAttention2d(SelfAttention2d):
    """Global self-attention: each position attends to all positions, by content and relative position.

    `y[b,h,n] = sum_m softmax_m(q[n] . (k[m] + rows[y_m - y_n] + columns[x_m - x_n]) / sqrt(d)) v[m]` in each
    head h of depth d. Projections have no bias and no norm. Parameters: 3 * dim * dim_out weights and
    d * (2 * height - 1 + 2 * width - 1) embeddings, shared by the heads.

    The n x m attention map need not be in memory: the position logit of a pair is the sum of a logit for the
    row of m and one for its column, so n * (height + width) logits suffice. See `separable_attention`.

    Args:
        dim: Channels of the input.
        dim_out: Channels of the output; `dim` by default.
        num_heads: Heads, a divisor of `dim_out`.
        grid: The grid (int or tuple) that the embeddings are made for. Inputs on other grids work: they use
            the middle of the tables; offsets beyond the tables have no position logits.
        device: Device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        ValueError: If an argument is out of range, or arguments contradict each other.

    Differences from the source:
        Attention replaces all channels of a convolution, rather than some of them. The 1x1 convolution that
        mixes the heads is the one that follows in the block.

    References:
        Attention Augmented Convolutional Networks (Bello et al., 2019), section 3.1.

    Example:
        >>> layer = GlobalAttention2d(32, 64, num_heads=4, grid=14)
        >>> layer(torch.randn(2, 32, 14, 14)).shape
        torch.Size([2, 64, 14, 14])
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
        return _global_attention(self.projections(x), self.positions_height, self.positions_width, x)

    def extra_repr(self) -> str:
        grid = tuple((len(table) + 1) // 2 for table in (self.positions_height, self.positions_width))
        return f"{super().extra_repr()}, grid={grid}"
