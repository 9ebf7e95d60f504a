"""Mixup and cutmix: each image of a batch is mixed with another one, as are their labels."""

from __future__ import annotations

import numpy as np
from torch import Tensor
from torch.nn.functional import one_hot

from .config import AugmentConfig
from .randomness import MIX, generator


def mix(
    images: Tensor, targets: Tensor, classes: int, config: AugmentConfig, key: np.uint64
) -> tuple[Tensor, Tensor]:
    """Mix each image of a batch with that at the mirrored position, by one draw, as timm's `Mixup` does.

    Args:
        images: Normalised images `[b, c, h, w]`.
        targets: Class indices `[b]`, or 0 and 1 for each class, `[b, classes]`.
        classes: Number of classes.
        config: `mixup`, `cutmix` and `mix_prob`.
        key: Decides the draws; one of `randomness.keys`.

    Returns:
        The mixed images, and the parts of the classes in them, float32 `[b, classes]`.

    References:
        Zhang et al., mixup: Beyond Empirical Risk Minimization, arXiv:1710.09412; Yun et al., CutMix,
        arXiv:1905.04899.
    """
    labels = (one_hot(targets, classes) if targets.ndim == 1 else targets).float()
    draws = generator(key, MIX)
    if draws.rand() >= config.mix_prob:
        return images, labels
    cuts = config.cutmix > 0 and (config.mixup == 0 or draws.rand() < 0.5)
    alpha = config.cutmix if cuts else config.mixup
    part = float(draws.beta(alpha, alpha))  # of the image itself
    if cuts:
        height, width = images.shape[-2:]
        sides = (int(height * np.sqrt(1 - part)), int(width * np.sqrt(1 - part)))
        centres = (draws.randint(0, height), draws.randint(0, width))
        rows, columns = (
            slice(max(centre - side // 2, 0), min(centre + (side + 1) // 2, size))
            for centre, side, size in zip(centres, sides, (height, width), strict=True)
        )
        images = images.clone()
        images[:, :, rows, columns] = images.flip(0)[:, :, rows, columns]
        # The rectangle may have been cut off at an edge.
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        part = 1 - area / (height * width)
    else:
        images = images * part + images.flip(0) * (1 - part)
    return images, labels * part + labels.flip(0) * (1 - part)
