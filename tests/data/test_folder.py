"""Folders are found, split reproducibly, and told in one sentence when they cannot be used."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lambdanets.data import DataError, DataWarning
from lambdanets.data.sources.folder import Folder, read_folder, stable_hold_out

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
    assert [sum(target == number for _, target in found.val) for number in range(3)] == [5, 2, 1]
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


def test_a_file_stays_on_its_side_while_others_come_and_go(write_folder: WriteFolder) -> None:
    root = write_folder({"a": 40, "b": 40})
    before = names(read(root, hold_out="stable").val)
    for index in range(0, 40, 2):
        (root / "a" / f"{index:03d}.png").unlink()
    for index in range(60):
        (root / "b" / f"new{index}.png").write_bytes(b"")
    after = names(read(root, hold_out="stable").val)
    kept = {f"a/{index:03d}.png" for index in range(1, 40, 2)} | {f"b/{index:03d}.png" for index in range(40)}
    assert after & kept == before & kept
    assert 5 <= sum("new" in name for name in after) <= 27  # 15 expected of 60


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_no_side_of_a_class_is_empty(fraction: float) -> None:
    for number in (2, 3, 9):
        for seed in range(5):
            held_out = stable_hold_out([f"{index}.png" for index in range(number)], fraction, seed)
            assert len(held_out) == (1 if fraction < 0.5 else number - 1)


def test_the_part_held_out_is_met_on_average() -> None:
    held_out = stable_hold_out([f"{index}.png" for index in range(20_000)], 0.1, 3)
    assert len(held_out) == pytest.approx(2000, abs=200)


@pytest.mark.parametrize(("train", "val"), [("Train", "Val"), ("TRAIN", "test"), ("Training", "Validation")])
def test_sides_are_known_in_any_case(write_folder: WriteFolder, train: str, val: str) -> None:
    found = read(write_folder({f"{train}/a": 2, f"{train}/b": 2, f"{val}/a": 1, f"{val}/b": 1}))
    assert found.classes == ("a", "b")
    assert (len(found.train), len(found.val)) == (4, 2)


def test_a_class_may_be_named_train(write_folder: WriteFolder) -> None:
    found = read(write_folder({"bus": 4, "test": 4, "train": 4}))
    assert found.classes == ("bus", "test", "train")
    assert len(found.train) + len(found.val) == 12


def test_a_class_that_holds_only_folders_is_refused(write_folder: WriteFolder) -> None:
    root = write_folder({"first/cat": 2, "first/dog": 2, "second/cat": 2, "second/dog": 2})
    with pytest.raises(DataError, match=r"first is read as a class but holds only folders: 'cat', 'dog'\."):
        read(root)
    for name in ("first", "second"):
        (root / name / "boxes.txt").write_text("")
    with pytest.warns(DataWarning, match=r"left out 2 files \(2 \.txt\)"):
        assert read(root).classes == ("first", "second")  # as Tiny ImageNet's classes are kept


def test_everything_can_be_held_out(write_folder: WriteFolder) -> None:
    found = read(write_folder({"a": 1, "b": 3}), val_fraction=1.0)
    assert (len(found.train), len(found.val)) == (0, 4)


def test_hidden_files_and_folders_are_left_out(write_folder: WriteFolder) -> None:
    root = write_folder({"a": 4, ".cache": 2, "b": 4})
    (root / "a" / "._000.png").write_bytes(b"resource fork")
    with pytest.warns(DataWarning, match="left out hidden files"):
        found = read(root)
    assert found.classes == ("a", "b")
    assert len(found.train) + len(found.val) == 8


@pytest.mark.parametrize("empty", [False, True])
def test_a_class_may_lack_validation_images(write_folder: WriteFolder, empty: bool) -> None:
    root = write_folder({"train/a": 2, "train/b": 2, "train/rare": 2, "val/a": 1, "val/b": 1})
    if empty:
        (root / "val" / "rare").mkdir()
    with pytest.warns(
        DataWarning, match="val holds no images of the class 'rare', for which nothing is meas"
    ):
        found = read(root)
    assert found.classes == ("a", "b", "rare")
    assert [target for _, target in found.val] == [0, 1]


def test_images_of_a_contest_without_labels(write_folder: WriteFolder) -> None:
    root = write_folder({"train/a": 10, "train/b": 10, "test": 3})
    says = (
        r"test holds 3 images but no class folders: .*; or train on (folder:.*train), of which data\.val_fr"
    )
    with pytest.raises(DataError, match=says):
        read(root)
    found = read(root / "train")
    assert (len(found.train), len(found.val)) == (16, 4)


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
    with pytest.raises(DataError, match="no train/ with class folders"):
        read(root)


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ({}, "holds nothing; put the images of each class in a folder of its own"),
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


@pytest.mark.parametrize("others", [("train/a", "train/b"), ()])
def test_a_val_folder_that_was_never_sorted(write_folder: WriteFolder, others: tuple[str, ...]) -> None:
    root = write_folder({"val": 3} | dict.fromkeys(others, 2))
    says = r"val holds 3 images but no class folders: put those of each class in a folder of its own "
    with pytest.raises(DataError, match=says):
        read(root)
    with pytest.raises(DataError, match=says):
        read(root, classes=("a", "b"))


def test_archives_where_folders_should_be(tmp_path: Path) -> None:
    (tmp_path / "cats.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"holds archives \('cats.tar'\): tar:.* reads them as they are\.$"):
        read(tmp_path)
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"original archives are unpacked into class folders by torchvision: torchv"
    ):
        read(tmp_path)


def test_a_path_that_is_not_there_or_is_a_file(write_folder: WriteFolder) -> None:
    root = write_folder({"cats": 2, "dogs": 2})
    says = r"there is no folder .*\. The nearest that exists is .*images, which holds 'cats', 'dogs'\."
    with pytest.raises(DataError, match=says):
        read(root / "birds" / "more")
    with pytest.raises(DataError, match="is a file; folder:PATH must name the folder"):
        read(root / "cats" / "000.png")
