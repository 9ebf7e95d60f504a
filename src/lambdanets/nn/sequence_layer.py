"""Base class of the layers on sequences that the lambda layer is compared with: arguments, padding, states.

A subclass computes on rows that begin at position 0; the base class brings padded and packed sequences into
this form and back.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention_base import check_sizes
from .pointwise import Linear
from .recurrent import Recurrent, check_packing
from .rows import PaddedRows, apply_packed, check_boundaries
from .states import SequenceState


class SequenceLayer(Recurrent, nn.Module):
    """Base class: `[b, dim, n]` to `[b, dim_out, n]`, causal with a state, or not causal without one.

    A subclass implements `_apply_rows`, `_step`, `_state_shapes` and `reset_parameters`, which begins with
    that of this class.

    Args:
        dim: Channels of the input.
        dim_out: Channels of the output; `dim` if None.
        num_heads: Heads, a divisor of `dim_out`.
        causal: Whether each position sees only itself and earlier positions.
        gate: Whether the output is multiplied by the SiLU of a projection of the input.
        factory: device and dtype of the parameters.

    Raises:
        ValueError: If a size is below 1, or `num_heads` does not divide `dim_out`.
    """

    def __init__(
        self, dim: int, dim_out: int | None, *, num_heads: int = 1, causal: bool, gate: bool, **factory: Any
    ) -> None:
        super().__init__()
        self.dim, self.dim_out, self.num_heads = dim, dim if dim_out is None else dim_out, num_heads
        self.dim_head = check_sizes(self.dim, self.dim_out, num_heads)
        self.causal = causal
        self.to_gate = Linear(dim, self.dim_out, bias=False, **factory) if gate else None

    def reset_parameters(self) -> None:
        """Initialise projections with standard deviation dim^-1/2: outputs have the variance of the input."""
        for module in self.children():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=self.dim**-0.5)

    @overload
    def forward(
        self,
        x: Tensor,
        state: SequenceState | None = None,
        return_state: Literal[False] = False,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        x: Tensor,
        state: SequenceState | None = None,
        *,
        return_state: Literal[True],
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, SequenceState]: ...

    def forward(
        self,
        x: Tensor,
        state: SequenceState | None = None,
        return_state: bool = False,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, SequenceState]:
        """Apply the layer.

        Args:
            x: Input `[b, dim, n]`.
            state: State before the first position, of causal layers only. For packed sequences it has one row
                for each sequence. None is the initial state.
            return_state: Whether to return the state after the last position too.
            mask: Booleans `[b, n]`, True at elements, False at padding. Padding is before or after the
                elements of a row; it changes neither their outputs nor the state.
            cu_seqlens: Boundaries `[s + 1]` of s sequences in the only row of x, from 0 to n: nothing passes
                from one sequence to the next.

        Returns:
            Output `[b, dim_out, n]`, zero at padding; with `return_state` also the state.

        Raises:
            ValueError: If an argument has a wrong shape, or the layer is not causal and a state is needed.
        """
        if x.ndim != 3 or x.shape[1] != self.dim:
            raise ValueError(f"x must be of shape (b {self.dim} n), got {tuple(x.shape)}")
        if x.shape[2] == 0:
            raise ValueError(f"x has no positions: it is of shape {tuple(x.shape)}")
        if state is not None or return_state:
            self._require_causal("a state")
        check_packing(mask, cu_seqlens)
        rows = x.mT  # [b, n, dim]
        if mask is not None:
            y, after, rows = self._padded(rows, mask, state, return_state)
        elif cu_seqlens is not None:
            y, after = self._packed(rows, check_boundaries(cu_seqlens, x), state, return_state)
        else:
            y, after = self._apply_rows(rows, self._checked_state(state, x.shape[0]), None, return_state)
        y = self._gated(y, rows).mT
        if not return_state:
            return y
        assert after is not None
        return y, after

    def _gated(self, y: Tensor, x: Tensor) -> Tensor:
        """Return the output `[..., dim_out]` for the input `[..., dim]` after the gate."""
        return y if self.to_gate is None else y * F.silu(self.to_gate(x))

    def _padded(
        self, x: Tensor, mask: Tensor, state: SequenceState | None, return_state: bool
    ) -> tuple[Tensor, SequenceState | None, Tensor]:
        """Return output and state of padded rows `[b, n, dim]`, and the rows with zeros for their padding."""
        padded = PaddedRows.of(mask, x.mT)
        state = self._checked_state(state, x.shape[0])
        if not torch.compiler.is_compiling() and bool(mask.all()):
            return *self._apply_rows(x, state, None, return_state), x
        x = torch.where(mask[..., None], x, 0)
        y, after = self._apply_rows(padded.move_left(x), state, padded.lengths, return_state)
        return torch.where(mask[..., None], padded.move_back(y), 0), after, x

    def _packed(
        self, x: Tensor, bounds: list[int], state: SequenceState | None, return_state: bool
    ) -> tuple[Tensor, SequenceState | None]:
        """Return the output `[1, n, dim_out]` of a packed row, and the state with a row for each sequence."""
        state = self._checked_state(state, len(bounds) - 1)

        def apply(
            parts: list[Tensor], given: SequenceState | None, lengths: Tensor | None
        ) -> tuple[Tensor, SequenceState | None]:
            rows = parts[0]  # [s, longest, dim]
            if lengths is not None:
                inside = torch.arange(rows.shape[1], device=x.device) < lengths[:, None]
                rows = torch.where(inside[..., None], rows, 0)
            return self._apply_rows(rows, given, lengths, return_state)

        y, after = apply_packed([x[0]], bounds, state, self.initial_state, apply)
        return y[None], after

    def step(self, x_t: Tensor, state: SequenceState) -> tuple[Tensor, Any]:
        """Apply the layer to the next element of each sequence.

        Args:
            x_t: Input `[b, dim]`.
            state: State before the element.

        Returns:
            Output `[b, dim_out]` and the state after the element.

        Raises:
            ValueError: If the layer is not causal, or an argument does not fit the layer.
        """
        state = self._checked_before_step(x_t, state)
        y, after = self._step(x_t, state)
        return self._gated(y, x_t), after

    def _weight(self) -> Tensor:
        return next(self.parameters())

    def _apply_rows(
        self, x: Tensor, state: Any, lengths: Tensor | None, return_state: bool
    ) -> tuple[Tensor, SequenceState | None]:
        """Return the output `[b, n, dim_out]` and, if asked for, the state after `x` `[b, n, dim]`.

        Args:
            x: Input, zero after the end of each row.
            state: State before the first position, or None.
            lengths: Elements of each row `[b]`; None if all have n.
            return_state: Whether to compute the state.
        """
        raise NotImplementedError

    def _step(self, x: Tensor, state: Any) -> tuple[Tensor, SequenceState]:
        """Return the output `[b, dim_out]` and the state after `x` `[b, dim]`."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        gate = "" if self.to_gate is None else ", gate=True"
        return f"{self.dim}, {self.dim_out}, causal={self.causal}{gate}"
