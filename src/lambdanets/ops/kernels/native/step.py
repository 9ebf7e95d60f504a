"""One step of the causal operator, or of a whole layer, in C++ (source/step.h, source/layer_step.h)."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import Call, invoke_complete

DTYPES = (torch.float32, torch.float64)
NORMALIZATIONS = {"softmax": 0, "l2": 1, "none": 2}

_INTEGERS = (
    *("batch", "heads", "sets", "dim_k", "dim_v", "dim_u", "entries", "dilation", "normalize"),
    *("q", "k", "v", "e", "decay", "log_norm", "summary", "values"),
    *("y", "next_log_norm", "next_summary", "next_values", "channels", "taps", "query_softmax"),
    *("x", "to_queries", "to_values", "to_keys", "to_gate", "query_norm", "value_norm", "output_norm"),
    *("position_bias", "short_conv", "inputs", "next_inputs"),
)
_EPSILONS = ("query_epsilon", "value_epsilon", "output_epsilon")
_PACK = struct.Struct(f"={len(_INTEGERS)}q{len(_EPSILONS)}d").pack_into
_NO_LAYER = (0,) * (len(_INTEGERS) - _INTEGERS.index("channels") + len(_EPSILONS))

State = tuple[Tensor | None, ...]
"""`log_norm` in float64, `summary` and `values` of a `Recurrence`."""


class _StepCall(Call):
    """`LambdanetsStep` of source/interface.h; addresses are integers."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _INTEGERS),
        *((name, ctypes.c_double) for name in _EPSILONS),
    )


class Layer(NamedTuple):
    """A layer with 1x1 projections around the operator; None for a part that is left out.

    Attributes:
        num_heads: Heads, h.
        key_heads: Sets of keys, g.
        depths: Depth of queries and keys k, depth of values v, intra-depth u.
        dilation: Distance between neighbouring entries of the table.
        normalize: Normalisation of the keys.
        query_softmax: Whether queries pass a softmax over k.
        epsilons: Those of the norms of queries, values and outputs.
        e: Position table [r, k, u].
        decay: Rates at which the content forgets [k, u].
        to_queries: Weight of the projection to queries [h k, d, 1].
        to_values: That of the projection to values [v u, d, 1].
        to_keys: That of the projection to keys [g k u, d, 1].
        to_gate: That of the projection to the gate [h v, d, 1].
        query_norm: Scale of the RMS norm of the queries [h k].
        value_norm: Scale of the RMS norm of the values [v u].
        output_norm: Scale of the RMS norm of each head of the output [h v].
        position_bias: Bias of the position lambdas [k].
        short_conv: Weights of the short convolution [taps, c], c channels of queries, values and keys.
    """

    num_heads: int
    key_heads: int
    depths: tuple[int, int, int]
    dilation: int
    normalize: str
    query_softmax: bool
    epsilons: tuple[float, float, float]
    e: Tensor | None
    decay: Tensor | None
    to_queries: Tensor
    to_values: Tensor
    to_keys: Tensor | None
    to_gate: Tensor | None
    query_norm: Tensor | None
    value_norm: Tensor | None
    output_norm: Tensor | None
    position_bias: Tensor | None
    short_conv: Tensor | None


def output(
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    e: Tensor | None,
    state: State,
    decay: Tensor | None,
    dilation: int,
    normalize: str,
) -> tuple[Tensor, State]:
    """Return the output [b, h, v] of the operator for an element, and the state after it.

    Args:
        q: Queries [b, h, k].
        k: Keys [b, g, k, u], or None.
        v: Values [b, v, u].
        e: Position table [r, k, u], or None.
        state: State before the element.
        decay: Rates at which the content forgets [k, u], or None.
        dilation: Distance between neighbouring entries of the table.
        normalize: Normalisation of the keys.
    """
    b, heads, dim_k = q.shape
    _, dim_v, dim_u = v.shape
    sizes = b, heads, 1 if k is None else k.shape[1], dim_k, dim_v, dim_u
    y = torch.empty(b, heads, dim_v, dtype=q.dtype)
    return y, _run(y, sizes, (q, k, v, e, decay), state, dilation, normalize, _NO_LAYER)


def layer_output(
    x: Tensor, layer: Layer, state: State, inputs: Tensor | None
) -> tuple[Tensor, State, Tensor | None]:
    """Return the output [b, h v] of a layer for an element, and the state after it.

    Args:
        x: Input [b, d].
        layer: The layer.
        state: State of the operator before the element.
        inputs: Last inputs of the short convolution [b, taps - 1, c], or None without one.

    Returns:
        The output, the state of the operator, and the inputs for the next element.
    """
    b, channels = x.shape
    heads, sets, depths, dilation, normalize, query_softmax, epsilons, e, decay, *weights = layer
    tensors = _dense((x, *weights, inputs))
    next_inputs = _new_like(tensors[-1])
    options = (
        *(channels, 0 if layer.short_conv is None else layer.short_conv.shape[0], query_softmax),
        *_addresses((*tensors, next_inputs)),
        *epsilons,
    )
    y = torch.empty(b, heads * depths[1], dtype=x.dtype)
    sizes = b, heads, sets, *depths
    after = _run(y, sizes, (None, None, None, e, decay), state, dilation, normalize, options)
    return y, after, next_inputs


def _run(
    y: Tensor,
    sizes: Sequence[int],
    inputs: Sequence[Tensor | None],
    state: State,
    dilation: int,
    normalize: str,
    layer: Sequence[float],
) -> State:
    """Write the output, and return the state after an element.

    Args:
        y: Output, which is written.
        sizes: The first fields of the call.
        inputs: Queries, keys, values, table and decay.
        state: State before the element.
        dilation: Distance between neighbouring entries of the table.
        normalize: Normalisation of the keys.
        layer: The last fields of the call.
    """
    tensors = _dense((*inputs, *state))
    e = inputs[3]
    after = tuple(map(_new_like, tensors[5:]))
    if not sizes[0]:
        return after
    call = _StepCall()
    _PACK(
        call,
        _StepCall.batch.offset,
        *sizes,
        *(0 if e is None else e.shape[0], dilation, NORMALIZATIONS[normalize]),
        *_addresses((*tensors, y, *after)),
        *layer,
    )
    if not invoke_complete("step_output", call, y.dtype, y.device.type):
        raise MemoryError(f"a step found no memory for its temporaries {tuple(sizes)}")
    return after


def _new_like(x: Tensor | None) -> Tensor | None:
    """Return an uninitialised tensor like a contiguous one; None stays None."""
    return None if x is None else torch.empty_like(x)


def _dense(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return tensors that are contiguous, copies where necessary."""
    return [x if x is None or x.is_contiguous() else x.contiguous() for x in tensors]


def _addresses(tensors: Sequence[Tensor | None]) -> list[int]:
    """Return the addresses of tensors, 0 for None."""
    return [0 if x is None else x.data_ptr() for x in tensors]
