"""THE DEFINITION of the lambda layer, in the paper's letters. Every other kernel is an optimisation of it.

    y[b,h,n,v] = sum_k q[b,h,n,k] * sum_{m,u} (kbar[b,m,k,u] + E[n,m,k,u]) v[b,m,v,u]

kbar are the keys after a softmax over the context elements m that the query may see, for each of the k*u
columns (or divided by their L2 norm over those m, or as they are); E are the position embeddings, which are
never normalised. Source: LambdaNetworks (Bello, 2021), sections 3.1-3.3, appendices B.2 (masks) and B.4
(intra-depth u), Table 12 (normalisations).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..context import Context, RelativeContext
from ..machine import gemm_seconds, move_seconds
from ..problem import Cost, Problem
from ..tables import collect, pair_entries

NAME = "reference"
APPLIES_CONTENT = False


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
    """The operator of shape b h n v, by its definition."""
    hidden = None if mask is None else ~mask
    if hidden is not None:
        v = v.masked_fill(hidden[:, :, None, None], 0)
    y = q.new_zeros(*q.shape[:-1], v.shape[2])
    if content:
        visible = context.visible(k.shape[1], k.device)
        if visible is None:
            content_lambda = torch.einsum("bmku,bmvu->bkv", normalized(k, hidden, 1, normalize), v)
            y = y + torch.einsum("bhnk,bkv->bhnv", q, content_lambda)
        else:
            unseen = ~visible if hidden is None else ~visible | hidden[:, None, :]
            kbar = normalized(k[:, None].expand(-1, q.shape[2], -1, -1, -1), unseen, 2, normalize)
            content_lambdas = torch.einsum("bnmku,bmvu->bnkv", kbar, v)
            y = y + torch.einsum("bhnk,bnkv->bhnv", q, content_lambdas)
    if e is not None:
        y = y + position_part(q, v, position_embeddings(e, context))
    return y


def position_part(q: Tensor, v: Tensor, embeddings: Tensor) -> Tensor:
    """The position part of shape b h n v, with E of shape n m k u: a lambda per query, then applied to it."""
    position_lambdas = torch.einsum("nmku,bmvu->bnkv", embeddings, v)
    return torch.einsum("bhnk,bnkv->bhnv", q, position_lambdas)


def normalized(keys: Tensor, unseen: Tensor | None, axis: int, normalize: str) -> Tensor:
    """Keys of shape b ... m k u, normalised over the visible m of `axis`; zeros where nothing is visible."""
    hidden = None if unseen is None else unseen[..., None, None]
    if normalize == "softmax":
        if hidden is None:
            return keys.softmax(axis)
        kbar = keys.masked_fill(hidden, torch.finfo(keys.dtype).min).softmax(axis)
        return kbar.masked_fill(hidden, 0)
    visible = keys if hidden is None else keys.masked_fill(hidden, 0)
    if normalize != "l2":
        return visible
    # In float32 at least: the least norm that is divided by, 1e-12, is zero in float16.
    wide = torch.promote_types(keys.dtype, torch.float32)
    return F.normalize(visible.to(wide), dim=axis).to(keys.dtype)


def position_embeddings(e: Tensor, context: Context) -> Tensor:
    """E of shape n m k u: the table's entry for each offset position(m) - position(n), or zero."""
    if not isinstance(context, RelativeContext) or not context.is_table(e):
        visible = context.visible(e.shape[1], e.device)  # dense already
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
        offset = position_m[None, :] - position_n[:, None]
        entry = offset.div(step, rounding_mode="floor") + centre
        found = found & (offset % step == 0) & (entry >= 0) & (entry < length)
        if context.causal:
            found = found & (offset <= 0)
        index = index * length + entry
    # Chosen in float32 at least: the gradient of an entry is a sum over all pairs at its offset.
    flat = e.flatten(0, -3).to(torch.promote_types(e.dtype, torch.float32))
    return (flat[index.clamp(0, len(flat) - 1)] * found[:, :, None, None]).to(e.dtype)


def positions(grid: tuple[int, ...], device: torch.device) -> list[Tensor]:
    """The coordinate of every element of a row-major grid, axis by axis."""
    axes = [torch.arange(size, device=device) for size in grid]
    return [axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")]


def output(q: Tensor, v: Tensor, e: Tensor, problem: Problem, y: Tensor) -> None:
    """Write the position part alone into y (b h n v), with e a table (*offsets k u) or dense (n m k u)."""
    y.copy_(position_part(q, v, position_embeddings(e, problem.context) if problem.relative else e))


def gradients(
    g: Tensor, q: Tensor, v: Tensor, e: Tensor, problem: Problem, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of q, v and e, each where it is wanted, from that of the position part."""
    embeddings = position_embeddings(e, problem.context) if problem.relative else e
    dq = dv = de = None
    if wanted[0]:
        dq = torch.einsum("bhnv,bnkv->bhnk", g, torch.einsum("nmku,bmvu->bnkv", embeddings, v))
    if wanted[1] or wanted[2]:
        dlambdas = torch.einsum("bhnk,bhnv->bnkv", q, g)
        if wanted[1]:
            dv = torch.einsum("nmku,bnkv->bmvu", embeddings, dlambdas)
        if wanted[2]:
            de = torch.einsum("bnkv,bmvu->nmku", dlambdas, v)
            if problem.relative:
                index = pair_entries(problem.context, e.device)
                wide = torch.promote_types(e.dtype, torch.float32)
                de = collect(de.to(wide).mT, index, e.shape)
    return dq, dv, de


def unsupported(problem: Problem) -> list[str]:
    """The definition serves every problem."""
    return []


def cost(problem: Problem, *, backward: bool = False) -> Cost:
    """Lambdas first: E and the position lambdas are stored whole."""
    p = problem
    if not p.position:
        return Cost(flops=0, bytes=p.io_bytes, peak_bytes=0, seconds=0.0)
    n, m = p.num_queries, p.num_context
    embeddings = n * m * p.dim_k * p.dim_u
    lambdas = p.batch * n * p.dim_k * p.dim_v
    summed = gemm_seconds(p, n * p.dim_k, m * p.dim_u, p.batch * p.dim_v)
    applied = gemm_seconds(p, p.num_heads, p.dim_k, p.dim_v, p.batch * n)
    moved = p.itemsize * (16 * embeddings + 4 * lambdas)
    passes = 3 if backward else 1
    return Cost(
        flops=passes * 2 * (p.num_heads * lambdas + embeddings * p.batch * p.dim_v),
        bytes=passes * moved + p.io_bytes,
        peak_bytes=p.itemsize * (3 * embeddings + 2 * lambdas) * (2 if backward else 1),
        seconds=passes * (summed + applied + move_seconds(p, moved, 45)),
    )
