"""The operator as a pure function of tensors and a context."""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from .causal_content import causal_output
from .checks import check_arguments
from .content import apply_lambda, content_output, shares_content_lambda
from .context import Context, RelativeContext
from .exported import exported_output
from .memory_layout import memory_layout_of
from .planner import resolve
from .position import encode, position_output, refuse_transforms
from .problem import Problem
from .shared_content import shared_lambda


def lambda_layer(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    e: Tensor | None = None,
    *,
    context: Context,
    mask: Tensor | None = None,
    content: bool = True,
    normalize: str = "softmax",
    kernel: str = "auto",
) -> Tensor:
    """Apply to each query a linear function, the lambda, that summarises the context by content and position.

    `y[b,h,n,v] = sum_k q[b,h,n,k] * sum_{m,u} (kbar[b,m,k,u] + E[n,m,k,u]) v[b,m,v,u]`, where kbar is the
    softmax of the keys over the context elements m that the query sees, for each of the k*u columns. b is the
    batch, h heads, n query positions, m context elements, k and v the depths of keys and values, u the
    intra-depth.

    Args:
        q: Queries [b, h, n, k]; the h queries of a position share its lambda.
        k: Keys [b, m, k, u], not yet normalised.
        v: Values [b, m, v, u].
        e: Position embeddings, which never enter the softmax: a table `[*offsets, k, u]` with one entry per
            relative offset position(m) - position(n), as the context describes it; or dense [n, m, k, u],
            with a `GlobalContext` or `MaskedContext`; or None for no position part. If both shapes are equal
            (a grid h x 1 with a context grid 1 x w), it is read as a table.
        context: The geometry, and which context elements each query sees.
        mask: Boolean tensor [b, m], True where a context element is visible (padding is False).
        content: Whether the content part is computed.
        normalize: The normalisation of the keys, over the context elements that the query sees: "softmax";
            "l2", division by their L2 norm; or "none".
        kernel: "auto" (the planner chooses, for the forward and the backward pass separately), "measured"
            (the fastest when run, measured once per problem), or the name of one kernel.

    Returns:
        Tensor [b, h, n, v] with the dtype and the memory layout (order of strides) of `q`. A query that sees
        no element gives zeros. Elements hidden by `mask` have no effect at all. Elements hidden by
        a causal or a masked context have none beyond rounding, if they are finite (kernel "fft" rounds to
        about 1e-6 of the largest values of the whole sequence in float32). Where the keys of a column are
        -infinity for all elements, the output is NaN; under a causal order only kernel "reference" gives NaN,
        for the last query, and the others take the column as zero.

    Raises:
        ValueError: If shapes, dtypes or devices do not match, the kernel is unknown, or it does not support
            the problem.
        NotImplementedError: Under forward-mode differentiation or the derivatives of torch.func, which only
            the definition (kernel="reference") supports.
        MemoryError: If the kernel, or with "auto" every kernel, needs more memory than is available; raised
            before anything is computed. A process checks this once for each problem.

    Differences from the paper:
        Keys under a mask or a causal order are normalised over the elements that each query sees, which the
        paper leaves open. The rest is as in the paper: a local scope limits position lambdas only, and sums
        at the border of the grid run over fewer elements, which equals zero padding.

    References:
        LambdaNetworks (Bello, 2021), equations 1-3, sections 3.1-3.4, appendices B.2 and B.4, Table 12
        (normalisations; without any, and without the softmax, it found lower accuracy).

    Example:
        >>> q, k, v = torch.randn(2, 4, 35, 16), torch.randn(2, 35, 16, 1), torch.randn(2, 35, 8, 1)
        >>> e = torch.randn(9, 13, 16, 1)
        >>> lambda_layer(q, k, v, e, context=GlobalContext((5, 7))).shape
        torch.Size([2, 4, 35, 8])
    """
    problem = _checked_problem(q, k, v, e, context, mask, content, normalize)
    # This raises for kernels that are unknown or cannot serve the problem, so it comes first.
    forward_kernel, backward_kernel = resolve(kernel, problem)
    if kernel == reference.NAME:
        return reference.apply(q, k, v, e, context=context, mask=mask, content=content, normalize=normalize)
    if mask is not None:
        v = v.masked_fill(~mask[:, :, None, None], 0)
    content_lambda = None  # [b, k, v]
    if content and shares_content_lambda(context):
        content_lambda = shared_lambda(k, v, mask, problem)
    y = None
    if e is not None:
        if not problem.relative:
            visible = context.visible(e.shape[1], e.device)
            e = e if visible is None else e.masked_fill(~visible[:, :, None, None], 0)
        refuse_transforms(q, v, e)
        if not torch.compiler.is_exporting():
            geometry, memory_layout = encode(problem), memory_layout_of(q)
            y = position_output(
                q, v, e, content_lambda, geometry, memory_layout, forward_kernel, backward_kernel
            )
        else:
            relative = context if isinstance(context, RelativeContext) and problem.relative else None
            y = exported_output(q, v, e, relative)
            y = y if content_lambda is None else apply_lambda(q, content_lambda, memory_layout_of(q), y)
    elif content_lambda is not None:
        y = apply_lambda(q, content_lambda, memory_layout_of(q))
    if content and content_lambda is None:
        # Each query has a content lambda of its own.
        separate = causal_output(q, k, v, mask, problem)
        if separate is None:
            separate = content_output(q, k, v, context, mask, normalize)
        y = separate if y is None else y + separate
    assert y is not None
    return y


# The problems of calls whose arguments were checked, by everything that the checks and the problem depend on.
_checked: dict[tuple[object, ...], Problem] = {}
MAX_CHECKED = 4096


def _checked_problem(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    e: Tensor | None,
    context: Context,
    mask: Tensor | None,
    content: bool,
    normalize: str,
) -> Problem:
    """Check the arguments of `lambda_layer` and return their problem; both are looked up at equal calls."""
    tensors = (q, k, v, e, mask)
    given = [x for x in tensors if isinstance(x, Tensor)]
    train = torch.is_grad_enabled() and any(x.requires_grad for x in given)
    key = problem = None
    # A mask of queries by elements has no hash. Sizes are symbols or tensors while a graph is recorded.
    if (
        isinstance(context, RelativeContext)
        and len(given) == sum(x is not None for x in tensors)
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    ):
        kinds = [x if x is None else (x.shape, x.dtype, x.device) for x in tensors]
        key = (*kinds, context, content, normalize, train)
        try:
            problem = _checked.get(key)
        except TypeError:  # an argument has no hash, which its check reports
            key = None
    if problem is None:
        check_arguments(q, k, v, e, context, mask, content, normalize)
        problem = Problem.of(q, k, v, e, context, content, train, normalize)
        if key is not None:
            if len(_checked) >= MAX_CHECKED:  # threads may have added more
                _checked.clear()
            _checked[key] = problem
    return problem
