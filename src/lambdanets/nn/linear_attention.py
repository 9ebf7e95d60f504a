"""Linear attention on images: equivalent to a content-only lambda layer with one lambda for each head."""

from __future__ import annotations

import torch
from torch import Tensor

from lambdanets.ops.matmul import no_autocast

from .attention_base import Projections, SelfAttention2d
from .memory_format import merge_heads


@torch.fx.wrap
def _linear_attention(qkv: Tensor, x: Tensor) -> Tensor:
    """Compute the output from `[b, 3, h, d, height, width]`: one node in a graph of torch.fx."""
    q, k, v = qkv.flatten(4).unbind(1)  # [b, h, d, n] each
    # In half precision the softmax over many positions would underflow.
    accumulator_dtype = torch.promote_types(k.dtype, torch.float32)
    with no_autocast(x.device.type):
        summary = k.to(accumulator_dtype).softmax(-1) @ v.to(accumulator_dtype).mT  # [b, h, d, v]
        y = q.to(accumulator_dtype).softmax(-2).mT @ summary  # [b, h, n, v]
    return merge_heads(y.to(v.dtype), x)


class LinearAttention2d(SelfAttention2d):
    """Linear ("efficient") attention: time and memory are linear in the number of positions.

    It has no position embeddings.

    `y[b,h,n] = softmax_d(q[n]) . sum_m softmax_m(k[m]) v[m]` in each head h: keys are normalised over the
    positions in each channel, queries over the channels of the head at each position. Projections have no
    bias and no norm. Parameters: 3 * dim * dim_out weights.

    Args:
        dim: Channels of the input.
        dim_out: Channels of the output; `dim` by default.
        num_heads: Heads, a divisor of `dim_out`.
        device: Device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        ValueError: If an argument is out of range, or arguments contradict each other.

    Differences from the source:
        The layer replaces a convolution in a block: the convolution that mixes the heads is the one that
        follows in the block, and the residual connection is that of the block.

    References:
        Efficient Attention: Attention with Linear Complexities (Shen et al., 2018), section 3.

    Example:
        >>> layer = LinearAttention2d(32, num_heads=4)
        >>> layer(torch.randn(2, 32, 14, 14)).shape
        torch.Size([2, 32, 14, 14])
    """

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        *,
        num_heads: int = 8,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, dim_out, num_heads)
        self.projections = Projections(dim, self.dim_out, num_heads, device=device, dtype=dtype)
        self.reset_parameters()

    def _attend(self, x: Tensor) -> Tensor:
        return _linear_attention(self.projections(x), x)
