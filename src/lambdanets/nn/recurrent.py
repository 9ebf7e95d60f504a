"""The checks of a call with a state and the initial state, which all causal layers on sequences share."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from .states import SequenceState, check_state


class Recurrent:
    """Mixin of layers on sequences `[b, dim, n]` that have a state if they are causal.

    A layer sets `state_type`, `dim` and `causal`, and implements `_state_shapes` and `_weight`.
    """

    state_type: ClassVar[type[SequenceState]]
    dim: int
    causal: bool

    def initial_state(self, batch: int) -> Any:
        """Return the state before the first element of `batch` sequences.

        Raises:
            ValueError: If the layer is not causal.
        """
        self._require_causal("initial_state")
        weight = self._weight()
        return self.state_type.initial(batch, self._state_shapes(batch, None), weight.dtype, weight.device)

    def _state_shapes(self, batch: int, state: SequenceState | None) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the tensors that a state of this layer has, without `length`.

        Args:
            batch: Number of rows.
            state: A state, which gives the number of elements if shapes depend on it; None for the initial
                state.
        """
        raise NotImplementedError

    def _weight(self) -> Tensor:
        """Return a parameter, which has the dtype and the device of the layer."""
        raise NotImplementedError

    def _require_causal(self, what: str) -> None:
        """Raise ValueError unless the layer has a causal order, which alone has a state."""
        if not self.causal:
            raise ValueError(
                f"{what} needs a causal layer; this {type(self).__name__} has causal=False: create it with "
                "causal=True, since without an order each position sees the whole sequence"
            )

    def _checked_state(self, state: Any, batch: int) -> Any:
        """Return a state with which a call for a batch may begin, or None for None.

        It is a copy if autograd is to record the call and the state was made in `torch.inference_mode()`.

        Raises:
            ValueError: The state is not one of this layer for the batch.
        """
        if state is None:
            return None
        weight = self._weight()
        shapes = self._state_shapes(batch, state)
        check_state(state, self.state_type, batch, shapes, weight.dtype, weight.device)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling() and state.length.is_inference():
            return state.with_tensors({name: x.clone() for name, x in state.tensors().items()})
        return state

    def _checked_before_step(self, x_t: Any, state: Any) -> Any:
        """Return the state of a step with the input `x_t` `[b, dim]` as `_checked_state` does.

        Raises:
            ValueError: The layer is not causal, or an argument does not fit it.
        """
        self._require_causal("step")
        if x_t.ndim != 2 or x_t.shape[1] != self.dim:
            raise ValueError(f"x_t must be of shape (b {self.dim}), got {tuple(x_t.shape)}")
        if state is None:
            raise ValueError(f"step needs a state: begin with initial_state({len(x_t)})")
        return self._checked_state(state, x_t.shape[0])


def check_packing(mask: Tensor | None, cu_seqlens: Tensor | None) -> None:
    """Raise ValueError if a call has both padded and packed rows."""
    if mask is not None and cu_seqlens is not None:
        raise ValueError("cu_seqlens and mask exclude each other: a packed row has no padding")
