"""Linear attention on sequences: a sum of outer products of keys and values, with a normaliser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lambdanets.ops.matmul import no_autocast

from .pointwise import Linear
from .sequence_layer import SequenceLayer
from .states import SequenceState

_CHUNK = 64
"""Positions whose pairs are computed directly; earlier positions contribute through their sum."""
_EPS = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearAttentionState(SequenceState):
    """State of causal linear attention, of a size that does not grow with the sequence.

    Attributes:
        summary: Sum of the products of features of keys and values `[b, h, d, d]`.
        normaliser: Sum of the features of keys `[b, h, d]`.
    """

    accumulators: ClassVar[frozenset[str]] = frozenset({"summary", "normaliser"})

    summary: Tensor
    normaliser: Tensor


class LinearAttention1d(SequenceLayer):
    """Linear attention on sequences, causal or not; it has no positions beyond the order.

    `y[b,h,n] = sum_m (f(q[n]) . f(k[m])) v[m] / sum_m f(q[n]) . f(k[m])` in each head h of depth d, with the
    feature map f(x) = elu(x) + 1. Sums are float32 at least. The projection has no bias: 3 * dim * dim_out
    weights.

    Args:
        dim: Channels of the input.
        dim_out: Channels of the output, a multiple of `num_heads`; `dim` by default.
        num_heads: Heads.
        causal: Whether each position sees only itself and earlier positions.
        gate: Whether the output is multiplied by the SiLU of a projection of the input.
        device: Device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        ValueError: If an argument is out of range, or arguments contradict each other.

    References:
        Transformers are RNNs (Katharopoulos et al., 2020).

    Example:
        >>> layer = LinearAttention1d(64, num_heads=4)
        >>> y, state = layer(torch.randn(2, 64, 100), return_state=True)
        >>> y_t, state = layer.step(torch.randn(2, 64), state)
        >>> y.shape, y_t.shape, state.summary.shape
        (torch.Size([2, 64, 100]), torch.Size([2, 64]), torch.Size([2, 4, 16, 16]))
    """

    state_type = LinearAttentionState

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        *,
        num_heads: int = 4,
        causal: bool = True,
        gate: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            dim, dim_out, num_heads=num_heads, causal=causal, gate=gate, device=device, dtype=dtype
        )
        self.projection = Linear(dim, 3 * self.dim_out, bias=False, device=device, dtype=dtype)
        self.reset_parameters()

    def _state_shapes(self, batch: int, state: SequenceState | None) -> dict[str, tuple[int, ...]]:
        h, d = self.num_heads, self.dim_head
        return {"summary": (batch, h, d, d), "normaliser": (batch, h, d)}

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return features of queries and keys, and values, `[b, *n, h, d]` each, in the accumulator dtype."""
        qkv = self.projection(x).unflatten(-1, (3, self.num_heads, self.dim_head))  # [b, *n, 3, h, d]
        qkv = qkv.to(torch.promote_types(qkv.dtype, torch.float32))
        q, k = (F.elu(qkv[..., :2, :, :]) + 1).unbind(-3)
        return q, k, qkv[..., 2, :, :]

    def _apply_rows(
        self, x: Tensor, state: LinearAttentionState | None, lengths: Tensor | None, return_state: bool
    ) -> tuple[Tensor, LinearAttentionState | None]:
        n = x.shape[1]
        projected = self._project(x)
        q, k, v = (part.transpose(1, 2) for part in projected)  # [b, h, n, d]
        if lengths is not None:
            after_end = torch.arange(n, device=x.device) >= lengths[:, None]  # [b, n]
            k = k.masked_fill(after_end[:, None, :, None], 0)
        with no_autocast(x.device.type):
            if self.causal:
                y, summary, normaliser = _causal_linear_attention(q, k, v, state)
            else:
                summary, normaliser = k.mT @ v, k.sum(2)
                y = (q @ summary) / (q @ normaliser[..., None] + _EPS)
        y = y.to(x.dtype).transpose(1, 2).flatten(2)  # [b, n, h * d]
        if not return_state:
            return y, None
        length = torch.full((x.shape[0],), n, device=x.device) if lengths is None else lengths
        length = length if state is None else state.length + length
        return y, LinearAttentionState(summary=summary, normaliser=normaliser, length=length)

    def _step(self, x: Tensor, state: LinearAttentionState) -> tuple[Tensor, LinearAttentionState]:
        q, k, v = self._project(x)  # [b, h, d]
        summary = torch.addcmul(state.summary, k[..., None], v[..., None, :])
        normaliser = state.normaliser + k
        with no_autocast(x.device.type):
            y = (q[..., None, :] @ summary).squeeze(-2) / ((q * normaliser).sum(-1, keepdim=True) + _EPS)
        after = LinearAttentionState(summary=summary, normaliser=normaliser, length=state.length + 1)
        return y.to(x.dtype).flatten(1), after

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_heads={self.num_heads}"


def _causal_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, state: LinearAttentionState | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output `[b, h, n, d]`, and the sums after the last position, `[b, h, d, d]` and `[b, h, d]`.

    Args:
        q: Features of queries `[b, h, n, d]`.
        k: Features of keys `[b, h, n, d]`, zero where hidden.
        v: Values `[b, h, n, d]`.
        state: State before the first position, or None.
    """
    n = q.shape[2]
    chunk = min(_CHUNK, n)
    padding = (0, 0, 0, -n % chunk)
    q, k, v = (F.pad(part, padding).unflatten(2, (-1, chunk)) for part in (q, k, v))  # [b, h, c, chunk, d]
    summaries, normalisers = (k.mT @ v).cumsum(2), k.sum(3).cumsum(2)  # [b, h, c, d, d], [b, h, c, d]
    if state is not None:
        summaries = summaries + state.summary[:, :, None]
        normalisers = normalisers + state.normaliser[:, :, None]
        first, first_normaliser = state.summary, state.normaliser
    else:
        first, first_normaliser = torch.zeros_like(summaries[:, :, 0]), torch.zeros_like(normalisers[:, :, 0])
    before = torch.cat([first[:, :, None], summaries[:, :, :-1]], 2)
    normaliser = torch.cat([first_normaliser[:, :, None], normalisers[:, :, :-1]], 2)
    pairs = (q @ k.mT).tril()  # [b, h, c, chunk, chunk]
    y = pairs @ v + q @ before
    y = y / (pairs.sum(-1, keepdim=True) + q @ normaliser[..., None] + _EPS)
    # Copies: views would keep the sums of all chunks in memory.
    return y.flatten(2, 3)[:, :, :n], summaries[:, :, -1].clone(), normalisers[:, :, -1].clone()
