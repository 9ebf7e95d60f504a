"""States of causal sequence layers: what a layer has to know of the elements before a position.

A state is a value: a layer returns a new one and changes none. Its tensors have the batch as their first
axis, and take part in autograd, so that gradients pass from one call to the one before unless the state is
detached.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self, TypeVar

import torch
from torch import Tensor

from lambdanets.ops.hardware import log_norm_dtype

StateT = TypeVar("StateT", bound="SequenceState")
Rows = int | slice | Sequence[int] | Sequence[bool] | Tensor
"""Rows of a batch: one, a slice, several by number, or a bool for each row."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SequenceState:
    """Base of the states; a subclass adds fields that are tensors `[b, ...]`, None where a layer has none.

    Attributes:
        length: Elements before the next position, int64 `[b]`.
    """

    initial_values: ClassVar[dict[str, float]] = {}
    """Value of a field before the first element, where it is not 0."""
    accumulators: ClassVar[frozenset[str]] = frozenset()
    """Fields that are float32 at least, whatever the dtype of the layer is."""
    log_norms: ClassVar[frozenset[str]] = frozenset()
    """Fields that are float64, whatever the dtype of the layer is; float32 on devices without float64."""
    integers: ClassVar[frozenset[str]] = frozenset({"length"})
    """Fields that are int64."""

    length: Tensor

    @property
    def batch(self) -> int:
        """Number of rows."""
        return self.length.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(x.numel() * x.element_size() for x in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by the names of their fields, without those that are None."""
        return {name: x for name, x in vars(self).items() if isinstance(x, Tensor)}

    @classmethod
    def dtype_of(cls, name: str, dtype: torch.dtype, device: torch.device) -> torch.dtype:
        """Return the dtype of a field in the states of layers of a dtype on a device."""
        if name in cls.integers:
            return torch.int64
        if name in cls.log_norms:
            return log_norm_dtype(device.type)
        return torch.promote_types(dtype, torch.float32) if name in cls.accumulators else dtype

    @classmethod
    def initial(
        cls, batch: int, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, device: torch.device
    ) -> Self:
        """Return the state of a layer before the first element.

        Args:
            batch: Number of rows.
            shapes: Shapes of the tensors that the layer's states have, without `length`.
            dtype: dtype of the layer.
            device: Device of the layer.
        """
        tensors = {
            name: torch.full(
                shape, cls.initial_values.get(name, 0), dtype=cls.dtype_of(name, dtype, device), device=device
            )
            for name, shape in shapes.items()
        }
        return cls(length=torch.zeros(batch, dtype=torch.int64, device=device), **tensors)

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """Return a state with other tensors, by the names of `tensors()`."""
        return replace(self, **tensors)

    def _map(self, function: Callable[[str, Tensor], Tensor]) -> Self:
        """Return a state whose tensors are the results of a function of their names and tensors."""
        return self.with_tensors({name: function(name, x) for name, x in self.tensors().items()})

    def detach(self) -> Self:
        """Return the state without its history in autograd: gradients stop here."""
        return self._map(lambda _, x: x.detach())

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Return the state on a device and for layers of a dtype; sums keep the dtypes that they need.

        Args:
            device: The device; None keeps it. A dtype alone may be given in its place, as in `Tensor.to`.
            dtype: The dtype of the layer; None keeps it.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device

        target = self.length.device if device is None else torch.device(device)

        def convert(name: str, x: Tensor) -> Tensor:
            # The dtype first: a device without float64 takes no tensor of it.
            return x.to(self.dtype_of(name, x.dtype if dtype is None else dtype, target)).to(target)

        return self._map(convert)

    def select(self, rows: Rows) -> Self:
        """Return the state of some rows, in the given order; a row may occur several times, as in a beam."""
        index = self._index(rows)
        return self._map(lambda _, x: x[index])

    def reset(self, rows: Rows = slice(None)) -> Self:
        """Return the state with some rows, by default all, as before their first element."""
        index = self._index(rows)
        chosen = torch.zeros(self.batch, dtype=torch.bool, device=self.length.device)
        chosen[index] = True

        def clear(name: str, x: Tensor) -> Tensor:
            mask = chosen.view(-1, *[1] * (x.ndim - 1))
            return x.masked_fill(mask, self.initial_values.get(name, 0))

        return self._map(clear)

    def _index(self, rows: Rows) -> Tensor | slice:
        """Return rows as an index of the first axis that keeps the axis."""
        if isinstance(rows, slice):
            return rows
        given = torch.as_tensor(rows, device=self.length.device)
        if given.dtype == torch.bool and given.shape != (self.batch,):
            raise ValueError(
                f"rows as booleans need one for each of the {self.batch} rows, got shape {tuple(given.shape)}"
            )
        if given.numel() == 0:
            given = given.long()
        elif given.dtype != torch.bool and (given.is_floating_point() or given.ndim > 1):
            raise ValueError(f"rows must be an int, a slice, or a list of ints or booleans, got {rows!r}")
        return given.view(1) if given.ndim == 0 else given


@dataclass(frozen=True, kw_only=True, eq=False)
class LambdaState(SequenceState):
    """State of a causal lambda layer, of a size that does not grow with the sequence.

    Letters: b batch, g sets of keys (`key_heads`), k depth of keys, v depth of values, u intra-depth, r
    scope, d dilation.

    Attributes:
        log_norm: Logarithm of the divisor of the content lambda `[b, g, k, u]`, -infinity before the first
            element: for a softmax log sum exp(keys). It is float64, as it grows by about 1/n at position n.
            On devices without float64 it is float32, and 0.05 wrong after a million single steps. None
            without a content part or a normalisation.
        summary: The content lambda after the last element `[b, g, k, v, u]`, before its sum over u; None
            without a content part.
        values: The last values `[b, (r - 1) d, v, u]`, zeros before the first element; None without
            positions.
        inputs: The last inputs of the short convolution `[b, taps - 1, channels]`; None without one.
    """

    initial_values: ClassVar[dict[str, float]] = {"log_norm": -torch.inf}
    accumulators: ClassVar[frozenset[str]] = frozenset({"summary"})
    log_norms: ClassVar[frozenset[str]] = frozenset({"log_norm"})

    log_norm: Tensor | None = None
    summary: Tensor | None = None
    values: Tensor | None = None
    inputs: Tensor | None = None


def join_states(states: Sequence[StateT]) -> StateT:
    """Return the rows of several states of one layer as one state; shorter tensors get initial values."""
    joined = {}
    for name in states[0].tensors():
        parts = [state.tensors()[name] for state in states]
        shape = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
        rows, value = sum(map(len, parts)), states[0].initial_values.get(name, 0)
        joined[name] = parts[0].new_full((rows, *shape), value)
        first = 0
        for part in parts:
            joined[name][(slice(first, first + len(part)), *map(slice, part.shape[1:]))] = part
            first += len(part)
    return states[0].with_tensors(joined)


def check_state(
    state: SequenceState,
    kind: type[SequenceState],
    batch: int,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Check that a state is one of a layer.

    Args:
        state: The state.
        kind: Class of the layer's states.
        batch: Number of rows of the call.
        shapes: Shapes of the tensors that the layer's states have, without `length`.
        dtype: dtype of the layer.
        device: Device of the layer.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(state, kind):
        raise ValueError(f"the state must be a {kind.__name__}, got {type(state).__name__}")
    if state.batch != batch:
        raise ValueError(
            f"the state has {state.batch} rows and this call {batch}: a state continues the same sequences "
            "(after cu_seqlens it has a row for each sequence; take some with state.select)"
        )
    tensors = state.tensors()
    del tensors["length"]
    for name in shapes.keys() | tensors.keys():
        x, needed = tensors.get(name), shapes.get(name)
        if x is None or x.shape != needed:
            found = None if x is None else tuple(x.shape)
            raise ValueError(
                f"the state is of another layer: its {name} is {found}, this layer needs {needed}"
            )
    for name, x in tensors.items():
        expected = kind.dtype_of(name, dtype, device)
        if x.dtype != expected or x.device != device:
            raise ValueError(
                f"the state's {name} is {x.dtype} on {x.device}, this layer needs {expected} on {device}: "
                "convert it with state.to(device, dtype)"
            )
