"""Linear attention: a lambda layer of content alone, with a lambda of its own for each head."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.matmul import no_autocast
from .attending import Projections, SelfAttention2d
from .layout import to_channels


@torch.fx.wrap
def _operate(qkv: Tensor, x: Tensor) -> Tensor:
    """Compute the output from projections (b 3 h d height width): one node in a graph of torch.fx."""
    q, k, v = qkv.flatten(4).unbind(1)  # b h d n
    # In half precision the weights of many positions would vanish.
    wide = torch.promote_types(k.dtype, torch.float32)
    with no_autocast(x.device.type):
        summary = k.to(wide).softmax(-1) @ v.to(wide).mT  # b h d v
        y = q.to(wide).softmax(-2).mT @ summary
    return to_channels(y.to(v.dtype), x)


class LinearAttention2d(SelfAttention2d):
    """Attention in time and memory linear in the positions, without positions (efficient attention).

    `y[b,h,n] = softmax_d(q[n]) . sum_m softmax_m(k[m]) v[m]` in each head h: keys are normalised over the
    positions in each channel, queries over the channels of the head at each position. Projections have no
    bias and no norm. Parameters: 3 * dim * dim_out weights.

    Args:
        dim: Channels of the input.
        dim_out: Channels of the output; `dim` by default.
        num_heads: Heads, a divisor of `dim_out`.
        device: Device of the parameters.
        dtype: Element type of the parameters.

    Raises:
        ValueError: If the arguments do not fit together.

    Differences from the source: it takes the place of a convolution, so the convolution that mixes the heads
    is the one that follows in the block and the residual connection is the block's.

    References:
        Efficient Attention: Attention with Linear Complexities (Shen et al., 2018), section 3.
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
        return _operate(self.projections(x), x)
