"""The content part of the operator, in time and memory linear in the input. All fast kernels share it.

One content lambda serves all queries, unless a mask or a causal order gives each query a lambda of its own.
Keys are normalised in float32 at least: in half precision the weights of a context of tens of thousands of
elements would underflow. `normalize` is the normalisation throughout: "softmax", "l2" or "none". `mask`
[b, m] is False at padding; the values v are already zero there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .context import Context, MaskedContext, RelativeContext
from .hardware import compute_dtype, log_norm_dtype
from .matmul import no_autocast
from .memory_layout import as_rows, from_rows

# Queries per chunk under a causal order; long sequences have larger chunks (`causal_chunks`). The weights
# within chunks, n * chunk * k * u elements for each example, are in memory at once.
CHUNK = 16
# Elements of the weights [b, n, m, k, u] that are in memory at once under an n x m mask.
MASKED_BLOCK = 2**24
# The smallest norm that keys are divided by, as in torch.nn.functional.normalize.
NORM_EPS = 1e-12


def shares_content_lambda(context: Context) -> bool:
    """Return whether one content lambda serves all queries: there is no n x m mask and no causal order."""
    return not isinstance(context, MaskedContext) and not (
        isinstance(context, RelativeContext) and context.causal
    )


def shared_content_lambda(k: Tensor, v: Tensor, mask: Tensor | None, normalize: str) -> Tensor:
    """Return the content lambda [b, k, v] that all queries share, in float32 at least.

    It is the sum of kbar v over m and u.
    """
    accumulator = torch.promote_types(k.dtype, torch.float32)
    with no_autocast(k.device.type):
        hidden = None if mask is None else ~mask[:, :, None, None]
        kbar = normalize_keys(k.to(accumulator), hidden, 1, normalize)
        return torch.einsum("bmku,bmvu->bkv", kbar, v.to(accumulator))


def apply_lambda(
    q: Tensor, content_lambda: Tensor, memory_layout: str, position: Tensor | None = None
) -> Tensor:
    """Return q [b, h, n, k] times a content lambda [b, k, v], plus the position part [b, h, n, v], if any."""
    dtype = compute_dtype(q.dtype, q.device.type)
    with no_autocast(q.device.type):
        rows = as_rows(q.to(dtype), memory_layout)
        left, right = _factors(rows, content_lambda.to(dtype), q.shape[1], memory_layout)
        if position is None:
            y = torch.bmm(left, right)
        elif torch.compiler.is_exporting():
            # The decomposition of baddbmm has the strides of its first argument, those here are contiguous:
            # ExecuTorch would see a view of y that it cannot take.
            y = torch.bmm(left, right) + as_rows(position.to(dtype), memory_layout)
        else:
            y = torch.baddbmm(as_rows(position.to(dtype), memory_layout), left, right)
    return from_rows(y, q.shape[1], memory_layout).to(q.dtype)


def add_applied_lambda(y: Tensor, q: Tensor, content_lambda: Tensor, memory_layout: str) -> None:
    """Add q times a content lambda [b, k, v], both in the compute dtype, to y [b, h, n, v] in place."""
    left, right = _factors(as_rows(q, memory_layout), content_lambda, q.shape[1], memory_layout)
    rows = as_rows(y, memory_layout)
    if rows.dtype == left.dtype:
        rows.baddbmm_(left, right)
    else:
        rows.copy_(torch.baddbmm(rows.to(left.dtype), left, right))


def apply_lambda_gradients(
    g: Tensor, q: Tensor, content_lambda: Tensor, memory_layout: str, needs_grad: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of q [b, h, n, k] and of the content lambda [b, k, v], None where not needed.

    Args:
        g: Gradient of the output of `apply_lambda`, [b, h, n, v].
        q: Queries [b, h, n, k].
        content_lambda: Content lambda [b, k, v].
        memory_layout: Layout of the queries.
        needs_grad: Whether the gradients of q and of the content lambda are needed.
    """
    upstream, num_heads = as_rows(g, memory_layout), q.shape[1]
    dq = dlambda = None
    if needs_grad[0]:
        left, right = _factors(upstream, content_lambda.mT, num_heads, memory_layout)
        dq = from_rows(torch.bmm(left, right), num_heads, memory_layout)
    if needs_grad[1]:
        rows = as_rows(q, memory_layout)
        if memory_layout == "hvn":
            dlambda = torch.bmm(rows, upstream.mT).unflatten(0, (-1, num_heads)).sum(1)
        else:
            dlambda = torch.bmm(rows.mT, upstream)
    return dq, dlambda


def _factors(
    rows: Tensor, content_lambda: Tensor, num_heads: int, memory_layout: str
) -> tuple[Tensor, Tensor]:
    """Return the left and the right factor of the batched product of rows and a matrix [b, c, d] per example.

    For "hvn" the rows are transposed, [b h, c, n], and so is the product: matrices [b h, d, c] times rows.
    """
    if memory_layout != "hvn":
        return rows, content_lambda
    return content_lambda.mT[:, None].expand(-1, num_heads, -1, -1).flatten(0, 1), rows


def content_output(
    q: Tensor, k: Tensor, v: Tensor, context: Context, mask: Tensor | None, normalize: str
) -> Tensor:
    """Return the content part [b, h, n, v] where each query has a content lambda of its own."""
    if not isinstance(context, MaskedContext):
        return causal_content_in_chunks(q, k, v, mask, normalize)[0]
    accumulator = torch.promote_types(q.dtype, torch.float32)
    with no_autocast(q.device.type):
        return _masked_content(q, k.to(accumulator), v.to(accumulator), context, mask, normalize)


def normalize_keys(k: Tensor, hidden: Tensor | None, axis: int, normalize: str) -> Tensor:
    """Return keys normalised over the axis of the context, in their dtype.

    Args:
        k: Keys; any shape.
        hidden: Booleans that broadcast to `k`, True where an element is hidden: the result is zero there.
        axis: Index of the context's axis.
        normalize: "softmax", "l2" or "none".
    """
    if normalize == "softmax":
        if hidden is None:
            return k.softmax(axis)
        return k.masked_fill(hidden, torch.finfo(k.dtype).min).softmax(axis).masked_fill(hidden, 0)
    visible = k if hidden is None else k.masked_fill(hidden, 0)
    return F.normalize(visible, dim=axis, eps=NORM_EPS) if normalize == "l2" else visible


def _masked_content(
    q: Tensor, k: Tensor, v: Tensor, context: MaskedContext, mask: Tensor | None, normalize: str
) -> Tensor:
    """Return the content part [b, h, n, v] under an n x m mask.

    Keys are normalised for each query separately, for one block of queries at a time.
    """
    b, m, dim_k, u = k.shape

    def block_output(queries: Tensor, rows: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the content part of queries [b, h, n, k], a block, with their rows [n, m] of the mask."""
        visible = rows if mask is None else rows & mask[:, None, :]  # [n, m] or [b, n, m]
        hidden = ~visible.expand(b, *visible.shape[-2:])[..., None, None]
        weights = normalize_keys(k[:, None], hidden, 2, normalize)  # [b, n, m, k, u]
        pairs = torch.einsum("bhnk,bnmku->bhnmu", queries.to(k.dtype), weights)
        return torch.einsum("bhnmu,bmvu->bhnv", pairs, v)

    block = max(1, MASKED_BLOCK // max(1, b * m * dim_k * u))
    blocks = zip(q.split(block, dim=2), context.mask.split(block), strict=True)
    if block >= len(context.mask) or not torch.is_grad_enabled():
        parts = [block_output(queries, rows, k, v) for queries, rows in blocks]
    else:
        # Weights are recomputed in the backward pass: those of all blocks have b n m k u elements.
        parts = [
            checkpoint(block_output, queries, rows, k, v, use_reentrant=False) for queries, rows in blocks
        ]
    return torch.cat(parts, dim=2).to(q.dtype)


def causal_chunks(n: int) -> tuple[int, int]:
    """Return the queries per chunk under a causal order, and the number of chunks.

    The functions below write c for a chunk, n and m for positions in a chunk, and j for an earlier chunk.
    """
    chunk = CHUNK
    # Pairs within chunks cost n * chunk, sums between chunks (n / chunk)**2: both are equal at chunk**3 = n.
    while chunk**3 < n:
        chunk *= 2
    chunk = min(chunk, n)
    return chunk, -(-n // chunk)


def _split_chunks(x: Tensor, n: int, chunks: int, chunk: int, fill: float | bool = 0.0) -> Tensor:
    """Return x [b, m, ...] as [b, chunks, chunk, ...], padded with `fill`; no query sees elements after n."""
    x = x[:, :n]
    padding = x.new_full((x.shape[0], chunks * chunk - x.shape[1], *x.shape[2:]), fill)
    return torch.cat([x, padding], dim=1).unflatten(1, (chunks, chunk))


def causal_content_in_chunks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    normalize: str,
    log_norm: Tensor | None = None,
    summary: Tensor | None = None,
    decay: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the causal content part [b, h, n, v] and the state after the last query, in PyTorch's operators.

    See `causal_content.causal_content` for the arguments. No query sees elements after n, which may exist.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    k, v = k[:, : q.shape[2]].to(dtype), v[:, : q.shape[2]].to(dtype)
    log_norm = None if log_norm is None else log_norm.to(log_norm_dtype(q.device.type))
    summary, decay = (x if x is None else x.to(dtype) for x in (summary, decay))
    with no_autocast(q.device.type):
        if q.shape[2] == 1:
            return _causal_step(q, k, v, mask, normalize, log_norm, summary, decay)
        if normalize == "softmax":
            return _causal_softmax_content(q, k, v, mask, log_norm, summary, decay)
        return _causal_linear_content(q, k, v, mask, normalize, log_norm, summary, decay)


def _causal_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    normalize: str,
    log_norm: Tensor | None,
    summary: Tensor | None,
    decay: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the causal content part of one query, and the state after it, by the recurrence itself."""
    key, value = k[:, 0], v[:, 0, None]  # [b, k, u], [b, 1, v, u]
    if log_norm is None or summary is None:
        log_norm = torch.full_like(key, -torch.inf, dtype=log_norm_dtype(q.device.type))
        summary = key.new_zeros(*key.shape[:2], *value.shape[2:])
    if mask is not None:
        visible = mask[:, :1, None]
        key = key.masked_fill(~visible, -torch.inf if normalize == "softmax" else 0.0)
        decay = None if decay is None else decay * visible
    log_norm, summary = next_content_lambda(key, value, log_norm, summary, decay, normalize)
    y = torch.matmul(q[:, :, 0].to(key.dtype), summary.sum(3))
    return y[:, :, None].to(q.dtype), log_norm, summary


def next_content_lambda(
    key: Tensor, value: Tensor, log_norm: Tensor, summary: Tensor, decay: Tensor | None, normalize: str
) -> tuple[Tensor, Tensor]:
    """Return the state after one element; see `causal_content.causal_content`.

    Weights are computed in the dtype of `log_norm`, in which 1 - 1/n is not rounded at any position n.

    Args:
        key: Keys [..., k, u].
        value: Values that broadcast to [..., k, v, u].
        log_norm: z before the element [..., k, u].
        summary: S before the element [..., k, v, u].
        decay: Decay [..., k, u]; None for none.
        normalize: The normalisation of the keys.
    """
    dtype, key = summary.dtype, key.to(log_norm.dtype)
    past = log_norm if decay is None else log_norm - decay
    forget = torch.ones_like(past) if decay is None else (-decay.to(past.dtype)).exp()
    if normalize == "softmax":
        largest = past.detach().maximum(key.detach()).clamp_min(torch.finfo(key.dtype).min)
        kept, weight = (past - largest).exp(), (key - largest).exp()
        total = kept + weight
        log_norm = _log(total) + largest
        divisor = torch.where(total > 0, total, 1)
        kept, weight = kept / divisor, weight / divisor
    elif normalize == "l2":
        squares = (2 * past).exp() + key.square()
        divisor = squares.clamp_min(NORM_EPS**2).sqrt()
        kept, weight = forget * log_norm.exp().clamp_min(NORM_EPS) / divisor, key / divisor
        log_norm = 0.5 * _log(squares)
    else:
        log_norm, kept, weight = torch.zeros_like(past), forget, key
    kept, weight = kept[..., None, :], weight.to(dtype)[..., None, :]
    # The rounding error of `kept` would be the same at every element.
    rounded = kept.to(dtype)
    return log_norm, rounded * summary + ((kept - rounded).to(dtype) * summary + weight * value)


def _count_elements(
    k: Tensor, n: int, mask: Tensor | None, chunks: int, chunk: int, state: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return where elements are hidden, and numbers of visible elements, between which weights decay.

    Args:
        k: Keys [b, m, k, u].
        n: Number of queries.
        mask: Booleans [b, m], False where an element is hidden.
        chunks: Number of chunks.
        chunk: Queries per chunk.
        state: Whether a state before the first element counts as a chunk.

    Returns:
        Booleans [b, c, n], True where an element is hidden. Visible elements of a chunk up to a position
        [b, c, n], those before each chunk [b, c], and those up to the end of each earlier chunk [b, j].
    """
    hidden = torch.zeros(k.shape[:2], dtype=torch.bool, device=k.device) if mask is None else ~mask
    hidden = _split_chunks(hidden, n, chunks, chunk, True)
    inside = (~hidden).cumsum(2)
    ends = F.pad(inside[:, :, -1].cumsum(1), (1, 0))  # [b, 1 + c]
    return hidden, inside, ends[:, :-1], ends if state else ends[:, 1:]


def _earlier(chunks: int, state: bool, device: torch.device) -> Tensor:
    """Return booleans [c, j, 1, 1], True for chunks j before c; a state is one more chunk, the first."""
    length = chunks + 1 if state else chunks
    earlier = torch.ones(chunks, length, dtype=torch.bool, device=device)
    return earlier.tril(length - chunks - 1)[..., None, None]


def _causal_linear_content(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    normalize: str,
    log_norm: Tensor | None,
    summary: Tensor | None,
    decay: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the causal content part and the final state for normalize "l2" or "none".

    The L2 norm of the keys up to query n divides the query instead of the keys.
    """
    n = q.shape[2]
    chunk, chunks = causal_chunks(n)
    if mask is not None:
        k = k.masked_fill(~mask[:, :n, None, None], 0)
    keys, values = _split_chunks(k, n, chunks, chunk), _split_chunks(v, n, chunks, chunk)
    queries = _split_chunks(q.transpose(1, 2).to(k.dtype), n, chunks, chunk)[..., None]  # [b, c, n, h, k, 1]
    future = torch.ones(chunk, chunk, dtype=torch.bool, device=k.device).triu(1)  # [n, m]
    # The sums before the first element: of squared keys [b, k, u], and of keys times values [b, k, v, u].
    past_squares = k.new_zeros(k.shape[0], *k.shape[2:], dtype=log_norm_dtype(k.device.type))
    products = k.new_zeros(*k.shape[::2], *v.shape[2:])
    if log_norm is not None and summary is not None:
        past_squares, products = (2 * log_norm).exp(), summary
        if normalize == "l2":
            products = summary * log_norm.exp().clamp_min(NORM_EPS).to(k.dtype)[:, :, None]
    squares = past_squares.to(k.dtype)
    if decay is None:
        norm2 = keys.flatten(1, 2).square().cumsum(1).unflatten(1, (chunks, chunk))
        own_squares = norm2[:, -1, -1]
        norm2 = norm2 + squares[:, None, None]
        added = torch.einsum("bcmku,bcmvu->bckvu", keys, values)
        sums = torch.cat([products[:, None], added], dim=1).cumsum(1)
        # A copy: a view would keep the sums of all chunks in memory.
        earlier, final = sums[:, :-1], sums[:, -1].clone()
        queries = _normalize_queries(queries, norm2, normalize)
        pairs = torch.einsum("bcnhku,bcmku->bcnhmu", queries, keys).masked_fill(future[:, None, :, None], 0)
        y = torch.einsum("bcnhku,bckvu->bcnhv", queries, earlier)
    else:
        counts = _count_elements(k, n, mask, chunks, chunk, True)
        position, before, ends = (x.to(k.dtype)[..., None, None] for x in counts[1:])
        # Weights of the elements of a chunk, of those before it, and of each earlier chunk at its beginning.
        inside = (position[:, :, None] - position[:, :, :, None]) * decay
        inside = inside.masked_fill(future[..., None, None], -torch.inf).exp()  # [b, c, n, m, k, u]
        carry = (-position * decay).exp()  # [b, c, n, k, u]
        between = (ends[:, None] - before[:, :, None]) * decay  # [b, c, j, k, u]
        between = between.masked_fill(~_earlier(chunks, True, k.device), -torch.inf).exp()
        added = torch.einsum("bcmku,bcmvu->bckvu", inside[:, :, -1] * keys, values)
        earlier = torch.einsum("bcjku,bjkvu->bckvu", between, torch.cat([products[:, None], added], dim=1))
        final = added[:, -1] + carry[:, -1, -1, :, None] * earlier[:, -1]
        norm2 = torch.einsum("bcnmku,bcmku->bcnku", inside.square(), keys.square())
        added = torch.cat([squares[:, None], norm2[:, :, -1]], dim=1)
        past = torch.einsum("bcjku,bjku->bcku", between.square(), added)
        norm2 = norm2 + carry.square() * past[:, :, None]
        count = ends[:, -1]
        weights = (-2 * decay * (count[:, None, None] - before[:, :, None] - position)).exp()
        own_squares = (weights * keys.square()).sum((1, 2))
        past_squares = (-2 * decay.to(past_squares.dtype) * count).exp() * past_squares
        queries = _normalize_queries(queries, norm2, normalize)
        pairs = torch.einsum("bcnhku,bcnmku->bcnhmu", queries, inside * keys[:, :, None])
        y = torch.einsum("bcnhku,bckvu->bcnhv", queries * carry[:, :, :, None], earlier)
    y = torch.einsum("bcnhmu,bcmvu->bcnhv", pairs, values) + y
    y = y.flatten(1, 2)[:, :n].transpose(1, 2).to(q.dtype)
    squares = past_squares + own_squares
    if normalize == "none":
        return y, torch.zeros_like(squares), final
    norm = squares.clamp_min(NORM_EPS**2).sqrt()
    return y, 0.5 * _log(squares), (final / norm[:, :, None]).to(k.dtype)


def _normalize_queries(queries: Tensor, norm2: Tensor, normalize: str) -> Tensor:
    """Return queries [b, c, n, h, k, 1] as [b, c, n, h, k, u], for "l2" divided by the norms of the keys.

    Args:
        queries: Queries.
        norm2: Squared norms of the keys up to each query [b, c, n, k, u].
        normalize: "l2" or "none".
    """
    if normalize == "l2":
        return queries / norm2.clamp_min(NORM_EPS**2).sqrt()[:, :, :, None]
    return queries.expand(*queries.shape[:-1], norm2.shape[-1])


def _log_add(x: Tensor, y: Tensor) -> Tensor:
    """Return log(exp(x) + exp(y)), whose gradient is 0 where both are -infinity."""
    largest = x.detach().maximum(y.detach()).clamp_min(torch.finfo(x.dtype).min)
    return _log((x - largest).exp() + (y - largest).exp()) + largest


def _log(x: Tensor) -> Tensor:
    """Return log(x), whose gradient is 0 where x is 0."""
    positive = x > 0
    return torch.where(positive, x, 1).log().masked_fill(~positive, -torch.inf)


def _causal_softmax_content(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    log_norm: Tensor | None,
    summary: Tensor | None,
    decay: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the causal content part and the final state with a softmax: query n normalises over m <= n.

    Within a chunk every pair is computed; the chunks before it enter through their sums. All weights are
    exp(key - maximum), at most 1, so they never overflow, however long the sequence. Maxima cancel out of the
    result, so no gradient flows through them. Weights decay with the number of visible elements between two
    positions, an integer: long sequences lose no precision.
    """
    n = q.shape[2]
    chunk, chunks = causal_chunks(n)
    counts = _count_elements(k, n, mask, chunks, chunk, log_norm is not None)
    hidden, (position, before, ends) = counts[0], (x.to(k.dtype) for x in counts[1:])
    keys = _split_chunks(k, n, chunks, chunk).masked_fill(hidden[..., None, None], -torch.inf)
    values = _split_chunks(v, n, chunks, chunk)
    queries = _split_chunks(q.transpose(1, 2).to(k.dtype), n, chunks, chunk)  # [b, c, n, h, k]
    lowest = torch.finfo(k.dtype).min

    def decayed(log_weight: Tensor, elements: Tensor) -> Tensor:
        """Return log weights [..., k, u] after further elements [...]."""
        return log_weight if decay is None else log_weight - elements[..., None, None] * decay

    future = torch.ones(chunk, chunk, dtype=torch.bool, device=k.device).triu(1)[..., None, None]
    pairs = decayed(keys[:, :, None], position[:, :, :, None] - position[:, :, None])
    pairs = pairs.expand(-1, -1, chunk, -1, -1, -1).masked_fill(future, -torch.inf)  # [b, c, n, m, k, u]

    after = ends[:, -1, None, None] - before[:, :, None] - position
    own = decayed(keys, after).flatten(1, 2)  # [b, m, k, u], log weights after the last element
    largest = own.detach().amax(1).clamp_min(lowest)
    final_log_norm = _log((own - largest[:, None]).exp().sum(1)) + largest

    # The sums over each chunk, relative to its maximum; a state is one more chunk, the first.
    maximum = pairs.detach().amax(3)  # [b, c, n, k, u], of the elements inside the chunk
    last = maximum[:, :, -1].clamp_min(lowest)
    weights = (pairs[:, :, -1] - last[:, :, None]).exp()  # [b, c, m, k, u]
    added_value = torch.einsum("bcmku,bcmvu->bcukv", weights, values)
    added_weight = weights.sum(2)
    if log_norm is not None and summary is not None:
        final_log_norm = _log_add(decayed(log_norm, ends[:, -1]), final_log_norm)
        log_norm = log_norm.to(k.dtype)
        largest = log_norm.detach().clamp_min(lowest)
        weight = (log_norm - largest).exp()[:, None]
        last = torch.cat([largest[:, None], last], dim=1)
        added_weight = torch.cat([weight, added_weight], dim=1)
        value = (weight[:, 0, :, None] * summary).permute(0, 3, 1, 2)
        added_value = torch.cat([value[:, None], added_value], dim=1)

    # The sums over all chunks before chunk c, relative to the maximum of their elements.
    between = decayed(last[:, None].expand(-1, chunks, -1, -1, -1), before[:, :, None] - ends[:, None])
    between = between.masked_fill(~_earlier(chunks, log_norm is not None, k.device), -torch.inf)
    earlier = between.detach().amax(2).clamp_min(lowest)  # [b, c, k, u]
    between = (between - earlier[:, :, None]).exp()  # [b, c, j, k, u]
    past_value = torch.einsum("bcjku,bjukv->bcukv", between, added_value)
    past_weight = torch.einsum("bcjku,bjku->bcku", between, added_weight)

    maximum = maximum.maximum(decayed(earlier[:, :, None], position).detach()).clamp_min(lowest)
    inside = (pairs - maximum[:, :, :, None]).exp()
    carry = decayed(earlier[:, :, None] - maximum, position).exp()  # [b, c, n, k, u]
    total = inside.sum(3) + carry * past_weight[:, :, None]
    divisor = torch.where(total > 0, total, 1)
    scaled = queries[..., None] / divisor[:, :, :, None]  # [b, c, n, h, k, u]
    weighted = torch.einsum("bcnhku,bcnmku->bcnhmu", scaled, inside)
    y = torch.einsum("bcnhmu,bcmvu->bcnhv", weighted, values)
    y = y + torch.einsum("bcnhku,bcnku,bcukv->bcnhv", scaled, carry, past_value)
    y = y.flatten(1, 2)[:, :n].transpose(1, 2).to(q.dtype)

    summary = torch.einsum("bmku,bmvu->bkvu", inside[:, -1, -1], values[:, -1])
    summary = summary + torch.einsum("bku,bukv->bkvu", carry[:, -1, -1], past_value[:, -1])
    return y, final_log_norm, summary / divisor[:, -1, -1, :, None]
