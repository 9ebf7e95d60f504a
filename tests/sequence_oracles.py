"""Layers on sequences by their equations: loops over positions, and PyTorch's own modules.

Each function takes a layer, for its weights, and `x` `[dim, n]`, one sequence without padding, and returns
`[dim_out, n]`.
"""

import math

import torch
from torch import Tensor, nn


def heads(layer, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values `[n, h, d]` of a projection to all three."""
    projected = torch.stack([layer.projection.weight @ x[:, i] for i in range(x.shape[1])])
    q, k, v = projected.chunk(3, 1)
    return tuple(part.reshape(len(part), layer.num_heads, -1) for part in (q, k, v))


def rotated(vector: Tensor, position: int, base: float) -> Tensor:
    """Rotate the pairs (i, i + d/2) of a vector `[d]`, as complex numbers."""
    half = len(vector) // 2
    angles = torch.tensor(
        [position * base ** (-2 * i / len(vector)) for i in range(half)], dtype=torch.float64
    )
    turned = torch.complex(vector[:half], vector[half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag])


def sees(layer, query: int, key: int) -> bool:
    if layer.causal:
        return key <= query and (layer.window is None or query - key < layer.window)
    return layer.window is None or abs(query - key) <= layer.window // 2


def attention(layer, x: Tensor) -> Tensor:
    q, k, v = heads(layer, x)
    n, h, d = q.shape
    outputs = []
    for i in range(n):
        keys = [j for j in range(n) if sees(layer, i, j)]
        parts = []
        for head in range(h):
            query = rotated(q[i, head], i, layer.base)
            logits = [query @ rotated(k[j, head], j, layer.base) / math.sqrt(d) for j in keys]
            weights = torch.stack(logits).softmax(0)
            parts.append(sum(w * v[j, head] for w, j in zip(weights, keys, strict=True)))
        outputs.append(torch.cat(parts))
    return torch.stack(outputs, 1)


def linear_attention(layer, x: Tensor) -> Tensor:
    q, k, v = heads(layer, x)
    n, h, _ = q.shape
    outputs = []
    for i in range(n):
        parts = []
        for head in range(h):
            weights = [
                (nn.ELU()(q[i, head]) + 1) @ (nn.ELU()(k[j, head]) + 1)
                for j in range(i + 1 if layer.causal else n)
            ]
            parts.append(sum(w * v[j, head] for j, w in enumerate(weights)) / (sum(weights) + 1e-6))
        outputs.append(torch.cat(parts))
    return torch.stack(outputs, 1)


def convolution(layer, x: Tensor) -> Tensor:
    before = layer.taps - 1 if layer.causal else layer.taps // 2
    padded = nn.functional.pad(x, (before, layer.taps - 1 - before))
    return nn.functional.conv1d(padded[None], layer.weight, groups=layer.dim if layer.depthwise else 1)[0]


def gru(layer, x: Tensor) -> Tensor:
    module = nn.GRU(layer.dim, layer.gru.hidden_size, bidirectional=not layer.causal).double()
    module.load_state_dict(layer.gru.state_dict())
    return module(x.T[:, None])[0][:, 0].T
