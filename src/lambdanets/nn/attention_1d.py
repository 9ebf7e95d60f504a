"""Softmax attention on sequences with rotary positions, and its state: keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .pointwise import Linear
from .sequence_layer import SequenceLayer
from .states import SequenceState

_COMPLETE_MAP = 256
"""Keys up to which a CPU computes the complete attention map, in two batched products. PyTorch's fused kernel
makes a product for each head, which is slow where oneDNN computes it (float32 of "medium" precision)."""
_QUERY_CHUNK = 256
"""Queries that share one mask, where a mask is needed: its memory is linear in the number of positions."""
_ROTATIONS = 256
"""Positions whose rotations are computed at once, so that a step seldom computes any."""
_CLAIM = Lock()
"""Of all buffers: one in each could not be copied or pickled."""


class _Buffer:
    """Memory for keys, values and positions, of which the first `used` belong to a state."""

    def __init__(self, like: AttentionState, capacity: int) -> None:
        b, h, _, d = like.keys.shape
        self.keys = like.keys.new_empty(b, h, capacity, d)
        self.values = torch.empty_like(self.keys)
        if like.start is None:
            self.positions = like.positions.new_empty(b, capacity)
        else:  # written now, so that no step needs to
            columns = torch.arange(like.start, like.start + capacity, device=like.keys.device)
            self.positions = columns.repeat(b, 1)
        self.capacity, self.used = capacity, 0

    def claim(self, begin: int, count: int) -> bool:
        """Take the places from `begin` on; False if there are too few, or another state has taken them."""
        with _CLAIM:
            free = self.used == begin and begin + count <= self.capacity
            self.used += count if free else 0
        return free

    def write(self, begin: int, keys: Tensor, values: Tensor, positions: Tensor | None) -> None:
        end = begin + keys.shape[2]
        self.keys[:, :, begin:end] = keys
        self.values[:, :, begin:end] = values
        if positions is not None:
            self.positions[:, begin:end] = positions


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionState(SequenceState):
    """State of causal attention: the keys and values so far, with a window only those that are still seen.

    States that follow each other share a buffer, which grows by doubling, so that a step copies only its own
    key and value. A state whose buffer another one has extended already is copied when it is continued.

    Attributes:
        keys: Rotated keys `[b, h, m, d]`.
        values: Values `[b, h, m, d]`.
        positions: Position of each key `[b, m]`, int64; -1 for one that does not belong to the sequence.
    """

    initial_values: ClassVar[dict[str, float]] = {"positions": -1}
    integers: ClassVar[frozenset[str]] = frozenset({"length", "positions"})

    keys: Tensor
    values: Tensor
    positions: Tensor

    @property
    def start(self) -> int | None:
        """Position of the first key if all rows are alike and have no gap up to `length`; else None."""
        if torch.compiler.is_compiling():  # a graph cannot depend on it
            return None
        if "_start" not in self.__dict__:
            m = self.keys.shape[2]
            start = int(self.length[0]) - m if self.batch else 0
            expected = torch.arange(start, start + m + 1, device=self.length.device)
            alike = torch.cat([self.positions, self.length[:, None]], 1) == expected
            self.__dict__["_start"] = start if bool(alike.all()) else None
        return self.__dict__["_start"]

    def append(
        self, keys: Tensor, values: Tensor, positions: Tensor | None, length: Tensor, window: int | None
    ) -> AttentionState:
        """Return the state with n more keys.

        Args:
            keys: Keys `[b, h, n, d]`.
            values: Values `[b, h, n, d]`.
            positions: Their positions `[b, n]`; None if `start` is known and they follow without a gap.
            length: The new length `[b]`.
            window: Window of the layer: keys that no later query sees may be dropped.
        """
        m, n = self.keys.shape[2], keys.shape[2]
        start = self.start if positions is None else None
        tracked = torch.is_grad_enabled() and (keys.requires_grad or self.keys.requires_grad)
        if tracked or torch.compiler.is_compiling():
            if positions is None:
                assert start is not None
                columns = torch.arange(start + m, start + m + n, device=keys.device)
                positions = columns.expand(keys.shape[0], n)
            return _state(
                torch.cat([self.keys, keys], 2),
                torch.cat([self.values, values], 2),
                torch.cat([self.positions, positions], 1),
                length,
                start=start,
            )
        buffer, end = self.__dict__.get("_buffer", (None, 0))
        if (
            buffer is None
            or (buffer.keys.is_inference() and not torch.is_inference_mode_enabled())
            or not buffer.claim(end, n)
        ):
            kept = self if self.start is not None else self._without_unseen(window)
            m = end = kept.keys.shape[2]
            buffer = _Buffer(kept, capacity=2 * (m + n))
            buffer.claim(0, m + n)
            buffer.write(0, kept.keys, kept.values, kept.positions)
            start = kept.start if positions is None else None
        buffer.write(end, keys, values, positions)
        part = slice(end - m, end + n)
        return _state(
            buffer.keys[:, :, part],
            buffer.values[:, :, part],
            buffer.positions[:, part],
            length,
            start=start,
            buffer=(buffer, end + n),
        )

    def last(self, count: int) -> AttentionState:
        """Return the state with the last `count` keys."""
        dropped = self.keys.shape[2] - count
        if dropped <= 0:
            return self
        start = self.start
        return _state(
            self.keys[:, :, dropped:],
            self.values[:, :, dropped:],
            self.positions[:, dropped:],
            self.length,
            start=None if start is None else start + dropped,
            buffer=self.__dict__.get("_buffer"),
        )

    def _without_unseen(self, window: int | None) -> AttentionState:
        """Return the state without the first keys, as far as no row sees them any more."""
        oldest = 0 if window is None else (self.length - window + 1).clamp(min=0)[:, None]
        seen = (self.positions >= oldest).any(0)
        m = len(seen)
        return self.last(m - int(seen.int().argmax()) if bool(seen.any()) else 0)


def _state(
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    length: Tensor,
    *,
    start: int | None,
    buffer: tuple[_Buffer, int] | None = None,
) -> AttentionState:
    """Return a state of which is known whether its rows are alike, and which buffer it is in, up to where."""
    state = AttentionState(keys=keys, values=values, positions=positions, length=length)
    state.__dict__["_start"] = start
    if buffer is not None:
        state.__dict__["_buffer"] = buffer
    return state


class Attention1d(SequenceLayer):
    """Softmax attention on sequences, causal or not, with rotary positions.

    `y[b,h,n] = sum_m softmax_m(R(n) q[n] . R(m) k[m] / sqrt(d)) v[m]` in each head h of depth d. R(n) rotates
    the channels i and i + d/2 by the angle n * base^(-2i/d): logits depend on the distance n - m alone. The
    projection has no bias: 3 * dim * dim_out weights.

    Args:
        dim: Channels of the input.
        dim_out: Channels of the output, a multiple of 2 * `num_heads`; `dim` by default.
        num_heads: Heads.
        causal: Whether each position sees only itself and earlier positions.
        gate: Whether the output is multiplied by the SiLU of a projection of the input.
        window: Positions that a query sees: itself and the `window - 1` before it, or with `causal=False`,
            where it must be odd, as many on either side. All positions by default.
        base: Base of the rotary angles.
        device: Device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        ValueError: If an argument is out of range, or arguments contradict each other.

    References:
        RoFormer: Enhanced Transformer with Rotary Position Embedding (Su et al., 2021).

    Example:
        >>> layer = Attention1d(64, num_heads=4)
        >>> x = torch.randn(2, 64, 100)
        >>> y, state = layer(x, return_state=True)
        >>> y.shape, state.keys.shape
        (torch.Size([2, 64, 100]), torch.Size([2, 4, 100, 16]))
        >>> y_t, state = layer.step(torch.randn(2, 64), state)
        >>> y_t.shape
        torch.Size([2, 64])
    """

    state_type = AttentionState

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        *,
        num_heads: int = 4,
        causal: bool = True,
        gate: bool = False,
        window: int | None = None,
        base: float = 10_000.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            dim, dim_out, num_heads=num_heads, causal=causal, gate=gate, device=device, dtype=dtype
        )
        if self.dim_head % 2:
            raise ValueError(
                f"rotary positions need an even depth of the heads, got dim_out / num_heads = {self.dim_head}"
            )
        if window is not None and (window < 1 or (not causal and window % 2 == 0)):
            needed = "at least 1" if causal else "odd with causal=False"
            raise ValueError(f"window must be {needed}, got {window}")
        if base <= 0:
            raise ValueError(f"base must be above 0, got {base}")
        self.window, self.base = window, base
        self.projection = Linear(dim, 3 * self.dim_out, bias=False, device=device, dtype=dtype)
        self._rotations: tuple[int, Tensor] | None = None
        self.reset_parameters()

    def _state_shapes(self, batch: int, state: SequenceState | None) -> dict[str, tuple[int, ...]]:
        m = state.keys.shape[2] if isinstance(state, AttentionState) else 0
        heads = (batch, self.num_heads, m, self.dim_head)
        return {"keys": heads, "values": heads, "positions": (batch, m)}

    def _apply_rows(
        self, x: Tensor, state: AttentionState | None, lengths: Tensor | None, return_state: bool
    ) -> tuple[Tensor, AttentionState | None]:
        b, n, _ = x.shape
        qkv = self.projection(x).unflatten(-1, (3, self.num_heads, self.dim_head))  # [b, n, 3, h, d]
        start = 0 if state is None else state.start
        m = 0 if state is None else state.keys.shape[2]
        if start is not None and (lengths is None or (self.causal and not return_state)):
            # All rows are alike; elements after the end of a row are later than all that a query sees.
            positions = own = None
            q, k = self._rotate(qkv, self._rotations_from(start + m, n, qkv))
        else:
            columns = torch.arange(n, device=x.device)
            positions = columns.expand(b, n) if state is None else state.length[:, None] + columns  # [b, n]
            own = positions if lengths is None else positions.masked_fill(columns >= lengths[:, None], -1)
            q, k = self._rotate(qkv, self._rotations_at(positions, qkv))
        v = qkv[:, :, 2].transpose(1, 2)  # [b, h, n, d]
        after = None
        if state is not None or return_state:
            length = torch.full_like(x[:, 0, 0], n, dtype=torch.int64) if lengths is None else lengths
            length = length if state is None else state.length + length
            dtype = self.projection.weight.dtype  # under autocast keys are of another one
            after = self._extended(state, k.to(dtype), v.to(dtype), own, length)
            k, v = after.keys.to(q.dtype), after.values.to(q.dtype)
        if own is None or positions is None:
            y = self._attend(q, k, v)
        else:
            seen = own if after is None else after.positions
            visible = self._visible(positions[:, :, None] - seen[:, None, :]) & (seen >= 0)[:, None, :]
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=visible[:, None])
        if after is not None and self.window is not None and after.start is not None:
            after = after.last(self.window - 1)
            if n >= self.window:
                # Views would keep the keys and values of all n positions in memory.
                keys, values, positions = after.keys.clone(), after.values.clone(), after.positions.clone()
                after = _state(keys, values, positions, after.length, start=after.start)
        return y.transpose(1, 2).flatten(2), after

    def _step(self, x: Tensor, state: AttentionState) -> tuple[Tensor, AttentionState]:
        y, after = self._apply_rows(x[:, None], state, None, True)
        assert after is not None
        return y[:, 0], after

    def _extended(
        self, state: AttentionState | None, k: Tensor, v: Tensor, positions: Tensor | None, length: Tensor
    ) -> AttentionState:
        """Return the state with keys and values `[b, h, n, d]`; see `AttentionState.append`."""
        if state is not None:
            return state.append(k, v, positions, length, self.window)
        if positions is not None:
            return _state(k, v, positions, length, start=None)
        columns = torch.arange(k.shape[2], device=k.device)
        return _state(k, v, columns.expand(k.shape[0], -1), length, start=0)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the output `[b, h, n, d]` of queries `[b, h, n, d]`, which are the last of m positions."""
        n, m = q.shape[2], k.shape[2]
        if n > 1 and m <= _COMPLETE_MAP and q.device.type == "cpu":
            keys = torch.arange(m, device=q.device)
            hidden = ~self._visible(keys[m - n :, None] - keys)  # [n, m]
            bias = q.new_zeros(n, m).masked_fill_(hidden, -torch.inf)
            scaled = q.flatten(0, 1) * self.dim_head**-0.5
            logits = torch.baddbmm(bias, scaled, k.flatten(0, 1).mT)  # [b * h, n, m]
            return torch.bmm(logits.softmax(-1), v.flatten(0, 1)).unflatten(0, q.shape[:2])
        if self.window is None or self.window >= m:
            if n == 1 or not self.causal:
                return F.scaled_dot_product_attention(q, k, v)
            if n == m:
                return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        before, after = self._reach(m)
        parts = []
        for begin in range(m - n, m, _QUERY_CHUNK):
            end = min(begin + _QUERY_CHUNK, m)
            first, last = max(0, begin - before), min(m, end + after)
            queries = torch.arange(begin, end, device=q.device)
            keys = torch.arange(first, last, device=q.device)
            parts.append(
                F.scaled_dot_product_attention(
                    q[:, :, begin - m + n : end - m + n],
                    k[:, :, first:last],
                    v[:, :, first:last],
                    attn_mask=self._visible(queries[:, None] - keys),
                )
            )
        return parts[0] if len(parts) == 1 else torch.cat(parts, 2)

    def _reach(self, m: int) -> tuple[int, int]:
        """Return how many positions before and after its own a query sees, of m positions."""
        if self.causal:
            return m if self.window is None else self.window - 1, 0
        return (m, m) if self.window is None else (self.window // 2, self.window // 2)

    def _visible(self, distance: Tensor) -> Tensor:
        """Return whether a query sees a key, by the distance from the key to the query."""
        if self.causal:
            visible = distance >= 0
            return visible if self.window is None else visible & (distance < self.window)
        if self.window is None:
            return torch.ones_like(distance, dtype=torch.bool)
        return distance.abs() <= self.window // 2

    def _rotate(self, qkv: Tensor, rotations: Tensor) -> tuple[Tensor, Tensor]:
        """Return rotated queries and keys `[b, h, n, d]`.

        Args:
            qkv: Queries, keys and values `[b, n, 3, h, d]`.
            rotations: Factors of a channel and of the one half a head away, `[2, n, d]` or `[2, b, n, d]`.
        """
        qk = qkv[:, :, :2]
        own, other = rotations[..., None, None, :].unbind()
        rotated = torch.addcmul(qk * own, qk.roll(self.dim_head // 2, -1), other)  # [b, n, 2, h, d]
        q, k = rotated.permute(2, 0, 3, 1, 4)
        return q, k

    def _rotations_at(self, positions: Tensor, like: Tensor) -> Tensor:
        """Return the factors of `_rotate` at positions `[*shape]`, `[2, *shape, d]`, computed in float64."""
        exponents = torch.arange(0, self.dim_head, 2, dtype=torch.float64, device=positions.device)
        angles = positions[..., None] * self.base ** (-exponents / self.dim_head)  # [*shape, d / 2]
        cos, sin = angles.cos(), angles.sin()
        return torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)]).to(like.dtype)

    def _rotations_from(self, start: int, n: int, like: Tensor) -> Tensor:
        """Return the factors of `_rotate` at n positions from `start`, `[2, n, d]`."""
        if torch.compiler.is_compiling():
            return self._rotations_at(torch.arange(start, start + n, device=like.device), like)
        first, cached = self._rotations or (0, None)
        if (
            cached is None
            or not first <= start <= start + n <= first + cached.shape[1]
            or (cached.dtype, cached.device) != (like.dtype, like.device)
        ):
            # A later call with gradients must not get a tensor of inference mode.
            with torch.inference_mode(False), torch.no_grad():
                first = start
                stop = start + max(n, _ROTATIONS)
                cached = self._rotations_at(torch.arange(start, stop, device=like.device), like)
            self._rotations = first, cached
        return cached[:, start - first : start - first + n]

    def extra_repr(self) -> str:
        window = "" if self.window is None else f", window={self.window}"
        return f"{super().extra_repr()}, num_heads={self.num_heads}{window}"
