"""Sequences of multi-query associative recall, the task of Zoology (Arora et al., 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

BLANK, IGNORED = 0, -100
"""Token without meaning, and the target at positions that ask nothing."""


def recall_batch(
    batch: int,
    *,
    pairs: int,
    length: int,
    vocabulary: int,
    power: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Draw sequences: keys and values in turn, then every key once more, between blanks.

    Keys are tokens from 1 to `vocabulary // 2 - 1`, values those above; neither occurs twice in a sequence.
    The second occurrence of a key is at an even distance g = 0, 1, ... of two positions from the last pair,
    drawn without replacement with a probability proportional to (g + 1)^(power - 1).

    Args:
        batch: Sequences, b.
        pairs: Pairs of a sequence.
        length: Positions, n: even, and at least 4 `pairs`.
        vocabulary: Number of tokens.
        power: Exponent of the distances: 0.01 in Zoology, where most queries come early; 1 is uniform.
        generator: Source of the random numbers.

    Returns:
        Tokens `[b, n]`, and targets `[b, n]`: the value at the second occurrence of a key, else `IGNORED`.

    Raises:
        ValueError: The sequence is too short, or the vocabulary too small.
    """
    keys_known, half = vocabulary // 2 - 1, vocabulary // 2
    if length % 2 or length < 4 * pairs:
        raise ValueError(f"length must be even and at least 4 * pairs = {4 * pairs}, got {length}")
    if pairs > keys_known:
        raise ValueError(f"vocabulary must be at least {2 * pairs + 2} for {pairs} pairs, got {vocabulary}")
    keys = 1 + _distinct(torch.ones(keys_known), batch, pairs, generator)
    values = half + _distinct(torch.ones(vocabulary - half), batch, pairs, generator)
    gaps = torch.arange(1, (length - 2 * pairs) // 2 + 1, dtype=torch.float64)
    queries = 2 * pairs + 2 * _distinct(gaps ** (power - 1), batch, pairs, generator)
    tokens = torch.full((batch, length), BLANK)
    targets = torch.full((batch, length), IGNORED)
    tokens[:, : 2 * pairs] = torch.stack([keys, values], dim=2).flatten(1)
    tokens.scatter_(1, queries, keys)
    targets.scatter_(1, queries, values)
    return tokens, targets


def _distinct(weights: Tensor, batch: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` different indices of the weights in each row, `[batch, count]`."""
    return torch.multinomial(weights.expand(batch, -1), count, generator=generator)
