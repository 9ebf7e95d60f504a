import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from timm.data.imagenet_info import ImageNetInfo

from lambdanets.data import DataError
from lambdanets.evaluate.test_sets import (
    TEST_SETS,
    describe_classes,
    folder_names,
    imagenet_classes,
    recognise_test_set,
    wnids,
)
from photo_sets import PLACES


def folders(root: Path, names: Iterable[str], file: str = "1.JPEG") -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / file).touch()
    return root


def published(key: str) -> list[str]:
    import timm.data

    return (Path(timm.data.__file__).parent / "_info" / f"imagenet_{key}_synsets.txt").read_text().split()


def test_classes_are_numbered_by_their_sorted_wnids() -> None:
    assert len(wnids()) == 1000
    assert list(wnids()) == sorted(wnids())
    for wnid, place in PLACES.items():
        assert wnids()[place] == wnid


def test_numbered_folders_are_numbers_and_no_strings() -> None:
    assert folder_names(TEST_SETS["v2"], wnids()) == tuple(str(index) for index in range(1000))
    assert folder_names(TEST_SETS["v2"], tuple(PLACES)) == tuple(map(str, PLACES.values()))
    assert folder_names(TEST_SETS["r"], tuple(PLACES)) == tuple(PLACES)


def test_what_classes_mean() -> None:
    assert imagenet_classes(wnids()) == wnids()
    assert imagenet_classes([str(index) for index in range(1000)]) == wnids()
    some = ("n15075141", "n01440764")
    assert imagenet_classes(some) == some
    for others in (["0", "1"], ["cat", "n01440764"], [], sorted(str(index) for index in range(1000))):
        assert imagenet_classes(others) is None


def test_classes_in_words() -> None:
    assert describe_classes(("n01440764", "cat")) == ("tench, Tinca tinca", "cat")
    assert describe_classes([str(index) for index in range(1000)]) == describe_classes(wnids())
    assert ImageNetInfo().index_to_description(281) in describe_classes(("n02123045",))[0]


@pytest.mark.parametrize("key", list(TEST_SETS))
def test_a_set_is_recognised(tmp_path: Path, key: str) -> None:
    if key == "v2":
        folders(tmp_path, map(str, range(1000)))
    elif key in ("a", "r"):
        assert len(published(key)) == 200
        folders(tmp_path, published(key))
    elif key == "c":
        folders(tmp_path, ["blur/glass_blur/1/n01440764"])
    else:
        folders(tmp_path, PLACES, "sketch_3.JPEG" if key == "sketch" else "ILSVRC2012_val_00000003.JPEG")
    assert recognise_test_set(tmp_path) == key


def test_other_forms_of_the_sets(tmp_path: Path) -> None:
    assert recognise_test_set(folders(tmp_path / "some", published("a")[1:])) == "imagenet"
    assert recognise_test_set(folders(tmp_path / "flat", ["fog/1/n01440764"])) == "c"
    folders(tmp_path / "both" / "train", PLACES)
    folders(tmp_path / "both" / "val", PLACES)
    assert recognise_test_set(tmp_path / "both") == "imagenet"
    folders(tmp_path / "numbered" / "Train", map(str, range(1000)))
    assert recognise_test_set(tmp_path / "numbered") == "v2"


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ([], "holds no class folders"),
        (["train/cat"], "train holds folders that are no classes of ImageNet: 'cat'; expected"),
        (["cat", "dog"], "folders that are no classes of ImageNet: 'cat', 'dog'; expected wnids"),
        (["n01440764", "n00000001"], "no classes of ImageNet: 'n00000001'; expected"),
        (["1000", "3"], "no classes of ImageNet: '1000', '3'"),
        (["007"], "no classes of ImageNet: '007'"),
        (list("abcde"), "'a', 'b', 'c' and 2 more; expected"),
    ],
)
def test_a_folder_that_is_none_of_them(tmp_path: Path, names: list[str], sentence: str) -> None:
    folders(tmp_path, names)
    with pytest.raises(DataError, match=re.escape(sentence)):
        recognise_test_set(tmp_path)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        recognise_test_set(tmp_path / "gone")
