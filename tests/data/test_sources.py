"""Sources of torchvision and of the Hugging Face hub, and the errors for values that name no source."""

import gzip
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lambdanets.data import DataConfig, DataError, open_split, open_splits

WriteFolder = Callable[..., Path]
Truncate = Callable[[Path], None]


def write_mnist(root: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A small MNIST in its own file format, where torchvision looks for it."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    written = {}
    for name, number in (("train", 40), ("t10k", 20)):
        images = rng.integers(0, 256, (number, 28, 28), dtype=np.uint8)
        targets = (np.arange(number) % 10).astype(np.uint8)
        header = np.array([2051, number, 28, 28], ">i4").tobytes()
        (raw / f"{name}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = np.array([2049, number], ">i4").tobytes()
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(header + targets.tobytes())
        for file in raw.glob(f"{name}*ubyte"):
            (raw / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        written[name] = images, targets
    return written


def mnist(tmp_path: Path, **options: object) -> DataConfig:
    values = {"source": f"torch/mnist:{tmp_path}", "image_size": 28, "in_chans": 1, "workers": 0}
    return DataConfig(**(values | {"mean": (0.0,), "std": (1.0,)} | options))


@pytest.mark.parametrize("cache", [True, False])
def test_torchvisions_mnist(tmp_path: Path, cache: bool) -> None:
    written = write_mnist(tmp_path)
    splits = open_splits(mnist(tmp_path, cache=cache))
    assert splits.classes[3] == "3 - three"  # torchvision's names
    for side, name in ((splits.train, "train"), (splits.val, "t10k")):
        images, targets = side.batch(range(len(side)))
        np.testing.assert_allclose(images[:, 0] * 255, written[name][0], atol=1e-4)
        np.testing.assert_array_equal(targets, written[name][1])


def test_a_named_source_can_be_split(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    splits = open_splits(mnist(tmp_path, val_split="", val_fraction=0.25))
    np.testing.assert_array_equal(np.bincount(splits.val.targets), 1)
    np.testing.assert_array_equal(np.bincount(splits.train.targets), 3)
    seen = {side.path(index) for side in (splits.train, splits.val) for index in range(len(side))}
    assert len(seen) == 40
    side, _ = open_split(mnist(tmp_path, val_split="", val_fraction=1.0))
    assert len(side) == 40


def test_sets_are_kept_where_the_system_keeps_what_can_be_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    data = mnist(tmp_path, source="torch/mnist", download=False)
    write_mnist(tmp_path / "cache" / "lambdanets" / "torch" / "mnist")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert len(open_splits(data).train) == 40
    for other in ("", "cache"):  # by the convention a relative path is none
        monkeypatch.setenv("XDG_CACHE_HOME", other)
        with pytest.raises(DataError, match=rf"in {tmp_path}/\.cache/lambdanets/torch/mnist: "):
            open_splits(data)


def test_a_damaged_image_of_a_named_source(write_folder: WriteFolder, truncate: Truncate) -> None:
    root = write_folder({"train/a": 2, "train/b": 1, "val/a": 1, "val/b": 1})
    truncate(root / "train" / "a" / "001.png")
    data = DataConfig(source=f"torch/image_folder:{root}", image_size=12, workers=0)
    with pytest.raises(DataError, match=r"1 of 5 images cannot be read:\n  cannot read torch/image.*#1: "):
        open_splits(data)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("torch/cifar99:/tmp", "timm cannot open the split 'train' of 'torch/cifar99' in /tmp: Unknown"),
        ("folder:", "lacks a path: write folder:PATH"),
        (
            "imagenet",
            "data.source must be 'digits', 'folder:PATH', 'csv:FILE.csv', 'tar:PATH', 'torch/NAME:PATH', "
            "'hfds/NAME', 'hfids/NAME' or 'wds/NAME:PATH'; got 'imagenet'",
        ),
        ("folder", "lacks a path: write folder:PATH"),
        ("torch", "lacks a name: write torch/NAME:PATH"),
        ("digits:x", "data.source must be"),
        ("coco:x", "holds annotated objects, for a detector: train the recipe coco or nuclei"),
        ("tfds/cats", "TensorFlow Datasets are not read any more: use the same data set as torch/NAME:PATH"),
        ("hub/imagenet", "data.source must be"),
    ],
)
def test_unknown_sources(source: str, says: str) -> None:
    for open_it in (open_splits, open_split):
        with pytest.raises(DataError, match=says):
            open_it(DataConfig(source=source))


def test_a_bare_path_is_recognised(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"Did you mean 'folder:{tmp_path}'?"):
        open_splits(DataConfig(source=str(tmp_path)))


def test_a_set_that_is_not_there_and_may_not_be_downloaded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot open the split 'train' of 'torch/cifar10' in .*not found"):
        open_splits(DataConfig(source=f"torch/cifar10:{tmp_path}", download=False))


@pytest.mark.parametrize(
    ("source", "module", "package"),
    [
        ("hfds/cats", "datasets", "datasets"),
        ("hfids/cats", "datasets", "datasets"),
        ("wds/cats:pipe:cat x", "webdataset", "webdataset"),
    ],
)
def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, source: str, module: str, package: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == module else object())
    for open_it in (open_splits, open_split):
        with pytest.raises(DataError, match=f"needs the package .*: pip install {re.escape(package)}$"):
            open_it(DataConfig(source=source))


def test_so_many_of_each_class_are_the_same_for_every_seed_and_place(
    tmp_path: Path, write_folder: WriteFolder
) -> None:
    root = write_folder({"train/cat": 9, "train/dog": 4, "val/cat": 2, "val/dog": 2})
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()

    def names(place: Path, number: int | None, seed: int) -> list[str]:
        config = DataConfig(source=f"folder:{place}", image_size=8, train_per_class=number, workers=0)
        splits = open_splits(config, seed=seed)
        assert len(splits.val) == 4
        return [splits.train.path(index).removeprefix(str(place)) for index in range(len(splits.train))]

    five = names(root, 5, seed=0)
    assert [sum(kind in name for name in five) for kind in ("cat", "dog")] == [5, 4]
    assert set(names(root, 3, seed=1)) < set(five) < set(names(root, None, seed=2))
    assert [name.split("/")[2] for name in five] == ["cat"] * 5 + ["dog"] * 4
    root.rename(moved)
    assert names(moved, 5, seed=3) == five


def test_a_stream_and_nonsense_have_no_so_many_of_each_class() -> None:
    with pytest.raises(ValueError, match=r"data\.train_per_class must be 1 or more, or None, got 0"):
        DataConfig(train_per_class=0)
    with pytest.raises(DataError, match="train_per_class needs to know all names, and 'wds/x:y' is streamed"):
        open_splits(DataConfig(source="wds/x:y", train_per_class=3))
