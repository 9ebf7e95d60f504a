"""THE DEFINITION of the lambda layer, in the paper's letters: the specification of every kernel.

    y[b,h,n,v] = sum_k q[b,h,n,k] * sum_{m,u} (kbar[b,m,k,u] + E[n,m,k,u]) v[b,m,v,u]

kbar are the keys after a softmax over the context elements m that the query sees, for each of the k*u columns
(or divided by their L2 norm over those m, or unchanged); E are the position embeddings, which are never
normalised. Source: LambdaNetworks (Bello, 2021), sections 3.1-3.3, appendices B.2 (masks) and B.4
(intra-depth u), Table 12 (normalisations).

Letters, in all of `ops`, for an axis and for its size: b examples of the batch, h heads, n query positions,
m context elements, k depth of queries and keys, v depth of values, u intra-depth (columns of keys and values
for one context element). As tensors, q are the queries, k the keys, v the values and e the embeddings.

Terms: the sum over m and u of kbar v, [k, v], is the content lambda, that of E v is the position lambda of a
query. Multiplied by the queries they give the content part and the position part of y.

`lambda_layer` (kernel="reference") runs `apply`. `output` and the functions after it are the members of
`kernels.Kernel`: with them the planner treats the position part of this module as one more kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .context import Context, RelativeContext
from .hardware import gemm_seconds, move_seconds
from .position_table import pair_indices, scatter_gradient
from .problem import Cost, Problem

NAME = "reference"


def apply(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    e: Tensor | None,
    *,
    context: Context,
    mask: Tensor | None,
    content: bool,
    normalize: str = "softmax",
) -> Tensor:
    """Return the operator's output [b, h, n, v] by its definition; see `lambda_layer` for the arguments."""
    # True at padding, [b, m].
    hidden = None if mask is None else ~mask
    if hidden is not None:
        v = v.masked_fill(hidden[:, :, None, None], 0)
    y = q.new_zeros(*q.shape[:-1], v.shape[2])
    if content:
        visible = context.visible(k.shape[1], k.device)
        if visible is None:
            content_lambda = torch.einsum("bmku,bmvu->bkv", normalize_keys(k, hidden, 1, normalize), v)
            y = y + torch.einsum("bhnk,bkv->bhnv", q, content_lambda)
        else:
            # [n, m] or, with padding, [b, n, m].
            hidden = ~visible if hidden is None else ~visible | hidden[:, None, :]
            keys = k[:, None].expand(-1, q.shape[2], -1, -1, -1)  # [b, n, m, k, u]
            content_lambdas = torch.einsum("bnmku,bmvu->bnkv", normalize_keys(keys, hidden, 2, normalize), v)
            y = y + torch.einsum("bhnk,bnkv->bhnv", q, content_lambdas)
    if e is not None:
        y = y + position_part(q, v, position_embeddings(e, context))
    return y


def position_part(q: Tensor, v: Tensor, embeddings: Tensor) -> Tensor:
    """Return the position part [b, h, n, v] with embeddings [n, m, k, u]: queries times position lambdas."""
    position_lambdas = torch.einsum("nmku,bmvu->bnkv", embeddings, v)
    return torch.einsum("bhnk,bnkv->bhnv", q, position_lambdas)


def normalize_keys(keys: Tensor, hidden: Tensor | None, axis: int, normalize: str) -> Tensor:
    """Return keys [b, ..., m, k, u] normalised over the visible m, with zeros where m is hidden.

    Args:
        keys: Keys.
        hidden: Booleans [..., m] that broadcast to the keys without k and u, True where m is hidden.
        axis: Index of axis m.
        normalize: "softmax", "l2" or "none".
    """
    mask = None if hidden is None else hidden[..., None, None]
    if normalize == "softmax":
        if mask is None:
            return keys.softmax(axis)
        kbar = keys.masked_fill(mask, torch.finfo(keys.dtype).min).softmax(axis)
        return kbar.masked_fill(mask, 0)
    visible = keys if mask is None else keys.masked_fill(mask, 0)
    if normalize != "l2":
        return visible
    # In float32 at least: the smallest divisor, 1e-12, is zero in float16.
    accumulator = torch.promote_types(keys.dtype, torch.float32)
    return F.normalize(visible.to(accumulator), dim=axis).to(keys.dtype)


def position_embeddings(e: Tensor, context: Context) -> Tensor:
    """Return E [n, m, k, u]: the table's entry for each offset position(m) - position(n).

    E is zero for offsets without an entry and for pairs that a causal order or a mask hides.
    """
    if not isinstance(context, RelativeContext) or not context.is_table(e):
        visible = context.visible(e.shape[1], e.device)  # e is dense
        return e if visible is None else e.masked_fill(~visible[:, :, None, None], 0)
    index = torch.zeros((), dtype=torch.long, device=e.device)
    found = torch.ones((), dtype=torch.bool, device=e.device)
    axes = zip(
        positions(context.grid, e.device),
        positions(context.key_grid, e.device),
        context.table_shape,
        context.centre,
        context.step,
        strict=True,
    )
    for position_n, position_m, length, centre, step in axes:
        offset = position_m[None, :] - position_n[:, None]  # [n, m]
        entry = offset.div(step, rounding_mode="floor") + centre
        found = found & (offset % step == 0) & (entry >= 0) & (entry < length)
        if context.causal:
            found = found & (offset <= 0)
        index = index * length + entry
    # Gathered in float32 at least: the gradient of an entry is a sum over all pairs with its offset.
    rows = e.flatten(0, -3).to(torch.promote_types(e.dtype, torch.float32))
    return (rows[index.clamp(0, len(rows) - 1)] * found[:, :, None, None]).to(e.dtype)


def positions(grid: tuple[int, ...], device: torch.device) -> list[Tensor]:
    """Return the coordinates of every element of a row-major grid, one tensor [n] per axis."""
    axes = [torch.arange(size, device=device) for size in grid]
    return [axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")]


def output(q: Tensor, v: Tensor, e: Tensor, problem: Problem, y: Tensor) -> None:
    """Write the position part into y."""
    y.copy_(position_part(q, v, position_embeddings(e, problem.context) if problem.relative else e))


def gradients(
    g: Tensor, q: Tensor, v: Tensor, e: Tensor, problem: Problem, needs_grad: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of q, v and e."""
    embeddings = position_embeddings(e, problem.context) if problem.relative else e
    dq = dv = de = None
    if needs_grad[0]:
        dq = torch.einsum("bhnv,bnkv->bhnk", g, torch.einsum("nmku,bmvu->bnkv", embeddings, v))
    if needs_grad[1] or needs_grad[2]:
        dlambdas = torch.einsum("bhnk,bhnv->bnkv", q, g)  # gradient of the position lambdas
        if needs_grad[1]:
            dv = torch.einsum("nmku,bnkv->bmvu", embeddings, dlambdas)
        if needs_grad[2]:
            de = torch.einsum("bnkv,bmvu->nmku", dlambdas, v)
            if problem.relative:
                index = pair_indices(problem.context, e.device)
                accumulator = torch.promote_types(e.dtype, torch.float32)
                de = scatter_gradient(de.to(accumulator).mT, index, e.shape)
    return dq, dv, de


def unsupported(problem: Problem) -> list[str]:
    """Return no reasons: the definition serves every problem."""
    return []


def cost(problem: Problem, *, backward: bool = False) -> Cost:
    """Return the cost when E [n, m, k, u] and all position lambdas [b, n, k, v] are in memory at once."""
    p = problem
    if not p.position:
        return Cost(flops=0, bytes=p.io_bytes, peak_bytes=0, seconds=0.0)
    n, m = p.num_queries, p.num_context
    embeddings = n * m * p.dim_k * p.dim_u
    lambdas = p.batch * n * p.dim_k * p.dim_v
    summed = gemm_seconds(p, n * p.dim_k, m * p.dim_u, p.batch * p.dim_v)
    applied = gemm_seconds(p, p.num_heads, p.dim_k, p.dim_v, p.batch * n)
    # Estimated reads and writes of each element: gathering, masking and multiplying the embeddings take 16.
    moved = p.itemsize * (16 * embeddings + 4 * lambdas)
    passes = 3 if backward else 1
    return Cost(
        flops=passes * 2 * (p.num_heads * lambdas + embeddings * p.batch * p.dim_v),
        bytes=passes * moved + p.io_bytes,
        peak_bytes=p.itemsize * (3 * embeddings + 2 * lambdas) * (2 if backward else 1),
        seconds=passes * (summed + applied + move_seconds(p, moved, calls=45)),
    )
