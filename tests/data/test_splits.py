"""Sources opened as a run opens them: split, checked, kept in memory, described."""

import hashlib
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lambdanets.data import (
    AugmentConfig,
    DataConfig,
    DataError,
    DataWarning,
    describe,
    open_split,
    open_splits,
)
from lambdanets.data.sources.digits import read_digits

WriteFolder = Callable[..., Path]
Truncate = Callable[[Path], None]
DIGITS = DataConfig(image_size=8, in_chans=1)


def of(root: Path, **options: object) -> DataConfig:
    return DataConfig(**({"source": f"folder:{root}", "image_size": 12, "workers": 0} | options))


def test_the_digits_are_those_of_uci() -> None:
    """The sum is that of scikit-learn's copy of the test part; see the next test."""
    pixels, labels = read_digits()
    assert (pixels.shape, pixels.dtype, labels.shape, labels.dtype) == ((1797, 8, 8), "u1", (1797,), "i8")
    digest = hashlib.sha256(pixels.tobytes() + labels.astype(np.uint8).tobytes()).hexdigest()
    assert digest == "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"


def test_the_digits_are_scikit_learns() -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    expected = datasets.load_digits()
    pixels, labels = read_digits()
    np.testing.assert_array_equal(pixels, expected.images)
    np.testing.assert_array_equal(labels, expected.target)


def test_the_digits_are_split_and_normalised() -> None:
    pixels, targets = read_digits()
    splits = open_splits(DIGITS)
    assert splits.classes == tuple("0123456789")
    assert len(splits.train) + len(splits.val) == 1797
    places = []
    for side in (splits.train, splits.val):
        for index in range(len(side)):
            image, target = side[index]
            place = int(side.path(index).removeprefix("digits#"))
            places.append(place)
            assert target == targets[place]
            np.testing.assert_allclose(image.ravel() * 0.376 + 0.305, pixels[place].ravel() / 16, atol=0.002)
    assert sorted(places) == list(range(1797))


@pytest.mark.parametrize("options", [{"image_size": 10**6}, {"image_size": 10**5, "batch_size": 1}])
def test_a_batch_beyond_the_memory(options: dict[str, int]) -> None:
    says = r"^a batch of \d+ images of 1(0+) x 1\1 takes [\d,]+ GiB, and there are \d+ GiB of memory; t"
    for opened in (open_splits, open_split):
        with pytest.raises(DataError, match=says):
            opened(DataConfig(in_chans=3, **options))


def test_digits_are_split_by_class_and_seed() -> None:
    splits = open_splits(replace(DIGITS, val_fraction=0.2))
    share = np.bincount(splits.val.targets) / np.bincount(splits.train.targets)
    np.testing.assert_allclose(share, 0.25, atol=0.01)

    def held_out(seed: int) -> list[str]:
        side, _ = open_split(DIGITS, seed=seed)
        return [side.path(index) for index in range(len(side))]

    assert held_out(0) == held_out(0)
    assert held_out(0) != held_out(1)


def test_digits_in_rgb_and_larger() -> None:
    image, _ = open_splits(DataConfig(image_size=16, in_chans=3)).val[0]
    assert image.shape == (3, 16, 16)
    assert torch.equal(image[0], image[1])


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("crop", ["none", "pad", "random_resized"])
def test_what_is_kept_in_memory_is_what_is_read(write_folder: WriteFolder, crop: str, check: bool) -> None:
    root = write_folder({"train/a": 3, "train/b": 4, "val/a": 2, "val/b": 2}, size=(17, 13))
    augment = AugmentConfig(crop=crop, flip=0.5, pad=2)
    kept, read = (
        open_splits(of(root, augment=augment, check=check, cache=cache), seed=3) for cache in (True, False)
    )
    assert kept.train.cached is not None
    assert read.train.cached is None
    for a, b in ((kept.train, read.train), (kept.val, read.val)):
        for index in range(len(a)):
            assert torch.equal(a.item(index, 1, 2)[0], b.item(index, 1, 2)[0])
            assert a.item(index, 1, 2)[1] == b.item(index, 1, 2)[1]


def test_auto_keeps_small_sets_only(write_folder: WriteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_folder({"train/a": 2, "train/b": 1, "val/a": 1, "val/b": 1})
    needed = 5 * 12 * 12 * 3
    for augment in (AugmentConfig(), AugmentConfig(crop="random_resized")):
        for limit, kept in ((needed + 1, True), (needed, False)):
            monkeypatch.setattr("lambdanets.data.splits.MEMORY_LIMIT", limit)
            assert (open_splits(of(root, augment=augment)).train.cached is not None) is kept
    monkeypatch.undo()
    assert open_splits(of(root, check=False)).train.cached is None


@pytest.mark.parametrize("cache", [True, False])
def test_damaged_images_are_refused_by_name(
    write_folder: WriteFolder, truncate: Truncate, cache: bool
) -> None:
    root = write_folder({"train/a": 8, "train/b": 1, "val/a": 1, "val/b": 1})
    for index in range(7):
        truncate(root / "train" / "a" / f"{index:03d}.png")
    (root / "val" / "a" / "000.png").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        open_splits(of(root, cache=cache))
    lines = str(caught.value).splitlines()
    assert lines[0] == "8 of 11 images cannot be read:"
    assert len([line for line in lines if "train/a/00" in line]) == 5
    assert lines[-2:] == [
        "  and 3 more",
        "Repair or remove them, or leave them out with --set data.on_bad_image=skip.",
    ]


@pytest.mark.parametrize("cache", [True, False])
def test_damaged_images_are_skipped_with_a_warning(
    write_folder: WriteFolder, truncate: Truncate, cache: bool
) -> None:
    root = write_folder({"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1})
    whole = open_splits(of(root, cache=False))
    truncate(root / "train" / "a" / "001.png")
    with pytest.warns(DataWarning, match=r"1 of 8 images cannot be read:\n.*a/001\.png.*\nThey are left out"):
        splits = open_splits(of(root, cache=cache, on_bad_image="skip"))
    assert len(splits.train) == 5
    assert [Path(splits.train.path(index)).name for index in range(2)] == ["000.png", "002.png"]
    assert len(splits.skipped) == 1
    assert "a/001.png" in splits.skipped[0]
    for index, before in enumerate([0, 2, 3, 4, 5]):
        assert torch.equal(splits.train[index][0], whole.train[before][0])
        assert splits.train[index][1] == whole.train[before][1]


def test_skipping_does_not_empty_a_class(write_folder: WriteFolder, truncate: Truncate) -> None:
    root = write_folder({"train/a": 1, "train/b": 3, "val/a": 1, "val/b": 1})
    truncate(root / "train" / "a" / "000.png")
    with pytest.raises(DataError, match="without its damaged images, class 'a' is empty"):
        open_splits(of(root, on_bad_image="skip"))


def test_progress_is_told(write_folder: WriteFolder) -> None:
    root = write_folder({"train/a": 69, "train/b": 1, "val/a": 2, "val/b": 1})
    told: list[tuple[int, int]] = []
    open_splits(of(root), progress=lambda done, total: told.append((done, total)))
    assert told == [(64, 73), (70, 73), (73, 73)]


def test_a_bar_is_shown_in_a_terminal_only(
    write_folder: WriteFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_folder({"train/a": 3, "train/b": 1, "val/a": 3, "val/b": 1})
    monkeypatch.setattr("lambdanets.data.splits.MANY", 1)
    open_splits(of(root))
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    open_splits(of(root))
    assert "Reading images" in capsys.readouterr().err


def test_open_split_varies_nothing(write_folder: WriteFolder) -> None:
    root = write_folder({"train/a": 2, "train/b": 1, "val/a": 1, "val/b": 4})
    data = of(root, augment=AugmentConfig(crop="random_resized", flip=0.5, rand_augment="rand-m9"))
    for split, number in (("train", 3), ("val", 5)):
        side, classes = open_split(data, split)
        assert (len(side), classes) == (number, ("a", "b"))
        assert torch.equal(side.item(0, 0, 0)[0], side.item(0, 5, 7)[0])
    with pytest.raises(ValueError, match="split must be 'train' or 'val', got 'test'"):
        open_split(data, "test")


def test_open_split_on_another_set(write_folder: WriteFolder) -> None:
    root = write_folder({"7": 1, "3": 2})
    side, classes = open_split(of(root, val_fraction=1.0), "val", classes=tuple("0123456789"))
    assert sorted(side.targets) == [3, 3, 7]
    assert classes == tuple("0123456789")
    with pytest.raises(DataError, match=r"'digits' has 10 classes .* the run was trained on 2 \('cat', 'dog"):
        open_split(DIGITS, "val", classes=("cat", "dog"))
    with pytest.raises(DataError, match=r"the train side of .* holds no images"):
        open_split(of(root, val_fraction=1.0), "train")


def test_training_needs_training_images(write_folder: WriteFolder) -> None:
    with pytest.raises(DataError, match=r"no images are left for training: val_fraction is 1\.0"):
        open_splits(replace(DIGITS, val_fraction=1.0))


def test_one_class_cannot_be_trained_on(write_folder: WriteFolder) -> None:
    root = write_folder({"cats": 4})
    with pytest.raises(DataError, match=r"holds one class \('cats'\); at least two are needed"):
        open_splits(of(root))
    side, _ = open_split(of(root, val_fraction=1.0), classes=("cats", "dogs"))
    assert len(side) == 4


def test_the_fingerprint_tells_files_and_sides_not_the_place(write_folder: WriteFolder) -> None:
    root = write_folder({"a": 6, "b": 6})
    print_ = open_splits(of(root)).fingerprint
    moved = root.rename(root.parent / "elsewhere")
    assert open_splits(of(f"{moved}/")).fingerprint == print_ != ""
    assert open_splits(of(moved), seed=1).fingerprint != print_
    seen = {print_}
    (moved / "a" / "000.png").rename(moved / "b" / "zzz.png")
    seen.add(open_splits(of(moved)).fingerprint)
    (moved / "b" / "zzz.png").unlink()
    seen.add(open_splits(of(moved)).fingerprint)
    assert len(seen) == 3
    assert open_splits(DIGITS).fingerprint == ""


def test_the_fingerprint_tells_a_picture_that_changed_sides(write_folder: WriteFolder) -> None:
    root = write_folder({"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1})
    before = open_splits(of(root)).fingerprint
    (root / "train" / "a" / "001.png").rename(root / "val" / "a" / "001.png")
    assert open_splits(of(root)).fingerprint != before


def test_describe(write_folder: WriteFolder) -> None:
    facts = describe(open_splits(of(write_folder({"train/a": 3, "train/b": 1, "val/a": 2, "val/b": 2}))))
    assert facts == {
        "classes": 2,
        "train": 4,
        "train images per class": "1 (b) to 3 (a)",
        "val": 4,
        "val images per class": "2",
        "skipped": 0,
    }


def test_every_odd_image_trains(write_folder: WriteFolder) -> None:
    root = write_folder({"train/a": 1, "train/b": 1, "val/a": 1, "val/b": 1})
    odd = {"L": "png", "RGBA": "png", "LA": "png", "P": "gif", "1": "png", "CMYK": "jpg", "I;16": "png"}
    for number, (mode, suffix) in enumerate(odd.items()):
        Image.new(mode, (20 + number, 30)).save(root / "train" / "a" / f"odd{number}.{suffix}")
    augment = AugmentConfig(crop="random_resized", rand_augment="rand-m9-n2", random_erasing=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        splits = open_splits(of(root, augment=augment))
        images, _ = splits.train.batch(range(9))
    assert images.shape == (9, 3, 12, 12)
    assert images.isfinite().all()
