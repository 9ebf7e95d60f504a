"""The choice of pseudo-labels against loops, their file, and the images that they belong to."""

import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lambdanets.data import (
    AugmentConfig,
    DataConfig,
    DataError,
    DataWarning,
    Labels,
    MixedSet,
    describe,
    open_splits,
    open_unlabelled,
    read_labels,
    select,
)
from lambdanets.data.labels import folder_truths, open_text, to_csv

WriteFolder = Callable[..., Path]
CLASSES = ("cat", "dog", "emu")
Row = tuple[str, int, float]


def labels(rows: list[Row]) -> Labels:
    names, targets, numbers = zip(*rows, strict=True) if rows else ((), (), ())
    return Labels(list(names), np.array(targets, np.int64), np.array(numbers, np.float32), CLASSES)


def listed(found: Labels) -> list[Row]:
    return list(zip(found.images, found.targets.tolist(), found.probabilities.tolist(), strict=True))


def chosen(rows: list[Row], threshold: float, per_class: int | None, fill: bool) -> list[Row]:
    """The same in words: the confident ones of each class from the top, and round again."""
    kept: list[Row] = []
    for target in range(len(CLASSES)):
        members = [row for row in rows if row[1] == target and row[2] >= threshold]
        members.sort(key=lambda row: (-row[2], row[0]))
        if per_class is None:
            kept += members
        elif members:
            number = per_class if fill else min(per_class, len(members))
            kept += [members[turn % len(members)] for turn in range(number)]
    return sorted(kept)


probability = st.sampled_from([0.25, 0.5, 0.75, 1.0])
some_rows = st.lists(
    st.tuples(st.text("abc/", min_size=1, max_size=4), st.integers(0, 2), probability),
    max_size=20,
    unique_by=lambda row: row[0],
)


@given(some_rows, probability, st.none() | st.integers(1, 5), st.booleans(), st.randoms())
def test_the_choice(
    rows: list[Row], threshold: float, per_class: int | None, fill: bool, shuffler: object
) -> None:
    expected = chosen(rows, threshold, per_class, fill)
    shuffler.shuffle(rows)  # type: ignore[attr-defined]
    found = select(labels(rows), threshold=threshold, per_class=per_class, fill=fill)
    assert sorted(listed(found)) == expected
    assert found.images == sorted(found.images)
    assert found.counts().tolist() == [sum(row[1] == target for row in expected) for target in range(3)]


def test_labels_go_through_a_file_to_the_bit(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    rows = [("a, b/1.png", 2, 1 / 3), ('"c"/ü.png', 0, float(np.float32(0.1))), ("d.png", 1, 1.0)]
    path.write_text(to_csv(labels(rows)), encoding="utf-8")
    found = read_labels(path, CLASSES)
    assert listed(found) == listed(labels(rows))
    path.write_text("image,label\nx.png,dog\n", encoding="utf-8-sig")  # as spreadsheets write it
    assert listed(read_labels(path, CLASSES)) == [("x.png", 1, 1.0)]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("image,class\nx.png,dog\n", "lacks the column 'label'; it needs image and label"),
        ("image,label\n", "holds no labels"),
        ("", "lacks the column 'image'"),
        (
            "image,label\nx.png,cow\n",
            "labels 'x.png' as 'cow', which is none of the classes 'cat', 'dog', 'emu'",
        ),
        ("image,label,probability\nx.png,dog,high\n", "gives 'x.png' the probability 'high'"),
        (
            "image,label,probability\nx.png,dog,nan\n",
            r"\(line 2\) gives 'x.png' the probability nan, which is",
        ),
        ("image,label,probability\nx.png,dog,inf\n", "probability inf, which is not from 0 to 1"),
        ("image,label,probability\nx.png,dog,-5\n", "probability -5, which is not from 0 to 1"),
        ("image,label,probability\nx.png,dog,1.5\n", "probability 1.5, which is not from 0 to 1"),
        (
            "image,label\nx.png,dog\ny.png,dog\nx.png,cat\n",
            r"labels 'x.png' as 'dog' \(line 2\) and as 'cat' \(line 4\); remove one of the two",
        ),
        (f'image,label\nx.png,"{"d" * 200_000}\n', "labels.csv cannot be read at line 2: field larger than"),
        ("image,label\nx.png\n", r"\(line 2\) labels 'x.png' as '', which is none of"),
    ],
)
def test_a_file_that_holds_no_labels(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=sentence):
        read_labels(path, CLASSES)


def test_a_file_of_labels_is_no_program(tmp_path: Path) -> None:
    for path in (tmp_path / "labels.csv", tmp_path / "other"):
        with open_text(path, "a") if path.suffix else path.open("a") as file:
            file.write("image,label\n")
    assert (tmp_path / "labels.csv").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no file of labels .*labels.csv; lambdanets pseudo-label writes one"
    ):
        read_labels(tmp_path / "labels.csv", CLASSES)


def test_truths_are_the_names_of_folders() -> None:
    rows = [("train/dog/1.png", 0, 1.0), ("cat/dog/2.png", 1, 1.0), ("emu/3.png", 2, 1.0)]
    truths = folder_truths(labels(rows))
    assert truths is not None
    assert truths.tolist() == [1, 0, 2]
    assert folder_truths(labels([*rows, ("cat.png", 0, 1.0)])) is None


def test_all_images_of_a_folder_are_found_with_their_names(write_folder: WriteFolder) -> None:
    root = write_folder({"b/deep/er": 2, "a": 1, ".hidden": 1})
    (root / "top.PNG").write_bytes((root / "a/000.png").read_bytes())
    (root / "notes.txt").write_text("no image")
    with pytest.warns(DataWarning, match=r"left out 1 file \(1 \.txt\) and hidden files"):
        pictures = open_unlabelled(f"folder:{root}")
    names = [pictures.path(index) for index in range(len(pictures))]
    assert names == ["a/000.png", "b/deep/er/000.png", "b/deep/er/001.png", "top.PNG"]
    assert np.array_equal(np.asarray(pictures.read(0)), np.asarray(pictures.read(3)))
    assert pictures.subset(np.array([2, 0])).path(0) == names[2]
    (empty := root / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        open_unlabelled(f"folder:{empty}")


@pytest.fixture
def both(write_folder: WriteFolder) -> DataConfig:
    """Six labelled images of each of two classes and ten others, three of which have a pseudo-label."""
    root = write_folder(
        {"own/train/cat": 6, "own/train/dog": 6, "own/val/cat": 2, "own/val/dog": 2, "more": 10}
    )
    path = root / "labels.csv"
    path.write_text(
        "image,label,probability\n005.png,dog,0.9\n002.png,cat,0.8\n007.png,dog,0.7\n002.png,cat,0.8\n"
    )
    path.with_suffix(".json").write_text(json.dumps({"source": f"folder:{root / 'more'}"}))
    return DataConfig(
        source=f"folder:{root / 'own'}", image_size=12, batch_size=4, workers=0, pseudo_labels=str(path),
        augment=AugmentConfig(crop="pad", pad=3, flip=0.5),
    )  # fmt: skip


def test_pseudo_labelled_images_are_trained_on_beside_the_others(both: DataConfig) -> None:
    splits = open_splits(both)
    train = splits.train
    assert isinstance(train, MixedSet)
    assert (len(train.labelled), len(train.pseudo), len(train)) == (12, 4, 16)
    assert [train.path(index) for index in range(12, 16)] == ["005.png", "002.png", "007.png", "002.png"]
    assert train.targets[12:].tolist() == [1, 0, 1, 0]
    assert describe(splits)["pseudo-labelled"] == 4
    images, targets = train.batch(np.array([3, 13, 12]), np.array([5, 0, 1]), seed=7)
    assert targets.tolist() == [0, 0, 1]
    alone, _ = open_splits(replace(both, pseudo_labels=None)).train.batch([3], 5, 7)
    assert torch.equal(images[:1], alone)


def test_the_same_image_on_both_sides_is_varied_by_its_own_draws(both: DataConfig) -> None:
    root = Path(both.source.partition(":")[2])
    same = Path(both.pseudo_labels or "")
    same.write_text("image,label\ntrain/cat/000.png,cat\n")
    train = open_splits(replace(both, unlabelled=f"folder:{root}")).train
    pairs = [train.batch(np.array([0, 12]), epoch, 0)[0] for epoch in range(4)]
    assert not all(torch.equal(pair[0], pair[1]) for pair in pairs)


def test_validation_images_are_never_trained_on(both: DataConfig) -> None:
    root = Path(both.source.partition(":")[2])
    path = Path(both.pseudo_labels or "")
    path.write_text("image,label\nval/cat/001.png,cat\ntrain/dog/001.png,dog\n")
    with pytest.warns(DataWarning, match="1 of the 2 images in .* are validation images of this run"):
        train = open_splits(replace(both, unlabelled=f"folder:{root}")).train
    assert train.path(12) == "train/dog/001.png"
    path.write_text("image,label\ncat/001.png,cat\n")
    with pytest.raises(DataError, match="names only validation images"), pytest.warns(DataWarning):
        open_splits(replace(both, unlabelled=f"folder:{root / 'val'}"))


@pytest.mark.parametrize("linked", ["file", "folder", "source", "archive"])
def test_validation_images_behind_links_are_never_trained_on(both: DataConfig, linked: str) -> None:
    root = Path(both.source.partition(":")[2])
    own, path = root, Path(both.pseudo_labels or "")
    (pool := root.parent / "pool").mkdir()
    unlabelled, name = f"folder:{pool}", "x.png"
    if linked == "file":
        (pool / name).symlink_to(root / "val/cat/001.png")
    elif linked == "folder":
        (pool / "deep").symlink_to(root / "val/cat")
        name = "deep/001.png"
    elif linked == "source":
        (root / "val/cat/001.png").rename(pool / name)
        (root / "val/cat/001.png").symlink_to(pool / name)
    else:
        (own := root.parent / "archives").mkdir()
        for side in ("train", "val"):
            with tarfile.open(own / f"{side}.tar", "w") as archive:
                archive.add(root / side, ".")
        (pool / "some.tar").symlink_to(own / "val.tar")
        unlabelled, name = f"tar:{pool}", "some.tar#cat/001.png"
    path.write_text(f"image,label\n{name},cat\n")
    data = replace(both, source=f"{'tar' if linked == 'archive' else 'folder'}:{own}", unlabelled=unlabelled)
    with pytest.raises(DataError, match="names only validation images"), pytest.warns(DataWarning):
        open_splits(data)


def test_other_labels_are_other_images(both: DataConfig) -> None:
    before = open_splits(both).fingerprint
    assert open_splits(both).fingerprint == before
    path = Path(both.pseudo_labels or "")
    path.write_text(path.read_text().replace("007.png,dog", "007.png,cat"))
    assert open_splits(both).fingerprint != before
    assert open_splits(replace(both, pseudo_labels=None)).fingerprint not in ("", before)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"pseudo_ratio": 20.0}, "a batch of 4 images at data.pseudo_ratio=20 has no labelled one"),
        ({"pseudo_ratio": 0.1}, "has no pseudo-labelled one"),
        ({"unlabelled": "folder:{root}/own/val"}, "labels 4 images that .* does not hold, such as '005.png'"),
        ({"unlabelled": "torch/cifar10"}, "folder:PATH, csv:FILE.csv or tar:PATH, got 'torch/cifar10'"),
        ({"pseudo_labels": None, "unlabelled": "folder:x"}, "need data.pseudo_labels"),
        ({"source": "wds/x:{root}"}, "are mixed with labelled images in a ratio"),
    ],
)
def test_what_cannot_be_mixed(changes: dict[str, object], sentence: str, both: DataConfig) -> None:
    root = str(Path(both.pseudo_labels or "").parent)
    filled = {
        key: value.format(root=root) if isinstance(value, str) else value for key, value in changes.items()
    }
    with pytest.raises(DataError, match=sentence):
        open_splits(replace(both, **filled))


def test_labels_without_facts_need_to_be_told_their_images(both: DataConfig) -> None:
    path = Path(both.pseudo_labels or "")
    path.with_suffix(".json").unlink()
    with pytest.raises(
        DataError, match=r"does not name the source of the images: give data.unlabelled=folder:PATH"
    ):
        open_splits(both)
    assert len(open_splits(replace(both, unlabelled=f"folder:{path.parent / 'more'}")).train) == 16


def test_a_damaged_pseudo_labelled_image_is_told(both: DataConfig) -> None:
    root = Path(both.pseudo_labels or "").parent
    (root / "more/005.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="1 of 20 images cannot be read"):
        open_splits(both)
    with pytest.warns(DataWarning, match="They are left out"):
        train = open_splits(replace(both, on_bad_image="skip")).train
    assert len(train) == 15


@pytest.mark.parametrize("ratio", [0.0, -1.0, float("inf")])
def test_a_ratio_is_above_zero(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"data.pseudo_ratio must be a number above 0"):
        DataConfig(pseudo_ratio=ratio)


def test_images_in_archives_without_labels(both: DataConfig) -> None:
    root = Path(both.pseudo_labels or "").parent
    with tarfile.open(root / "more.tar", "w") as archive:
        for path in sorted((root / "more").iterdir()):
            archive.add(path, path.name)
    pictures = open_unlabelled(f"tar:{root / 'more.tar'}")
    names = [pictures.path(index) for index in range(len(pictures))]
    assert names == [f"more.tar#{index:03d}.png" for index in range(10)]
    path = root / "labels.csv"
    path.write_text("image,label\nmore.tar#007.png,dog\nmore.tar#002.png,cat\n")
    train = open_splits(replace(both, unlabelled=f"tar:{root / 'more.tar'}")).train
    assert isinstance(train, MixedSet)
    loose = open_unlabelled(f"folder:{root / 'more'}")
    assert np.array_equal(np.asarray(train.pseudo.images.read(0)), np.asarray(loose.read(7)))
    assert train.pseudo.targets.tolist() == [1, 0]
