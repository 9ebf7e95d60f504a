"""What the attention modules share: their frame, projections, relative logits, attention under a bias."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .folding import foldable, project
from .layout import ordered_gradient


@torch.fx.wrap
def _checked(x: Tensor, dim: int) -> Tensor:
    if x.ndim != 4 or x.shape[1] != dim:
        raise ValueError(f"x must be of shape (b {dim} h w), got {tuple(x.shape)}")
    return x


torch.fx.wrap("ordered_gradient")


class Projections(nn.Module):
    """Queries, keys and values of all heads by one 1x1 convolution without bias: 3 * dim * dim_out weights.

    Args:
        dim: Channels of the input.
        dim_out: Channels of queries, of keys and of values.
        num_heads: Heads h, a divisor of `dim_out`; the depth of each is d = dim_out / h.
        batch_norm: Whether a batch norm follows.
        device: Device of the parameters.
        dtype: Element type of the parameters.
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
        """Fan-in, so that queries, keys and values have the variance of the input."""
        nn.init.normal_(self.conv.weight, std=self.dim**-0.5)
        if self.norm is not None:
            self.norm.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Project.

        Args:
            x: Input of shape (b dim height width).

        Returns:
            Queries, keys and values, of shape (b 3 h d height width).

        Raises:
            ValueError: If the shape of `x` is another.
        """
        x = _checked(x, self.dim)
        if self.norm is None:
            y = self.conv(x)
        elif foldable(x, [self.conv], [self.norm]):
            (y,) = project(x, [(self.conv.weight, self.conv.bias, self.norm)])
        else:
            y = ordered_gradient(self.norm(self.conv(x)))
        return y.unflatten(1, (3, self.num_heads, -1))


class SelfAttention2d(nn.Module):
    """What the self-attention modules on images share; each says in `_attend` how positions are mixed.

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
        for name, size in {"dim": dim, "dim_out": self.dim_out, "num_heads": num_heads}.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if self.dim_out % num_heads:
            raise ValueError(f"dim_out must be a multiple of num_heads={num_heads}, got {self.dim_out}")
        self.dim_head = self.dim_out // num_heads

    def reset_parameters(self) -> None:
        """Fan-in for the projections, fresh norms, N(0, 1/d) for the embeddings."""
        for part in self.children():
            assert isinstance(part, Projections | nn.BatchNorm2d)
            part.reset_parameters()
        for positions in self.parameters(recurse=False):
            nn.init.normal_(positions, std=self.dim_head**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Attend.

        Args:
            x: Input of shape (b dim height width), any height and width.

        Returns:
            Tensor of shape (b dim_out height width), in the memory format of `x`.

        Raises:
            ValueError: If the shape of `x` is another.
        """
        return self._attend(x)

    def _attend(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{self.dim}, {self.dim_out}, num_heads={self.num_heads}"


def offsets_table(table: Tensor, length: int) -> Tensor:
    """The embeddings of all offsets on one axis of a grid.

    Args:
        table: Embeddings of shape (2 * grid - 1, d), the offset 0 in the middle. A longer table gives its
            middle; beyond a shorter one there is nothing (zeros).
        length: Positions on the axis.

    Returns:
        Tensor of shape (length length d): entry i j is that of the offset j - i.
    """
    place = torch.arange(length, device=table.device)
    entry = place[None, :] - place[:, None] + len(table) // 2
    found = (entry >= 0) & (entry < len(table))
    return table[entry.clamp(0, len(table) - 1)] * found[..., None]


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k^T + bias) v, with the whole attention map in memory.

    With gradients the three steps are written out: PyTorch's attention falls back to them where the bias
    wants a gradient, with passes over the map that nothing here needs. Without, its fused kernel is faster.

    Args:
        q: Scaled queries of shape (b h n d).
        k: Keys of shape (b h m d).
        v: Values of shape (b h m d).
        bias: Position logits of shape (b h n m).

    Returns:
        Tensor of shape (b h n d).
    """
    if not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=1.0)
    logits = torch.baddbmm(bias.flatten(0, 1), q.flatten(0, 1), k.flatten(0, 1).mT)
    return torch.bmm(logits.softmax(-1), v.flatten(0, 1)).unflatten(0, q.shape[:2])
