"""One pass of a module: forward in inference, or forward and backward in training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from .cases import Case

Pass = Literal["train", "eval"]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a pass gives: the output and, in training, the gradients of the input and of the parameters."""

    output: Tensor
    gradients: dict[str, Tensor]


def inputs(
    case: Case, dtype: torch.dtype, device: str, seed: int = 0, *, channels_last: bool = False
) -> tuple[Tensor, Tensor]:
    """Return a random input and a random gradient of the output, the same for every contender.

    Args:
        case: Whose shape, (b, dim, *grid), both have.
        dtype: Their type.
        device: Where.
        seed: Of their numbers.
        channels_last: Whether the channels of a position lie side by side in memory.
    """
    # Drawn there: one core would take longer than everything that a GPU does with them.
    generator = torch.Generator(device).manual_seed(seed)
    x, upstream = (torch.randn(case.shape, generator=generator, device=device).to(dtype) for _ in range(2))
    if channels_last:
        x, upstream = (each.movedim(1, -1).contiguous().movedim(-1, 1) for each in (x, upstream))
    return x, upstream


def least_bytes(module: nn.Module, which: Pass, x: Tensor) -> int:
    """Return the bytes that a pass cannot but move, whatever it computes.

    Input and weights are read and an output as large as the input is written; in training the gradients of
    all three, too. Each once.
    """
    weights = sum(each.numel() * each.element_size() for each in module.parameters())
    return (2 if which == "train" else 1) * (2 * x.numel() * x.element_size() + weights)


def prepare(module: nn.Module, which: Pass, x: Tensor, upstream: Tensor) -> Callable[[], Result]:
    """Return a pass of the module as a call.

    Gradients are returned rather than accumulated, so that every call does the same work.
    """
    if which == "eval":
        module.eval()

        def infer() -> Result:
            with torch.inference_mode():
                return Result(output=module(x), gradients={})

        return infer
    module.train()
    x = x.detach().requires_grad_()
    named = {"input": x, **dict(module.named_parameters())}

    def train() -> Result:
        y = module(x)
        found = torch.autograd.grad(y, list(named.values()), upstream)
        return Result(output=y.detach(), gradients=dict(zip(named, found, strict=True)))

    return train
