"""The causal content part: a recurrent layer with a state.

With a softmax it is two PyTorch custom operators, its output and its gradients. On CPUs with the native
library both are a recurrence over the positions, in time and memory linear in n, and a compiled graph holds
each as one call. A graph that is moved to a GPU, or to a machine without the library, computes the chunks of
`content` in these operators. The chunks also serve other normalisations, the gradients of the gradients,
transforms of torch.func and exported graphs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .content import causal_content_in_chunks
from .hardware import log_norm_dtype
from .kernels.native import causal_content as recurrence
from .kernels.native import convert
from .memory_layout import memory_layout_of, new_output
from .planner import has_native_content, is_recurrence
from .position import (
    allows_native_content,
    gradients_in_operator,
    gradients_of_gradients,
    is_eager,
    is_native_here,
    like_input,
)
from .problem import Problem


def causal_content(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    log_norm: Tensor | None = None,
    summary: Tensor | None = None,
    decay: Tensor | None = None,
    normalize: str = "softmax",
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the causal content part of a sequence, or of its continuation, and the state after it.

    Query n multiplies the content lambda of the elements up to n and of those before the sequence, whose
    state is given. Any division of a sequence into calls, each with the state that the one before returned,
    gives the output of the whole. With a softmax the state, z and S (`log_norm`, `summary`), follows
    `z_n = logaddexp(z_{n-1} - decay, k_n)`, `S_n = exp(z_{n-1} - decay - z_n) S_{n-1} + exp(k_n - z_n) v_n`;
    `y_n` is the sum of `q_n S_n` over k and u.

    With normalize "none", S_n = exp(-decay) S_{n-1} + k_n v_n, and z is 0. With "l2", z is the log of the L2
    norm of the keys so far and S the sum of keys times values divided by that norm; both sums decay by
    exp(-decay) for each element, so the squared norm by exp(-2 decay).

    Args:
        q: Queries [b, h, n, k].
        k: Keys [b, n, k, u], not normalised.
        v: Values [b, n, v, u].
        mask: Booleans [b, n], False where an element is hidden: it changes nothing, and nothing decays.
        log_norm: z before the first element, [b, k, u], in float64; None for no elements so far.
        summary: S before the first element, [b, k, v, u], in float32 at least; None as `log_norm` is.
        decay: Decay per visible element, [k, u], finite and not negative; None for none.
        normalize: The normalisation of the keys: "softmax", "l2" or "none".

    Returns:
        y [b, h, n, v] in the dtype of the queries, and the state after the last element, as `log_norm` and
        `summary`. After no elements log_norm is -infinity (0 for "none") and summary zero. See
        `hardware.log_norm_dtype` for devices without float64.

    Raises:
        ValueError: There is no element, or only one part of the state is given.
    """
    if q.shape[2] == 0:
        raise ValueError("a sequence needs at least one element, got none")
    if (log_norm is None) != (summary is None):
        raise ValueError("log_norm and summary are one state: give both or neither")
    if has_native_content(normalize, q.device.type, q.dtype):
        found = _output(q, k, v, log_norm, summary, decay, mask)
        if found is not None:
            return found
    return causal_content_in_chunks(q, k, v, mask, normalize, log_norm, summary, decay)


def causal_output(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, problem: Problem) -> Tensor | None:
    """Return the content part [b, h, n, v] by the recurrence; None if it does not serve the call.

    Where all keys of a column up to a query are -infinity, the column adds nothing to the query's output, as
    in the chunks of `content`. By the definition it is NaN for the last query, if no element is hidden.
    """
    found = _output(q, k, v, None, None, None, mask) if is_recurrence(problem) else None
    return None if found is None else found[0]


def _output(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_norm: Tensor | None,
    summary: Tensor | None,
    decay: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return the result of `causal_content_output`, or None where no custom operator may compute it.

    The operator is for graphs and modes; eager calls do without.
    """
    tensors, memory_layout = (q, k, v, log_norm, summary, decay, mask), memory_layout_of(q)
    if is_eager(*tensors):
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
            return _CausalContent.apply(*tensors, memory_layout)
        return _compute(*tensors, memory_layout)
    if allows_native_content(*_given(tensors)):
        return causal_content_output(*tensors, memory_layout)
    return None


@torch.library.custom_op("lambdanets::causal_content_output", mutates_args=())
def causal_content_output(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_norm: Tensor | None,
    summary: Tensor | None,
    decay: Tensor | None,
    mask: Tensor | None,
    memory_layout: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the content part [b, h, n, v] in a memory layout, and the state after the last query."""
    return _compute(q, k, v, log_norm, summary, decay, mask, memory_layout)


def _compute(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_norm: Tensor | None,
    summary: Tensor | None,
    decay: Tensor | None,
    mask: Tensor | None,
    memory_layout: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the result of `causal_content_output`."""
    y = new_output(q, v.shape[2], memory_layout)
    if is_native_here(q):
        return y, *recurrence.output(q, k, v, log_norm, summary, decay, mask, y)
    found = causal_content_in_chunks(q, k, v, mask, "softmax", log_norm, summary, decay)
    y.copy_(found[0])
    return y, found[1].contiguous(), found[2].contiguous()


@causal_content_output.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_norm: Tensor | None,
    summary: Tensor | None,
    decay: Tensor | None,
    mask: Tensor | None,
    memory_layout: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return empty tensors like the output and the state, for tracing."""
    (b, _, dim_k, u), dim_v, dtype = k.shape, v.shape[2], torch.promote_types(q.dtype, torch.float32)
    y = new_output(q, dim_v, memory_layout)
    final_log_norm = k.new_empty(b, dim_k, u, dtype=log_norm_dtype(q.device.type))
    return y, final_log_norm, k.new_empty(b, dim_k, dim_v, u, dtype=dtype)


@torch.library.custom_op("lambdanets::causal_content_gradients", mutates_args=())
def causal_content_gradients(
    g: Tensor | None,
    d_log_norm: Tensor | None,
    d_summary: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_norm: Tensor | None,
    summary: Tensor | None,
    decay: Tensor | None,
    mask: Tensor | None,
    needs_grad: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v, log_norm, summary and decay.

    The first three arguments are the gradients of the output and of the final state, None for zero. Each
    result has the dtype and the strides of its tensor; a gradient that is not needed is an empty tensor.
    """
    upstream, tensors = (g, d_log_norm, d_summary), (q, k, v, log_norm, summary, decay)
    if is_native_here(q):
        found = recurrence.gradients(upstream, *tensors, mask, needs_grad)
    else:
        function = _in_chunks(tensors, mask, upstream)
        needed = [needs for needs, x in zip(needs_grad, tensors, strict=True) if x is not None]
        found = gradients_in_operator(function, _given(tensors), _given(upstream), needed)
        found = list(_where_given(found, tensors))
    dq, dk, dv, d_initial_log_norm, d_initial_summary, d_decay = (
        like_input(q if x is None else x, gradient) for x, gradient in zip(tensors, found, strict=True)
    )
    return dq, dk, dv, d_initial_log_norm, d_initial_summary, d_decay


@causal_content_gradients.register_fake
def _(
    g: Tensor | None,
    d_log_norm: Tensor | None,
    d_summary: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_norm: Tensor | None,
    summary: Tensor | None,
    decay: Tensor | None,
    mask: Tensor | None,
    needs_grad: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return empty tensors like the gradients, for tracing."""
    dq, dk, dv, d_initial_log_norm, d_initial_summary, d_decay = (
        torch.empty_like(x) if needed and x is not None else (q if x is None else x).new_empty(0)
        for x, needed in zip((q, k, v, log_norm, summary, decay), needs_grad, strict=True)
    )
    return dq, dk, dv, d_initial_log_norm, d_initial_summary, d_decay


def _given(tensors: Iterable[Tensor | None]) -> list[Tensor]:
    """Return the tensors that are not None."""
    return [x for x in tensors if x is not None]


def _where_given(found: Iterable[Tensor | None], tensors: Iterable[Tensor | None]) -> Iterator[Tensor | None]:
    """Yield what was found for each of the tensors that are not None, and None for the others."""
    rest = iter(found)
    return (None if x is None else next(rest) for x in tensors)


def _in_chunks(
    tensors: Sequence[Tensor | None], mask: Tensor | None, upstream: Sequence[Tensor | None]
) -> Callable[..., tuple[Tensor, ...]]:
    """Return a function of the given tensors that computes, in chunks, the results with gradients upstream.

    Args:
        tensors: q, k, v, log_norm, summary and decay.
        mask: Booleans [b, m], False where an element is hidden.
        upstream: Gradients of the output and of the final state.
    """

    def function(*given: Tensor) -> tuple[Tensor, ...]:
        q, k, v, *others = given
        log_norm, summary, decay = _where_given(others, tensors[3:])
        results = causal_content_in_chunks(q, k, v, mask, "softmax", log_norm, summary, decay)
        return tuple(x for x, g in zip(results, upstream, strict=True) if g is not None)

    return function


def _save_output(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Save the tensors of `causal_content_output` for its backward pass."""
    ctx.save_for_backward(*inputs[:7])
    # Gradients of results that are not used are None.
    ctx.set_materialize_grads(False)


def _save_gradients(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Save the arguments of `causal_content_gradients` for its backward pass."""
    ctx.save_for_backward(*inputs[:10])
    ctx.needs_grad = inputs[10]


def _output_backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the gradients of all arguments of `causal_content_output`."""
    needs_grad, saved = list(ctx.needs_input_grad[:6]), ctx.saved_tensors
    if not torch.is_grad_enabled() and is_native_here(saved[0]) and is_eager(*upstream, *saved):
        q, k, v, log_norm, summary, decay, mask = saved
        found = recurrence.gradients(upstream, q, k, v, log_norm, summary, decay, mask, needs_grad)
        found = [x if dx is None else convert(dx, x.dtype) for x, dx in zip(saved, found, strict=False)]
    else:
        found = causal_content_gradients(*upstream, *saved, needs_grad)
    return *(x if needed else None for x, needed in zip(found, needs_grad, strict=True)), None, None


class _CausalContent(torch.autograd.Function):
    """`causal_content_output` in eager calls."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        _save_output(ctx, arguments, None)
        return _compute(*arguments)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        return _output_backward(ctx, *upstream)


def _gradients_backward(ctx: Any, *directions: Tensor | None) -> tuple[Tensor | None, ...]:
    """Differentiate `causal_content_gradients` through the chunks of `content`, in PyTorch's operators."""
    upstream, tensors, mask = ctx.saved_tensors[:3], ctx.saved_tensors[3:9], ctx.saved_tensors[9]
    present = [i for i, x in enumerate(tensors) if x is not None]
    found = gradients_of_gradients(
        _in_chunks(tensors, mask, upstream),
        _given(tensors),
        _given(upstream),
        [directions[i] for i in present],
        [ctx.needs_grad[i] for i in present],
    )
    return *_where_given(found, (*upstream, *tensors)), None, None


causal_content_output.register_autograd(_output_backward, setup_context=_save_output)
causal_content_gradients.register_autograd(_gradients_backward, setup_context=_save_gradients)


@register_flop_formula(torch.ops.lambdanets.causal_content_output)
def _output_flops(q: torch.Size, k: torch.Size, v: torch.Size, *_: Any, **__: Any) -> int:
    """Return the floating-point operations: a step for each element, a product for each query."""
    return 2 * (math.prod(k) + math.prod(q)) * v[2]


@register_flop_formula(torch.ops.lambdanets.causal_content_gradients)
def _gradients_flops(*shapes: Any, **_: Any) -> int:
    """Return the floating-point operations of the gradients, twice those of the output."""
    q, k, v = shapes[3:6]
    return 2 * _output_flops(q, k, v)
