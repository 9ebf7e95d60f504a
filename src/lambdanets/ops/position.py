"""The position part as two PyTorch custom operators: its output and its gradients.

PyTorch treats each operator as one node: a compiled graph holds it as one call for any grid, and autograd
saves only q, v, e and the content lambda between forward and backward. Each call names its kernel; "auto" and
"measured" are resolved when the operator runs and the sizes are fixed. The operators also apply the content
lambda that all queries share, if one is given, so that a fused kernel can do both in one pass.

The output is the sum of a term that is linear in each of q, v and e, and one that is linear in each of q and
the content lambda. Gradients of the gradients, to any order, are therefore sums of the same two operators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack
from torch._ops import _len_torch_dispatch_stack_pre_dispatch
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from .content import add_applied_lambda, apply_lambda, apply_lambda_gradients
from .context import default_centre
from .hardware import compute_dtype
from .kernels import FUSED_KERNELS, KERNELS, native
from .matmul import no_autocast
from .memory_layout import new_output
from .planner import select_kernel
from .problem import Problem


def encode(problem: Problem) -> list[int]:
    """Return a problem's geometry as the integers that the operators take; none for dense embeddings.

    They are: the number of axes, 1 if causal else 0, the grid, the context grid and, if local, the scope, the
    dilation and the index of the entry for offset 0.
    """
    if not problem.relative:
        return []
    rank = len(problem.grid)
    local = ()
    if problem.scope:
        centre = problem.centre or default_centre(problem.scope, problem.causal)
        local = (*problem.scope, *(problem.dilation or (1,) * rank), *centre)
    return [rank, int(problem.causal), *problem.grid, *(problem.context_grid or problem.grid), *local]


@lru_cache(maxsize=4096)  # a layer decodes the same problem at each call and for each pass
def decode(
    geometry: tuple[int, ...], q: torch.Size, v: torch.Size, dtype: torch.dtype, device: str, content: bool
) -> Problem:
    """Return the problem of an operator's arguments.

    Embeddings under an n x m mask are dense here: they are zero already where the mask hides a pair.

    Args:
        geometry: The integers of `encode`.
        q: Shape of the queries.
        v: Shape of the values.
        dtype: Dtype of both.
        device: Device type of both.
        content: Whether a content lambda is given.
    """
    rank, causal, *sizes = geometry or (1, False, q[2], v[1])
    grid, context_grid, scope, dilation, centre = (tuple(sizes[i * rank : (i + 1) * rank]) for i in range(5))
    return Problem(
        grid=grid,
        context_grid=context_grid,
        scope=scope or None,
        dilation=dilation or None,
        centre=centre or None,
        num_heads=q[1],
        dim_k=q[3],
        dim_v=v[2],
        dim_u=v[3],
        batch=q[0],
        content=content,
        causal=bool(causal),
        dense=not geometry,
        dtype=dtype,
        device=device,
    )


class Arguments(NamedTuple):
    """The arguments of `position_output`. `position_gradients` takes g, these and `needs_grad`.

    Attributes:
        q: Queries [b, h, n, k].
        v: Values [b, m, v, u].
        e: Position embeddings, a table [*offsets, k, u] or dense [n, m, k, u].
        content_lambda: The content lambda [b, k, v] that all queries share, or None.
        geometry: The integers of `encode`.
        memory_layout: The output's layout (`memory_layout`).
        kernel: The kernel of the output, by name, "auto" or "measured".
        backward_kernel: The kernel of the gradients.
    """

    q: Tensor
    v: Tensor
    e: Tensor
    content_lambda: Tensor | None
    geometry: list[int]
    memory_layout: str
    kernel: str
    backward_kernel: str


DIFFERENTIABLE = Arguments._fields[:4]  # q, v, e and content_lambda


def to_compute_dtype(dtype: torch.dtype, *tensors: Tensor | None) -> list[Any]:
    """Return tensors of `dtype` in the dtype that kernels compute in (`compute_dtype`); None stays None."""
    device = next(x.device.type for x in tensors if x is not None)
    computed = compute_dtype(dtype, device)
    return [x if x is None or x.dtype == computed else x.to(computed) for x in tensors]


def is_forward_mode(*tensors: Tensor) -> bool:
    """Return whether forward-mode differentiation applies to any of the tensors."""
    return forward_ad._current_level >= 0 and any(
        forward_ad.unpack_dual(x).tangent is not None for x in tensors
    )


@torch.compiler.assume_constant_result
def _is_transformed() -> bool:
    """Return whether the call is inside a transform of torch.func, also while a graph is compiled."""
    return bool(get_interpreter_stack())


def is_observed() -> bool:
    """Return whether a transform of torch.func, a dispatch mode or a tracer has to see the operations."""
    return bool(
        get_interpreter_stack()
        or torch._C._len_torch_dispatch_stack()
        or _len_torch_dispatch_stack_pre_dispatch()
    )


def may_skip_operator(*tensors: Tensor | None) -> bool:
    """Return whether an operator's implementation may be called itself, which takes less time.

    It may in eager mode on plain tensors, if no gradients follow and nothing observes the operations.
    """
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        and not is_observed()
        and forward_ad._current_level < 0
        and all(x is None or _is_plain(x, torch.is_grad_enabled()) for x in tensors)
    )


def _is_plain(x: Tensor, grad_enabled: bool) -> bool:
    """Return whether a tensor is no subclass, has its values in memory, and its operations need no record."""
    plain = type(x) is Tensor or type(x) is torch.nn.Parameter
    return plain and not x.is_neg() and not (grad_enabled and x.requires_grad)


def allows_native_content(*tensors: Tensor) -> bool:
    """Return whether custom operators without derivatives of torch.func may compute the content part.

    An exported graph runs without this package. Of a custom operator, PyTorch has no forward-mode and no
    functional derivatives.
    """
    return not (torch.compiler.is_exporting() or _is_transformed() or is_forward_mode(*tensors))


def is_native_here(x: Tensor) -> bool:
    """Return whether the native library serves a content operator on the device and machine where it runs.

    These may be others than those where its graph was made.
    """
    return x.device.type == "cpu" and native.library.unavailable() is None


def gradients_in_operator(
    function: Callable[..., tuple[Tensor, ...]],
    tensors: Sequence[Tensor],
    upstream: Sequence[Tensor],
    needs_grad: Sequence[bool],
) -> list[Tensor | None]:
    """Return the gradients of a function's tensors, None where not needed, inside a custom operator.

    Args:
        function: A function in PyTorch's operators.
        tensors: Its arguments.
        upstream: Gradients of its results.
        needs_grad: Whether the gradient of each tensor is needed.
    """
    leaves = [x.detach().requires_grad_(needed) for x, needed in zip(tensors, needs_grad, strict=True)]
    # Autograd is excluded from the dispatch inside an operator.
    autograd = torch._C.DispatchKey.AutogradFunctionality
    with torch._C._SetExcludeDispatchKeyGuard(autograd, False), torch.enable_grad():
        results = function(*leaves)
        found = iter(torch.autograd.grad(results, [x for x in leaves if x.requires_grad], upstream))
    return [next(found) if needed else None for needed in needs_grad]


def gradients_of_gradients(
    function: Callable[..., tuple[Tensor, ...]],
    tensors: Sequence[Tensor],
    upstream: Sequence[Tensor],
    directions: Sequence[Tensor | None],
    needs_grad: Sequence[bool],
) -> tuple[Tensor, ...]:
    """Return the gradients of `upstream` and a function's tensors in the backward pass of its gradients.

    Args:
        function: A function in PyTorch's operators.
        tensors: Its arguments.
        upstream: Gradients of its results.
        directions: The gradients of the gradients of the tensors; None for zero.
        needs_grad: Whether the gradient of each tensor was computed; else its direction is unused.
    """

    def gradients(upstream: tuple[Tensor, ...], *arguments: Tensor) -> tuple[Tensor, ...]:
        return torch.func.vjp(function, *arguments)[1](upstream)

    # By torch.func: `upstream` depends on the arguments in an outer graph, which is not to be followed here.
    pull = torch.func.vjp(gradients, tuple(upstream), *tensors)[1]
    given = (
        torch.zeros_like(x) if t is None or not computed else t
        for x, t, computed in zip(tensors, directions, needs_grad, strict=True)
    )
    of_upstream, *of_tensors = pull(tuple(given))
    return *of_upstream, *of_tensors


def refuse_transforms(*tensors: Tensor) -> None:
    """Refuse transforms under which PyTorch differentiates a custom operator wrongly or not at all.

    Raises:
        NotImplementedError: Under forward-mode differentiation, or a derivative of torch.func.
    """
    levels = [] if torch.compiler.is_compiling() else get_interpreter_stack() or []
    derivatives = (TransformType.Grad, TransformType.Jvp)
    if is_forward_mode(*tensors) or any(level.key() in derivatives for level in levels):
        raise NotImplementedError(
            "forward-mode differentiation and torch.func's derivatives need kernel='reference'; "
            "torch.autograd (backward, grad, create_graph=True) works with every kernel"
        )


@torch.library.custom_op("lambdanets::position_output", mutates_args=())
def position_output(
    q: Tensor,
    v: Tensor,
    e: Tensor,
    content_lambda: Tensor | None,
    geometry: Sequence[int],
    memory_layout: str,
    kernel: str,
    backward_kernel: str,
) -> Tensor:
    """Return the position part [b, h, n, v], plus q times the content lambda if given; see `Arguments`."""
    y = new_output(q, v.shape[2], memory_layout)
    q, v, e, content_lambda = to_compute_dtype(q.dtype, q, v, e, content_lambda)
    problem = decode(tuple(geometry), q.shape, v.shape, q.dtype, q.device.type, content_lambda is not None)
    name = select_kernel(problem, kernel, backward=False)
    with no_autocast(q.device.type):
        if name in FUSED_KERNELS:
            FUSED_KERNELS[name].output(q, v, e, problem, y, content_lambda)
            return y
        KERNELS[name].output(q, v, e, problem, y)
        if content_lambda is not None:
            add_applied_lambda(y, q, content_lambda, memory_layout)
    return y


@position_output.register_fake
def _(*arguments: Any) -> Tensor:
    """Return an empty tensor like the output, for tracing."""
    given = Arguments(*arguments)
    return new_output(given.q, given.v.shape[2], given.memory_layout)


@torch.library.custom_op("lambdanets::position_gradients", mutates_args=())
def position_gradients(
    g: Tensor,
    q: Tensor,
    v: Tensor,
    e: Tensor,
    content_lambda: Tensor | None,
    geometry: Sequence[int],
    memory_layout: str,
    kernel: str,
    backward_kernel: str,
    needs_grad: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, v, e and the content lambda from g [b, h, n, v], that of the output.

    Each has the dtype and the strides of its tensor; a gradient that is not needed is an empty tensor. The
    argument `needs_grad` has a bool for each of the four.
    """
    inputs = (q, v, e, q if content_lambda is None else content_lambda)
    g, q, v, e, content_lambda = to_compute_dtype(q.dtype, g, q, v, e, content_lambda)
    problem = decode(tuple(geometry), q.shape, v.shape, q.dtype, q.device.type, content_lambda is not None)
    name = select_kernel(problem, backward_kernel, backward=True)
    dlambda = None
    with no_autocast(q.device.type):
        if name in FUSED_KERNELS:
            if needs_grad[3] and content_lambda is not None:
                dtype = torch.promote_types(q.dtype, torch.float32)
                dlambda = torch.empty_like(content_lambda, dtype=dtype)
            dq, dv, de = FUSED_KERNELS[name].gradients(
                g, q, v, e, problem, needs_grad[:3], content_lambda, dlambda
            )
        else:
            dq, dv, de = KERNELS[name].gradients(g, q, v, e, problem, needs_grad[:3])
            if content_lambda is not None:
                needed = [needs_grad[0], needs_grad[3]]
                content_dq, dlambda = apply_lambda_gradients(g, q, content_lambda, memory_layout, needed)
                dq = dq if content_dq is None or dq is None else dq + content_dq
    dq, dv, de, dlambda = map(like_input, inputs, (dq, dv, de, dlambda))
    return dq, dv, de, dlambda


def like_input(x: Tensor, gradient: Tensor | None) -> Tensor:
    """Return a gradient with the dtype and the strides of its tensor, or an empty one for None."""
    if gradient is None:
        return x.new_empty(0)
    like = torch.empty_like(x)
    if gradient.dtype == x.dtype and gradient.stride() == like.stride():
        return gradient
    return like.copy_(gradient)


@position_gradients.register_fake
def _(g: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return empty tensors like the gradients, for tracing."""
    *given, needs_grad = arguments
    dq, dv, de, dlambda = (
        torch.empty_like(x) if needed and x is not None else g.new_empty(0)
        for x, needed in zip(given[:4], needs_grad, strict=True)
    )
    return dq, dv, de, dlambda


def _save_output(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Save the arguments of `position_output` for its backward pass."""
    ctx.save_for_backward(*inputs[:4])
    ctx.options = inputs[4:]


def _save_gradients(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Save the arguments of `position_gradients` for its backward pass."""
    ctx.save_for_backward(*inputs[:5])
    *ctx.options, ctx.needs_grad = inputs[5:]


def _output_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of all arguments of `position_output`, None for those that are no tensors."""
    needs_grad = list(ctx.needs_input_grad[:4])
    found = position_gradients(g, *ctx.saved_tensors, *ctx.options, needs_grad)
    gradients = (x if needed else None for x, needed in zip(found, needs_grad, strict=True))
    return *gradients, *[None] * len(ctx.options)


def _gradients_backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the gradients of all arguments of `position_gradients`, None for those that are no tensors.

    Let y be the output and F = sum(g * y). `position_gradients` returns dF/dx for each x of q, v, e and the
    content lambda. `upstream` has, for each x, the gradient t of the loss with respect to dF/dx, in the shape
    of x. The gradients of the loss are therefore those of the sum of <t, dF/dx> over all x.

    F has two terms, one with the factors g, q, v and e and one with g, q and the content lambda; each is
    linear in each of its factors. So <t, dF/dx> is F with t in place of x, without the term that does not
    contain x. Its gradient with respect to g is `position_output` of the arguments with t in place of x; its
    gradients with respect to the other factors are `position_gradients` of these arguments.
    """
    g, *tensors = ctx.saved_tensors
    arguments = Arguments(*tensors, *ctx.options)
    needs = dict(zip(("g", *DIFFERENTIABLE), ctx.needs_input_grad[:5], strict=True))
    total: dict[str, Tensor | None] = dict.fromkeys(needs)

    def add(name: str, x: Tensor) -> None:
        so_far = total[name]
        total[name] = x if so_far is None else so_far + x

    for name, direction, computed in zip(DIFFERENTIABLE, upstream, ctx.needs_grad, strict=True):
        if direction is None or not computed:
            continue
        if name == "content_lambda":
            q, memory_layout = arguments.q, arguments.memory_layout
            if needs["g"]:
                add("g", apply_lambda(q, direction, memory_layout))
            if needs["q"]:
                dq, _ = apply_lambda_gradients(g, q, direction, memory_layout, (True, False))
                assert dq is not None
                add("q", dq)
            continue
        varied = arguments._replace(**{name: direction})
        if name != "q":
            varied = varied._replace(content_lambda=None)
        if needs["g"]:
            add("g", position_output(*varied))
        others = [x for x in DIFFERENTIABLE if needs[x] and x != name and getattr(varied, x) is not None]
        if others:
            found = position_gradients(g, *varied, [x in others for x in DIFFERENTIABLE])
            for other, gradient in zip(DIFFERENTIABLE, found, strict=True):
                if other in others:
                    add(other, gradient)
    return *total.values(), *[None] * (len(ctx.options) + 1)


position_output.register_autograd(_output_backward, setup_context=_save_output)
position_gradients.register_autograd(_gradients_backward, setup_context=_save_gradients)


@register_flop_formula(torch.ops.lambdanets.position_output)
def _output_flops(*shapes_and_options: Any, **_: Any) -> int:
    """Return the floating-point operations of the selected kernel and of q times the content lambda."""
    given = Arguments(*shapes_and_options)
    problem = _problem_of_shapes(given)
    flops = KERNELS[select_kernel(problem, given.kernel, backward=False)].cost(problem).flops
    return flops + _lambda_flops(given)


@register_flop_formula(torch.ops.lambdanets.position_gradients)
def _gradients_flops(g: torch.Size, *shapes_and_options: Any, **_: Any) -> int:
    """Return the floating-point operations of `position_gradients`."""
    *arguments, needs_grad = shapes_and_options
    given = Arguments(*arguments)
    problem = _problem_of_shapes(given)
    name = select_kernel(problem, given.backward_kernel, backward=True)
    products = needs_grad[0] + needs_grad[3]
    return KERNELS[name].cost(problem, backward=True).flops + products * _lambda_flops(given)


def _problem_of_shapes(given: Any) -> Problem:
    """Return the problem of arguments whose tensors are shapes, as `torch.utils.flop_counter` passes them.

    Shapes have no dtype and no device: the problem has the default dtype, on "meta".
    """
    content = given.content_lambda is not None
    return decode(tuple(given.geometry), given.q, given.v, torch.get_default_dtype(), "meta", content)


def _lambda_flops(given: Any) -> int:
    """Return the floating-point operations of one product with the content lambda."""
    return 0 if given.content_lambda is None else 2 * math.prod(given.q) * given.v[2]
