"""The recurrence of a causal lambda layer: calls with a state, padded and packed rows, and the step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lambdanets.ops.recurrent import (
    Recurrence,
    layer_step,
    recurrent_lambda_layer,
    recurrent_step,
)

from .fuse_batch_norm import can_concatenate, project_concatenated
from .lambda_layer import LambdaLayer
from .layer_output import checked_source
from .memory_format import match_gradient_format, merge_heads
from .native_step import OUT_NORM_EPS, as_native
from .recurrent import Recurrent, check_packing
from .rows import PaddedRows, apply_packed, check_boundaries
from .states import LambdaState, SequenceState


class RecurrentLambdaLayer(Recurrent, LambdaLayer):
    """Base class of `LambdaLayer1d`, which creates the parameters of the options."""

    state_type = LambdaState
    positions: Tensor | None
    key_heads: int
    table_dropout: float
    log_decay: Tensor | None
    short_conv: Tensor | None
    out_norm: Tensor | None
    to_gate: nn.Conv1d | None

    def step(self, x_t: Tensor, state: LambdaState) -> tuple[Tensor, LambdaState]:
        """Apply the layer to the next position of each sequence, in constant time and memory.

        Args:
            x_t: Input `[b, dim]`.
            state: State after the elements before it.

        Returns:
            Output `[b, dim_out]`, and the state after the position.

        Raises:
            ValueError: The layer is not causal, a shape is wrong, or the state is of another layer, batch,
                dtype or device.
        """
        state = self._checked_before_step(x_t, state)
        if self._has_batch_statistics:
            raise ValueError("step with norm='batch' needs the layer in evaluation: call eval() first")
        before = Recurrence(state.log_norm, state.summary, state.values)
        native = as_native(self, x_t)
        if native is not None and (found := layer_step(x_t, native, before, state.inputs)) is not None:
            y, after, inputs = found
            return y, LambdaState(length=state.length + 1, inputs=inputs, **after._asdict())
        parts = _project_position(x_t, self._parts())
        inputs = None
        if self.short_conv is not None:
            assert state.inputs is not None
            own = torch.cat(parts, dim=1)[:, None]  # [b, 1, c]
            rows = torch.cat([state.inputs.to(own.dtype), own], dim=1)  # [b, taps, c]
            inputs = rows[:, 1:]
            mixed = (rows * self.short_conv.to(rows.dtype)).sum(1)
            parts = mixed.split([part.shape[1] for part in parts], dim=1)
        dtype = parts[-1].dtype
        q = self.norm_queries(parts[0]).unflatten(1, (self.num_heads, self.dim_k)).to(dtype)  # [b, h, k]
        if self.normalize == "softmax_both":
            q = q.softmax(-1)
        v = self.norm_values(parts[1]).unflatten(1, (self.dim_v, self.dim_u)).to(dtype)  # [b, v, u]
        k = parts[2].unflatten(1, (self.key_heads, self.dim_k, self.dim_u)) if self.content else None
        table = self._table()
        y, after = recurrent_step(
            q,
            k,
            v,
            None if table is None else table.to(dtype),
            before,
            decay=None if self.log_decay is None else self.log_decay.exp(),
            dilation=self.dilation[0],
            normalize="softmax" if self.normalize == "softmax_both" else self.normalize,
        )
        if self.position_bias is not None:
            y = y + torch.matmul(q, self.position_bias.to(dtype))[..., None]
        y = y.flatten(1)
        if self.out_norm is not None:
            y = self._normalize_heads(y)
        if self.to_gate is not None:
            y = y * F.silu(_project_position(x_t, [self.to_gate])[0])
        return y, self._next_state(state.length + 1, after, inputs)

    def _apply_recurrent(
        self,
        x: Tensor,
        context: Tensor | None,
        mask: Tensor | None,
        cu_seqlens: Tensor | None,
        state: LambdaState | None,
    ) -> tuple[Tensor, LambdaState]:
        """Return the output `[b, dim_out, n]` and the state after it; see `LambdaLayer1d.forward`."""
        self._check_recurrent(x, context, mask, cu_seqlens)
        if cu_seqlens is not None:
            y, final = self._packed(x, cu_seqlens, state)
        elif mask is not None:
            y, final = self._padded(x, mask, state)
        else:
            state = self._checked_state(state, x.shape[0])
            y, final = self._continued(project_concatenated(x, self._parts()), state, None)
            y = merge_heads(y, x)
        return self._finish(y, x), final

    def _check_recurrent(
        self, x: Tensor, context: Tensor | None, mask: Tensor | None, cu_seqlens: Tensor | None
    ) -> None:
        """Check the arguments of a call with a state, packed rows, or options that need a recurrence."""
        self._require_causal("a state or cu_seqlens")
        if context is not None:
            raise ValueError("a recurrent call takes its keys and values from x: give no context")
        checked_source(x, None, self.dim, self.rank)
        if cu_seqlens is not None and self._has_batch_statistics:
            raise ValueError(
                "cu_seqlens with norm='batch' needs the layer in evaluation: call eval() first, or take "
                "norm='rms' or None"
            )
        if not torch.compiler.is_compiling():
            self._check_statistics(x, x, mask)
        check_packing(mask, cu_seqlens)

    @property
    def _has_batch_statistics(self) -> bool:
        """Whether norms take their statistics from the call, as batch norms in training do."""
        return isinstance(self.norm_queries, _BatchNorm) and self.norm_queries.training

    def _parts(self) -> list[nn.Conv1d]:
        """Return the projections to queries, values and, with a content part, keys."""
        parts: list[Any] = [self.to_queries, self.to_values]
        return parts if self.to_keys is None else [*parts, self.to_keys]

    def _state_shapes(self, batch: int, state: SequenceState | None) -> dict[str, tuple[int, ...]]:
        table, short_conv = self.positions, self.short_conv
        shapes: dict[str, tuple[int, ...]] = {}
        if self.content:
            shapes["summary"] = (batch, self.key_heads, self.dim_k, self.dim_v, self.dim_u)
            if self.normalize != "none":
                shapes["log_norm"] = (batch, self.key_heads, self.dim_k, self.dim_u)
        if table is not None:
            shapes["values"] = (batch, (table.shape[0] - 1) * self.dilation[0], self.dim_v, self.dim_u)
        if short_conv is not None:
            shapes["inputs"] = (batch, short_conv.shape[0] - 1, short_conv.shape[1])
        return shapes

    def _weight(self) -> Tensor:
        return self.to_values.weight

    def _padded(self, x: Tensor, mask: Tensor, state: LambdaState | None) -> tuple[Tensor, LambdaState]:
        """Return the output `[b, dim_out, n]` and the state of padded rows."""
        padded = PaddedRows.of(mask, x)
        state = self._checked_state(state, x.shape[0])
        parts = [padded.move_left(part.mT).mT for part in project_concatenated(x, self._parts())]
        y, final = self._continued(parts, state, padded.lengths)
        y = padded.move_back(y.transpose(1, 2)).transpose(1, 2)  # [b, h, n, v]
        return merge_heads(y, x), final

    def _packed(self, x: Tensor, cu_seqlens: Tensor, state: LambdaState | None) -> tuple[Tensor, LambdaState]:
        """Return the output `[1, dim_out, n]` of a packed row, and the state with a row for each sequence."""
        bounds = check_boundaries(cu_seqlens, x)
        state = self._checked_state(state, len(bounds) - 1)

        def apply(
            parts: list[Tensor], given: LambdaState | None, lengths: Tensor | None
        ) -> tuple[Tensor, LambdaState]:
            y, final = self._continued([part.mT for part in parts], given, lengths)
            return y.transpose(1, 2), final  # [s, longest, h, v]

        parts = [part[0].mT for part in project_concatenated(x, self._parts())]  # [n, c]
        y, final = apply_packed(parts, bounds, state, self.initial_state, apply)
        assert final is not None
        return merge_heads(y[None].transpose(1, 2), x), final

    def _continued(
        self, parts: Sequence[Tensor], state: LambdaState | None, lengths: Tensor | None
    ) -> tuple[Tensor, LambdaState]:
        """Return the output `[b, h, n, v]` of rows that follow a state, and the state after them.

        Args:
            parts: Projections to queries, values and, with a content part, keys, `[b, c, n]`.
            state: The state before the rows, None for none.
            lengths: Number of elements of each row, `[b]`, which are its first ones; None for all.
        """
        inputs = None
        if self.short_conv is not None:
            parts, inputs = self._convolve(parts, None if state is None else state.inputs, lengths)
        queries = match_gradient_format(self.norm_queries(parts[0]))
        values = match_gradient_format(self.norm_values(parts[1]))
        dtype = parts[-1].dtype
        q = queries.unflatten(1, (self.num_heads, self.dim_k)).mT.to(dtype)  # [b, h, n, k]
        if self.normalize == "softmax_both":
            q = q.softmax(-1)
        v = values.unflatten(1, (self.dim_v, self.dim_u)).permute(0, 3, 1, 2).to(dtype)  # [b, n, v, u]
        k = None
        if self.content:
            k = parts[2].unflatten(1, (-1, self.dim_u)).permute(0, 3, 1, 2)  # [b, n, g k, u]
        table = self._table()
        before = None if state is None else Recurrence(state.log_norm, state.summary, state.values)
        y, after = recurrent_lambda_layer(
            q,
            k,
            v,
            None if table is None else table.to(dtype),
            before,
            lengths=lengths,
            decay=None if self.log_decay is None else self.log_decay.exp(),
            dilation=self.dilation[0],
            normalize="softmax" if self.normalize == "softmax_both" else self.normalize,
            kernel=self.kernel,
        )
        if self.position_bias is not None:
            y = y + torch.einsum("bhnk,k->bhn", q, self.position_bias.to(dtype))[..., None]
        count = q.shape[2] if lengths is None else lengths
        length = (
            torch.zeros(q.shape[0], dtype=torch.int64, device=q.device) if state is None else state.length
        )
        return y, self._next_state(length + count, after, inputs)

    def _next_state(self, length: Tensor, after: Recurrence, inputs: Tensor | None) -> LambdaState:
        """Return a state in the dtypes of the layer, which autocast may have changed."""
        dtype = self.to_values.weight.dtype
        return LambdaState(
            length=length,
            log_norm=after.log_norm,
            summary=after.summary,
            values=None if after.values is None else after.values.to(dtype),
            inputs=None if inputs is None else inputs.to(dtype),
        )

    def _convolve(
        self, parts: Sequence[Tensor], past: Tensor | None, lengths: Tensor | None
    ) -> tuple[list[Tensor], Tensor]:
        """Apply the short convolution to projections, `[b, c, n]`; also return its last inputs."""
        assert self.short_conv is not None
        before, n = len(self.short_conv) - 1, parts[0].shape[2]
        sizes = [part.shape[1] for part in parts]
        if past is None:
            past = parts[0].new_zeros(parts[0].shape[0], before, sum(sizes))
        weights = self.short_conv.to(parts[0].dtype).split(sizes, dim=1)
        convolved, last = [], []
        for part, weight, inputs in zip(
            parts, weights, past.to(parts[0].dtype).split(sizes, dim=2), strict=True
        ):
            rows = torch.cat([inputs, part.mT], dim=1)  # [b, taps - 1 + n, c]
            # As images of height 1 the rows are channels-last, which oneDNN convolves without copies.
            images = F.conv2d(rows.mT[:, :, None], weight.mT[:, None, None], groups=part.shape[1])
            convolved.append(images[:, :, 0])
            if lengths is None:
                last.append(rows[:, n:])
            else:
                index = lengths[:, None] + torch.arange(before, device=rows.device)
                last.append(rows[torch.arange(rows.shape[0], device=rows.device)[:, None], index])
        return convolved, torch.cat(last, dim=2)

    def _finish(self, y: Tensor, x: Tensor) -> Tensor:
        """Return the output `[b, dim_out, n]` after the output norm and the gate."""
        if self.out_norm is not None:
            y = self._normalize_heads(y.mT).mT
        return y if self.to_gate is None else y * F.silu(project_concatenated(x, [self.to_gate])[0])

    def _normalize_heads(self, y: Tensor) -> Tensor:
        """Divide each head of an output `[..., dim_out]` by its root mean square, and scale it."""
        assert self.out_norm is not None
        heads = y.unflatten(-1, (self.num_heads, self.dim_v))
        return F.rms_norm(heads, (self.dim_v,), eps=OUT_NORM_EPS).flatten(-2) * self.out_norm.to(y.dtype)


def _project_position(x_t: Tensor, projections: Sequence[nn.Conv1d]) -> list[Tensor]:
    """Apply 1x1 convolutions to one position of each sequence, `[b, dim]`."""
    if can_concatenate(x_t, projections):
        # A convolution takes several times as long.
        return [F.linear(x_t, p.weight[:, :, 0], p.bias) for p in projections]
    return [p(x_t[:, :, None])[:, :, 0] for p in projections]
