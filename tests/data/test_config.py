"""Configurations say what is wrong with a value, and write out their normalisation."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from lambdanets.data import AugmentConfig, DataConfig
from lambdanets.data.sources.digits import read_digits


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"source": ""}, "data.source must be 'digits'"),
        ({"image_size": 0}, "data.image_size must be 1 or more, got 0"),
        ({"batch_size": 2.5}, "data.batch_size must be 1 or more, got 2.5"),
        ({"workers": -1}, "data.workers must be 0 or more"),
        ({"in_chans": 4}, r"data.in_chans must be 1 \(grey\) or 3 \(RGB\), got 4"),
        ({"val_fraction": 0}, "data.val_fraction must be above 0 and at most 1"),
        ({"val_fraction": 1.5}, "data.val_fraction"),
        ({"crop_pct": 0.0}, "data.crop_pct"),
        ({"interpolation": "cubic"}, "data.interpolation must be one of nearest, bilinear, bicubic, lanczos"),
        ({"on_bad_image": "ignore"}, "data.on_bad_image must be one of refuse, skip, got 'ignore'"),
        ({"cache": "always"}, "data.cache must be one of True, False, auto"),
        ({"mean": (0.5,)}, r"data.mean must be 3 numbers \(in_chans\)"),
        ({"std": (0.2, 0.2, 0.0)}, "data.std must be above 0"),
        ({"num_classes": 0}, "data.num_classes"),
    ],
)
def test_data_config_teaches(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        DataConfig(**values)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"crop": "random"}, "augment.crop must be one of none, pad, random_resized, got 'random'"),
        ({"pad": -1}, "augment.pad must be pixels, 0 or more"),
        ({"scale": (0.5, 0.2)}, "augment.scale must be two numbers"),
        ({"scale": (0.5, 2.0)}, "augment.scale must be parts of the area"),
        ({"ratio": (0.0, 1.0)}, "augment.ratio"),
        ({"flip": 2}, "augment.flip must be a probability"),
        ({"rand_augment": "m9"}, "augment.rand_augment must be like 'rand-m9-n2-mstd0.5'"),
        ({"rand_augment": "rand-z3"}, "augment.rand_augment"),
        ({"color_jitter": -0.1}, "augment.color_jitter"),
        ({"random_erasing": 1.1}, "augment.random_erasing"),
    ],
)
def test_augment_config_teaches(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        AugmentConfig(**values)


def test_sequences_from_json_become_tuples() -> None:
    config = DataConfig(mean=[0.1, 0.2, 0.3], augment=AugmentConfig(scale=[0.1, 0.9]))
    assert config.mean == (0.1, 0.2, 0.3)
    assert config.augment.scale == (0.1, 0.9)
    assert hash(config) == hash(dataclasses.replace(config))


def test_resolved_pins_the_normalisation() -> None:
    digits = DataConfig(in_chans=1).resolved()
    elsewhere = dataclasses.replace(digits, source="folder:elsewhere").resolved()
    assert elsewhere.mean == digits.mean == (0.305,)
    assert DataConfig(source="folder:x").resolved().std == (0.229, 0.224, 0.225)
    assert DataConfig(source="folder:x", in_chans=1).resolved().mean == (0.449,)
    assert DataConfig(in_chans=3).resolved().mean == (0.305,) * 3
    assert DataConfig(source="folder:x", mean=(0.0,) * 3).resolved().mean == (0.0,) * 3


def test_resolved_writes_folders_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    def source(text: str) -> str:
        return DataConfig(source=text).resolved().source

    for path in ("photos", "./photos/", "~/photos", f"{tmp_path}/other/../photos"):
        assert source(f"folder:{path}") == f"folder:{tmp_path}/photos"
    assert source("torch/cifar10:data") == f"torch/cifar10:{tmp_path}/data"
    assert source("wds/cats:shards") == f"wds/cats:{tmp_path}/shards"
    for same in ("digits", "folder:", "torch/cifar10", "hfds/cats", "wds/cats:pipe:cat x", "wds/cats:gs://x"):
        assert source(same) == same


def test_the_digits_mean_and_std_are_those_of_the_digits() -> None:
    pixels, _ = read_digits()
    config = DataConfig(in_chans=1).resolved()
    assert config.mean == pytest.approx((pixels.mean() / 16,), abs=1e-3)
    assert config.std == pytest.approx((pixels.std() / 16,), abs=1e-3)
