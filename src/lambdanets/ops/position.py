"""The position part, with a content lambda that all queries share, as two library operators.

One is its output, the other its gradients. PyTorch sees each as one node: a compiled graph holds it whole, an
exported one keeps it for any grid, and between forward and backward only q, v, e and the content lambda are
kept. Each is told its kernel; "auto" leaves the choice to the moment when it runs and the sizes are known,
which is how it stands in a graph. The position part is linear in q, v and e, the rest in q and the content
lambda, so the gradients of the gradients are sums of the same two operators, to any order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from .content import add_applied, applied, applied_gradients
from .context import LocalContext, RelativeContext
from .kernels import KERNELS
from .order import new_output
from .planner import choose
from .problem import Problem
from .products import no_autocast, product_dtype

LAMBDAS = 3  # their place among the operators' tensors q, v, e, lambdas
ORDER = 5  # of the output, its place among the options that follow them

Geometry = tuple[list[int], list[int], list[int], list[int], bool]


def geometry_of(context: RelativeContext | None) -> Geometry:
    """A context as the plain numbers that an operator takes; None stands for dense embeddings."""
    if context is None:
        return [], [], [], [], False
    local = isinstance(context, LocalContext)
    scope, dilation = (list(context.table_shape), list(context.step)) if local else ([], [])
    return list(context.grid), list(context.key_grid), scope, dilation, context.causal


def problem_of(
    q: Tensor,
    v: Tensor,
    grid: Sequence[int],
    context_grid: Sequence[int],
    scope: Sequence[int],
    dilation: Sequence[int],
    causal: bool,
    *,
    content: bool,
) -> Problem:
    """The problem that the operators' arguments pose; `content` says that there is a content lambda."""
    return Problem(
        grid=tuple(grid) or (q.shape[2],),
        context_grid=tuple(context_grid) or (v.shape[1],),
        scope=tuple(scope) or None,
        dilation=tuple(dilation) or None,
        num_heads=q.shape[1],
        dim_k=q.shape[3],
        dim_v=v.shape[2],
        dim_u=v.shape[3],
        batch=q.shape[0],
        content=content,
        causal=causal,
        dense=not grid,
        dtype=q.dtype,
        device=q.device.type,
    )


def computed_in(dtype: torch.dtype, *tensors: Tensor | None) -> list[Any]:
    """The tensors, if any, in the type in which the processor multiplies numbers of a type fast."""
    return [None if x is None else x.to(product_dtype(dtype, x.device.type)) for x in tensors]


def refuse_transforms(*tensors: Tensor) -> None:
    """Raise where PyTorch would take a derivative of a library operator wrongly, or not at all."""
    forward_mode = forward_ad._current_level >= 0 and any(
        forward_ad.unpack_dual(x).tangent is not None for x in tensors
    )
    levels = [] if torch.compiler.is_compiling() else get_interpreter_stack() or []
    if forward_mode or any(level.key() in (TransformType.Grad, TransformType.Jvp) for level in levels):
        raise NotImplementedError(
            "forward-mode differentiation and torch.func's derivatives need kernel='reference'; "
            "torch.autograd (backward, grad, create_graph=True) works with every kernel"
        )


@torch.library.custom_op("lambdanets::position_output", mutates_args=())
def position_output(
    q: Tensor,
    v: Tensor,
    e: Tensor,
    lambdas: Tensor | None,
    grid: Sequence[int],
    context_grid: Sequence[int],
    scope: Sequence[int],
    dilation: Sequence[int],
    causal: bool,
    order: str,
    kernel: str,
    backward_kernel: str,
) -> Tensor:
    """The position part of shape b h n v, plus q times content lambdas (b k v) if given, in an order.

    The orders are those of `order`; an empty grid says that e is dense.
    """
    y = new_output(q, v.shape[2], order)
    q, v, e, lambdas = computed_in(q.dtype, q, v, e, lambdas)
    problem = problem_of(q, v, grid, context_grid, scope, dilation, causal, content=lambdas is not None)
    chosen = KERNELS[choose(kernel, problem)]
    with no_autocast(q.device.type):
        if chosen.APPLIES_CONTENT:
            chosen.output(q, v, e, problem, y, lambdas)
            return y
        chosen.output(q, v, e, problem, y)
        if lambdas is not None:
            add_applied(y, q, lambdas, order)
    return y


@position_output.register_fake
def _(q: Tensor, v: Tensor, e: Tensor, lambdas: Tensor | None, *rest: Any) -> Tensor:
    *_, order, _kernel, _backward_kernel = rest
    return new_output(q, v.shape[2], order)


@torch.library.custom_op("lambdanets::position_gradients", mutates_args=())
def position_gradients(
    g: Tensor,
    q: Tensor,
    v: Tensor,
    e: Tensor,
    lambdas: Tensor | None,
    grid: Sequence[int],
    context_grid: Sequence[int],
    scope: Sequence[int],
    dilation: Sequence[int],
    causal: bool,
    order: str,
    kernel: str,
    backward_kernel: str,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of q, v, e and lambdas from that of the output, each in memory as its tensor is.

    Where none is wanted, an empty tensor.
    """
    given = (q, v, e, q if lambdas is None else lambdas)
    g, q, v, e, lambdas = computed_in(q.dtype, g, q, v, e, lambdas)
    problem = problem_of(q, v, grid, context_grid, scope, dilation, causal, content=lambdas is not None)
    chosen = KERNELS[choose(backward_kernel, problem, backward=True)]
    with no_autocast(q.device.type):
        if chosen.APPLIES_CONTENT:
            dq, dv, de = chosen.gradients(g, q, v, e, problem, wanted[:3], lambdas)
        else:
            dq, dv, de = chosen.gradients(g, q, v, e, problem, wanted[:3])
        dlambdas = None
        if lambdas is not None:
            some = [wanted[0] and not chosen.APPLIES_CONTENT, wanted[3]]
            more, dlambdas = applied_gradients(g, q, lambdas, order, some)
            dq = dq if more is None or dq is None else dq + more
    found = [_like(x, some) for x, some in zip(given, (dq, dv, de, dlambdas), strict=True)]
    return found[0], found[1], found[2], found[3]


def _like(x: Tensor, gradient: Tensor | None) -> Tensor:
    if gradient is None:
        return x.new_empty(0)
    like = torch.empty_like(x)
    if gradient.dtype == x.dtype and gradient.stride() == like.stride():
        return gradient
    return like.copy_(gradient)


@position_gradients.register_fake
def _(
    g: Tensor, q: Tensor, v: Tensor, e: Tensor, lambdas: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    found = [
        torch.empty_like(x) if some and x is not None else q.new_empty(0)
        for x, some in zip((q, v, e, lambdas), rest[-1], strict=True)
    ]
    return found[0], found[1], found[2], found[3]


def _keep(ctx: Any, inputs: tuple[Any, ...], tensors: int) -> None:
    ctx.save_for_backward(*inputs[:tensors])
    ctx.options = inputs[tensors:]


def _output_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:4])
    found = position_gradients(g, *ctx.saved_tensors, *ctx.options, wanted)
    return *(x if some else None for x, some in zip(found, wanted, strict=True)), *[None] * len(ctx.options)


def _gradients_backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    """With F = sum of g times the output, the gradients are its derivatives by q, v, e and the lambdas.

    What flows back are directions for these. F has a term in q, v and e and one in q and the lambdas, each
    linear in all of its own: its derivative in a direction of one of them is F with that direction in its
    place, without the term that it is not in. By g that is the output, by the others their gradients.
    """
    g, *arguments = ctx.saved_tensors
    *options, wanted = ctx.options
    needs = ctx.needs_input_grad[:5]
    total: list[Tensor | None] = [None] * 5

    def add(place: int, x: Tensor) -> None:
        so_far = total[place]
        total[place] = x if so_far is None else so_far + x

    for place, direction in enumerate(upstream):
        if direction is None or not wanted[place]:
            continue
        if place == LAMBDAS:
            q, order = arguments[0], options[ORDER]
            if needs[0]:
                add(0, applied(q, direction, order))
            if needs[1]:
                by_q, _ = applied_gradients(g, q, direction, order, (True, False))
                assert by_q is not None
                add(1, by_q)
            continue
        varied = [direction if i == place else x for i, x in enumerate(arguments)]
        if place != 0:
            varied[LAMBDAS] = None
        if needs[0]:
            add(0, position_output(*varied, *options))
        some = [need and i != place and varied[i] is not None for i, need in enumerate(needs[1:])]
        if any(some):
            found = position_gradients(g, *varied, *options, some)
            for i, x in enumerate(found):
                if some[i]:
                    add(i + 1, x)
    return *total, *[None] * len(ctx.options)


@register_flop_formula(torch.ops.lambdanets.position_output)
def _output_flops(
    q: torch.Size, v: torch.Size, e: torch.Size, lambdas: torch.Size | None, *options: Any, **_: Any
) -> int:
    """What the chosen kernel does, for `torch.utils.flop_counter`, and the content lambdas' product."""
    *geometry, _order, kernel, _backward_kernel = options
    problem = problem_of(_sized(q), _sized(v), *geometry, content=lambdas is not None)
    own = KERNELS[choose(kernel, problem)].cost(problem).flops
    return own if lambdas is None else own + 2 * math.prod(q) * v[2]


@register_flop_formula(torch.ops.lambdanets.position_gradients)
def _gradients_flops(
    g: torch.Size,
    q: torch.Size,
    v: torch.Size,
    e: torch.Size,
    lambdas: torch.Size | None,
    *options: Any,
    **_: Any,
) -> int:
    *geometry, _order, _kernel, backward_kernel, wanted = options
    problem = problem_of(_sized(q), _sized(v), *geometry, content=lambdas is not None)
    own = KERNELS[choose(backward_kernel, problem, backward=True)].cost(problem, backward=True).flops
    return own if lambdas is None else own + (wanted[0] + wanted[3]) * 2 * math.prod(q) * v[2]


def _sized(shape: torch.Size) -> Tensor:
    return torch.empty(shape, device="meta")


def _keep_output(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _keep(ctx, inputs, 4)


def _keep_gradients(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _keep(ctx, inputs, 5)


position_output.register_autograd(_output_backward, setup_context=_keep_output)
position_gradients.register_autograd(_gradients_backward, setup_context=_keep_gradients)
