"""What an input shows: pictures of images, volumes and features, for the page and the sheet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .explanation import Scene

DARK, LIGHT = 0.25, 0.9  # grey levels between which a picture is shown below a map
STEEPEST = 4.0


def scene_of_input(x: Any, example: int) -> Scene:
    """Return the scene of a model's input: a picture of an image or a volume, or none.

    Args:
        x: Input of the model.
        example: Index of the example in the batch.
    """
    first = x[0] if isinstance(x, tuple | list) and x else x
    if not isinstance(first, Tensor) or not first.is_floating_point():
        return Scene()
    if isinstance(x, list):  # images [c, height, width] of a detector
        first, example = torch.stack([x[example]]), 0
    picture: Any = None
    if first.ndim == 4 and first.shape[1] in (1, 3):
        picture = as_picture(first[example])
    elif first.ndim == 5 and first.shape[1] in (1, 3):
        picture = [as_picture(each) for each in first[example].unbind(1)]
    return Scene(picture=picture)


def as_picture(image: Tensor, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> Any:
    """Return an image `[c, height, width]` with 1 or 3 channels as a Pillow image in RGB.

    Args:
        image: The image.
        mean: Mean of each channel that was subtracted; None shows the range of the values.
        std: Standard deviation of each channel that it was divided by.
    """
    from PIL import Image

    values = image.detach().float().cpu()
    if mean is not None and std is not None:
        shape = (-1, 1, 1)
        values = values * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)
    else:
        low, high = values.min(), values.max()
        values = (values - low) / (high - low).clamp(min=1e-12)
    levels = (values.clamp(0, 1) * 255).round().byte()
    return Image.fromarray(levels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())


def tone(pictures: Sequence[Any]) -> tuple[float, float]:
    """Return factor and offset of the grey levels (0 to 1) with which pictures are shown below a map.

    Dark and pale pictures get the same range, in which both colours of the map can be seen.

    Args:
        pictures: Pillow images.
    """
    import numpy as np

    levels = np.concatenate([np.asarray(each.convert("L")).ravel() for each in pictures]) / 255
    low, high = np.quantile(levels, (0.01, 0.99))
    factor = min(STEEPEST, (LIGHT - DARK) / max(high - low, 1e-6))
    return float(factor), float(DARK - factor * low)
