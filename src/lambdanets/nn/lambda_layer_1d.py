"""The lambda layer on sequences: with a causal order it is a recurrent layer with a state of constant size.

With `causal=True` a sequence may be given in parts of any length, as rows of a batch with padding, or packed
in one row; the outputs are those of each whole sequence. `step` is the same layer one position at a time.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from lambdanets.ops.checks import unknown_name
from lambdanets.ops.context import Grid

from .lambda_layer import LambdaLayer
from .recurrent_lambda_layer import RecurrentLambdaLayer
from .states import LambdaState

INITIALISATIONS = ("normal", "decay")
"""Initialisations of the position table."""
LONGEST_DECAY = 1024
"""Positions after which the slowest column of a new layer with `decay=True` has forgotten all but 1/e."""


class LambdaLayer1d(RecurrentLambdaLayer):
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
        y, final = self._apply_recurrent(x, context, mask, cu_seqlens, state)
        return (y, final) if return_state else y

    @property
    def _needs_recurrence(self) -> bool:
        """Whether an option makes every call a recurrent one."""
        return self.key_heads > 1 or self.log_decay is not None or self.short_conv is not None

    def _check_traced(self, *arguments: Any) -> None:
        """Raise ValueError if torch.fx cannot trace a call; an argument left out may be a proxy."""
        given = any(x is not None and x is not False and not isinstance(x, Proxy) for x in arguments)
        if given or self._needs_recurrence:
            raise ValueError(
                "torch.fx serves a LambdaLayer1d without key_heads, decay and short_conv, called without "
                "state, return_state and cu_seqlens"
            )

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
