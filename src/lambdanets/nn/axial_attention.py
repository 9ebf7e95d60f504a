"""Axial self-attention on images: along the height, then along the width."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lambdanets.ops.context import Grid

from .attention_base import Projections, SelfAttention2d, attend, pairwise_embeddings
from .memory_format import is_channels_last, match_gradient_format
from .positions import table_shape


@torch.fx.wrap
def _attend_along(qkv: Tensor, positions: Tensor, x: Tensor, axis: str) -> Tensor:
    """Attend along "height" or "width": from `[b, 3, h, d, height, width]` to images in the format of `x`.

    One node in a graph of torch.fx.
    """
    # [3, b, lines, h, length, d]
    lines = qkv.permute(1, 0, 5, 2, 4, 3) if axis == "height" else qkv.permute(1, 0, 4, 2, 5, 3)
    q, k, v = lines.flatten(1, 2).contiguous()  # [b * lines, h, length, d] each
    q = q * q.shape[-1] ** -0.5
    embeddings = pairwise_embeddings(positions.to(q.dtype), q.shape[2])  # [length, length, d]
    bias = torch.einsum("bhnd,nmd->bhnm", q, embeddings)  # [b * lines, h, length, length]
    y = attend(q, k, v, bias).unflatten(0, lines.shape[1:3])  # [b, lines, h, length, d]
    y = y.permute(0, 2, 4, 3, 1) if axis == "height" else y.permute(0, 2, 4, 1, 3)
    memory_format = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    return y.flatten(1, 2).contiguous(memory_format=memory_format)  # [b, h * d, height, width]


torch.fx.wrap("match_gradient_format")


class AxialAttention2d(SelfAttention2d):
    """Axial self-attention: each position attends to its column, then each position of the result to its row.

    On each axis `y[n] = sum_m softmax_m(q[n] . (k[m] + positions[m - n]) / sqrt(d)) v[m]` in each head of
    depth d. A batch norm follows the projections of each axis, and the attention along the first axis.
    Parameters: 3 * dim * dim_out + 3 * dim_out**2 weights, d * (2 * height - 1 + 2 * width - 1) embeddings,
    shared by the heads, and 2 * (3 + 1 + 3) * dim_out in the three norms.

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

    Differences from the sources:
        Relative positions act on the queries alone. The attention logits pass no batch norm, which would need
        all of them in memory.

    References:
        Axial Attention in Multidimensional Transformers (Ho et al., 2019), the factorisation;
        Axial-DeepLab (Wang et al., 2020), relative positions and batch norms.

    Example:
        >>> layer = AxialAttention2d(32, num_heads=4, grid=14)
        >>> layer(torch.randn(2, 32, 14, 14)).shape
        torch.Size([2, 32, 14, 14])
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
        height, width = table_shape(None, grid, 2)
        self.along_height = Projections(dim, self.dim_out, num_heads, batch_norm=True, **factory)
        self.positions_height = nn.Parameter(torch.empty(height, self.dim_head, **factory))
        self.norm = nn.BatchNorm2d(self.dim_out, **factory)
        self.along_width = Projections(self.dim_out, self.dim_out, num_heads, batch_norm=True, **factory)
        self.positions_width = nn.Parameter(torch.empty(width, self.dim_head, **factory))
        self.reset_parameters()

    def _attend(self, x: Tensor) -> Tensor:
        y = _attend_along(self.along_height(x), self.positions_height, x, "height")
        y = match_gradient_format(self.norm(y))
        return _attend_along(self.along_width(y), self.positions_width, x, "width")

    def extra_repr(self) -> str:
        grid = tuple((len(table) + 1) // 2 for table in (self.positions_height, self.positions_width))
        return f"{super().extra_repr()}, grid={grid}"
