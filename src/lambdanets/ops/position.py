"""The position part as two library operators: its output and its gradients.

PyTorch sees each as one node: a compiled graph holds it whole, an exported one keeps it for any grid, and
between forward and backward only q, v and e are kept. Each is told its kernel; "auto" leaves the choice to
the moment when it runs and the sizes are known, which is how it stands in a graph. The position part is
linear in q, v and e, so the gradients of its gradients are sums of the same two operators, to any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from .context import LocalContext, RelativeContext
from .kernels import KERNELS
from .order import new_output
from .planner import choose
from .problem import Problem
from .products import no_autocast, product_dtype

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
) -> Problem:
    """The problem that the operators' arguments pose."""
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
        content=False,
        causal=causal,
        dense=not grid,
        dtype=q.dtype,
        device=q.device.type,
    )


def computed_in(*tensors: Tensor) -> list[Tensor]:
    """The tensors in the type in which the processor multiplies them fast."""
    return [x.to(product_dtype(x.dtype, x.device.type)) for x in tensors]


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
    grid: Sequence[int],
    context_grid: Sequence[int],
    scope: Sequence[int],
    dilation: Sequence[int],
    causal: bool,
    order: str,
    kernel: str,
    backward_kernel: str,
) -> Tensor:
    """The position part of shape b h n v, in an order (see `order`); an empty grid says that e is dense."""
    y, (q, v, e) = new_output(q, v.shape[2], order), computed_in(q, v, e)
    problem = problem_of(q, v, grid, context_grid, scope, dilation, causal)
    chosen = KERNELS[choose(kernel, problem)]
    with no_autocast(q.device.type):
        chosen.output(q, v, e, problem, y)
    return y


@position_output.register_fake
def _(q: Tensor, v: Tensor, e: Tensor, *rest: Any) -> Tensor:
    *_, order, _kernel, _backward_kernel = rest
    return new_output(q, v.shape[2], order)


@torch.library.custom_op("lambdanets::position_gradients", mutates_args=())
def position_gradients(
    g: Tensor,
    q: Tensor,
    v: Tensor,
    e: Tensor,
    grid: Sequence[int],
    context_grid: Sequence[int],
    scope: Sequence[int],
    dilation: Sequence[int],
    causal: bool,
    order: str,
    kernel: str,
    backward_kernel: str,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, v and e from that of the position part, each in the order of its tensor in memory.

    Where none is wanted, an empty tensor.
    """
    given = (q, v, e)
    g, q, v, e = computed_in(g, q, v, e)
    problem = problem_of(q, v, grid, context_grid, scope, dilation, causal)
    chosen = KERNELS[choose(backward_kernel, problem, backward=True)]
    with no_autocast(q.device.type):
        found = chosen.gradients(g, q, v, e, problem, wanted)
    first, second, third = (_like(x, some) for x, some in zip(given, found, strict=True))
    return first, second, third


def _like(x: Tensor, gradient: Tensor | None) -> Tensor:
    if gradient is None:
        return x.new_empty(0)
    like = torch.empty_like(x)
    if gradient.dtype == x.dtype and gradient.stride() == like.stride():
        return gradient
    return like.copy_(gradient)


@position_gradients.register_fake
def _(g: Tensor, q: Tensor, v: Tensor, e: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    first, second, third = (
        torch.empty_like(x) if some else x.new_empty(0) for x, some in zip((q, v, e), rest[-1], strict=True)
    )
    return first, second, third


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    ctx.save_for_backward(*tensors)
    ctx.options = inputs[len(tensors) :]


def _output_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:3])
    found = position_gradients(g, *ctx.saved_tensors, *ctx.options, wanted)
    return *(x if some else None for x, some in zip(found, wanted, strict=True)), *[None] * len(ctx.options)


def _gradients_backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    """With F = sum of g times the position part, the gradients are its derivatives by q, v and e.

    What flows back are directions a, b, c for q, v, e. The derivative of `F_q a + F_v b + F_e c` by g is the
    position part with a, b, c in turn in place of q, v, e; by q, v, e its gradients likewise.
    """
    g, *arguments = ctx.saved_tensors
    *options, wanted = ctx.options
    needs = ctx.needs_input_grad[:4]
    total: list[Tensor | None] = [None] * 4

    def add(place: int, x: Tensor) -> None:
        so_far = total[place]
        total[place] = x if so_far is None else so_far + x

    for place, direction in enumerate(upstream):
        if direction is None or not wanted[place]:
            continue
        varied = [direction if i == place else x for i, x in enumerate(arguments)]
        if needs[0]:
            add(0, position_output(*varied, *options))
        some = [need and i != place for i, need in enumerate(needs[1:])]
        if any(some):
            found = position_gradients(g, *varied, *options, some)
            for i, x in enumerate(found):
                if some[i]:
                    add(i + 1, x)
    return *total, *[None] * len(ctx.options)


@register_flop_formula(torch.ops.lambdanets.position_output)
def _output_flops(q: torch.Size, v: torch.Size, e: torch.Size, *options: Any, **_: Any) -> int:
    """What the chosen kernel does, for `torch.utils.flop_counter`."""
    *geometry, _order, kernel, _backward_kernel = options
    problem = problem_of(_sized(q), _sized(v), *geometry)
    return KERNELS[choose(kernel, problem)].cost(problem).flops


@register_flop_formula(torch.ops.lambdanets.position_gradients)
def _gradients_flops(
    g: torch.Size, q: torch.Size, v: torch.Size, e: torch.Size, *options: Any, **_: Any
) -> int:
    *geometry, _order, _kernel, backward_kernel, _wanted = options
    problem = problem_of(_sized(q), _sized(v), *geometry)
    return KERNELS[choose(backward_kernel, problem, backward=True)].cost(problem, backward=True).flops


def _sized(shape: torch.Size) -> Tensor:
    return torch.empty(shape, device="meta")


position_output.register_autograd(_output_backward, setup_context=_keep)
position_gradients.register_autograd(_gradients_backward, setup_context=_keep)
