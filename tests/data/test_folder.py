"""Folders are found, split reproducibly, and told in one sentence when they cannot be used."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lambdanets.data import DataError
from lambdanets.data.folder import Folder, read_folder

WriteFolder = Callable[..., Path]


def read(root: Path, **options: object) -> Folder:
    return read_folder(str(root), **({"val_fraction": 0.25, "seed": 0} | options))


def names(samples: list[tuple[str, int]]) -> set[str]:
    return {"/".join(Path(path).parts[-2:]) for path, _ in samples}


@pytest.mark.parametrize("val", ["val", "validation", "valid", "test"])
def test_train_and_val_folders(write_folder: WriteFolder, val: str) -> None:
    found = read(write_folder({"train/b": 2, "train/a": 3, f"{val}/a": 1, f"{val}/b": 2}))
    assert found.classes == ("a", "b")
    assert sorted(target for _, target in found.train) == [0, 0, 0, 1, 1]
    assert [target for _, target in found.val] == [0, 1, 1]
    assert all(Path(path).parts[-2] == found.classes[target] for path, target in found.train + found.val)


def test_val_comes_before_test(write_folder: WriteFolder) -> None:
    found = read(write_folder({"train/a": 1, "test/a": 5, "val/a": 2}))
    assert len(found.val) == 2


@pytest.mark.parametrize("top", ["", "train/"])
def test_one_folder_is_split_by_class(write_folder: WriteFolder, top: str) -> None:
    found = read(write_folder({f"{top}a": 20, f"{top}b": 8, f"{top}c": 2}))
    counts = [sum(target == number for _, target in found.val) for number in range(3)]
    assert counts == [5, 2, 1]  # a quarter of each, at least one
    assert not names(found.train) & names(found.val)
    assert len(found.train) + len(found.val) == 30


def test_the_split_depends_on_seed_and_names_alone(write_folder: WriteFolder) -> None:
    root = write_folder({"a": 20, "b": 20})
    before = read(root)
    assert names(read(root).val) == names(before.val)
    assert names(read(root, seed=1).val) != names(before.val)
    moved = root.rename(root.parent / "elsewhere")
    assert names(read(moved).val) == names(before.val)
    (moved / "b" / "019.png").rename(moved / "b" / "zzz.png")
    assert {name for name in names(read(moved).val) if name[0] == "a"} == {
        name for name in names(before.val) if name[0] == "a"
    }


def test_everything_can_be_held_out(write_folder: WriteFolder) -> None:
    found = read(write_folder({"a": 1, "b": 3}), val_fraction=1.0)
    assert (len(found.train), len(found.val)) == (0, 4)


def test_hidden_files_and_folders_are_left_out(write_folder: WriteFolder) -> None:
    root = write_folder({"a": 4, ".cache": 2, "b": 4})
    (root / "a" / "._000.png").write_bytes(b"resource fork")
    found = read(root)
    assert found.classes == ("a", "b")
    assert len(found.train) + len(found.val) == 8


def test_given_classes_number_a_part_of_them(write_folder: WriteFolder) -> None:
    root = write_folder({"dog": 2, "bee": 3})
    found = read(root, classes=("ant", "bee", "cow", "dog"), val_fraction=1.0)
    assert sorted(target for _, target in found.val) == [1, 1, 1, 3, 3]
    with pytest.raises(DataError, match=r"classes that are not known: 'dog'\. Known are 'ant', 'bee'"):
        read(root, classes=("ant", "bee"), val_fraction=1.0)
    with pytest.raises(DataError, match="not known"):
        read(root, classes=("ant", "cow"), val_fraction=1.0)


def test_val_alone_serves_evaluation_only(write_folder: WriteFolder) -> None:
    root = write_folder({"val/a": 2})
    assert len(read(root, classes=("a",)).val) == 2
    with pytest.raises(DataError, match="no train/"):
        read(root)


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ({}, "holds nothing; put the images of each class in a folder of its own"),
        ({"train/a": 1, "train/b": 1, "val/a": 1}, "val lacks the class 'b' of .*train;"),
        ({"train/a": 1, "val/a": 1, "val/c": 1, "val/d": 1}, "train lacks the classes 'c', 'd' of .*val;"),
        ({"a": 3, "b": 1}, "class 'b' in .* holds one image; at least two are needed"),
        ({"a": 3, "b": 0}, r"class folder .*b holds no images; it is empty \(known are .jpg"),
        ({"train/a": 2, "val/a": 0}, "class folder .*val/a holds no images"),
    ],
)
def test_unusable_folders(write_folder: WriteFolder, counts: dict[str, int], says: str) -> None:
    root = write_folder(counts)
    root.mkdir(exist_ok=True)
    with pytest.raises(DataError, match=says):
        read(root)


def test_files_of_other_kinds_are_named(write_folder: WriteFolder) -> None:
    root = write_folder({"a": 2, "b": 0})
    (root / "b" / "photo.HEIC").write_bytes(b"")
    with pytest.raises(DataError, match=r"it holds files of other kinds \('\.heic'\); known are"):
        read(root)


def test_images_without_class_folders(write_folder: WriteFolder) -> None:
    root = write_folder({"a": 2})
    with pytest.raises(DataError, match="holds 2 files but no folders"):
        read(root / "a")


def test_a_path_that_is_not_there_or_is_a_file(write_folder: WriteFolder) -> None:
    root = write_folder({"cats": 2, "dogs": 2})
    says = r"there is no folder .*\. The nearest that exists is .*images, which holds 'cats', 'dogs'\."
    with pytest.raises(DataError, match=says):
        read(root / "birds" / "more")
    with pytest.raises(DataError, match="is a file; folder:PATH wants the folder"):
        read(root / "cats" / "000.png")
