"""Archives give what folders give, in every layout, with the same batches wherever a run is resumed."""

import os
import pickle
import subprocess
import tarfile
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lambdanets.data import (
    AugmentConfig,
    DataConfig,
    DataError,
    ImageSet,
    eval_loader,
    open_split,
    open_splits,
    train_loader,
)
from lambdanets.data.randomness import permutation, shard_permutation
from lambdanets.data.sources import tar_images
from lambdanets.data.sources.tar_images import unlabelled_tar

WriteFolder = Callable[..., Path]
WriteTar = Callable[..., Path]
MakeSamples = Callable[..., dict[str, bytes]]
AUGMENT = AugmentConfig(crop="random_resized", flip=0.5, color_jitter=0.3)
COUNTS = {"train/ant": 7, "train/bee": 5, "val/ant": 3, "val/bee": 2}
# Archive -> the folder it is packed from and what of it is packed.
LAYOUTS = {
    "one archive": {"all.tar": ("images", ".")},
    "one archive around a folder": {"all.tar": (".", "images")},
    "sides as words": {
        "Images_train-000.tar": ("images/train", "."),
        "Images-VAL-1.tar": ("images/val", "."),
        "Images-test-1.tar": ("images/train", "ant"),
    },
    "sides as words and inside": {
        "train.tar": ("images", "./train"),
        "val.tar": ("images", "val"),
    },
    "sides as folders": {
        f"{side}/{name}.tar": (f"images/{side}", name) for side in ("train", "val") for name in ("ant", "bee")
    },
}


def config(source: str, **options: object) -> DataConfig:
    values = {"source": source, "image_size": 12, "batch_size": 4, "workers": 0}
    return DataConfig(**(values | options))


def by_name(image_set: ImageSet) -> dict[str, tuple[torch.Tensor, int]]:
    paths = [image_set.path(index).replace("#", "/") for index in range(len(image_set))]
    return {"/".join(path.split("/")[-2:]): image_set[index] for index, path in enumerate(paths)}


def assert_same_images(ours: ImageSet, theirs: ImageSet) -> None:
    mine, expected = by_name(ours), by_name(theirs)
    assert mine.keys() == expected.keys()
    for name, (image, target) in expected.items():
        assert torch.equal(mine[name][0], image)
        assert mine[name][1] == target


def files(root: Path) -> dict[str, bytes | Path]:
    return {str(path.relative_to(root)): path for path in sorted(root.rglob("*.png"))}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_archives_give_what_their_folder_gives(
    tmp_path: Path, write_folder: WriteFolder, layout: str
) -> None:
    root, shards = write_folder(COUNTS), tmp_path / "shards"
    for name, (folder, what) in LAYOUTS[layout].items():
        (shards / name).parent.mkdir(parents=True, exist_ok=True)
        # The system's tar knows nothing of Python's.
        subprocess.run(["tar", "-cf", shards / name, "-C", tmp_path / folder, what], check=True)
    splits, expected = open_splits(config(f"tar:{shards}")), open_splits(config(f"folder:{root}"))
    assert splits.classes == expected.classes
    assert_same_images(splits.train, expected.train)
    assert_same_images(splits.val, expected.val)
    assert splits.fingerprint


@pytest.mark.parametrize("fraction", [0.3, 1.0])
def test_what_has_no_sides_is_split_as_a_folder_is(
    write_folder: WriteFolder, write_tar: WriteTar, fraction: float
) -> None:
    root = write_folder({"ant": 12, "bee": 8, "test": 3, "train": 2})
    inside = files(root)
    write_tar("shards/0.tar", {name: path for name, path in inside.items() if "1" in name})
    write_tar("shards/1.tar", {name: path for name, path in inside.items() if "1" not in name})
    options = {"val_fraction": fraction, "cache": False}
    for side in ("train", "val") if fraction < 1 else ("val",):
        sets = [
            open_split(config(source, **options), side, seed=3)[0]
            for source in (f"tar:{root.parent / 'shards'}", f"folder:{root}")
        ]
        assert_same_images(*sets)


def test_batches_are_a_folders_to_the_bit(write_folder: WriteFolder, write_tar: WriteTar) -> None:
    root = write_folder(COUNTS)
    archive = write_tar("all.tar", files(root))
    for workers in (0, 2):
        pairs = [
            open_splits(config(source, augment=AUGMENT, cache=False))
            for source in (f"tar:{archive}", f"folder:{root}")
        ]
        data = config("digits", augment=AUGMENT, workers=workers)
        for at in ((0, 0), (1, 1)):
            loaders = [train_loader(each.train, data, seed=5, position=lambda at=at: at) for each in pairs]
            batches = list(zip(*loaders, strict=True))
            assert len(batches) == 3 - at[1]
            assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in batches)
        loaders = [eval_loader(each.val, data) for each in pairs]
        assert all(torch.equal(a[0], b[0]) for a, b in zip(*loaders, strict=True))


def test_samples_of_webdataset(write_tar: WriteTar, samples: MakeSamples) -> None:
    extra = {"000001.json": b"{}", "000001.seg.png": b"a mask"}
    write_tar("s/pets-train-0.tar", samples([1, 0, 1]) | extra)
    write_tar("s/pets-train-1.tar", samples([2, "0\n"], first=3))
    val = write_tar("s/pets-val-0.tar", samples([1, 0, 2]))
    splits = open_splits(config(f"tar:{val.parent}"))
    assert splits.classes == ("0", "1", "2")
    assert splits.train.targets.tolist() == [1, 0, 1, 2, 0]
    assert [splits.train.path(index) for index in (0, 4)] == [
        "pets-train-0.tar#000000.png",
        "pets-train-1.tar#000004.png",
    ]
    (val.parent / "classes.json").write_text('["cat", "dog", "eel", "fox"]')
    splits = open_splits(config(f"tar:{val.parent}"))
    assert splits.classes == ("cat", "dog", "eel", "fox")
    assert splits.val.targets.tolist() == [1, 0, 2]
    run = ("fox", "eel", "dog", "cat")
    side, classes = open_split(config(f"tar:{val.parent}"), "val", classes=run)
    assert classes == run
    assert side.targets.tolist() == [2, 3, 1]


def test_labels_may_be_names(write_tar: WriteTar, samples: MakeSamples) -> None:
    archive = write_tar("train.tar", samples(["dog", "cat", "dög", "cat"]))
    write_tar("val.tar", samples(["cat", "dog", "dög"]))
    splits = open_splits(config(f"tar:{archive.parent}/*.tar"))
    assert splits.classes == ("cat", "dog", "dög")
    assert splits.train.targets.tolist() == [1, 0, 2, 0]


def test_numbers_are_places_in_the_classes_of_a_run(write_tar: WriteTar, samples: MakeSamples) -> None:
    archive = write_tar("0.tar", samples([2, 0]))
    side, _ = open_split(config(f"tar:{archive}", val_fraction=1.0), "val", classes=("b", "a", "c"))
    assert side.targets.tolist() == [2, 0]
    with pytest.raises(DataError, match=r"has the class number 2, but there are 2 classes \('b', 'a'\)"):
        open_split(config(f"tar:{archive}", val_fraction=1.0), "val", classes=("b", "a"))


def test_braces_and_patterns(write_tar: WriteTar, samples: MakeSamples) -> None:
    pytest.importorskip("braceexpand")
    for index in range(3):
        archive = write_tar(f"s/{index:04d}.tar", samples([0, 1, 0, 1], first=10 * index))
    for pattern, number in (("000{0..1}.tar", 8), ("*[12].tar", 8), ("*", 12), ("{0000,0002}.tar", 8)):
        assert len(open_split(config(f"tar:{archive.parent}/{pattern}", val_fraction=1.0))[0]) == number
    with pytest.raises(DataError, match=r"there is no tar archive .*/s/0003\.tar\."):
        open_splits(config(f"tar:{archive.parent}/000{{0..3}}.tar"))


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names(write_tar: WriteTar, write_folder: WriteFolder, form: int) -> None:
    root = write_folder({"a": 2, "b": 2})
    long = "ä" * 90 + "/" + "x" * 150
    members = {f"{name[0]}/{long}{name[2:]}": path for name, path in files(root).items()}
    archive = write_tar("long.tar", members, form=form)
    splits = open_splits(config(f"tar:{archive}", val_fraction=0.5))
    for side in (splits.train, splits.val):
        for index in range(2):
            file = members.pop(side.path(index).removeprefix("long.tar#"))
            assert side.images.read(index).tobytes() == Image.open(file).tobytes()
    assert not members


@pytest.mark.parametrize("order", ["global", "shards"])
@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_share_an_epoch_without_repeats_and_resume_inside_it(
    write_tar: WriteTar, samples: MakeSamples, order: str, workers: int
) -> None:
    for index in range(20):
        archive = write_tar(f"s/train-{index:02d}.tar", samples([0, 1, 0], first=3 * index))
    write_tar("s/val.tar", samples([0, 1]))
    data = config(f"tar:{archive.parent}", order=order, workers=workers, cache=False, batch_size=4)
    train = open_splits(data).train
    images = {train[index][0].numpy().tobytes(): index for index in range(60)}

    def epoch(rank: int, done: int = 0) -> list[list[int]]:
        loader = train_loader(train, data, seed=1, position=lambda: (2, done), rank=rank, world_size=2)
        return [[images[image.numpy().tobytes()] for image in batch] for batch, _ in loader]

    ranks = [epoch(0), epoch(1)]
    assert [len(batch) for batches in ranks for batch in batches] == [4] * 14
    seen = list(chain(*ranks[0], *ranks[1]))
    assert len(set(seen)) == 56
    assert epoch(1, done=3) == ranks[1][3:]


def test_shards_are_visited_in_windows() -> None:
    shards = np.repeat(np.arange(40), 7)
    order = shard_permutation(3, 1, shards)
    assert sorted(order) == list(range(280))
    windows = [set(shards[order[start : start + 112]]) for start in (0, 112, 224)]
    assert [len(window) for window in windows] == [16, 16, 8]
    assert not windows[0] & windows[1]
    assert len(set(shards[order[:16]])) > 5  # mixed, not one archive after the other
    assert windows[0] != set(shards[shard_permutation(3, 2, shards)[:112]])
    np.testing.assert_array_equal(order, shard_permutation(3, 1, shards))
    few = np.zeros(50, int)
    np.testing.assert_array_equal(shard_permutation(3, 1, few), permutation(3, 1, 50))


@pytest.mark.parametrize("source", ["digits", "folder:images", "wds/images:images", "hfds/images"])
def test_only_archives_are_visited_one_after_the_other(source: str) -> None:
    with pytest.raises(DataError, match=r"^data.order 'shards' needs images in tar archives, tar:PATH; "):
        open_splits(config(source, order="shards"))


def test_so_many_of_each_class(write_tar: WriteTar, samples: MakeSamples) -> None:
    archive = write_tar("s/train.tar", samples([0, 1, 0, 1, 0, 0]))
    write_tar("s/val.tar", samples([0, 1]))
    splits = open_splits(config(f"tar:{archive.parent}", train_per_class=2))
    assert splits.train.targets.tolist().count(0) == splits.train.targets.tolist().count(1) == 2


def test_more_archives_than_stay_open(
    write_tar: WriteTar, samples: MakeSamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_images, "MAX_OPEN", 2)
    for index in range(5):
        archive = write_tar(f"s/{index}.tar", samples([0, 1, 0, 1], first=4 * index))
    data = config(f"tar:{archive.parent}", val_fraction=1.0, workers=2, cache=False)
    side, _ = open_split(data)
    here = [side.images.read(index).tobytes() for index in (0, 4, 8, 12, 16, 0)]
    elsewhere = pickle.loads(pickle.dumps(side.images))  # as a spawned worker gets it
    assert here == [elsewhere.read(index).tobytes() for index in (0, 4, 8, 12, 16, 0)]
    assert len(set(here)) == 5
    assert sum(len(targets) for _, targets in eval_loader(side, data)) == 20  # forked with open archives


def test_an_archive_is_not_closed_while_it_is_read(
    write_tar: WriteTar, samples: MakeSamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = write_tar("0.tar", samples([0, 1, 0, 1]))
    pictures = unlabelled_tar(str(archive), 3)
    expected = pictures.read(0).tobytes()
    pread = os.pread

    def after_others(number: int, size: int, offset: int) -> bytes:
        pictures._files._opened.cache_clear()  # as when other threads have opened many archives since
        return pread(number, size, offset)

    monkeypatch.setattr(os, "pread", after_others)
    assert pictures.read(0).tobytes() == expected


def test_all_images_whatever_their_classes(
    write_tar: WriteTar, write_folder: WriteFolder, samples: MakeSamples
) -> None:
    root = write_folder({"a": 2, "b/deep": 1})
    shards = root.parent / "s"
    write_tar("s/x/folders.tar", files(root))
    labelled = samples([3, 4])
    del labelled["000001.cls"]
    write_tar("s/y.tar", labelled | {"flat.two.png": (root / "a" / "000.png").read_bytes()})
    pictures = unlabelled_tar(str(shards), 1)
    assert [pictures.path(index) for index in range(6)] == [
        *(f"x/folders.tar#{name}" for name in ("a/000.png", "a/001.png", "b/deep/000.png")),
        *(f"y.tar#{name}" for name in ("000000.png", "000001.png", "flat.two.png")),
    ]
    assert pictures.targets.tolist() == [0] * 6
    assert pictures.read(0).mode == "L"
    assert pictures.read(0).tobytes() == pictures.read(5).tobytes()
    assert unlabelled_tar(str(shards / "y.tar"), 3).path(0) == "y.tar#000000.png"
