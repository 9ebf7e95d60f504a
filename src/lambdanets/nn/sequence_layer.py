"""Base class of the layers on sequences that the lambda layer is compared with: arguments, padding, states.

A subclass computes on rows that begin at position 0; the base class brings masked and packed sequences into
this form and back.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, overload

import torch
from torch import Tensor, nn

from .attention_base import check_sizes
from .states import SequenceState


class SequenceRows:
    """The visible elements of masked or packed sequences, as rows that begin at position 0.

    Args:
        starts: First visible element of each row `[s]`, an index into the `b * n` elements of the input.
        lengths: Visible elements of each row `[s]`.
        shape: Batch b and length n of the input.
    """

    def __init__(self, starts: Tensor, lengths: Tensor, shape: tuple[int, int]) -> None:
        self.lengths, self._shape = lengths, shape
        columns = torch.arange(max(1, int(lengths.max())) if lengths.numel() else 1, device=starts.device)
        self._visible = columns < lengths[:, None]  # [s, longest]
        self._index = torch.where(self._visible, starts[:, None] + columns, 0)

    def gather(self, x: Tensor) -> Tensor:
        """Return the rows `[s, longest, c]` of `[b, n, c]`, with zeros after the end of each row."""
        return torch.where(self._visible[..., None], x.flatten(0, 1)[self._index], 0)

    def scatter(self, y: Tensor) -> Tensor:
        """Return `[b, n, c]` of rows `[s, longest, c]`, with zeros at hidden elements."""
        b, n = self._shape
        flat = y.new_zeros(b * n, y.shape[-1])
        return flat.index_put((self._index[self._visible],), y[self._visible]).unflatten(0, (b, n))


def rows_of_mask(mask: Tensor, x: Tensor) -> SequenceRows | None:
    """Return the rows of a mask `[b, n]`, True where visible; None if nothing is hidden.

    Raises:
        ValueError: If the mask has another shape or dtype, or a row has hidden elements between visible ones.
    """
    b, n = x.shape[0], x.shape[2]
    if mask.dtype != torch.bool or tuple(mask.shape) != (b, n):
        raise ValueError(
            f"mask must be a bool tensor of shape (b, n) = {(b, n)}, True where x may be seen; got "
            f"{mask.dtype} of shape {tuple(mask.shape)}"
        )
    if bool(mask.all()):
        return None
    lengths = mask.sum(1)
    first = mask.int().argmax(1)
    columns = torch.arange(n, device=mask.device)
    run = (columns >= first[:, None]) & (columns < (first + lengths)[:, None])
    holes = (run != mask).any(1)
    if bool(holes.any()):
        row = int(holes.int().argmax())
        raise ValueError(
            f"mask hides elements between visible ones in row {row}; a sequence may be padded at its "
            "beginning and its end only"
        )
    return SequenceRows(first + torch.arange(b, device=mask.device) * n, lengths, (b, n))


def rows_of_packed(cu_seqlens: Tensor, x: Tensor) -> SequenceRows:
    """Return the rows of packed sequences, whose boundaries are `cu_seqlens` `[s + 1]`, from 0 to n.

    Raises:
        ValueError: If the boundaries are not integers that rise from 0 to n, or `x` has several rows.
    """
    b, n = x.shape[0], x.shape[2]
    if b != 1:
        raise ValueError(
            f"cu_seqlens needs sequences packed into one row, x of shape (1, dim, n); got {b} rows"
        )
    if cu_seqlens.ndim != 1 or len(cu_seqlens) < 2 or cu_seqlens.is_floating_point():
        raise ValueError(
            "cu_seqlens must be a tensor of integers, the boundaries of the sequences from 0 to n; got "
            f"{cu_seqlens.dtype} of shape {tuple(cu_seqlens.shape)}"
        )
    bounds = cu_seqlens.to(x.device, torch.int64)
    lengths = bounds.diff()
    if int(bounds[0]) != 0 or int(bounds[-1]) != n or bool((lengths < 0).any()):
        raise ValueError(f"cu_seqlens must rise from 0 to n = {n}, got {cu_seqlens.tolist()}")
    return SequenceRows(bounds[:-1], lengths, (b, n))


class SequenceLayer(nn.Module):
    """Base class: `[b, dim, n]` to `[b, dim_out, n]`, causal with a state, or not causal without one.

    A subclass implements `_apply_rows`, `_step` and `_state_shapes`.

    Args:
        dim: Channels of the input.
        dim_out: Channels of the output; `dim` if None.
        num_heads: Heads, a divisor of `dim_out`.
        causal: Whether each position sees only itself and earlier positions.

    Raises:
        ValueError: If a size is below 1, or `num_heads` does not divide `dim_out`.
    """

    state_type: ClassVar[type[SequenceState]]

    def __init__(self, dim: int, dim_out: int | None, *, num_heads: int = 1, causal: bool) -> None:
        super().__init__()
        self.dim, self.dim_out, self.num_heads = dim, dim if dim_out is None else dim_out, num_heads
        self.dim_head = check_sizes(self.dim, self.dim_out, num_heads)
        self.causal = causal

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
            mask: Bool tensor `[b, n]`, True where an element is visible. Each row may be padded at its
                beginning and its end; padding does not change the state, and its outputs are zeros.
            cu_seqlens: Boundaries `[s + 1]` of s sequences that are packed in one row, from 0 to n.

        Returns:
            Output `[b, dim_out, n]`; with `return_state` also the state.

        Raises:
            ValueError: If an argument has a wrong shape, or the layer is not causal and a state is needed.
        """
        if x.ndim != 3 or x.shape[1] != self.dim:
            raise ValueError(f"x must be of shape (b {self.dim} n), got {tuple(x.shape)}")
        if x.shape[2] == 0:
            raise ValueError(f"x has no positions: it is of shape {tuple(x.shape)}")
        if state is not None or return_state:
            self._require_causal("a state")
        rows = None
        if cu_seqlens is not None:
            if mask is not None:
                raise ValueError("give mask or cu_seqlens, not both")
            rows = rows_of_packed(cu_seqlens, x)
        elif mask is not None:
            rows = rows_of_mask(mask, x)
        if state is not None:
            self._check_state(state, x.shape[0] if rows is None else len(rows.lengths), x.device)
        if rows is None:
            y, after = self._apply_rows(x.mT, state, None, return_state)
        else:
            y, after = self._apply_rows(rows.gather(x.mT), state, rows.lengths, return_state)
            y = rows.scatter(y)
        if not return_state:
            return y.mT
        assert after is not None
        return y.mT, after

    def initial_state(self, batch: int) -> SequenceState:
        """Return the state before the first element of `batch` sequences.

        Raises:
            ValueError: If the layer is not causal.
        """
        self._require_causal("a state")
        weight = next(self.parameters())
        values = self.state_type.initial_values
        tensors = {
            name: torch.full(
                (batch, *(max(size, 0) for size in shape)),
                values.get(name, 0),
                dtype=dtype,
                device=weight.device,
            )
            for name, (shape, dtype) in self._state_shapes(weight.dtype).items()
        }
        length = torch.zeros(batch, dtype=torch.int64, device=weight.device)
        return self.state_type(length=length, **tensors)

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
        self._require_causal("step")
        if x_t.ndim != 2 or x_t.shape[1] != self.dim:
            raise ValueError(f"x_t must be of shape (b {self.dim}), got {tuple(x_t.shape)}")
        self._check_state(state, x_t.shape[0], x_t.device)
        return self._step(x_t, state)

    def _require_causal(self, what: str) -> None:
        if not self.causal:
            raise ValueError(f"{what} needs a causal layer; this {type(self).__name__} has causal=False")

    def _check_state(self, state: SequenceState, batch: int, device: torch.device) -> None:
        """Raise ValueError unless a state is one of this layer for `batch` sequences."""
        if type(state) is not self.state_type:
            raise ValueError(
                f"state must be a {self.state_type.__name__} of {type(self).__name__}, got "
                f"{type(state).__name__}"
            )
        if state.batch != batch:
            raise ValueError(f"state is of {state.batch} sequences, but the input has {batch}")
        if state.length.device != device:
            raise ValueError(f"state is on {state.length.device}, but the input on {device}; use state.to")
        for name, (shape, dtype) in self._state_shapes(next(self.parameters()).dtype).items():
            tensor = getattr(state, name)
            if tensor.dtype != dtype:
                raise ValueError(f"state.{name} must be {dtype} as the layer is, got {tensor.dtype}")
            sizes = zip(tensor.shape[1:], shape, strict=False)
            if tensor.ndim != len(shape) + 1 or any(size != given >= 0 for size, given in sizes):
                raise ValueError(
                    f"state.{name} is of shape {tuple(tensor.shape)}: the state is of another layer than "
                    f"{self}"
                )

    def _state_shapes(self, dtype: torch.dtype) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return shape, without the batch, and dtype of each tensor of the state of a layer of some dtype.

        A size of -1 grows with the sequence.
        """
        raise NotImplementedError

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
        return f"{self.dim}, {self.dim_out}, causal={self.causal}"
