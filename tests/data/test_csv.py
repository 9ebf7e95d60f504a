"""The source `csv:`: a table of files with a label, or several."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lambdanets.data import (
    DataConfig,
    DataError,
    describe,
    open_split,
    open_splits,
    open_unlabelled,
    write_shards,
)
from lambdanets.data.errors import SourceWarning
from lambdanets.data.image_set import ImageSet

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, picture: Callable[..., Image.Image]) -> Write:
    """Write twelve images and a table with these lines beside them."""
    (tmp_path / "set" / "a b").mkdir(parents=True)
    for number in range(12):
        picture(number).save(tmp_path / "set" / "a b" / f"{number:02d}.png")

    def table(*lines: str, name: str = "list.csv") -> Path:
        path = tmp_path / "set" / name
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return table


def rows(text: Callable[[int], str], numbers: range = range(12)) -> list[str]:
    return [f"a b/{number:02d}.png,{text(number)}" for number in numbers]


def label(number: int) -> str:
    return ("cat", "dog", "elk")[number % 3]


def config_of(path: Path, **options: object) -> DataConfig:
    return DataConfig(source=f"csv:{path}", image_size=8, **options)  # pyright: ignore[reportArgumentType]


def pairs(side: object) -> dict[str, str]:
    assert isinstance(side, ImageSet)
    return {Path(side.path(index)).name: side.classes[int(side.targets[index])] for index in range(len(side))}


@pytest.mark.parametrize("heading", ["path,label", "File,Class", "filename,label", "image,class"])
def test_a_table_is_split_like_a_folder(write: Write, heading: str) -> None:
    config = config_of(write(heading, *rows(label)), val_fraction=0.25)
    splits = open_splits(config)
    assert splits.classes == ("cat", "dog", "elk")
    train, val = pairs(splits.train), pairs(splits.val)
    assert train | val == {f"{number:02d}.png": label(number) for number in range(12)}
    assert sorted(val.values()) == ["cat", "dog", "elk"]
    assert describe(splits)["train images per class"] == "3"
    whole, _ = open_split(config_of(Path(config.source[4:]), val_fraction=1.0), classes=("cat", "dog", "elk"))
    assert len(whole) == 12


def test_columns_have_names(write: Write) -> None:
    path = write("id,where,species", *(f"{n},a b/{n:02d}.png,{label(n)}" for n in range(12)))
    with pytest.raises(DataError, match=r"no column 'path' or 'file' or .* data\.image_column; .* 'id'"):
        open_splits(config_of(path))
    with pytest.raises(DataError, match="has no column 'kind'; its columns are 'id', 'where', 'species'"):
        open_splits(config_of(path, image_column="where", label_column="kind"))
    splits = open_splits(config_of(path, image_column="where", label_column="species"))
    assert len(pairs(splits.train) | pairs(splits.val)) == 12


@pytest.mark.parametrize("several", [False, True])
def test_columns_of_0_and_1_are_named_in_the_error(write: Write, several: bool) -> None:
    path = write("path,age,red,blue", *(f"{n:02d}.png,{n},{n % 2},{n // 2 % 2}" for n in range(12)))
    with pytest.raises(DataError) as error:
        open_splits(config_of(path, multi_label=several))
    settings = "--set data.label_column=red,blue"
    settings = settings if several else f"--set data.multi_label=true {settings}"
    assert f"or several columns of 0 and 1 ({settings}), with data.label_column" in str(error.value)


def test_a_column_of_splits(write: Write) -> None:
    sides = ("train", "train", "train", "valid", "validation", "val", "test")
    path = write("path,label,split", *rows(lambda n: f"{label(n)},{sides[n % 7]}"))
    with pytest.warns(SourceWarning, match="1 rows of .* are of the split 'test'"):
        splits = open_splits(config_of(path))
    assert sorted(pairs(splits.val)) == ["03.png", "04.png", "05.png", "10.png", "11.png"]
    assert "06.png" not in pairs(splits.train)
    only = write("path,label,split", *rows(lambda n: f"{label(n)},val"))
    with pytest.raises(DataError, match="lists validation images but none of the split 'train'"):
        open_splits(config_of(only))
    strange = write("path,label,split", *rows(lambda n: f"{label(n)},fold{n}"))
    with pytest.raises(DataError, match=r"\(line 2\) has the split 'fold0'; write train, val or test"):
        open_splits(config_of(strange))
    unseen = write("path,label,split", *rows(lambda n: "cat,train" if n < 6 else f"{label(n)},val"))
    with pytest.raises(DataError, match="has no training image of 'dog', 'elk'"):
        open_splits(config_of(unseen))


def test_a_column_of_groups(write: Write) -> None:
    path = write("path,label,group", *rows(lambda n: f"{label(n)},plate{n // 3}"))
    train, val = (
        pairs(side) for side in (open_splits(config_of(path)).train, open_splits(config_of(path)).val)
    )
    assert {int(name[:2]) // 3 for name in train}.isdisjoint({int(name[:2]) // 3 for name in val})
    named = write("path,label,plate", *rows(lambda n: f"{label(n)},plate{n // 3}"))
    assert pairs(open_splits(config_of(named, group_column="plate")).val) == val
    by_name = open_splits(config_of(named, group="(.)[.]png"))
    assert {name[1] for name in pairs(by_name.train)}.isdisjoint(name[1] for name in pairs(by_name.val))
    both = write(
        "path,label,split,group", *rows(lambda n: f"{label(n)},{'val' if n > 7 else 'train'},p{n // 3}")
    )
    with pytest.raises(DataError, match=r"1 group of data\.group would stand on both sides, such as 'p2'"):
        open_splits(config_of(both))
    with pytest.raises(ValueError, match=r"data\.group must be None where data\.group_column"):
        DataConfig(group="(x)", group_column="plate")


def test_rows_that_cannot_be_used(write: Write) -> None:
    lost = write("path,label", *rows(label), "no.png,cat", "a b/none.png,dog")
    with pytest.raises(
        DataError, match=r"2 of 14 rows of .* have a file that does not exist \(lines 14, 15\): 'no"
    ):
        open_splits(config_of(lost))
    empty = write("path,label", *rows(lambda n: "" if n in (1, 5) else label(n)))
    with pytest.raises(DataError, match=r"2 of 12 rows of .* have no label \(lines 3, 7\): 'a b/01.png'"):
        open_splits(config_of(empty))
    two = write("path,label", *rows(label), "./a b/03.png,dog")
    with pytest.raises(DataError, match=r"'./a b/03.png' with different labels \(lines 5 and 14\)"):
        open_splits(config_of(two))
    same = write("path,label", *rows(label), "./a b/03.png,cat")
    with pytest.warns(SourceWarning, match=r"1 rows of .* repeat others \(line 14\) and are left out"):
        assert sum(map(len, (open_splits(config_of(same)).train, open_splits(config_of(same)).val))) == 12
    with pytest.raises(DataError, match="lists no images"):
        open_splits(config_of(write("path,label")))
    with pytest.raises(DataError, match=r"is no file; csv:FILE\.csv names a table"):
        open_splits(config_of(same.with_name("other.csv")))
    single = write("path,label", *rows(lambda n: "cat"))
    with pytest.raises(DataError, match="holds one class"):
        open_splits(config_of(single))


def test_other_verbs_take_a_table(write: Write, tmp_path: Path) -> None:
    path = write("path,label", *rows(label))
    images = open_unlabelled(f"csv:{path}")
    assert [images.path(n) for n in range(2)] == ["a b/00.png", "a b/01.png"]
    images.read(0)
    written = write_shards(config_of(path), tmp_path / "shards")
    assert written.classes == ("cat", "dog", "elk")
    assert sum(written.images.values()) == 12


def tags(number: int) -> str:
    return ";".join(name for name, step in (("sea", 2), ("sky", 3), ("sun", 4)) if number % step == 0)


def test_an_image_may_have_several_labels(write: Write) -> None:
    path = write("path,label", *rows(tags))
    config = config_of(path, multi_label=True, val_fraction=0.34)
    splits = open_splits(config)
    assert splits.classes == ("sea", "sky", "sun")
    expected = {f"{n:02d}.png": [n % 2 == 0, n % 3 == 0, n % 4 == 0] for n in range(12)}
    found = {}
    for side in (splits.train, splits.val):
        assert isinstance(side, ImageSet)
        _, targets = side.batch(range(len(side)))
        assert targets.dtype.is_floating_point
        found |= {Path(side.path(n)).name: targets[n].bool().tolist() for n in range(len(side))}
        assert targets.sum(0).min() > 0
    assert found == expected
    bits = write("path,sea,sky,sun", *rows(lambda n: ",".join(str(int(v)) for v in expected[f"{n:02d}.png"])))
    other = open_splits(config_of(bits, multi_label=True, label_column="sea, sky,sun", val_fraction=0.34))
    assert isinstance(other.val, ImageSet)
    assert isinstance(splits.val, ImageSet)
    assert np.array_equal(other.val.targets, splits.val.targets)
    assert other.fingerprint == splits.fingerprint
    changed = write("path,label", *rows(lambda n: "sea" if n == 11 else tags(n)))
    assert (
        open_splits(config_of(changed, multi_label=True, val_fraction=0.34)).fingerprint != splits.fingerprint
    )


def test_labels_that_cannot_be_learned_or_measured(write: Write) -> None:
    path = write(
        "path,sea,rare,split", *rows(lambda n: f"{n % 2},{int(n == 0)},{'val' if n < 4 else 'train'}")
    )
    columns = {"multi_label": True, "label_column": "sea,rare"}
    with pytest.raises(
        DataError, match=r"no training image of .* has the class 'rare', which cannot be learned"
    ):
        open_splits(config_of(path, **columns))
    path = write(
        "path,sea,rare,split", *rows(lambda n: f"{n % 2},{int(n == 9)},{'val' if n < 4 else 'train'}")
    )
    with pytest.warns(
        SourceWarning, match="no validation image of .* has the class 'rare', for which nothing"
    ):
        open_splits(config_of(path, **columns))
    path = write("path,sea,rare", *rows(lambda n: f"{n % 2},{n}"))
    with pytest.raises(DataError, match=r"\(line 4\) has '2' in the column 'rare'; write 0 or 1"):
        open_splits(config_of(path, **columns))
    with pytest.raises(DataError, match=r"come from a table, csv:FILE\.csv"):
        open_splits(DataConfig(multi_label=True))
    with pytest.raises(DataError, match="shards store one label"):
        write_shards(config_of(path, **columns), path.parent / "shards")
    with pytest.raises(DataError, match=r"data\.sampling=balanced and data\.multi_label exclude each other"):
        open_splits(config_of(path, sampling="balanced", **columns))
