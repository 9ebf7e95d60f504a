"""Gated recurrent units on sequences."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .sequence_layer import SequenceLayer
from .states import SequenceState


@dataclass(frozen=True, kw_only=True, eq=False)
class GRUState(SequenceState):
    """State of a GRU.

    Attributes:
        hidden: The hidden state, which is also the last output, `[b, dim_out]`.
    """

    hidden: Tensor


class GRU1d(SequenceLayer):
    """Gated recurrent units on sequences, `torch.nn.GRU` with one layer.

    Without a causal order, half of the channels of the output run forwards and half backwards.

    Args:
        dim: Channels of the input.
        dim_out: Channels of the output; `dim` by default. It must be even with `causal=False`.
        causal: Whether each position sees only itself and earlier positions.
        gate: Whether the output is multiplied by the SiLU of a projection of the input.
        device: Device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        ValueError: If an argument is out of range, or arguments contradict each other.

    Example:
        >>> layer = GRU1d(64)
        >>> y, state = layer(torch.randn(2, 64, 100), return_state=True)
        >>> y_t, state = layer.step(torch.randn(2, 64), state)
        >>> y.shape, y_t.shape, state.hidden.shape
        (torch.Size([2, 64, 100]), torch.Size([2, 64]), torch.Size([2, 64]))
    """

    state_type = GRUState

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        *,
        causal: bool = True,
        gate: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, dim_out, causal=causal, gate=gate, device=device, dtype=dtype)
        if not causal and self.dim_out % 2:
            raise ValueError(f"causal=False needs an even dim_out, got {self.dim_out}")
        hidden = self.dim_out if causal else self.dim_out // 2
        self.gru = nn.GRU(dim, hidden, batch_first=True, bidirectional=not causal, device=device, dtype=dtype)
        super().reset_parameters()  # of the gate

    def reset_parameters(self) -> None:
        """Initialise the GRU as PyTorch does."""
        super().reset_parameters()
        self.gru.reset_parameters()

    def _state_shapes(self, batch: int, state: SequenceState | None) -> dict[str, tuple[int, ...]]:
        return {"hidden": (batch, self.dim_out)}

    def _apply_rows(
        self, x: Tensor, state: GRUState | None, lengths: Tensor | None, return_state: bool
    ) -> tuple[Tensor, GRUState | None]:
        n = x.shape[1]
        if not self.causal and lengths is not None:
            # A row without elements has one zero, whose output the caller drops.
            packed = pack_padded_sequence(x, lengths.clamp(min=1).cpu(), True, enforce_sorted=False)
            y, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=n)
            return y, None
        y, hidden = self.gru(x, None if state is None else state.hidden[None])
        if not return_state:
            return y, None
        if lengths is None:
            length, hidden = torch.full((x.shape[0],), n, device=x.device), hidden[0]
        else:
            first = x.new_zeros(x.shape[0], self.dim_out) if state is None else state.hidden
            length = lengths
            hidden = torch.cat([first[:, None], y], 1).take_along_dim(lengths[:, None, None], 1)[:, 0]
        length = length if state is None else state.length + length
        return y, GRUState(hidden=hidden.to(self.gru.all_weights[0][0].dtype), length=length)

    def _step(self, x: Tensor, state: GRUState) -> tuple[Tensor, GRUState]:
        hidden = torch.gru_cell(x, state.hidden, *self.gru.all_weights[0])
        return hidden, GRUState(hidden=hidden, length=state.length + 1)
