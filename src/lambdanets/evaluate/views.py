"""Test-time augmentation: a network that averages its predictions over an image and its mirror image."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FlipAveraged(nn.Module):
    """Averages the probabilities for images and for their mirror images.

    Args:
        network: Images `[b, c, h, w]` to logits `[b, classes]`.
        multi_label: The probabilities are sigmoids of the logits, as for several labels and the binary loss;
            else their softmax.
    """

    def __init__(self, network: nn.Module, *, multi_label: bool = False) -> None:
        super().__init__()
        self.network, self.multi_label = network, multi_label

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `[b, classes]` whose probabilities are the averages."""
        both = torch.stack([self.network(images), self.network(images.flip(-1))]).float()
        if self.multi_label:
            return both.sigmoid().mean(0).logit(eps=1e-7)
        return torch.logsumexp(both.log_softmax(-1), dim=0)
