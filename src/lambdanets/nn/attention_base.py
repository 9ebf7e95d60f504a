"""Base class and helpers of the self-attention modules: projections, relative positions, attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .fuse_batch_norm import can_fuse, project_fused
from .memory_format import match_gradient_format


@torch.fx.wrap
def _checked(x: Tensor, dim: int) -> Tensor:
    """Return `x`; raise ValueError unless it is `[b, dim, h, w]`."""
    if x.ndim != 4 or x.shape[1] != dim:
        raise ValueError(f"x must be of shape (b {dim} h w), got {tuple(x.shape)}")
    return x


torch.fx.wrap("match_gradient_format")


class Projections(nn.Module):
    """Projection to queries, keys and values of all heads: a 1x1 convolution without bias.

    It has 3 * dim * dim_out weights.

    Args:
        dim: Channels of the input.
        dim_out: Channels of the queries; keys and values have as many.
        num_heads: Heads h, a divisor of `dim_out`; the depth of each head is d = dim_out / h.
        batch_norm: Whether a batch norm follows.
        device: Device of the parameters.
        dtype: dtype of the parameters.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        num_heads: int,
        *,
        batch_norm: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.dim_out, self.num_heads = dim, dim_out, num_heads
        self.conv = nn.Conv2d(dim, 3 * dim_out, 1, bias=False, device=device, dtype=dtype)
        self.norm = nn.BatchNorm2d(3 * dim_out, device=device, dtype=dtype) if batch_norm else None

    def reset_parameters(self) -> None:
        """Initialise with standard deviation dim^-1/2, so that outputs have the variance of the input."""
        nn.init.normal_(self.conv.weight, std=self.dim**-0.5)
        if self.norm is not None:
            self.norm.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Return queries, keys and values.

        Args:
            x: Input `[b, dim, height, width]`.

        Returns:
            Tensor `[b, 3, h, d, height, width]`.

        Raises:
            ValueError: If `x` has another shape.
        """
        x = _checked(x, self.dim)
        if self.norm is None:
            y = self.conv(x)
        elif can_fuse(x, [self.conv], [self.norm]):
            (y,) = project_fused(x, [(self.conv.weight, self.conv.bias, self.norm)])
        else:
            y = match_gradient_format(self.norm(self.conv(x)))
        return y.unflatten(1, (3, self.num_heads, -1))


def check_sizes(dim: int, dim_out: int, num_heads: int) -> int:
    """Return the depth of a head, dim_out / num_heads.

    Raises:
        ValueError: If a size is below 1, or `num_heads` does not divide `dim_out`.
    """
    for name, size in {"dim": dim, "dim_out": dim_out, "num_heads": num_heads}.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    if dim_out % num_heads:
        raise ValueError(f"dim_out must be a multiple of num_heads={num_heads}, got {dim_out}")
    return dim_out // num_heads


class SelfAttention2d(nn.Module):
    """Base class of the self-attention modules on images; subclasses implement `_attend`.

    Args:
        dim: Channels of the input.
        dim_out: Channels of the output; `dim` if None.
        num_heads: Heads, a divisor of `dim_out`.

    Raises:
        ValueError: If a size is below 1, or `num_heads` does not divide `dim_out`.
    """

    def __init__(self, dim: int, dim_out: int | None, num_heads: int) -> None:
        super().__init__()
        self.dim, self.dim_out, self.num_heads = dim, dim if dim_out is None else dim_out, num_heads
        self.dim_head = check_sizes(self.dim, self.dim_out, num_heads)

    def reset_parameters(self) -> None:
        """Initialise projections and norms by their methods, embeddings with standard deviation d^-1/2."""
        for module in self.children():
            assert isinstance(module, Projections | nn.BatchNorm2d)
            module.reset_parameters()
        for positions in self.parameters(recurse=False):
            nn.init.normal_(positions, std=self.dim_head**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            x: Input `[b, dim, height, width]`, of any height and width.

        Returns:
            Output `[b, dim_out, height, width]`, in the memory format of `x`.

        Raises:
            ValueError: If `x` has another number of axes or channels.
        """
        return self._attend(x)

    def _attend(self, x: Tensor) -> Tensor:
        """Return the output of the layer, `[b, dim_out, height, width]`."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{self.dim}, {self.dim_out}, num_heads={self.num_heads}"


def pairwise_embeddings(table: Tensor, length: int) -> Tensor:
    """Return the embedding of the offset between each pair of positions on one axis.

    Args:
        table: Embeddings `[2 * grid - 1, d]`, with offset 0 in the middle. Of a longer table only the middle
            is used; offsets beyond a shorter one get zeros.
        length: Number of positions on the axis.

    Returns:
        Tensor `[length, length, d]`; entry `[i, j]` is the embedding of the offset j - i.
    """
    position = torch.arange(length, device=table.device)
    index = position[None, :] - position[:, None] + len(table) // 2
    in_table = (index >= 0) & (index < len(table))
    return table[index.clamp(0, len(table) - 1)] * in_table[..., None]


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Return softmax(q k^T + bias) v; the complete attention map is in memory.

    With gradients, the three steps are separate operations: PyTorch's attention also falls back to them where
    the bias requires a gradient, and then makes additional passes over the map. Without gradients, its fused
    kernel is faster.

    Args:
        q: Scaled queries `[b, h, n, d]`.
        k: Keys `[b, h, m, d]`.
        v: Values `[b, h, m, d]`.
        bias: Position logits `[b, h, n, m]`.

    Returns:
        Tensor `[b, h, n, d]`.
    """
    if not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=1.0)
    logits = torch.baddbmm(bias.flatten(0, 1), q.flatten(0, 1), k.flatten(0, 1).mT)  # [b * h, n, m]
    return torch.bmm(logits.softmax(-1), v.flatten(0, 1)).unflatten(0, q.shape[:2])
