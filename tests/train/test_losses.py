"""Losses of classifiers against their definitions and timm's, and class weights."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from timm.loss.binary_cross_entropy import BinaryCrossEntropy
from timm.loss.cross_entropy import SoftTargetCrossEntropy
from torch import Tensor

from lambdanets.train import RunError
from lambdanets.train.config import LossConfig
from lambdanets.train.losses import class_weights, classification_loss

LOGITS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGETS = torch.tensor([0, 3, 1, 2, 2, 0])
PARTS = (
    torch.eye(4, dtype=torch.float64)[TARGETS] * 0.7
    + 0.3 * torch.eye(4, dtype=torch.float64)[TARGETS.flip(0)]
)
LABELS = torch.tensor(
    [[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0], [0, 0, 1, 1], [1, 0, 0, 0]]
).double()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("targets", [TARGETS, PARTS])
def test_binary_is_the_mean_over_all_answers(targets: Tensor, smoothing: float) -> None:
    found = classification_loss(LOGITS, targets, binary=True, smoothing=smoothing)
    parts = torch.eye(4, dtype=torch.float64)[targets] if targets.ndim == 1 else targets
    parts = parts * (1 - smoothing) + smoothing / 4
    total = 0.0
    for row in range(6):
        for column in range(4):
            yes = 1 / (1 + np.exp(-LOGITS[row, column].item()))
            part = parts[row, column].item()
            total -= part * np.log(yes) + (1 - part) * np.log(1 - yes)
    assert found.item() == pytest.approx(total / 24, rel=1e-12)
    if targets.ndim == 1:
        assert found.item() == pytest.approx(BinaryCrossEntropy(smoothing)(LOGITS, targets).item(), rel=1e-12)


def test_several_labels_are_smoothed_towards_one_half() -> None:
    found = classification_loss(LOGITS, LABELS, binary=True, multi_label=True, smoothing=0.2)
    expected = BinaryCrossEntropy(0.2, smooth_dense=True)(LOGITS, LABELS)
    torch.testing.assert_close(found, expected)


def test_parts_of_classes_have_a_cross_entropy() -> None:
    found = classification_loss(LOGITS, PARTS, smoothing=0.1)
    expected = SoftTargetCrossEntropy()(LOGITS, PARTS * 0.9 + 0.1 / 4)
    torch.testing.assert_close(found, expected)


def test_weights_count_images_or_positives() -> None:
    weights = torch.tensor([1.0, 2.0, 0.5, 4.0], dtype=torch.float64)
    log_p = LOGITS.log_softmax(1)
    own = weights[TARGETS]
    expected = -(own * log_p[torch.arange(6), TARGETS]).sum() / own.sum()
    torch.testing.assert_close(classification_loss(LOGITS, TARGETS, weights=weights), expected)
    yes, no = LOGITS.sigmoid().log(), (-LOGITS).sigmoid().log()
    expected = -(weights * LABELS * yes + (1 - LABELS) * no).mean()
    found = classification_loss(LOGITS, LABELS, binary=True, multi_label=True, weights=weights)
    torch.testing.assert_close(found, expected)


def test_balanced_weights_make_classes_count_equally() -> None:
    names = ("a", "b", "c")
    train = SimpleNamespace(targets=np.repeat([0, 1, 2], [70, 20, 10]))
    weights = class_weights(LossConfig(class_weights="balanced"), train, names)
    assert weights is not None
    assert weights.tolist() == pytest.approx([100 / (3 * count) for count in (70, 20, 10)])
    several = SimpleNamespace(targets=np.array([[1, 1, 0], [1, 0, 1], [1, 0, 0], [1, 1, 0]]))
    weights = class_weights(LossConfig(class_weights="balanced"), several, names)
    assert weights is not None
    assert (weights * torch.tensor([4, 2, 1])).tolist() == pytest.approx([7 / 3] * 3)
    assert class_weights(LossConfig(), train, names) is None
    given = class_weights(LossConfig(class_weights=(1.0, 2.0, 3.0)), train, names)
    assert given is not None
    assert given.tolist() == [1, 2, 3]


def test_what_is_refused() -> None:
    stream = SimpleNamespace()
    with pytest.raises(RunError, match=r"class_weights has 2 numbers, and there are 3 classes \(a, b, c\)"):
        class_weights(LossConfig(class_weights=(1.0, 2.0)), stream, ("a", "b", "c"))
    with pytest.raises(RunError, match="needs to count all labels, and the images are streamed"):
        class_weights(LossConfig(class_weights="balanced"), stream, ("a", "b"))
    for bad in ((-1.0, 1.0), "inverse", ()):
        with pytest.raises(ValueError, match=r"loss\.class_weights is balanced, a number for each class"):
            LossConfig(class_weights=bad)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"loss\.name is cross_entropy or binary"):
        LossConfig(name="focal")  # pyright: ignore[reportArgumentType]
