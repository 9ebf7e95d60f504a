"""Losses of classifiers: cross entropy over the classes, or binary cross entropy for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

from lambdanets.data.balance import class_counts
from lambdanets.train.config import LossConfig
from lambdanets.train.errors import RunError


def classification_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    binary: bool = False,
    multi_label: bool = False,
    smoothing: float = 0.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the mean loss of a batch, as timm computes it.

    Args:
        logits: Logits `[b, classes]`.
        targets: Class indices `[b]`; or parts of each class `[b, classes]`, as of mixed images, or of images
            with several labels.
        binary: Binary cross entropy of each class against the others, averaged over images and classes; else
            the cross entropy of the softmax.
        multi_label: The classes of an image are independent: smoothing moves each target towards 1/2, not
            towards 1 / classes.
        smoothing: Part of the targets that is smoothed.
        weights: Weights of the classes, `[classes]`: of the images of a class, or, with `binary`, of its
            positives.

    Returns:
        A scalar.
    """
    weights = None if weights is None else weights.to(logits)
    if not binary:
        return cross_entropy(logits, targets, weight=weights, label_smoothing=smoothing)
    classes = logits.shape[1]
    parts = one_hot(targets, classes) if targets.ndim == 1 else targets
    smoothed = parts.to(logits) * (1 - smoothing) + smoothing / (2 if multi_label else classes)
    return binary_cross_entropy_with_logits(logits, smoothed, pos_weight=weights)


def class_weights(config: LossConfig, train: Any, classes: Sequence[str]) -> Tensor | None:
    """Return the weights of the classes, `[classes]`; None where all are 1.

    Args:
        config: The loss; "balanced" weights are (all labels) / (classes * labels of the class), so that each
            class counts equally and their mean over the labels is 1.
        train: The training set, whose `targets` are counted.
        classes: Class names.

    Raises:
        RunError: Another number of weights is given, or the labels of a stream would have to be counted.
    """
    if config.class_weights is None:
        return None
    if config.class_weights != "balanced":
        if len(config.class_weights) != len(classes):
            names = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
            raise RunError(
                f"loss.class_weights has {len(config.class_weights)} numbers, and there are {len(classes)} "
                f"classes ({names}): give one for each, in this order"
            )
        return torch.tensor(config.class_weights, dtype=torch.float32)
    if not hasattr(train, "targets"):
        raise RunError(
            "loss.class_weights=balanced needs to count all labels, and the images are streamed: give the "
            "weights as numbers, or unpack the images into folders"
        )
    counts = np.maximum(class_counts(train.targets, len(classes)), 1)
    return torch.from_numpy(counts.sum() / (len(classes) * counts)).float()
