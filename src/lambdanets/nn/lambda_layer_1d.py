"""The lambda layer on sequences: with a causal order it is a recurrent layer with a state of constant size.

With `causal=True` a sequence may be given in parts of any length, as rows of a batch with padding, or packed
in one row; the outputs are those of each whole sequence. `step` is the same layer one position at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.modules.batchnorm import _BatchNorm

from lambdanets.ops.checks import unknown_name
from lambdanets.ops.context import Grid
from lambdanets.ops.recurrent import (
    Recurrence,
    layer_step,
    recurrent_lambda_layer,
    recurrent_step,
)

from .fuse_batch_norm import can_concatenate, project_concatenated
from .lambda_layer import LambdaLayer, checked_source
from .memory_format import match_gradient_format, merge_heads
from .native_step import OUT_NORM_EPS, as_native
from .rows import PaddedRows, check_boundaries, group_sequences, restore_order
from .states import LambdaState, check_state, join_states

INITIALISATIONS = ("normal", "decay")
"""Initialisations of the position table."""
LONGEST_DECAY = 1024
"""Positions after which the slowest column of a new layer with `decay=True` has forgotten all but 1/e."""


class LambdaLayer1d(LambdaLayer):
    """Lambda layer on sequences: `[b, dim, n]` to `[b, dim_out, n]`.

    At each position, a linear function that summarises the context by content and relative position, the
    lambda, is applied to the queries. `LambdaLayer` documents the other arguments, norms and masks.

    Causal layers are recurrent: `forward` takes and returns a state, `step` computes one position. A state
    has g k (v + 1) u elements for the content and (r - 1) d v u for the positions (g `key_heads`, r `scope`,
    d `dilation`), however long the sequence was. Take `norm="rms"` or None: a batch norm sees later positions
    in training.

    The options below are off by default, since the layer of the paper has none of them. They are those with
    which other linear layers on sequences became better.

    Attributes:
        key_heads: Number of sets of keys, g.
        log_decay: Logarithms of the rates of `decay`, a parameter `[k, u]`; None without.
        short_conv: Weights of the short convolution, a parameter `[taps, channels]`; None without.
        to_gate: Projection to the gate; None without.
        out_norm: Scale of the output norm, a parameter `[dim_out]`; None without.

    References:
        LambdaNetworks (Bello, 2021). Gates, output norms and no normalisation of keys: "The Devil in Linear
        Transformer" (Qin, 2022). Decay: RetNet (Sun, 2023). Short convolutions and more keys: "Zoology"
        (Arora, 2023). Tables that begin small far away: "What makes convolutional models great on long
        sequence modeling?" (Li, 2022).

    Example:
        >>> layer = LambdaLayer1d(64, scope=15, causal=True, norm="rms")
        >>> x = torch.randn(2, 64, 100)
        >>> y, state = layer(x[:, :, :60], return_state=True)
        >>> z, state = layer(x[:, :, 60:99], state=state, return_state=True)
        >>> last, state = layer.step(x[:, :, 99], state)
        >>> torch.allclose(torch.cat([y, z, last[:, :, None]], dim=2), layer(x), atol=1e-4)
        True
    """

    rank = 1
    positions: Tensor | None
    log_decay: Tensor | None
    short_conv: Tensor | None
    out_norm: Tensor | None

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        *,
        dim_k: int = 16,
        num_heads: int = 4,
        dim_u: int = 1,
        scope: Grid | None = None,
        grid: Grid | None = None,
        dilation: Grid = 1,
        content: bool = True,
        position: bool = True,
        causal: bool = False,
        normalize: str = "softmax",
        norm: str | None = "batch",
        position_bias: bool = False,
        kernel: str = "auto",
        key_heads: int = 1,
        decay: bool = False,
        short_conv: int | None = None,
        gate: bool = False,
        out_norm: bool = False,
        table_init: str = "normal",
        table_dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Create a layer with initialised parameters.

        Args:
            dim (int): Channels of the input.
            dim_out (int, optional): Channels of the output, a multiple of `num_heads`. Default: `dim`.
            dim_k (int): Depth of queries and keys, k. Default: 16.
            num_heads (int): Queries per position, h. Default: 4.
            dim_u (int): Intra-depth, u: columns of keys and values per position. Default: 1.
            scope (int | tuple[int], optional): Positions in the window of a local position table: around a
                position, or with `causal=True` up to it. Default: None, global positions, which need `grid`.
            grid (int | tuple[int], optional): For global positions, the length of the sequences that the
                table covers: it has 2 * grid - 1 offsets, or `grid` with `causal=True`. Default: None.
            dilation (int | tuple[int]): Distance between the neighbours within a local scope. Default: 1.
            content (bool): Whether lambdas have a content part. Default: True.
            position (bool): Whether lambdas have a position part. Default: True.
            causal (bool): Whether each position sees only itself and earlier positions. Default: False.
            normalize (str): Normalisation of keys: "softmax", "softmax_both", "l2" or "none"; see
                `LambdaLayer2d`. Default: "softmax".
            norm (str, optional): Norm after the projections to queries and values: "batch"; "rms", over the
                channels at each position; or None. Default: "batch".
            position_bias (bool): Whether one learned lambda is added to all position lambdas.
                Default: False.
            kernel (str): Kernel of the operator. Default: "auto".
            key_heads (int): Sets of keys, each with a content lambda for `num_heads / key_heads` heads: a
                larger state recalls more. Causal layers only. Default: 1.
            decay (bool): Whether columns of the keys forget the content at learned rates, which begin with
                time scales from 2 to 1,024 positions: recent elements then weigh more. Causal layers only.
                Default: False.
            short_conv (int, optional): Taps of a causal depthwise convolution of queries, keys and values,
                which begins as the identity: a key may then depend on the elements before it, as recall
                needs. Causal layers only. Default: None.
            gate (bool): Whether the output is multiplied by the SiLU of a projection of the input.
                Default: False.
            out_norm (bool): Whether each head of the output is divided by its root mean square, before the
                gate. With `normalize="none"` it takes the place of the normalisation. Default: False.
            table_init (str): Initialisation of the position table: "normal", N(0, 1); or "decay", whose
                standard deviation falls with the distance d as 1 / (1 + d), so that a long window begins
                smooth. Default: "normal".
            table_dropout (float): Probability with which an offset of the position table is left out of a
                training step. Default: 0.0.
            device (torch.device | str, optional): Device of the parameters. Default: None, PyTorch's.
            dtype (torch.dtype, optional): dtype of the parameters. Default: None, PyTorch's.

        Shape:
            Input `[b, dim, *grid]`, output `[b, dim_out, *grid]`; the grid is `[n]`, of any size.

        Raises:
            ValueError: If an argument is out of range, or arguments contradict each other.
            MemoryError: If the parameters need more memory than is available.

        Example:
            >>> layer = LambdaLayer1d(64, scope=32, causal=True, norm="rms", decay=True, short_conv=4)
            >>> layer(torch.randn(2, 64, 100)).shape
            torch.Size([2, 64, 100])
        """
        super().__init__(
            dim,
            dim_out,
            dim_k=dim_k,
            num_heads=num_heads,
            dim_u=dim_u,
            scope=scope,
            grid=grid,
            dilation=dilation,
            content=content,
            position=position,
            causal=causal,
            normalize=normalize,
            norm=norm,
            position_bias=position_bias,
            kernel=kernel,
            device=device,
            dtype=dtype,
        )
        _check_options(self, key_heads, decay, short_conv, table_init, table_dropout)
        self.key_heads, self.table_init, self.table_dropout = key_heads, table_init, table_dropout
        factory = {"device": self.to_queries.weight.device, "dtype": self.to_queries.weight.dtype}
        if key_heads > 1:
            self.to_keys = nn.Conv1d(dim, key_heads * self.dim_k * self.dim_u, 1, bias=False, **factory)
        channels = sum(p.out_channels for p in self._parts())
        shapes = {
            "log_decay": (self.dim_k, self.dim_u) if decay else None,
            "short_conv": (short_conv, channels) if short_conv else None,
            "out_norm": (self.dim_out,) if out_norm else None,
        }
        for name, shape in shapes.items():
            self.register_parameter(
                name, None if shape is None else nn.Parameter(torch.empty(shape, **factory))
            )
        self.to_gate = nn.Conv1d(dim, self.dim_out, 1, bias=False, **factory) if gate else None
        self._reset_options()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self._reset_options()

    def _reset_options(self) -> None:
        """Initialise the parameters of the options."""
        if self.key_heads > 1:
            assert self.to_keys is not None
            nn.init.normal_(self.to_keys.weight, std=self.dim**-0.5)
        if self.to_gate is not None:
            nn.init.normal_(self.to_gate.weight, std=self.dim**-0.5)
        if self.out_norm is not None:
            nn.init.ones_(self.out_norm)
        with torch.no_grad():
            if self.log_decay is not None:
                scales = torch.logspace(math.log2(2), math.log2(LONGEST_DECAY), self.dim_k, base=2)
                self.log_decay.copy_(-scales.log()[:, None])
            if self.short_conv is not None:
                self.short_conv.zero_()[-1] = 1
            if self.table_init == "decay" and self.positions is not None:
                entries = torch.arange(len(self.positions), device=self.positions.device)
                centre = entries[-1] if self.causal else len(self.positions) // 2
                self.positions /= 1 + (entries - centre).abs()[:, None, None]

    def _parts(self) -> list[nn.Conv1d]:
        """Return the projections to queries, values and, with a content part, keys."""
        parts: list[Any] = [self.to_queries, self.to_values]
        return parts if self.to_keys is None else [*parts, self.to_keys]

    def _table(self) -> Tensor | None:
        if self.positions is None or not (self.training and self.table_dropout):
            return self.positions
        kept = F.dropout(self.positions.new_ones(len(self.positions), 1, 1), self.table_dropout)
        return self.positions * kept

    def forward(
        self,
        x: Tensor,
        context: Tensor | LambdaState | None = None,
        mask: Tensor | None = None,
        *,
        state: LambdaState | None = None,
        return_state: bool = False,
        cu_seqlens: Tensor | None = None,
    ) -> Any:
        """Apply the layer to sequences, or to their continuation.

        Args:
            x: Input `[b, dim, n]`.
            context: Source of keys and values, `[b, dim, m]`; not with the arguments below. Default: `x`. A
                state in its place is taken as `state`, as in `layer(x, state)`.
            mask: Booleans `[b, n]`, True at elements, False at padding, which changes neither outputs of
                elements nor the state. With a state, or with `key_heads`, `decay` or `short_conv`, the
                elements of a row must be neighbours: padding is before or after them. Outputs at padding have
                no meaning.
            state: State after the elements before x, as a call or `step` returned it; causal layers only.
            return_state: Whether the state after the last element is returned too.
            cu_seqlens: Boundaries `[s + 1]` of s sequences in the only row of x, from 0 to n: nothing passes
                from one sequence to the next. A state then has s rows, one for each sequence.

        Returns:
            Output `[b, dim_out, n]` in the memory format of x; with `return_state` also the `LambdaState`.

        Raises:
            ValueError: If a shape does not match the layer or the other inputs, the state is of another
                layer, batch, dtype or device, the boundaries do not divide the row, or a packed row meets a
                batch norm in training.
        """
        if isinstance(context, LambdaState):
            if state is not None:
                raise ValueError("two states were given: as the second argument and by name")
            context, state = None, context
        recurrent = self._needs_recurrence or state is not None or return_state or cu_seqlens is not None
        if isinstance(x, Proxy):
            self._check_traced(state, return_state, cu_seqlens)
        if isinstance(x, Proxy) or not recurrent:
            return self._finish(super().forward(x, context, mask), x)
        self._check_recurrent(x, context, mask, cu_seqlens)
        if cu_seqlens is not None:
            y, final = self._packed(x, cu_seqlens, state)
        elif mask is not None:
            y, final = self._padded(x, mask, state)
        else:
            self._check_state(state, len(x))
            y, final = self._continued(project_concatenated(x, self._parts()), state, None)
            y = merge_heads(y, x)
        y = self._finish(y, x)
        return (y, final) if return_state else y

    @property
    def _needs_recurrence(self) -> bool:
        """Whether an option makes every call a recurrent one."""
        return self.key_heads > 1 or self.log_decay is not None or self.short_conv is not None

    @property
    def _has_batch_statistics(self) -> bool:
        """Whether norms take their statistics from the call, as batch norms in training do."""
        return isinstance(self.norm_queries, _BatchNorm) and self.norm_queries.training

    def initial_state(self, batch: int) -> LambdaState:
        """Return the state before the first element of `batch` sequences.

        Raises:
            ValueError: The layer is not causal.
        """
        self._require_causal("initial_state")
        weight = self.to_values.weight
        return LambdaState.initial(batch, self._state_shapes(batch), weight.dtype, weight.device)

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
        self._require_causal("step")
        if x_t.ndim != 2 or x_t.shape[1] != self.dim:
            raise ValueError(f"x_t must be of shape (b {self.dim}), got {tuple(x_t.shape)}")
        if state is None:
            raise ValueError(f"step needs a state: begin with initial_state({len(x_t)})")
        self._check_state(state, x_t.shape[0])
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

    def _require_causal(self, name: str) -> None:
        """Raise ValueError unless the layer has a causal order, which alone has a state."""
        if not self.causal:
            raise ValueError(
                f"{name} needs a layer with causal=True: without an order each position sees the whole "
                "sequence, and there is no state that would be enough"
            )

    def _check_traced(self, *arguments: Any) -> None:
        """Raise ValueError if torch.fx cannot trace a call; an argument left out may be a proxy."""
        given = any(x is not None and x is not False and not isinstance(x, Proxy) for x in arguments)
        if given or self._needs_recurrence:
            raise ValueError(
                "torch.fx serves a LambdaLayer1d without key_heads, decay and short_conv, called without "
                "state, return_state and cu_seqlens"
            )

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
        if cu_seqlens is not None and mask is not None:
            raise ValueError("cu_seqlens and mask exclude each other: a packed row has no padding")

    def _state_shapes(self, batch: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the tensors that the state of this layer has, without `length`."""
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

    def _check_state(self, state: LambdaState | None, batch: int) -> None:
        """Raise ValueError if a state is not None and not one of this layer for a batch."""
        if state is not None:
            weight = self.to_values.weight
            check_state(state, LambdaState, batch, self._state_shapes(batch), weight.dtype, weight.device)

    def _padded(self, x: Tensor, mask: Tensor, state: LambdaState | None) -> tuple[Tensor, LambdaState]:
        """Return the output `[b, dim_out, n]` and the state of padded rows."""
        padded = PaddedRows.of(mask, x)
        self._check_state(state, len(x))
        parts = [padded.move_left(part.mT).mT for part in project_concatenated(x, self._parts())]
        y, final = self._continued(parts, state, padded.lengths)
        y = padded.move_back(y.transpose(1, 2)).transpose(1, 2)  # [b, h, n, v]
        return merge_heads(y, x), final

    def _packed(self, x: Tensor, cu_seqlens: Tensor, state: LambdaState | None) -> tuple[Tensor, LambdaState]:
        """Return the output `[1, dim_out, n]` of a packed row, and the state with a row for each sequence."""
        bounds = check_boundaries(cu_seqlens, x)
        self._check_state(state, len(bounds) - 1)
        before = self.initial_state(len(bounds) - 1) if state is None else state
        groups = group_sequences(bounds, x.device)
        parts = [part[0].mT for part in project_concatenated(x, self._parts())]  # [n, c]
        outputs, finals = [], [before]
        for group in groups:
            given = None if state is None else state.select(group.members)
            padded = [part[group.index].mT for part in parts]  # [s, c, longest]
            y, final = self._continued(padded, given, group.lengths)
            outputs.append(y.transpose(1, 2))  # [s, longest, h, v]
            finals.append(final)
        # Rows of sequences without elements are those of the state before them.
        order = list(range(len(bounds) - 1))
        position = len(order)
        for group in groups:
            for member in group.members:
                order[member] = position
                position += 1
        y = restore_order(outputs, groups)[None].transpose(1, 2)  # [1, h, n, v]
        return merge_heads(y, x), join_states(finals).select(order)

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
        length = torch.zeros(len(q), dtype=torch.int64, device=q.device) if state is None else state.length
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
            past = parts[0].new_zeros(len(parts[0]), before, sum(sizes))
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
                last.append(rows[torch.arange(len(rows), device=rows.device)[:, None], index])
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

    def __prepare_scriptable__(self) -> LambdaLayer:
        """Return the module that torch.jit.script compiles: the layer with tensors as its only arguments."""
        if self._needs_recurrence or self.out_norm is not None or self.to_gate is not None:
            raise ValueError(
                "torch.jit.script serves a LambdaLayer1d without key_heads, decay, short_conv, gate and "
                "out_norm; torch.export serves all"
            )
        plain = _ScriptableLayer1d.__new__(_ScriptableLayer1d)
        plain.__dict__ = self.__dict__
        return plain

    def extra_repr(self) -> str:
        parts = [super().extra_repr()]
        if self.key_heads > 1:
            parts.append(f"key_heads={self.key_heads}")
        if self.log_decay is not None:
            parts.append("decay=True")
        if self.short_conv is not None:
            parts.append(f"short_conv={len(self.short_conv)}")
        if self.to_gate is not None:
            parts.append("gate=True")
        if self.out_norm is not None:
            parts.append("out_norm=True")
        if self.table_init != "normal":
            parts.append(f"table_init={self.table_init!r}")
        if self.table_dropout:
            parts.append(f"table_dropout={self.table_dropout}")
        return ", ".join(parts)


class _ScriptableLayer1d(LambdaLayer):
    """The layer for torch.jit.script, whose functions take no states."""

    rank = 1


def _project_position(x_t: Tensor, projections: Sequence[nn.Conv1d]) -> list[Tensor]:
    """Apply 1x1 convolutions to one position of each sequence, `[b, dim]`."""
    if can_concatenate(x_t, projections):
        # A convolution takes several times as long.
        return [F.linear(x_t, p.weight[:, :, 0], p.bias) for p in projections]
    return [p(x_t[:, :, None])[:, :, 0] for p in projections]


def _check_options(
    layer: LambdaLayer1d,
    key_heads: int,
    decay: bool,
    short_conv: int | None,
    table_init: str,
    table_dropout: float,
) -> None:
    """Raise ValueError for options that are out of range or contradict the layer."""
    if type(key_heads) is not int or key_heads < 1 or layer.num_heads % key_heads:
        raise ValueError(
            f"key_heads must be an int that divides num_heads={layer.num_heads}, got {key_heads!r}"
        )
    if short_conv is not None and (type(short_conv) is not int or short_conv < 2):
        raise ValueError(f"short_conv must be an int of at least 2 taps, or None, got {short_conv!r}")
    if table_init not in INITIALISATIONS:
        raise unknown_name("table_init", table_init, INITIALISATIONS)
    if not 0 <= table_dropout < 1:
        raise ValueError(f"table_dropout must be from 0 to below 1, got {table_dropout!r}")
    for name, given in (("key_heads", key_heads > 1), ("decay", decay), ("short_conv", short_conv)):
        if given and not layer.causal:
            raise ValueError(f"{name} needs causal=True")
    for name, given in (("key_heads", key_heads > 1), ("decay", decay)):
        if given and not layer.content:
            raise ValueError(f"{name} is for the content part, which content=False leaves out")
    for name, given in (("table_init", table_init != "normal"), ("table_dropout", table_dropout)):
        if given and layer.positions is None:
            raise ValueError(f"{name} is for the position part, which position=False leaves out")
