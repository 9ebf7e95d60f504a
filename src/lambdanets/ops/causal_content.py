"""The causal content part with a softmax as two PyTorch custom operators: its output and its gradients.

On CPUs with the native library both are a recurrence over the positions, in time and memory linear in n, and
a compiled graph holds each as one call. A graph that is moved to a GPU, or to a machine without the library,
computes the chunks of `content` in these operators. The chunks also serve the gradients of the gradients,
transforms of torch.func and exported graphs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .content import causal_content_in_chunks, content_output
from .context import GlobalContext
from .kernels.native import causal_content as recurrence
from .memory_layout import memory_layout_of, new_output
from .planner import is_recurrence
from .position import (
    allows_native_content,
    gradients_in_operator,
    gradients_of_gradients,
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
        log_norm: z before the first element, [b, k, u], in float32 at least; None for no elements so far.
        summary: S before the first element, [b, k, v, u], in float32 at least; None as `log_norm` is.
        decay: Decay per visible element, [k, u], finite and not negative; None for none.
        normalize: The normalisation of the keys: "softmax", "l2" or "none".

    Returns:
        y [b, h, n, v] in the dtype of the queries, and the state after the last element, as `log_norm` and
        `summary`. After no elements log_norm is -infinity (0 for "none") and summary zero.

    Raises:
        ValueError: Only one part of the state is given.
    """
    if (log_norm is None) != (summary is None):
        raise ValueError("log_norm and summary are one state: give both or neither")
    return causal_content_in_chunks(q, k, v, mask, normalize, log_norm, summary, decay)


def causal_output(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, problem: Problem) -> Tensor | None:
    """Return the content part [b, h, n, v] by the recurrence; None if it does not serve the call.

    Where all keys of a column up to a query are -infinity, the column adds nothing to the query's output, as
    in the chunks of `content`. By the definition it is NaN for the last query, if no element is hidden.
    """
    if not (allows_native_content(q, k, v) and is_recurrence(problem)):
        return None
    return causal_content_output(q, k, v, mask, memory_layout_of(q))


@torch.library.custom_op("lambdanets::causal_content_output", mutates_args=())
def causal_content_output(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, memory_layout: str) -> Tensor:
    """Return the content part [b, h, n, v] in a memory layout."""
    y = new_output(q, v.shape[2], memory_layout)
    if is_native_here(q):
        recurrence.output(q, k, v, mask, y)
        return y
    return y.copy_(content_output(q, k, v, _context(q, k), mask, "softmax"))


@causal_content_output.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, memory_layout: str) -> Tensor:
    """Return an empty tensor like the output, for tracing."""
    return new_output(q, v.shape[2], memory_layout)


@torch.library.custom_op("lambdanets::causal_content_gradients", mutates_args=())
def causal_content_gradients(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, needs_grad: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v from g [b, h, n, v], that of the output.

    Each has the dtype and the strides of its tensor; a gradient that is not needed is an empty tensor.
    """
    if is_native_here(q):
        found = recurrence.gradients(g, q, k, v, mask, needs_grad)
    else:

        def output(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return content_output(q, k, v, _context(q, k), mask, "softmax")

        found = gradients_in_operator(output, (q, k, v), g, needs_grad)
    dq, dk, dv = map(like_input, (q, k, v), found)
    return dq, dk, dv


@causal_content_gradients.register_fake
def _(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, needs_grad: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return empty tensors like the gradients, for tracing."""
    dq, dk, dv = (
        torch.empty_like(x) if needed else g.new_empty(0)
        for x, needed in zip((q, k, v), needs_grad, strict=True)
    )
    return dq, dk, dv


def _context(q: Tensor, k: Tensor) -> GlobalContext:
    """Return the causal context of queries [b, h, n, k] and keys [b, m, k, u]."""
    return GlobalContext((q.shape[2],), context_grid=(k.shape[1],), causal=True)


def _save_output(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Save the tensors of `causal_content_output` for its backward pass."""
    ctx.save_for_backward(*inputs[:4])


def _save_gradients(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Save the arguments of `causal_content_gradients` for its backward pass."""
    ctx.save_for_backward(*inputs[:5])
    ctx.needs_grad = inputs[5]


def _output_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of all arguments of `causal_content_output`."""
    needs_grad = list(ctx.needs_input_grad[:3])
    found = causal_content_gradients(g, *ctx.saved_tensors, needs_grad)
    return *(x if needed else None for x, needed in zip(found, needs_grad, strict=True)), None, None


def _gradients_backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    """Differentiate `causal_content_gradients` through the chunks of `content`, in PyTorch's operators."""
    *tensors, mask = ctx.saved_tensors
    context = _context(*tensors[1:3])

    def output(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return content_output(q, k, v, context, mask, "softmax")

    return *gradients_of_gradients(ctx, output, tensors, upstream), None, None


causal_content_output.register_autograd(_output_backward, setup_context=_save_output)
causal_content_gradients.register_autograd(_gradients_backward, setup_context=_save_gradients)


@register_flop_formula(torch.ops.lambdanets.causal_content_output)
def _output_flops(q: torch.Size, k: torch.Size, v: torch.Size, *_: Any, **__: Any) -> int:
    """Return the floating-point operations: a step for each element, a product for each query."""
    return 2 * (math.prod(k) + math.prod(q)) * v[2]


@register_flop_formula(torch.ops.lambdanets.causal_content_gradients)
def _gradients_flops(g: torch.Size, *shapes: Any, **_: Any) -> int:
    """Return the floating-point operations of the gradients, twice those of the output."""
    q, k, v = shapes[:3]
    return 2 * _output_flops(q, k, v)
