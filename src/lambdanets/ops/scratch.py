"""Memory that the steps of a call use in turn."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Scratch:
    """Buffers by name, kept for one call: they stay in the cache, and the system need not find new pages.

    A buffer grows where a block needs more than those before it did.

    Args:
        like: A tensor of the type and the device that buffers have.
    """

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._kept: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """A contiguous tensor of this shape, with whatever the last of this name has left in it."""
        size = math.prod(shape)
        if name not in self._kept or self._kept[name].numel() < size:
            self._kept.pop(name, None)  # before the larger one is taken
            self._kept[name] = torch.empty(size, dtype=self._like.dtype, device=self._like.device)
        return self._kept[name][:size].view(shape)
