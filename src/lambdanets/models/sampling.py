"""Sampling of tokens from logits."""

from __future__ import annotations

import torch
from torch import Tensor


def sample(
    logits: Tensor,
    generator: torch.Generator,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """Sample a token for each row.

    Args:
        logits: Logits `[b, vocabulary]`.
        generator: Source of the random numbers, on the device of the logits.
        temperature: Divisor of the logits; 0 takes the most probable token.
        top_k: Sample from the k most probable tokens only.
        top_p: Sample from the most probable tokens only, as few as have a total probability of p.

    Returns:
        Tokens `[b]`.
    """
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float()
    # The largest logit becomes 0 and stays finite at any temperature.
    logits = (logits - logits.amax(-1, keepdim=True)) / max(temperature, torch.finfo(torch.float32).tiny)
    if top_k is not None and top_k < logits.shape[-1]:
        lowest = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < lowest, -torch.inf)
    if top_p is not None:
        ordered, index = logits.sort(-1, descending=True)
        probabilities = ordered.softmax(-1)
        dropped = probabilities.cumsum(-1) - probabilities >= top_p  # never the first
        logits = logits.masked_fill(dropped.scatter(-1, index, dropped), -torch.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
