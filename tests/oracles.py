"""Two ways of writing the operator that share no code with the package.

`lambda_layer_loops` is literal: nested Python loops over numbers, one statement per sentence of the
definition. It knows values only, and is what the package's definition is checked against.
`lambda_layer_einsum` is the formula as one would type it at a prompt, in whatever precision the tensors have:
it is differentiable, and its error in low precision is the yardstick of `closeness.py`.
"""

import math
from itertools import product

import torch
from torch import Tensor

Grid = tuple[int, ...]


def cell(index: int, grid: Grid) -> Grid:
    """The coordinates of the element at a row-major index."""
    coordinates = []
    for size in reversed(grid):
        coordinates.append(index % size)
        index //= size
    return tuple(reversed(coordinates))


def global_entry(from_cell: Grid, to_cell: Grid, grid: Grid) -> Grid:
    """Where a global table keeps the embedding of the offset between two cells: at offset + grid - 1."""
    return tuple(t - f + g - 1 for f, t, g in zip(from_cell, to_cell, grid, strict=True))


def local_entry(from_cell: Grid, to_cell: Grid, scope: Grid, dilation: Grid, centre: Grid) -> Grid | None:
    """Where a local table keeps it: at offset / dilation + centre; None where it has no entry."""
    entry = []
    for f, t, r, d, c in zip(from_cell, to_cell, scope, dilation, centre, strict=True):
        taps, between = divmod(t - f, d)
        if between or not 0 <= taps + c < r:
            return None
        entry.append(taps + c)
    return tuple(entry)


def usual_centre(scope: Grid, causal: bool) -> Grid:
    """The entry of offset 0: in the middle, and at the end where a query sees nothing after itself."""
    return tuple(r - 1 if causal else r // 2 for r in scope)


def lambda_layer_loops(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    e: Tensor | None = None,
    *,
    grid: Grid | None = None,
    context_grid: Grid | None = None,
    scope: Grid | None = None,
    dilation: Grid | None = None,
    centre: Grid | None = None,
    dense: bool = False,
    causal: bool = False,
    visible: Tensor | None = None,
    mask: Tensor | None = None,
    content: bool = True,
    normalize: str = "softmax",
) -> Tensor:
    """y[b,h,n,v] = sum_k q[b,h,n,k] sum_{m,u} (kbar[b,m,k,u] + E[n,m,k,u]) v[b,m,v,u], number by number.

    `visible` (n, m) is the mask of a masked context, `mask` (b, m) marks padding; True may be seen.
    """
    num_batch, num_heads, num_inputs, dim_k = q.shape
    num_context, dim_v, dim_u = v.shape[1:]
    q, k, v = q.double().tolist(), k.double().tolist(), v.double().tolist()
    table = e.double() if e is not None else None
    visible = visible.tolist() if visible is not None else None
    mask = mask.tolist() if mask is not None else None

    def sees(b: int, n: int, m: int) -> bool:
        if causal and m > n:
            return False
        if visible is not None and not visible[n][m]:
            return False
        return mask is None or mask[b][m]

    def embedding(n: int, m: int) -> list[list[float]] | None:
        if table is None:
            return None
        if dense:
            return table[n, m].tolist()
        from_cell, to_cell = cell(n, grid), cell(m, context_grid or grid)
        if scope is None:
            entry = global_entry(from_cell, to_cell, grid)
        else:
            step, zero = dilation or (1,) * len(scope), centre or usual_centre(scope, causal)
            entry = local_entry(from_cell, to_cell, scope, step, zero)
        return None if entry is None else table[entry].tolist()

    y = torch.zeros(num_batch, num_heads, num_inputs, dim_v, dtype=torch.float64)
    for b, n in product(range(num_batch), range(num_inputs)):
        seen = [m for m in range(num_context) if sees(b, n, m)]
        embeddings = {m: embedding(n, m) for m in seen}
        lambda_n = [[0.0] * dim_v for _ in range(dim_k)]
        for i, j in product(range(dim_k), range(dim_u)):
            if content and seen:
                largest = max(k[b][m][i][j] for m in seen)
                exponential = {m: math.exp(k[b][m][i][j] - largest) for m in seen}
                total = sum(exponential.values())
                norm = math.sqrt(sum(k[b][m][i][j] ** 2 for m in seen))
            for m in seen:
                weight = 0.0
                if content and normalize == "softmax":
                    weight += exponential[m] / total
                elif content:
                    weight += k[b][m][i][j] / (norm if normalize == "l2" else 1.0)
                position = embeddings[m]
                if position is not None:
                    weight += position[i][j]
                for c in range(dim_v):
                    lambda_n[i][c] += weight * v[b][m][c][j]
        for h, c in product(range(num_heads), range(dim_v)):
            y[b, h, n, c] = sum(q[b][h][n][i] * lambda_n[i][c] for i in range(dim_k))
    return y


def dense_embeddings(
    e: Tensor,
    *,
    grid: Grid,
    context_grid: Grid | None = None,
    scope: Grid | None = None,
    dilation: Grid | None = None,
    centre: Grid | None = None,
) -> Tensor:
    """The relative table `e` written out as E (n, m, k, u), zero outside the scope; differentiable in `e`."""
    context_grid = context_grid or grid
    axes = len(grid)
    index, found = torch.zeros((), dtype=torch.long), torch.ones((), dtype=torch.bool)
    for axis in range(axes):  # the entry of an axis depends on the two coordinates of that axis alone
        pairs = product(range(grid[axis]), range(context_grid[axis]))
        if scope is None:
            entry = [global_entry((f,), (t,), (grid[axis],)) for f, t in pairs]
        else:
            step = 1 if dilation is None else dilation[axis]
            zero = (centre or usual_centre(scope, False))[axis]
            entry = [local_entry((f,), (t,), (scope[axis],), (step,), (zero,)) for f, t in pairs]
        shape = [1] * (2 * axes)
        shape[axis], shape[axes + axis] = grid[axis], context_grid[axis]
        found = found & torch.tensor([x is not None for x in entry]).view(shape)
        index = index * e.shape[axis] + torch.tensor([0 if x is None else x[0] for x in entry]).view(shape)
    n, m = math.prod(grid), math.prod(context_grid)
    index, found = index.reshape(n, m).to(e.device), found.reshape(n, m).to(e.device)
    return torch.where(found[..., None, None], e.flatten(0, axes - 1)[index], 0)


def lambda_layer_einsum(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    e: Tensor | None = None,
    *,
    grid: Grid | None = None,
    context_grid: Grid | None = None,
    scope: Grid | None = None,
    dilation: Grid | None = None,
    centre: Grid | None = None,
    dense: bool = False,
    causal: bool = False,
    visible: Tensor | None = None,
    mask: Tensor | None = None,
    content: bool = True,
    normalize: str = "softmax",
    constant_norm: bool = False,
) -> Tensor:
    """The same operator as the plain einsum formula, every intermediate in the precision of the inputs.

    With `constant_norm` the sum or norm that keys are divided by passes no gradient on: what is left of that
    of k is one of the two terms that cancel in it.
    """
    n, m = q.shape[2], k.shape[1]
    seen = torch.ones(k.shape[0], n, m, dtype=torch.bool, device=q.device)
    if causal:
        seen = seen & (torch.arange(m, device=q.device) <= torch.arange(n, device=q.device)[:, None])
    if visible is not None:
        seen = seen & visible
    if mask is not None:
        seen = seen & mask[:, None, :]
    lambdas = q.new_zeros(())
    if content and normalize == "softmax":
        # exp and division written out: a row that sees nothing must give 0, where softmax gives NaN
        scores = torch.where(seen[..., None, None], k[:, None], -torch.inf)
        largest = scores.amax(2, keepdim=True).detach().clamp(min=torch.finfo(k.dtype).min)
        exponential = (scores - largest).exp()
        total = exponential.sum(2, keepdim=True)
        total = total.detach() if constant_norm else total
        normalised = exponential / torch.where(total > 0, total, 1)
        lambdas = lambdas + torch.einsum("bnmku,bmvu->bnkv", normalised, v)
    elif content:
        normalised = torch.where(seen[..., None, None], k[:, None], 0)
        if normalize == "l2":
            total = normalised.square().sum(2, keepdim=True)
            total = total.detach() if constant_norm else total
            normalised = normalised / torch.where(total > 0, total, 1).sqrt()
        lambdas = lambdas + torch.einsum("bnmku,bmvu->bnkv", normalised, v)
    if e is not None:
        if not dense:
            zero = centre if scope is None else centre or usual_centre(scope, causal)
            e = dense_embeddings(
                e, grid=grid, context_grid=context_grid, scope=scope, dilation=dilation, centre=zero
            )
        hidden = torch.where(seen[..., None, None], e, 0)
        lambdas = lambdas + torch.einsum("bnmku,bmvu->bnkv", hidden, v)
    return torch.einsum("bhnk,bnkv->bhnv", q, lambdas.expand(q.shape[0], n, q.shape[3], v.shape[2]))


def causal_content_loops(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    log_norm: Tensor | None = None,
    summary: Tensor | None = None,
    decay: Tensor | None = None,
    normalize: str = "softmax",
) -> tuple[Tensor, Tensor, Tensor]:
    """The recurrence of the causal content part, one element after another, in the dtype of the tensors.

    It is differentiable. Returns y (b, h, n, v), and the state after the last element: log_norm (b, k, u) and
    summary (b, k, v, u).
    """
    b, _, n, dim_k = q.shape
    dim_v, dim_u = v.shape[2:]
    if log_norm is None or summary is None:
        log_norm = torch.full((b, dim_k, dim_u), -torch.inf, dtype=q.dtype)
        summary = torch.zeros(b, dim_k, dim_v, dim_u, dtype=q.dtype)
    decay = torch.zeros(dim_k, dim_u, dtype=q.dtype) if decay is None else decay
    if normalize == "none":
        log_norm = torch.zeros_like(log_norm)
    # what the mean stands for: of "l2" the sums themselves
    norm2 = torch.exp(2 * log_norm)
    product = summary * log_norm.exp().clamp(min=1e-12)[:, :, None]
    outputs = []
    for i in range(n):
        key, outer = k[:, i], k[:, i, :, None] * v[:, i, None]
        if normalize == "softmax":
            past = log_norm - decay
            # logaddexp by hand: the gradient of the library's is NaN where both are -inf
            largest = torch.maximum(past, key).detach().clamp(min=torch.finfo(q.dtype).min)
            total = torch.exp(past - largest) + torch.exp(key - largest)
            some = total > 0
            new_norm = torch.where(some, largest + torch.log(torch.where(some, total, 1)), -torch.inf)
            safe = torch.where(some, new_norm, 0)
            kept, weight = torch.exp(past - safe), torch.exp(key - safe)
            new_summary = kept[:, :, None] * summary + weight[:, :, None] * v[:, i, None]
        elif normalize == "l2":
            new_norm2 = torch.exp(-2 * decay) * norm2 + key**2
            new_product = torch.exp(-decay)[:, None] * product + outer
            some = new_norm2 > 0
            root = torch.where(some, new_norm2, 1).sqrt()
            new_norm = torch.where(some, root.log(), -torch.inf)
            new_summary = new_product / torch.where(some, root, 0).clamp(min=1e-12)[:, :, None]
        else:
            new_norm = log_norm
            new_summary = torch.exp(-decay)[:, None] * summary + outer
        seen = torch.ones(b, dtype=torch.bool) if mask is None else mask[:, i]
        seen = seen[:, None, None]
        log_norm = torch.where(seen, new_norm, log_norm)
        summary = torch.where(seen[..., None], new_summary, summary)
        if normalize == "l2":
            norm2 = torch.where(seen, new_norm2, norm2)
            product = torch.where(seen[..., None], new_product, product)
        outputs.append(torch.einsum("bhk,bkvu->bhv", q[:, :, i], summary))
    y = torch.stack(outputs, 2) if n else q.new_zeros(b, q.shape[1], 0, dim_v)
    return y, log_norm, summary
