"""Mixup and cutmix against timm's, which draws from NumPy's global generator."""

from typing import Any

import numpy as np
import pytest
import torch
from timm.data.mixup import Mixup

from lambdanets.data import AugmentConfig
from lambdanets.data.mixing import mix
from lambdanets.data.randomness import MIX, NUMPY_GENERATOR, _draw, keys, preserved

IMAGES = torch.randn(6, 3, 10, 14, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([0, 3, 1, 2, 2, 0])


@pytest.mark.parametrize(
    "config",
    [
        AugmentConfig(mixup=0.4),
        AugmentConfig(cutmix=1.0),
        AugmentConfig(mixup=0.2, cutmix=1.0),
        AugmentConfig(mixup=0.8, cutmix=0.5, mix_prob=0.5),
    ],
)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_batches_are_mixed_as_by_timm(config: AugmentConfig, smoothing: float) -> None:
    theirs = Mixup(
        config.mixup, config.cutmix, prob=config.mix_prob, label_smoothing=smoothing, num_classes=4
    )
    before: Any = NUMPY_GENERATOR.get_state()
    for key in keys(1, 2, np.arange(20)):
        images, targets = mix(IMAGES.clone(), TARGETS, 4, config, key)
        with preserved():
            NUMPY_GENERATOR.seed(int(_draw(np.array([key]), MIX)[0]) % 2**32)
            expected, labels = theirs(IMAGES.clone(), TARGETS)
        torch.testing.assert_close(images, expected)
        # The loss smooths here.
        torch.testing.assert_close(targets * (1 - smoothing) + smoothing / 4, labels)
    after: Any = NUMPY_GENERATOR.get_state()
    assert np.array_equal(before[1], after[1])


def test_odd_batches_and_several_labels_are_mixed() -> None:
    labels = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    images, targets = mix(IMAGES[:3], labels, 2, AugmentConfig(mixup=1.0), keys(0, 0, np.arange(1))[0])
    torch.testing.assert_close(images[1], IMAGES[1])
    part = (targets[0, 0]).item()
    assert 0 < part < 1
    torch.testing.assert_close(images[0], part * IMAGES[0] + (1 - part) * IMAGES[2])
    torch.testing.assert_close(targets[2], torch.tensor([1 - part, 0.0]))


def test_draws_follow_the_key() -> None:
    one, again, other = (
        mix(IMAGES, TARGETS, 4, AugmentConfig(cutmix=1.0), key)[0] for key in keys(0, 0, np.array([1, 1, 2]))
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_mixing_is_checked() -> None:
    for bad in ({"mixup": -1.0}, {"cutmix": float("inf")}, {"mix_prob": 1.5}, {"mix_off_epochs": -1}):
        with pytest.raises(ValueError, match=f"augment.{next(iter(bad))} must be"):
            AugmentConfig(**bad)  # pyright: ignore[reportArgumentType]
