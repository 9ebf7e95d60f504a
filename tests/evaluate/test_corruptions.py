import re
from pathlib import Path

import pytest

from lambdanets.data import DataError
from lambdanets.evaluate.corruptions import (
    ALEXNET,
    corruption_errors,
    find_corruptions,
    mean_corruption_error,
)

# Accuracies and corruption errors of a ResNet-50 (torchvision's first weights), in percent, as published.
RESNET50 = {
    "gaussian_noise": (29.29, 79.77),
    "impulse_noise": (23.81, 82.58),
    "defocus_blur": (38.75, 74.71),
    "glass_blur": (26.79, 88.61),
    "frost": (38.14, 74.84),
    "fog": (45.83, 66.11),
    "brightness": (68.02, 56.64),
    "contrast": (39.06, 71.43),
    "elastic_transform": (45.25, 84.75),
}


def test_the_corruption_errors_of_a_resnet50_are_the_published_ones() -> None:
    # Severities that differ, around their mean.
    errors = {
        (name, level): 1 - top1 / 100 + 0.02 * (level - 3)
        for name, (top1, _) in RESNET50.items()
        for level in range(1, 6)
    }
    found = corruption_errors(errors)
    assert [each.name for each in found] == list(RESNET50)
    for each in found:
        assert each.normalised == pytest.approx(RESNET50[each.name][1] / 100, abs=2e-4), each.name
    assert mean_corruption_error(found) is None


def test_alexnet_itself_has_a_mean_of_one_and_a_perfect_network_of_zero() -> None:
    for share in (1.0, 0.0, 0.4):
        errors = {(name, level): share * ALEXNET[name] for name in ALEXNET for level in range(1, 6)}
        assert mean_corruption_error(corruption_errors(errors)) == pytest.approx(share)
    assert len(ALEXNET) == 15


def test_the_mean_is_of_ratios_and_not_the_ratio_of_means() -> None:
    errors = {(name, level): 0.5 for name in ALEXNET for level in range(1, 6)}
    total = 0.0
    for name in ALEXNET:
        total += 0.5 / ALEXNET[name]
    assert mean_corruption_error(corruption_errors(errors)) == pytest.approx(total / 15)


def test_a_part_of_the_severities_is_not_compared_with_alexnet() -> None:
    (each,) = corruption_errors({("fog", 5): 0.9, ("fog", 2): 0.3})
    assert (each.severities, each.error, each.normalised) == ((2, 5), pytest.approx(0.6), None)


def test_folders_are_found_with_and_without_the_groups_of_the_archives(tmp_path: Path) -> None:
    for place in ("fog/1", "fog/3", "noise/shot_noise/5", "noise/speckle_noise/1", "extra/spatter/2", ".x"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "LICENSE").touch()
    assert find_corruptions(tmp_path) == {
        ("shot_noise", 5): tmp_path / "noise/shot_noise/5",
        ("fog", 1): tmp_path / "fog/1",
        ("fog", 3): tmp_path / "fog/3",
    }


@pytest.mark.parametrize(
    ("places", "sentence"),
    [
        ([], "holds no corruption of ImageNet-C"),
        (["spatter/1"], "holds no corruption of ImageNet-C"),
        (["fog/1", "fogg/1"], "fogg is no corruption of ImageNet-C, which are gaussian_noise,"),
        (["fog/6"], "fog/6 is no severity of ImageNet-C, which are folders 1 to 5"),
        (["fog/n01440764"], "fog/n01440764 is no severity"),
    ],
)
def test_other_folders_are_named(tmp_path: Path, places: list[str], sentence: str) -> None:
    for place in places:
        (tmp_path / place).mkdir(parents=True)
    with pytest.raises(DataError, match=re.escape(sentence)):
        find_corruptions(tmp_path)
