"""Reference attention by its equation: one softmax per query over its visible keys, position by position."""

from collections.abc import Callable

import torch
from torch import Tensor


def heads(weight: Tensor, x: Tensor, num_heads: int) -> list[Tensor]:
    """Return queries, keys and values `[b, h, height, width, d]`, each from a third of a projection."""
    parts = []
    for third in weight.reshape(3, -1, x.shape[1]):
        y = torch.einsum("oc,bcyx->boyx", third, x)
        parts.append(torch.stack(y.chunk(num_heads, dim=1), 1).permute(0, 1, 3, 4, 2))
    return parts


def attention(
    q: Tensor, k: Tensor, v: Tensor, position: Callable[[Tensor, int, int], Tensor | float | None]
) -> Tensor:
    """Images `[b, h * d, height, width]`; `position(q, dy, dx)` is a logit `[b, h]`, None if hidden."""
    b, h, height, width, d = q.shape
    rows = []
    for y in range(height):
        for x in range(width):
            logits, values = [], []
            for ky in range(height):
                for kx in range(width):
                    query = q[:, :, y, x]
                    by_position = position(query, ky - y, kx - x)
                    if by_position is not None:
                        by_content = (query * k[:, :, ky, kx]).sum(-1)
                        logits.append((by_content + by_position) / d**0.5)
                        values.append(v[:, :, ky, kx])
            weights = torch.stack(logits).softmax(0)
            rows.append(torch.einsum("mbh,mbhd->bhd", weights, torch.stack(values)))
    return torch.stack(rows, -1).reshape(b, h * d, height, width)


def entry(table: Tensor, offset: int) -> Tensor | None:
    """Return the embedding of an offset in a table with offset 0 in the middle; None beyond the table."""
    index = offset + len(table) // 2
    return table[index] if 0 <= index < len(table) else None


def global_attention(layer, x: Tensor) -> Tensor:
    def position(query: Tensor, dy: int, dx: int) -> Tensor | float:
        found = [entry(layer.positions_height, dy), entry(layer.positions_width, dx)]
        return sum((query * e).sum(-1) for e in found if e is not None)

    return attention(*heads(layer.projections.conv.weight, x, layer.num_heads), position)


def local_attention(layer, x: Tensor) -> Tensor:
    def position(query: Tensor, dy: int, dx: int) -> Tensor | None:
        y, x = dy + layer.window // 2, dx + layer.window // 2
        if not (0 <= y < layer.window and 0 <= x < layer.window):
            return None
        embedding = torch.cat([layer.positions_height[:, y], layer.positions_width[:, x]], -1)
        return (query * embedding).sum(-1)

    return attention(*heads(layer.projections.conv.weight, x, layer.num_heads), position)


def batch_norm(x: Tensor, norm: torch.nn.BatchNorm2d) -> Tensor:
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    scaled = (x - mean[:, None, None]) / (var + norm.eps).sqrt()[:, None, None]
    return scaled * norm.weight[:, None, None] + norm.bias[:, None, None]


def axial_attention(layer, x: Tensor) -> Tensor:
    """Compute axial attention in training, where norms use the statistics of the batch."""

    def along(projections, table: Tensor, axis: int, x: Tensor) -> Tensor:
        y = torch.einsum("oc,bcyx->boyx", projections.conv.weight.flatten(1), x)
        qkv = batch_norm(y, projections.norm).chunk(3, dim=1)

        def position(query: Tensor, dy: int, dx: int) -> Tensor | float | None:
            offset, across = (dy, dx) if axis == 0 else (dx, dy)
            if across:
                return None
            embedding = entry(table, offset)
            return 0.0 if embedding is None else (query * embedding).sum(-1)

        split = [torch.stack(p.chunk(layer.num_heads, dim=1), 1).permute(0, 1, 3, 4, 2) for p in qkv]
        return attention(*split, position)

    y = along(layer.along_height, layer.positions_height, 0, x)
    return along(layer.along_width, layer.positions_width, 1, batch_norm(y, layer.norm))


def linear_attention(layer, x: Tensor) -> Tensor:
    q, k, v = heads(layer.projections.conv.weight, x, layer.num_heads)
    b, h, height, width, d = q.shape
    q, k, v = (part.reshape(b, h, height * width, d) for part in (q, k, v))
    pairs = torch.einsum("bhnd,bhmd->bhnm", q.softmax(3), k.softmax(2))  # the complete map
    y = torch.einsum("bhnm,bhmv->bhvn", pairs, v)
    return y.reshape(b, h * d, height, width)
