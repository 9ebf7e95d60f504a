"""The operator: a pure function of tensors and a context."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_arguments
from .content import applied, content_lambda, content_output, shared
from .context import Context, RelativeContext
from .exported import exported_output
from .kernels import reference
from .order import order_of
from .planner import resolve
from .position import geometry_of, position_output, refuse_transforms
from .problem import Problem


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
    """Apply to each query a linear function, the lambda, that summarises its context by content and position.

    `y[b,h,n,v] = sum_k q[b,h,n,k] * sum_{m,u} (kbar[b,m,k,u] + E[n,m,k,u]) v[b,m,v,u]`, where kbar is the
    softmax of the keys over the context elements m that the query may see, for each of the k*u columns.

    Args:
        q: Queries of shape (b, h, n, k); h queries share each position's lambda.
        k: Keys of shape (b, m, k, u), not yet normalised.
        v: Values of shape (b, m, v, u).
        e: Position embeddings: a table of shape (*offsets, k, u) with one entry per relative offset
            position(m) - position(n), as the context describes; or dense, of shape (n, m, k, u), with a
            `GlobalContext` or `MaskedContext`; or None for no position part. Where both shapes are the same
            (a grid h x 1 with a context grid 1 x w), it is read as a table. They never enter the softmax.
        context: Who sees whom, and the geometry.
        mask: Boolean tensor of shape (b, m), True where a context element may be seen (padding is False).
        content: Whether the content part is computed.
        normalize: How kbar comes from the keys, over the context elements that the query may see: "softmax";
            "l2", divided by their L2 norm; or "none", as they are.
        kernel: "auto" (the planner chooses, for the forward and the backward pass apart), "measured" (the
            fastest when tried, the first time that sizes are met), or the name of one implementation.

    Returns:
        Tensor of shape (b, h, n, v), its axes in memory in the order of those of `q`. A query that sees
        nothing gives zeros. What `mask` hides has no effect at all. What a causal or a masked context hides
        has none beyond rounding, where it is finite (kernel "fft" rounds to about 1e-6 of the largest values
        of the whole sequence in float32).

    Raises:
        ValueError: If shapes, dtypes or devices do not fit together, the kernel is unknown, or it cannot
            serve the problem.
        NotImplementedError: Under forward-mode differentiation or the derivatives of torch.func, which the
            definition (kernel="reference") has.
        MemoryError: If every kernel would need more memory than the machine has; nothing is started.

    Differences from the paper:
        A local scope limits position lambdas only and outside the grid there is nothing, as there; keys under
        a mask or a causal order are normalised over what each query sees, which the paper leaves open.

    References:
        LambdaNetworks (Bello, 2021), equations 1-3, sections 3.1-3.4, appendices B.2 and B.4, Table 12
        (normalisations; without any, and without the softmax, it found lower accuracy).

    Example:
        >>> q, k, v = torch.randn(2, 4, 35, 16), torch.randn(2, 35, 16, 1), torch.randn(2, 35, 8, 1)
        >>> e = torch.randn(9, 13, 16, 1)
        >>> lambda_layer(q, k, v, e, context=GlobalContext((5, 7))).shape
        torch.Size([2, 4, 35, 8])
    """
    check_arguments(q, k, v, e, context, mask, content, normalize)
    train = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, e))
    kernels = resolve(kernel, Problem.of(q, k, v, e, context, content, train))
    if kernel == reference.NAME:
        return reference.apply(q, k, v, e, context=context, mask=mask, content=content, normalize=normalize)
    if mask is not None:
        v = v.masked_fill(~mask[:, :, None, None], 0)
    lambdas = content_lambda(k, v, mask, normalize) if content and shared(context) else None
    y = None
    if e is not None:
        if isinstance(context, RelativeContext) and context.is_table(e):
            relative = context
        else:
            relative = None
            visible = context.visible(e.shape[1], e.device)
            e = e if visible is None else e.masked_fill(~visible[:, :, None, None], 0)
        refuse_transforms(q, v, e)
        if not torch.compiler.is_exporting():
            y = position_output(q, v, e, lambdas, *geometry_of(relative), order_of(q), *kernels)
        else:
            y = exported_output(q, v, e, relative)
            y = y if lambdas is None else applied(q, lambdas, order_of(q), y)
    elif lambdas is not None:
        y = applied(q, lambdas, order_of(q))
    if content and lambdas is None:
        own = content_output(q, k, v, context, mask, normalize)
        y = own if y is None else y + own
    assert y is not None
    return y
