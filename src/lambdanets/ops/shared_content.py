"""The content lambda that all queries share as two PyTorch custom operators: its output and its gradients.

On CPUs with the native library each is one call, which a compiled graph holds as such. Where such a graph
runs without the library, the operators compute `content.shared_content_lambda`. That function also serves
everything else: GPUs, other normalisations than the softmax, transforms of torch.func, exported graphs, and
the gradients of the gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .content import shared_content_lambda
from .kernels.native import content
from .planner import is_native_content
from .position import (
    allows_native_content,
    gradients_in_operator,
    gradients_of_gradients,
    is_native_here,
    like_input,
)
from .problem import Problem


def shared_lambda(k: Tensor, v: Tensor, mask: Tensor | None, problem: Problem) -> Tensor:
    """Return the content lambda [b, k, v] that all queries share, in float32 at least.

    Args:
        k: Keys [b, m, k, u].
        v: Values [b, m, v, u], zero where the mask hides an element.
        mask: Booleans [b, m], False where an element is hidden.
        problem: The problem of the call.
    """
    if allows_native_content(k, v) and is_native_content(problem):
        return content_lambda(k, v, mask)
    return shared_content_lambda(k, v, mask, problem.normalize)


@torch.library.custom_op("lambdanets::content_lambda", mutates_args=())
def content_lambda(k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Return the content lambda [b, k, v] in float32 at least."""
    if is_native_here(k):
        return content.output(k, v, mask)
    return shared_content_lambda(k, v, mask, "softmax")


@content_lambda.register_fake
def _(k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Return an empty tensor like the content lambda, for tracing."""
    return k.new_empty(k.shape[0], k.shape[2], v.shape[2], dtype=torch.promote_types(k.dtype, torch.float32))


@torch.library.custom_op("lambdanets::content_lambda_gradients", mutates_args=())
def content_lambda_gradients(
    g: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, needs_grad: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    """Return the gradients of k and v from g [b, k, v], that of the content lambda.

    Each has the dtype and the strides of its tensor; a gradient that is not needed is an empty tensor.
    """
    if is_native_here(k):
        found = content.gradients(g, k, v, mask, needs_grad)
    else:

        def output(k: Tensor, v: Tensor) -> tuple[Tensor]:
            return (shared_content_lambda(k, v, mask, "softmax"),)

        found = gradients_in_operator(output, (k, v), (g,), needs_grad)
    dk, dv = map(like_input, (k, v), found)
    return dk, dv


@content_lambda_gradients.register_fake
def _(
    g: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, needs_grad: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    """Return empty tensors like the gradients, for tracing."""
    dk, dv = (
        torch.empty_like(x) if needed else g.new_empty(0)
        for x, needed in zip((k, v), needs_grad, strict=True)
    )
    return dk, dv


def _save_output(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Save the tensors of `content_lambda` for its backward pass."""
    ctx.save_for_backward(*inputs)


def _save_gradients(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Save the arguments of `content_lambda_gradients` for its backward pass."""
    ctx.save_for_backward(*inputs[:4])
    ctx.needs_grad = inputs[4]


def _output_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of all arguments of `content_lambda`."""
    needs_grad = list(ctx.needs_input_grad[:2])
    found = content_lambda_gradients(g, *ctx.saved_tensors, needs_grad)
    return *(x if needed else None for x, needed in zip(found, needs_grad, strict=True)), None


def _gradients_backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    """Differentiate `content_lambda_gradients` through PyTorch's operators."""
    g, k, v, mask = ctx.saved_tensors

    def output(k: Tensor, v: Tensor) -> tuple[Tensor]:
        return (shared_content_lambda(k, v, mask, "softmax"),)

    return *gradients_of_gradients(output, (k, v), (g,), upstream, ctx.needs_grad), None, None


content_lambda.register_autograd(_output_backward, setup_context=_save_output)
content_lambda_gradients.register_autograd(_gradients_backward, setup_context=_save_gradients)


@register_flop_formula(torch.ops.lambdanets.content_lambda)
def _output_flops(k: torch.Size, v: torch.Size, *_: Any, **__: Any) -> int:
    """Return the floating-point operations: those of the product of keys and values."""
    return 2 * math.prod(k) * v[2]


@register_flop_formula(torch.ops.lambdanets.content_lambda_gradients)
def _gradients_flops(
    g: torch.Size, k: torch.Size, v: torch.Size, mask: Any, needs_grad: Sequence[bool], *_: Any, **__: Any
) -> int:
    """Return the floating-point operations of a product for each gradient."""
    return sum(needs_grad) * _output_flops(k, v)
