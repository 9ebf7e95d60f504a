"""Attributions across all layers of a network, which are approximate; computed by captum."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .explanation import Approximation

METHODS = ("gradients", "integrated-gradients", "occlusion")
"""Saliency by gradients times the input, integrated gradients, and occlusion by a grey square."""
GRID = 56  # most cells on the longer side of the result
SQUARES = 14  # squares of the occlusion on the shorter side of an image


def approximate(model: nn.Module, image: Tensor, target: int, name: str, method: str) -> Approximation:
    """Attribute an output of a classifier of images to the pixels, across all layers.

    Unlike the maps of single layers this is an approximation, and methods disagree with each other.

    Args:
        model: The classifier, in evaluation mode.
        image: Its input `[1, c, height, width]`.
        target: Index of the output.
        name: Name of the output.
        method: One of `METHODS`.

    Returns:
        The attribution, summed over the channels, on a grid of at most 56 cells.

    Raises:
        ValueError: If the method is unknown.
        ModuleNotFoundError: If captum is not installed: `pip install "lambdanets[explain]"`.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    from captum import attr  # pyright: ignore[reportMissingImports]

    found: Any
    inputs = image.clone().requires_grad_(method != "occlusion")
    if method == "gradients":
        found = attr.InputXGradient(model).attribute(inputs, target=target)
    elif method == "integrated-gradients":
        found = attr.IntegratedGradients(model).attribute(inputs, target=target, internal_batch_size=4)
    else:
        side = max(1, min(image.shape[-2:]) // SQUARES)
        window = (image.shape[1], 2 * side, 2 * side)
        found = attr.Occlusion(model).attribute(
            inputs, window, target=target, strides=(image.shape[1], side, side)
        )
    values = found.detach().sum(1)[0]
    height, width = values.shape
    factor = min(1.0, GRID / max(height, width))
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    values = F.adaptive_avg_pool2d(values[None, None], size)[0, 0]
    return Approximation(method=method.replace("-", " "), target=name, values=values)
