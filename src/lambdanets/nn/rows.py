"""Sequences of several lengths in one tensor: rows with padding, and packed rows.

A packed row has several sequences one after the other, without padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .states import StateT, join_states

# Sequences are padded together while the shortest has more than this part of the length of the longest.
PADDED_PART = 0.5


class PaddedRows(NamedTuple):
    """Rows whose elements are neighbours, with padding before or after them.

    Attributes:
        lengths: Number of elements of each row, `[b]`.
        left: Positions that move the elements of each row to its beginning, `[b, n]`.
        back: Positions that move them back, `[b, n]`.
    """

    lengths: Tensor
    left: Tensor
    back: Tensor

    @classmethod
    def of(cls, mask: Tensor, x: Tensor) -> PaddedRows:
        """Return the rows of a mask `[b, n]`, True at elements, for sequences `[b, c, n]`.

        Raises:
            ValueError: The mask does not match the sequences, or has padding between elements. In a compiled
                graph padding between elements is a RuntimeError, and exported programs do not check it.
        """
        b, n = x.shape[0], x.shape[2]
        if mask.dtype != torch.bool or mask.shape != (b, n):
            raise ValueError(
                f"mask must be a bool tensor of shape (b, n) = {(b, n)}, True at elements; got {mask.dtype} "
                f"of shape {tuple(mask.shape)}"
            )
        positions = torch.arange(n, device=x.device)
        lengths, first = mask.sum(1), mask.int().argmax(1)[:, None]
        # An exported program has no place for an error.
        if not torch.compiler.is_exporting():
            inside = (positions >= first) & (positions < first + lengths[:, None])
            message = (
                "the elements of each row must be neighbours here, but the mask has padding between them: "
                "their distances would depend on how the sequence is divided into calls; remove the padding "
                "from the row, or call the layer without a state"
            )
            if torch.compiler.is_compiling():
                # In a graph, which does not wait for the result: on GPUs a later call reports it.
                torch._assert_async(  # pyright: ignore[reportPrivateImportUsage]
                    (inside == mask).all(), message
                )
            elif not torch.equal(inside, mask):
                raise ValueError(message)
        return cls(lengths, (positions + first) % n, (positions - first) % n)

    def move_left(self, x: Tensor) -> Tensor:
        """Return sequences `[b, n, ...]` with the elements of each row at its beginning."""
        return x[torch.arange(x.shape[0], device=x.device)[:, None], self.left]

    def move_back(self, x: Tensor) -> Tensor:
        """Return the result of `move_left` in its former order."""
        return x[torch.arange(x.shape[0], device=x.device)[:, None], self.back]


class Group(NamedTuple):
    """Sequences of similar lengths.

    Attributes:
        members: Numbers of the sequences in the row.
        index: Position in the row of each of their elements, `[s, length of the longest]`; padding has the
            positions after a sequence, at most the last one of the row.
        lengths: Number of elements of each sequence, `[s]`; None if all are equally long.
    """

    members: list[int]
    index: Tensor
    lengths: Tensor | None


def check_boundaries(cu_seqlens: Tensor, x: Tensor) -> list[int]:
    """Return the boundaries of the sequences in a packed row `[1, c, n]`.

    Raises:
        ValueError: The boundaries do not lead from 0 to n, or there is more than one row.
    """
    if x.shape[0] != 1:
        raise ValueError(f"cu_seqlens divides one row into sequences, but x has {x.shape[0]} rows")
    if not isinstance(cu_seqlens, Tensor) or cu_seqlens.ndim != 1 or cu_seqlens.is_floating_point():
        raise ValueError(f"cu_seqlens must be a tensor of integers with one axis, got {cu_seqlens!r}")
    bounds = cu_seqlens.tolist()
    n = x.shape[2]
    if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != n:
        ends = f"{bounds[0]} to {bounds[-1]}" if bounds else "nothing"
        raise ValueError(f"cu_seqlens must lead from 0 to n={n}, got {ends}")
    for first, last in pairwise(bounds):
        if last < first:
            raise ValueError(f"cu_seqlens must not decrease, but {last} follows {first}")
    return bounds


def group_sequences(bounds: Sequence[int], device: torch.device) -> list[Group]:
    """Return the sequences between the boundaries of a row in groups of similar lengths, without empty ones.

    A group becomes one padded batch: less than half of it is padding, and a row has at most about
    log2(n) groups.
    """
    starts, lengths = bounds[:-1], [b - a for a, b in pairwise(bounds)]
    order = sorted((i for i, length in enumerate(lengths) if length), key=lambda i: -lengths[i])
    groups: list[list[int]] = []
    for i in order:
        if not groups or lengths[i] <= PADDED_PART * lengths[groups[-1][0]]:
            groups.append([])
        groups[-1].append(i)
    result = []
    for members in groups:
        longest = lengths[members[0]]
        first = torch.tensor([starts[i] for i in members], device=device)
        index = (first[:, None] + torch.arange(longest, device=device)).clamp_(max=bounds[-1] - 1)
        sizes = torch.tensor([lengths[i] for i in members], device=device)
        equal = lengths[members[-1]] == longest
        result.append(Group(members, index, None if equal else sizes))
    return result


def restore_order(parts: Sequence[Tensor], groups: Sequence[Group]) -> Tensor:
    """Return the elements of groups, `[s, longest, ...]` each, in the order of the row, `[n, ...]`."""
    rows, positions = [], []
    for part, group in zip(parts, groups, strict=True):
        if group.lengths is None:
            rows.append(part.flatten(0, 1))
            positions.append(group.index.flatten())
        else:
            visible = torch.arange(part.shape[1], device=part.device) < group.lengths[:, None]
            rows.append(part[visible])
            positions.append(group.index[visible])
    return torch.cat(rows)[torch.cat(positions).argsort()]


def apply_packed(
    parts: Sequence[Tensor],
    bounds: Sequence[int],
    state: StateT | None,
    initial_state: Callable[[int], StateT],
    apply: Callable[[list[Tensor], StateT | None, Tensor | None], tuple[Tensor, StateT | None]],
) -> tuple[Tensor, StateT | None]:
    """Apply a layer to each sequence of a packed row.

    Args:
        parts: Tensors `[n, ...]` with the elements of the row.
        bounds: Boundaries of the sequences; see `check_boundaries`.
        state: State with a row for each sequence, or None.
        initial_state: Function of a batch size that returns the initial state.
        apply: Function of parts `[s, longest, ...]`, of the state before them, and of the number of elements
            of each row, `[s]` or None for all. It returns the output `[s, longest, ...]` and the state after.

    Returns:
        Output `[n, ...]`, and the state with a row for each sequence if `apply` returned states.
    """
    groups = group_sequences(bounds, parts[0].device)
    outputs, finals = [], []
    for group in groups:
        given = None if state is None else state.select(group.members)
        y, final = apply([part[group.index] for part in parts], given, group.lengths)
        outputs.append(y)
        if final is not None:
            finals.append(final)
    y = restore_order(outputs, groups)
    if not finals:
        return y, None
    # The states of sequences without elements are those before them.
    number = len(bounds) - 1
    members = [member for group in groups for member in group.members]
    empty = [i for i in range(number) if bounds[i] == bounds[i + 1]]
    if empty:
        before = initial_state(number) if state is None else state
        finals.append(before.select(empty))
    order = sorted(range(number), key=(members + empty).__getitem__)
    return y, join_states(finals).select(order)
