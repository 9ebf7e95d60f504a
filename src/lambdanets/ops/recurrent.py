"""The operator under a causal order as a recurrence: a sequence continued from the state before it.

The content part continues from the content lambda (`causal_content`), the position part from the last values.
Letters as in `reference`, with r entries of a position table, the last one for offset 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from .causal_content import causal_content
from .content import next_content_lambda
from .context import LocalContext
from .functional import lambda_layer
from .hardware import log_norm_dtype
from .kernels import native
from .kernels.native import step as native_step
from .kernels.native.step import Layer
from .position import is_eager


class Recurrence(NamedTuple):
    """All that the elements after a position need of those before it, None for a part that is left out.

    Attributes:
        log_norm: Logarithm of the divisor of the content lambda [b, g, k, u] in `log_norm_dtype`, or None.
        summary: Content lambda after the last element [b, g, k, v, u], or None.
        values: The last (r - 1) * dilation values [b, _, v, u], zeros before the first element, or None.
    """

    log_norm: Tensor | None
    summary: Tensor | None
    values: Tensor | None


def recurrent_lambda_layer(
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    e: Tensor | None,
    state: Recurrence | None,
    *,
    lengths: Tensor | None = None,
    decay: Tensor | None = None,
    dilation: int = 1,
    normalize: str = "softmax",
    kernel: str = "auto",
) -> tuple[Tensor, Recurrence]:
    """Apply the causal operator to elements that follow a state.

    Args:
        q: Queries [b, h, n, k].
        k: Keys [b, n, g k, u] of g sets, each for h / g heads; None without a content part.
        v: Values [b, n, v, u].
        e: Table of the offsets -(r - 1) to 0, [r, k, u], or None without a position part.
        state: State before the first element; None for none before it.
        lengths: Number of visible elements of each row, int64 [b], which are its first ones; None for all.
        decay: Rates at which the content forgets, [k, u]: each visible element multiplies the weights of all
            before it by exp(-decay).
        dilation: Distance between neighbouring entries of the table.
        normalize: Normalisation of the keys.
        kernel: Kernel of the position part.

    Returns:
        Output [b, h, n, v], and the state after the last visible element.
    """
    n = q.shape[2]
    mask = None
    if lengths is not None:
        mask = torch.arange(n, device=q.device) < lengths[:, None]
        v = v.masked_fill(~mask[:, :, None, None], 0)
    y, log_norm, summary, values = None, None, None, None
    if e is not None:
        y, values = _positions(q, v, e, None if state is None else state.values, lengths, dilation, kernel)
    if k is not None:
        content, log_norm, summary = _content(q, k, v, state, mask, decay, normalize)
        y = content if y is None else y + content
    assert y is not None
    return y, Recurrence(log_norm, summary, values)


def _content(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Recurrence | None,
    mask: Tensor | None,
    decay: Tensor | None,
    normalize: str,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return the content part [b, h, n, v] and its state; each set of keys is a row of a larger batch."""
    b, heads, _, dim_k = q.shape
    sets = k.shape[2] // dim_k

    def expand(x: Tensor) -> Tensor:
        """Return a tensor [b, ...] that all sets share as [b g, ...]."""
        return x if sets == 1 else x[:, None].expand(-1, sets, *x.shape[1:]).flatten(0, 1)

    log_norm = summary = None
    if state is not None and state.summary is not None:
        summary = state.summary.flatten(0, 1)
        # Without a normalisation the state has no divisor.
        log_norm = summary.new_zeros(()) if state.log_norm is None else state.log_norm.flatten(0, 1)
        log_norm = log_norm.expand(*summary.shape[:2], summary.shape[3])
    y, log_norm, summary = causal_content(
        q.reshape(b * sets, heads // sets, *q.shape[2:]),
        k.unflatten(2, (sets, dim_k)).movedim(2, 1).flatten(0, 1),
        expand(v),
        None if mask is None else expand(mask),
        log_norm,
        summary,
        decay,
        normalize,
    )
    divisor = None if normalize == "none" else log_norm.unflatten(0, (b, sets))
    return y.reshape(b, heads, *y.shape[2:]), divisor, summary.unflatten(0, (b, sets))


def _positions(
    q: Tensor,
    v: Tensor,
    e: Tensor,
    past: Tensor | None,
    lengths: Tensor | None,
    dilation: int,
    kernel: str,
) -> tuple[Tensor, Tensor]:
    """Return the position part [b, h, n, v] and the values that the elements after it need."""
    n, scope, m = q.shape[2], e.shape[0], v.shape[1]
    needed = (scope - 1) * dilation
    if past is None:
        elements = v
        context = LocalContext((n,), (scope,), dilation=dilation, causal=True)
    else:
        # The grid of the elements begins with the first past value: the table's first entry is for the
        # element that has the same index as the query.
        elements = torch.cat([past.to(v.dtype), v], dim=1)
        context = LocalContext((n,), (scope,), dilation=dilation, centre=0, context_grid=(needed + m,))
    unused_keys = v.new_zeros(()).expand(*elements.shape[:2], *e.shape[-2:])
    y = lambda_layer(q, unused_keys, elements, e, context=context, content=False, kernel=kernel)
    if past is None and (lengths is not None or n < needed):
        elements = torch.cat([v.new_zeros(v.shape[0], needed, *v.shape[2:]), v], dim=1)
    if lengths is None:
        # A copy: a view would keep all values in memory.
        return y, elements[:, elements.shape[1] - needed :].clone()
    index = lengths[:, None] + torch.arange(needed, device=v.device)
    return y, elements[torch.arange(v.shape[0], device=v.device)[:, None], index]


def recurrent_step(
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    e: Tensor | None,
    state: Recurrence,
    *,
    decay: Tensor | None = None,
    dilation: int = 1,
    normalize: str = "softmax",
) -> tuple[Tensor, Recurrence]:
    """Apply the causal operator to one element that follows a state: `recurrent_lambda_layer` with n = 1.

    Args:
        q: Queries [b, h, k].
        k: Keys [b, g, k, u] of g sets, each for h / g heads; None without a content part.
        v: Values [b, v, u].
        e: Table of the offsets -(r - 1) to 0, [r, k, u], or None without a position part.
        state: State before the element.
        decay: Rates at which the content forgets, [k, u].
        dilation: Distance between neighbouring entries of the table.
        normalize: Normalisation of the keys.

    Returns:
        Output [b, h, v], and the state after the element.
    """
    before = (
        None if k is None or normalize == "none" else state.log_norm,
        None if k is None else state.summary,
        None if e is None else state.values,
    )
    if _serves_operator(q, k, v, e, before, decay, dilation):
        y, after = native_step.output(q, k, v, e, before, decay, dilation, normalize)
        return y, Recurrence(*after)
    y, log_norm, summary, values = None, None, None, None
    if e is not None:
        assert state.values is not None
        # The queries multiply the table first: one filter of r taps for each head.
        taps = torch.matmul(q, e.movedim(0, 1).flatten(1))  # [b, h, r u]
        elements = torch.cat([state.values, v[:, None]], dim=1)  # [b, (r - 1) dilation + 1, v, u]
        window = elements[:, ::dilation].mT.flatten(1, 2)  # [b, r u, v]
        y, values = torch.matmul(taps, window), elements[:, 1:]
    if k is not None:
        assert state.summary is not None
        elements = v.to(state.summary.dtype)[:, None, None]  # [b, 1, 1, v, u]
        divisor = before[0]
        if divisor is None:
            divisor = torch.zeros_like(k, dtype=log_norm_dtype(k.device.type))
        divisor, summary = next_content_lambda(k, elements, divisor, state.summary, decay, normalize)
        log_norm = None if normalize == "none" else divisor
        lambdas = summary.sum(-1) if summary.shape[-1] > 1 else summary.squeeze(-1)  # [b, g, k, v]
        queries = q.unflatten(1, (k.shape[1], -1)).to(lambdas.dtype)  # [b, g, h / g, k]
        content = torch.matmul(queries, lambdas).flatten(1, 2).to(q.dtype)
        y = content if y is None else y + content
    assert y is not None
    return y, Recurrence(log_norm, summary, values)


def is_native_step(shaped: Iterable[tuple[Tensor | None, tuple[int, ...]]], *others: Tensor | None) -> bool:
    """Return whether the native library serves a step.

    It does in eager mode on CPUs without gradients, in float32 and float64, on plain tensors of the right
    shapes: the library does not check them. PyTorch's operators serve all other steps, and raise its errors.

    Args:
        shaped: Tensors with the shapes that they must have; None for one that is left out.
        others: Further tensors, of which shapes and dtypes are right.
    """
    if torch.compiler.is_compiling():
        return False
    dtype, given = None, []
    for x, shape in shaped:
        if x is not None:
            dtype = x.dtype if dtype is None else dtype
            if x.shape != shape or x.dtype != dtype or not x.is_cpu:
                return False
            given.append(x)
    tensors = [*given, *(x for x in others if x is not None)]
    return (
        dtype in native_step.DTYPES
        and is_eager(*tensors)
        and not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))
        and not torch.is_autocast_enabled("cpu")
        and native.library.unavailable() is None
    )


def _serves_operator(
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    e: Tensor | None,
    state: native_step.State,
    decay: Tensor | None,
    dilation: int,
) -> bool:
    """Return whether the native library serves a step of the operator."""
    if q.ndim != 3 or v.ndim != 3:
        return False
    (b, heads, dim_k), (_, dim_v, dim_u) = q.shape, v.shape
    sets = 1 if k is None or k.ndim != 4 else k.shape[1]
    if sets == 0 or heads % sets:
        return False
    entries = 1 if e is None else e.shape[0]
    log_norm, summary, values = state
    columns = (b, sets, dim_k, dim_u)
    if log_norm is not None and (log_norm.shape != columns or log_norm.dtype != torch.float64):
        return False
    return is_native_step(
        [
            (q, (b, heads, dim_k)),
            (k, columns),
            (v, (b, dim_v, dim_u)),
            (e, (entries, dim_k, dim_u)),
            (decay, (dim_k, dim_u)),
            (summary, (b, sets, dim_k, dim_v, dim_u)),
            (values, (b, (entries - 1) * dilation, dim_v, dim_u)),
        ],
        log_norm,
    )


def layer_step(
    x: Tensor, layer: Layer, state: Recurrence, inputs: Tensor | None
) -> tuple[Tensor, Recurrence, Tensor | None] | None:
    """Apply a whole layer to one element that follows a state, by the native library.

    Args:
        x: Input [b, d].
        layer: The layer.
        state: State before the element, of the layer's shapes and dtype.
        inputs: Last inputs of the short convolution [b, taps - 1, c], or None without one.

    Returns:
        Output [b, h v], the state after the element, and the inputs before the next one. None where the
        library does not serve the step; see `is_native_step`.
    """
    heads, sets, (dim_k, dim_v, dim_u) = layer.num_heads, layer.key_heads, layer.depths
    channels, columns = x.shape[1], dim_k * dim_u
    queries, values, outputs = heads * dim_k, dim_v * dim_u, heads * dim_v
    keys = 0 if layer.to_keys is None else sets * columns
    e, short_conv = layer.e, layer.short_conv
    shaped = (
        (x, (x.shape[0], channels)),
        (e, (0 if e is None else e.shape[0], dim_k, dim_u)),
        (layer.decay, (dim_k, dim_u)),
        (layer.to_queries, (queries, channels, 1)),
        (layer.to_values, (values, channels, 1)),
        (layer.to_keys, (keys, channels, 1)),
        (layer.to_gate, (outputs, channels, 1)),
        (layer.query_norm, (queries,)),
        (layer.value_norm, (values,)),
        (layer.output_norm, (outputs,)),
        (layer.position_bias, (dim_k,)),
        (short_conv, (0 if short_conv is None else short_conv.shape[0], queries + values + keys)),
    )
    if not is_native_step(shaped, *state, inputs):
        return None
    y, after, inputs = native_step.layer_output(x, layer, state, inputs)
    return y, Recurrence(*after), inputs
