"""A training step or the inference of a whole network, as a user would run it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lambdanets.bench.passes import Pass
from lambdanets.models import create_model

from .entries import Entry

LEARNING_RATE, MOMENTUM = 1e-3, 0.9  # small: the weights stay such as have usual speed


@dataclass(frozen=True, kw_only=True)
class Step:
    """One pass of one network at one batch: what is timed here, and what a child process is told.

    Attributes:
        entry: The network and its image size.
        which: "train" is forward, cross entropy, backward and a step of SGD with momentum; "eval" a forward
            pass in inference mode.
        batch: Images.
        dtype: Element type: float32, or bfloat16. Inference then has weights of that type, training has
            float32 weights and autocast.
        device: Where.
        threads: Threads of PyTorch.
        channels: Of the images.
    """

    entry: Entry
    which: Pass
    batch: int
    dtype: torch.dtype
    device: str
    threads: int
    channels: int
    whole: bool = True

    def warm_up(self) -> None:
        small = nn.Sequential(
            nn.Conv2d(self.channels, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.LazyLinear(4)
        )
        images = torch.randn(2, self.channels, 9, 9, device=self.device)
        small.to(self.device)(images).sum().backward()

    def prepare(self) -> Callable[[], Tensor]:
        """Build the network with random weights and return the pass, which gives logits or the loss."""
        torch.manual_seed(0)
        with torch.device(self.device):  # drawing a hundred million weights on the processor takes seconds
            network = create_model(self.entry.model, **dict(self.entry.options))
            images = torch.randn(self.batch, self.channels, *self.entry.size)
        layout: dict[str, Any] = {"memory_format": torch.channels_last}
        if self.which == "eval":
            network = network.eval().to(self.device, self.dtype, **layout)
            return _inference(network, images.to(self.device, self.dtype, **layout))
        network = network.train().to(self.device, **layout)
        mixed = self.dtype != torch.float32
        kind = torch.device(self.device).type
        precision = torch.autocast(kind, self.dtype) if mixed else nullcontext()
        return _training(network, images.to(self.device, **layout), precision)


def _inference(network: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    def infer() -> Tensor:
        with torch.inference_mode():
            return network(images)

    return infer


def _training(
    network: nn.Module, images: Tensor, precision: AbstractContextManager[object]
) -> Callable[[], Tensor]:
    optimizer = torch.optim.SGD(network.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    # The momentum is there from the first step on, as it is in every later one.
    for weight in network.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    optimizer.zero_grad()
    labels: list[Tensor] = []

    def train() -> Tensor:
        with precision:
            logits = network(images)
            if not labels:
                labels.append(torch.arange(len(logits), device=logits.device) % logits.shape[1])
            loss = F.cross_entropy(logits, labels[0])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return train
