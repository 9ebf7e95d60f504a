"""The content part of the operator in time and memory linear in the input: what the fast kernels share.

One content lambda serves all queries unless a mask or an order gives each query its own. Keys are
normalised in float32 at least: in half precision the weights of a context of tens of thousands of elements
would vanish. How they are normalised (`normalize`) is the last argument throughout.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .context import Context, MaskedContext, RelativeContext
from .order import as_rows, from_rows
from .products import no_autocast, product_dtype

CHUNK = (
    64  # queries per chunk of the causal form: the n*chunk*k weights stay small beside the n*chunk products
)
MASKED_BLOCK = 2**24  # elements of the weights b*n*m*k*u formed at once under an n x m mask


TINY = 1e-12  # the least norm that keys are divided by, as in torch.nn.functional.normalize


def shared(context: Context) -> bool:
    """Whether one content lambda serves all queries: nothing but padding says who sees whom."""
    return not isinstance(context, MaskedContext) and not (
        isinstance(context, RelativeContext) and context.causal
    )


def content_lambda(k: Tensor, v: Tensor, mask: Tensor | None, normalize: str) -> Tensor:
    """The content lambda (b k v) that all queries share: the sum over m and u of kbar v, in float32 at least.

    `v` is already zero where `mask` hides.
    """
    wide = torch.promote_types(k.dtype, torch.float32)
    with no_autocast(k.device.type):
        kbar = normalized(k.to(wide), None if mask is None else ~mask[:, :, None, None], 1, normalize)
        return torch.einsum("bmku,bmvu->bkv", kbar, v.to(wide))


def applied(q: Tensor, lambdas: Tensor, order: str, position: Tensor | None = None) -> Tensor:
    """q times content lambdas (b k v), added to the position part (b h n v) if there is one, in an order."""
    dtype = product_dtype(q.dtype, q.device.type)
    with no_autocast(q.device.type):
        left, right = _factors(as_rows(q.to(dtype), order), lambdas.to(dtype), q.shape[1], order)
        if position is None:
            y = torch.bmm(left, right)
        else:
            y = torch.baddbmm(as_rows(position.to(dtype), order), left, right)
    return from_rows(y, q.shape[1], order).to(q.dtype)


def add_applied(y: Tensor, q: Tensor, lambdas: Tensor, order: str) -> None:
    """Add q times content lambdas (b k v), both of the dtype of products, to y (b h n v) in place."""
    left, right = _factors(as_rows(q, order), lambdas, q.shape[1], order)
    rows = as_rows(y, order)
    if rows.dtype == left.dtype:
        rows.baddbmm_(left, right)
    else:
        rows.copy_(torch.baddbmm(rows.to(left.dtype), left, right))


def _factors(rows: Tensor, lambdas: Tensor, num_heads: int, order: str) -> tuple[Tensor, Tensor]:
    """The two sides of rows times a matrix per example: turned over where that is how rows lie in memory."""
    if order != "hvn":
        return rows, lambdas
    return lambdas.mT[:, None].expand(-1, num_heads, -1, -1).flatten(0, 1), rows


def applied_gradients(
    g: Tensor, q: Tensor, lambdas: Tensor, order: str, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of q and of content lambdas, each where it is wanted, from that of `applied`."""
    upstream, num_heads = as_rows(g, order), q.shape[1]
    dq = dlambdas = None
    if wanted[0]:
        dq = from_rows(torch.bmm(*_factors(upstream, lambdas.mT, num_heads, order)), num_heads, order)
    if wanted[1]:
        rows = as_rows(q, order)
        if order == "hvn":
            dlambdas = torch.bmm(rows, upstream.mT).unflatten(0, (-1, num_heads)).sum(1)
        else:
            dlambdas = torch.bmm(rows.mT, upstream)
    return dq, dlambdas


def content_output(
    q: Tensor, k: Tensor, v: Tensor, context: Context, mask: Tensor | None, normalize: str
) -> Tensor:
    """The content part of shape b h n v where each query has a content lambda of its own.

    `v` is already zero where `mask` hides.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    part = masked_content
    if not isinstance(context, MaskedContext):
        part = causal_content if normalize == "softmax" else causal_linear_content
    with no_autocast(q.device.type):
        return part(q, k.to(wide), v.to(wide), context, mask, normalize)


def normalized(k: Tensor, hidden: Tensor | None, axis: int, normalize: str) -> Tensor:
    """Keys normalised over the axis of the context, zero where `hidden`, which has the axes of `k`."""
    if normalize == "softmax":
        if hidden is None:
            return k.softmax(axis)
        return k.masked_fill(hidden, torch.finfo(k.dtype).min).softmax(axis).masked_fill(hidden, 0)
    visible = k if hidden is None else k.masked_fill(hidden, 0)
    return F.normalize(visible, dim=axis, eps=TINY) if normalize == "l2" else visible


def masked_content(
    q: Tensor, k: Tensor, v: Tensor, context: Context, mask: Tensor | None, normalize: str
) -> Tensor:
    """Each query its own normalisation over what it sees, some queries at a time."""
    assert isinstance(context, MaskedContext)
    b, m, dim_k, u = k.shape

    def some(queries: Tensor, rows: Tensor, k: Tensor, v: Tensor) -> Tensor:
        visible = rows if mask is None else rows & mask[:, None, :]
        hidden = ~visible.expand(b, *visible.shape[-2:])[..., None, None]
        weights = normalized(k[:, None], hidden, 2, normalize)
        pairs = torch.einsum("bhnk,bnmku->bhnmu", queries.to(k.dtype), weights)
        return torch.einsum("bhnmu,bmvu->bhnv", pairs, v)

    block = max(1, MASKED_BLOCK // max(1, b * m * dim_k * u))
    split = zip(q.split(block, dim=2), context.mask.split(block), strict=True)
    if block >= len(context.mask) or not torch.is_grad_enabled():
        parts = [some(queries, rows, k, v) for queries, rows in split]
    else:  # formed again in the backward pass: kept, the weights of all blocks would be all pairs at once
        parts = [checkpoint(some, queries, rows, k, v, use_reentrant=False) for queries, rows in split]
    return torch.cat(parts, dim=2).to(q.dtype)


def chunking(n: int) -> tuple[int, int]:
    """Queries per chunk of a causal form, and chunks."""
    chunk = CHUNK
    while chunk**3 < n:  # pairs inside chunks cost n * chunk, sums between chunks (n / chunk)**2
        chunk *= 2
    chunk = min(chunk, n)
    return chunk, -(-n // chunk)


def cut(x: Tensor, n: int, chunks: int, chunk: int, fill: float | bool = 0.0) -> Tensor:
    """b m ... -> b chunks chunk ...; elements after the last of the n queries are seen by none."""
    x = x[:, :n]
    spare = x.new_full((x.shape[0], chunks * chunk - x.shape[1], *x.shape[2:]), fill)
    return torch.cat([x, spare], dim=1).unflatten(1, (chunks, chunk))


def causal_linear_content(
    q: Tensor, k: Tensor, v: Tensor, context: Context, mask: Tensor | None, normalize: str
) -> Tensor:
    """The causal form for keys as they are or divided by the norm of those up to query n, which can wait."""
    n = q.shape[2]
    chunk, chunks = chunking(n)
    if mask is not None:
        k = k.masked_fill(~mask[:, :, None, None], 0)
    keys, values = cut(k, n, chunks, chunk), cut(v, n, chunks, chunk)
    queries = cut(q.transpose(1, 2).to(k.dtype), n, chunks, chunk)[..., None]  # b c n h k 1
    if normalize == "l2":
        norm = keys.flatten(1, 2).square().cumsum(1).clamp_min(TINY**2).sqrt()
        queries = queries / norm.unflatten(1, (chunks, chunk))[:, :, :, None]
    else:
        queries = queries.expand(*queries.shape[:-1], k.shape[-1])
    order = torch.ones(chunk, chunk, dtype=torch.bool, device=k.device).tril()[:, None, :, None]
    pairs = torch.einsum("bcnhku,bcmku->bcnhmu", queries, keys).masked_fill(~order, 0)
    added = torch.einsum("bcmku,bcmvu->bckuv", keys, values)
    earlier = torch.cat([torch.zeros_like(added[:, :1]), added[:, :-1].cumsum(1)], dim=1)
    y = torch.einsum("bcnhmu,bcmvu->bcnhv", pairs, values)
    y = y + torch.einsum("bcnhku,bckuv->bcnhv", queries, earlier)
    return y.flatten(1, 2)[:, :n].transpose(1, 2).to(q.dtype)


def causal_content(
    q: Tensor, k: Tensor, v: Tensor, context: Context, mask: Tensor | None, normalize: str
) -> Tensor:
    """Query n normalises over m <= n: exact pairs inside a chunk, one running sum between chunks.

    All weights are exp(key - running maximum), at most 1, so nothing overflows however long the sequence; the
    maximum is a constant of the calculation (it cancels), so no gradient flows through it.
    """
    b, _, n, _ = q.shape
    hidden = torch.zeros(b, k.shape[1], dtype=torch.bool, device=k.device) if mask is None else ~mask
    chunk, chunks = chunking(n)
    hidden = cut(hidden, n, chunks, chunk, True)[..., None, None]
    keys = cut(k, n, chunks, chunk).masked_fill(hidden, -torch.inf)
    values = cut(v, n, chunks, chunk)
    queries = cut(q.transpose(1, 2).to(k.dtype), n, chunks, chunk)  # b c n h k

    top = keys.detach().flatten(1, 2).cummax(1).values.clamp_min(torch.finfo(k.dtype).min)
    top = top.unflatten(1, (chunks, chunk))
    before = torch.cat([torch.full_like(top[:, :1, 0], torch.finfo(k.dtype).min), top[:, :-1, -1]], dim=1)
    order = torch.ones(chunk, chunk, dtype=torch.bool, device=k.device).tril()[..., None, None]
    distance = (keys[:, :, None] - top[:, :, :, None]).masked_fill(~order, -torch.inf)
    inside = distance.exp()  # b c n m k u

    # What a chunk adds, and what all chunks before chunk c add up to, both relative to the maximum at hand.
    weights = (keys - top[:, :, -1:]).exp()
    added_value = torch.einsum("bcmku,bcmvu->bcukv", weights, values)
    added_sum = weights.sum(2)
    earlier = torch.ones(chunks, chunks, dtype=torch.bool, device=k.device).tril(-1)[..., None, None]
    fade = (top[:, None, :, -1] - before[:, :, None]).masked_fill(~earlier, -torch.inf).exp()  # b c c' k u
    past_value = torch.einsum("bcjku,bjukv->bcukv", fade, added_value)
    past_sum = torch.einsum("bcjku,bjku->bcku", fade, added_sum)

    carry = (before[:, :, None] - top).exp()  # b c n k u
    total = inside.sum(3) + carry * past_sum[:, :, None]
    scaled = queries[..., None] / torch.where(total > 0, total, 1)[:, :, :, None]  # b c n h k u
    pairs = torch.einsum("bcnhku,bcnmku->bcnhmu", scaled, inside)
    y = torch.einsum("bcnhmu,bcmvu->bcnhv", pairs, values)
    y = y + torch.einsum("bcnhku,bcnku,bcukv->bcnhv", scaled, carry, past_value)
    return y.flatten(1, 2)[:, :n].transpose(1, 2).to(q.dtype)
