"""Parquet files of Hugging Face's data sets, against pyarrow: every row once, whatever reads them."""

import io
import json
import os
import pickle
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lambdanets.data import (
    DataConfig,
    DataError,
    DataWarning,
    describe,
    eval_loader,
    open_split,
    open_splits,
    train_loader,
)
from lambdanets.data.streams import stream_set, stream_shard
from numbered import numbered, numbers

pytest.importorskip("datasets", reason="the package datasets is not installed")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

NAMES = ("cat", "dog", "eel")
IMAGE, CLASSES = {"_type": "Image"}, {"names": list(NAMES), "_type": "ClassLabel"}
TEXT = {"_type": "Value", "dtype": "string"}
FEATURES = {"image": IMAGE, "label": CLASSES}


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lanes and what is mixed in them are made for large sets."""
    for module in (stream_shard, stream_set):
        monkeypatch.setattr(module, "REACH", 8)


def write(
    path: Path,
    files: Sequence[bytes | None],
    labels: Sequence[int | None],
    *,
    group: int = 4,
    features: dict[str, Any] = FEATURES,
    told: bool = True,
    paths: bool = False,
) -> None:
    """Write a parquet file as `datasets` does, with what it tells of its columns."""
    rows = [{"bytes": file, "path": f"{row}.png" if paths else None} for row, file in enumerate(files)]
    kinds = {
        "Image": pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        "ClassLabel": pa.array(labels, pa.int64()),
        "Value": pa.array(["text"] * len(rows)),
    }
    table = pa.table({name: kinds[feature["_type"]] for name, feature in features.items()})
    more = {"huggingface": json.dumps({"info": {"features": features}})} if told else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(more), path, row_group_size=group)


@pytest.fixture
def write_hfids(tmp_path: Path) -> Callable[..., Path]:
    """Write files of so many numbered pictures each, the same for both sides."""

    def make(sizes: Sequence[int], *, group: int = 4, **options: Any) -> Path:
        first = 0
        shutil.rmtree(tmp_path / "set", ignore_errors=True)
        for part, size in enumerate(sizes):
            own = range(first, first + size)
            for side in ("train", "validation"):
                path = tmp_path / "set" / "data" / f"{side}-{part:05d}-of-{len(sizes):05d}.parquet"
                files, labels = [numbered(number) for number in own], [number % 3 for number in own]
                write(path, files, labels, group=group, **options)
            first += size
        return tmp_path / "set"

    return make


def config(root: Path, **options: object) -> DataConfig:
    values = {
        "source": f"hfids/{root}:{root.parent / 'cache'}", "image_size": 4, "batch_size": 5, "workers": 0,
        "mean": (0, 0, 0), "std": (1, 1, 1),
    }  # fmt: skip
    return DataConfig(**(values | options))


def stored(root: Path, side: str) -> list[tuple[int, int]]:
    """The number and the class in every row, by pyarrow and PIL alone."""
    rows = []
    for path in sorted((root / "data").glob(f"{side}-*.parquet")):
        for row in pq.read_table(path).to_pylist():
            red, green, _ = Image.open(io.BytesIO(row["image"]["bytes"])).getpixel((0, 0))
            rows.append((red + 256 * green, row["label"]))
    return rows


def pairs(loader: Any) -> list[list[tuple[int, int]]]:
    """The number and the class of each image, by batches."""
    return [list(zip(numbers(images), targets.tolist(), strict=True)) for images, targets in loader]


def evaluated(data: DataConfig, world_size: int = 1) -> list[list[list[tuple[int, int]]]]:
    val = open_splits(data).val
    return [pairs(eval_loader(val, data, rank=rank, world_size=world_size)) for rank in range(world_size)]


def trained(
    data: DataConfig, world_size: int = 1, *, epoch: int = 0, done: int = 0, seed: int = 0
) -> list[list[list[tuple[int, int]]]]:
    train = open_splits(data).train
    place = {"seed": seed, "position": lambda: (epoch, done), "world_size": world_size}
    return [pairs(train_loader(train, data, rank=rank, **place)) for rank in range(world_size)]


GRID = [
    # processes, workers, rows of the files, rows of a group
    (1, 3, [23], 100),
    (2, 2, [10, 3, 0, 25, 2], 4),
    (4, 0, [31, 1, 90], 7),
    (3, 1, [40] * 6, 1000),
]


@pytest.mark.parametrize(("world_size", "workers", "sizes", "group"), GRID)
def test_evaluation_sees_every_row_once(
    write_hfids: Callable[..., Path], world_size: int, workers: int, sizes: list[int], group: int
) -> None:
    root = write_hfids(sizes, group=group)
    found = evaluated(config(root, workers=workers), world_size)
    assert sorted(chain(*chain(*found))) == stored(root, "validation")
    assert evaluated(config(root), world_size) == found


@pytest.mark.parametrize(("world_size", "workers", "sizes", "group"), GRID)
def test_training_repeats_nothing_and_does_not_depend_on_workers(
    write_hfids: Callable[..., Path], world_size: int, workers: int, sizes: list[int], group: int
) -> None:
    root = write_hfids(sizes, group=group)
    rows = set(stored(root, "train"))
    orders = []
    for epoch in range(2):
        found = trained(config(root), world_size, epoch=epoch)
        seen = list(chain(*chain(*found)))
        assert {len(own) for own in found} == {sum(sizes) // (5 * world_size)}
        assert len(set(seen)) == len(seen)
        assert set(seen) <= rows
        orders.append(found)
    assert orders[0] != orders[1]
    assert trained(config(root, workers=workers), world_size) == orders[0]
    assert trained(config(root), world_size, seed=1) != orders[0]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("done", [1, 7, 19, 20])
def test_resuming_in_the_middle_of_an_epoch(
    write_hfids: Callable[..., Path], workers: int, done: int
) -> None:
    root = write_hfids([60, 41, 99], group=9)
    whole = trained(config(root), 2, epoch=3)
    assert trained(config(root, workers=workers), 2, epoch=3, done=done) == [own[done:] for own in whole]


def test_opening_reads_no_rows_and_a_process_its_own_row_groups(
    write_hfids: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[int, str]] = []
    plain = pq.ParquetFile.read_row_group

    def watched(self: Any, group: int, columns: list[str], **options: Any) -> Any:
        read.append((group, "+".join(columns)))
        return plain(self, group, columns=columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", watched)
    data = config(write_hfids([40, 40], group=10))
    splits = open_splits(data)
    assert read == []
    for rank in range(4):
        read.clear()
        list(eval_loader(splits.val, data, rank=rank, world_size=4))
        own = [(group, "image.bytes+label") for group in ((0, 1), (2, 3))[rank % 2]]
        assert sorted(set(read)) == own


def test_a_set_describes_itself(write_hfids: Callable[..., Path]) -> None:
    data = config(write_hfids([9, 4]))
    splits = open_splits(data)
    facts = describe(splits)
    assert facts == {"classes": 3, "train": "13 images, streamed", "val": "13 images, streamed", "skipped": 0}
    assert splits.classes == NAMES
    train, classes = open_split(data, "train")
    assert (len(train), classes) == (13, NAMES)
    again = pickle.loads(pickle.dumps(train))  # as workers get it where processes are not forked
    assert pairs(eval_loader(again, data)) == pairs(eval_loader(train, data))


def test_the_fingerprint_tells_other_files_but_not_another_place(
    write_hfids: Callable[..., Path], tmp_path: Path
) -> None:
    first = open_splits(config(write_hfids([5, 6]))).fingerprint
    assert open_splits(config(write_hfids([6, 5]))).fingerprint != first
    root = write_hfids([5, 6])
    root.rename(tmp_path / "moved")
    assert open_splits(config(tmp_path / "moved")).fingerprint == first
    (tmp_path / "link").symlink_to(tmp_path / "moved")
    assert open_splits(config(tmp_path / "link")).fingerprint == first


def test_a_folder_is_found_from_anywhere(
    write_hfids: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_hfids([8])
    monkeypatch.chdir(tmp_path)
    data = config(tmp_path / "set", source="hfids/set:cache").resolved()
    assert data.source == f"hfids/{tmp_path}/set:{tmp_path}/cache"
    monkeypatch.chdir("/")
    assert len(open_splits(data).train) == 8


def test_columns_of_other_names_and_files_that_tell_nothing(write_hfids: Callable[..., Path]) -> None:
    root = write_hfids([8], features={"kind": CLASSES, "id": TEXT, "img": IMAGE})
    splits = open_splits(config(root))
    assert (len(splits.train), splits.classes) == (8, NAMES)
    root = write_hfids([8], told=False)
    splits = open_splits(config(root, num_classes=4))
    assert splits.classes == ("0", "1", "2", "3")
    with pytest.raises(DataError, match=r"does not name its classes; say how many with data\.num_classes"):
        open_splits(config(root))


def test_columns_are_chosen_by_name(write_hfids: Callable[..., Path]) -> None:
    coarse = CLASSES | {"names": ["pet", "fish", "none"]}
    root = write_hfids([8], features={"img": IMAGE, "fine": CLASSES, "coarse": coarse, "more": IMAGE})
    for column, names in (("fine", NAMES), ("coarse", ("pet", "fish", "none"))):
        splits = open_splits(config(root, label_column=column, image_column="img"))
        assert (len(splits.train), splits.classes) == (8, names)
        assert splits.train.files.image == "img.bytes"
    stored = config(root, source=f"hfds/{root}:{root.parent}/cache", label_column="coarse")
    with pytest.raises(DataError, match=r"has no images in a column 'image'; set data\.image_col"):
        open_splits(stored)
    assert open_splits(replace(stored, image_column="img")).classes == ("pet", "fish", "none")
    with pytest.raises(
        DataError, match=r"^data\.image_column and data\.label_column apply only to csv:, hfds/, hfi"
    ):
        open_splits(DataConfig(label_column="fine"))


def test_other_classes_than_the_runs_are_refused(write_hfids: Callable[..., Path]) -> None:
    root = write_hfids([6])
    assert open_split(config(root), classes=NAMES)[1] == NAMES
    for other, says in (
        (
            ("cat", "eel", "dog"),
            "the classes of the run in another order: number 1 is 'dog', and 'eel' in the",
        ),
        (
            ("cat", "dog", "fox"),
            r"has 3 classes \('cat', 'dog', 'eel'\), the run was trained on 3 \('cat', 'd",
        ),
        (("0", "1", "2"), r"the run was trained on 3 \('0', '1', '2'\)"),
    ):
        with pytest.raises(DataError, match=says):
            open_split(config(root), classes=other)
    data = config(write_hfids([6], told=False), num_classes=3)
    assert open_split(data, classes=("0", "1", "2"))[1] == ("0", "1", "2")  # nobody has named them
    with pytest.raises(DataError, match=r"has 3 classes .* the run was trained on 4"):
        open_split(data, classes=("0", "1", "2", "3"))


def kept(tmp_path: Path, labels: Sequence[int], lacking: int | None = None) -> DataConfig:
    """A data set whose validation rows have these labels, and one of them no image."""
    for side, own in (("train", [0, 1, 2, 0]), ("validation", labels)):
        files = [None if side != "train" and row == lacking else numbered(row) for row in range(len(own))]
        write(tmp_path / "set" / "data" / f"{side}-00000-of-00001.parquet", files, own)
    return config(tmp_path / "set", source=f"hfds/{tmp_path}/set:{tmp_path}/cache")


def test_rows_whose_classes_are_kept_back(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"4 of the 4 images of the split 'validation' of 'hfds/.* have no cl"
    ):
        open_splits(kept(tmp_path, [-1] * 4))
    shutil.rmtree(tmp_path / "set")
    data = kept(tmp_path, [0, -1, 2, -1, 1])
    with pytest.raises(
        DataError, match=r"2 of the 5 images .* have no class \(number -1\); name another split"
    ):
        open_splits(data)
    with pytest.warns(DataWarning, match=r"2 of the 5 images of the split 'validation' .* and are left out"):
        splits = open_splits(replace(data, on_bad_image="skip"))
    assert splits.val.targets.tolist() == [0, 2, 1]
    assert (np.asarray(splits.val.batch([0, 1, 2])[0])[:, 0, 0, 0] * 255).round().tolist() == [0, 2, 4]


def test_rows_without_an_image(tmp_path: Path) -> None:
    data = kept(tmp_path, [0, 1, 2, 1], lacking=2)
    with pytest.raises(DataError, match=r"1 of 8 images .*\n  cannot read hfds/.*#2: the row has no image\."):
        open_splits(data)
    with (
        pytest.warns(DataWarning, match="the row has no image"),
        pytest.warns(DataWarning, match=r"no images of the class 'eel', for which nothing is measured"),
    ):
        assert len(open_splits(replace(data, on_bad_image="skip")).val) == 3


def test_a_data_set_of_one_split_is_no_dead_end(write_hfids: Callable[..., Path]) -> None:
    root = write_hfids([6])
    for path in (root / "data").glob("validation-*"):
        path.unlink()
    says = (
        f"has no split 'validation' but only 'train', and streams cannot be divided; 'hfds/{root}:.*' with "
        "an empty data.val_split downloads it"
    )
    with pytest.raises(DataError, match=says):
        open_splits(config(root))
    halves = open_splits(
        config(root, source=f"hfds/{root}:{root.parent}/cache", val_split="", val_fraction=0.5)
    )
    assert (len(halves.train), len(halves.val)) == (3, 3)


def test_files_behind_urls(write_hfids: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """As on the hub, whose URLs have a revision in them."""
    from fsspec import filesystem

    root = write_hfids([20, 7])
    memory, base = filesystem("memory"), "memory://set@5cd1"
    files: dict[str, list[str]] = {"train": [], "validation": []}
    for path in sorted((root / "data").iterdir()):
        memory.pipe(f"{base}/data/{path.name}", path.read_bytes())
        files[path.name.partition("-")[0]].append(f"{base}/data/{path.name}")
    expected, mark = trained(config(root), 2), open_splits(config(root)).fingerprint
    builder = SimpleNamespace(
        base_path=base, config=SimpleNamespace(data_files=files), info=SimpleNamespace(features=None)
    )
    monkeypatch.setattr("datasets.load_dataset_builder", lambda name, cache_dir: builder)
    assert trained(config(root, source="hfids/pets"), 2) == expected
    assert open_splits(config(root, source="hfids/pets")).fingerprint == mark


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"val_split": "test"}, r"has no split 'test'; name one that it has, 'train', 'validation', with"),
        (
            {"val_split": ""},
            r"^data\.val_split is empty.* streams cannot be divided; 'hfds/.*' with an empty data\.val_split",
        ),
        (
            {"val_split": "train"},
            r"^data\.train_split and data\.val_split are both 'train', but validation images must not be",
        ),
        ({"source": "hfids/"}, r"^data\.source 'hfids/' lacks a name: write hfids/NAME\.$"),
        (
            {"label_column": "fine"},
            r"has no column of class numbers 'fine'; data\.label_column is one of 'ima",
        ),
        (
            {"image_column": "label"},
            r"has no column of images 'label'; data\.image_column is one of 'image'\.$",
        ),
        ({"source": "hfids/{root}/none"}, r"cannot open 'hfids/.*/none': Couldn't find any data file at"),
        ({"train_per_class": 3}, "train_per_class needs to know all names, and 'hfids/.*' is streamed"),
    ],
)
def test_what_cannot_be_opened(write_hfids: Callable[..., Path], options: dict[str, Any], says: str) -> None:
    root = write_hfids([5, 3])
    options = {name: str(value).format(root=root) if name == "source" else value
               for name, value in options.items()}  # fmt: skip
    with pytest.raises(DataError, match=says) as caught:
        open_splits(config(root, **options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("features", "says"),
    [
        ({"image": IMAGE, "text": TEXT},
         "has no column of class numbers; name the one to read with data.label_column, of 'image', 'text'"),
        ({"image": TEXT, "label": CLASSES}, "has no column of images; name the one to read with data.im"),
        ({"a": IMAGE, "b": IMAGE, "label": CLASSES},
         "has several columns of images: 'a', 'b'; name the one to read with data.image_column, of 'a'"),
        ({"image": IMAGE, "fine": CLASSES, "coarse": CLASSES},
         "has several columns of class numbers: 'fine', 'coarse'; name the one to read with data.label_col"),
    ],
)  # fmt: skip
def test_columns_that_are_not_there(
    write_hfids: Callable[..., Path], features: dict[str, Any], says: str
) -> None:
    with pytest.raises(DataError, match=says):
        open_splits(config(write_hfids([5], features=features)))


def test_a_file_that_lacks_a_column_of_the_others(write_hfids: Callable[..., Path]) -> None:
    root = write_hfids([5, 5])
    write(
        root / "data" / "train-00001-of-00002.parquet",
        [None],
        [0],
        features={"image": IMAGE, "kind": CLASSES},
    )
    says = r"^data/train-00001-of-00002\.parquet has no column 'label', which its data set lists\.$"
    with pytest.raises(DataError, match=says):
        open_splits(config(root))


def test_what_is_not_parquet_is_another_sources(tmp_path: Path) -> None:
    for side in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "set" / side / name).mkdir(parents=True)
            (tmp_path / "set" / side / name / "a.png").write_bytes(numbered(1))
    says = f"the only ones that can be streamed; 'folder:{tmp_path}/set' reads images in class folders"
    with pytest.raises(DataError, match=says):
        open_splits(config(tmp_path / "set"))


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([-1] * 6, "data/train.parquet has the class -1; hfids/ takes the numbers of 3 classes, from 0"),
        ([0, 1, 2, 0, 1, 3], "data/train.parquet has the class 3; hfids/ takes"),
    ],
)
def test_classes_out_of_range(tmp_path: Path, labels: list[int], says: str) -> None:
    for side, own in (("train", labels), ("validation", [0, 1, 2, 0, 1, 2])):
        write(tmp_path / "set" / "data" / f"{side}.parquet", [numbered(0)] * 6, own)
    with pytest.raises(DataError, match=f"^{says}"):
        open_splits(config(tmp_path / "set"))


@pytest.mark.parametrize(("values", "kind"), [(["cat", "dog", "eel"], "string"), ([0.0, 1.0, 2.0], "double")])
def test_classes_that_are_no_whole_numbers(tmp_path: Path, values: list[Any], kind: str) -> None:
    table = pa.table({"image": [{"bytes": numbered(0)}] * 3, "label": values})
    (tmp_path / "set" / "data").mkdir(parents=True)
    for side in ("train", "validation"):
        pq.write_table(table, tmp_path / "set" / "data" / f"{side}.parquet")
    says = rf"^data/train\.parquet stores the classes in 'label' as {kind}, and hfids/ takes whole numbers: s"
    with pytest.raises(DataError, match=says):
        open_splits(config(tmp_path / "set", label_column="label", num_classes=3))


def one(tmp_path: Path, files: Sequence[bytes | None], labels: Sequence[int | None], **options: Any) -> Path:
    for side in ("train", "validation"):
        write(tmp_path / "set" / "data" / f"{side}.parquet", files, labels, **options)
    return tmp_path / "set"


def test_a_row_without_a_class(tmp_path: Path) -> None:
    data = config(one(tmp_path, [numbered(number) for number in range(3)], [0, None, 2]))
    says = r"^data/validation\.parquet#1 has a row without a class; hfids/ takes the numbers of 3 classes"
    with pytest.raises(DataError, match=says):
        list(eval_loader(open_splits(data).val, data))


def test_paths_in_place_of_images(tmp_path: Path) -> None:
    root = one(tmp_path, [None] * 3, [0, 1, 2], paths=True)
    with pytest.raises(DataError, match=r"^data/train\.parquet holds no images; paths of images, if it has"):
        open_splits(config(root))


@pytest.mark.parametrize("damaged", [b"no picture", None])
def test_an_image_that_cannot_be_decoded(tmp_path: Path, damaged: bytes | None) -> None:
    files = [numbered(0), damaged, *(numbered(number) for number in range(2, 6))]
    root = one(tmp_path, files, [0, 1, 2] * 2)
    data = config(root, batch_size=3)
    with pytest.raises(DataError, match=r"^cannot read data/validation\.parquet#1: not an image"):
        list(eval_loader(open_splits(data).val, data))
    data = config(root, batch_size=3, on_bad_image="skip")
    with pytest.warns(DataWarning, match=r"validation\.parquet#1: .*\.parquet#2 stands in for it"):
        first, second = pairs(eval_loader(open_splits(data).val, data))
    assert first == [(0, 0), (2, 2), (2, 2)]
    assert second == [(3, 0), (4, 1), (5, 2)]


def test_a_truncated_file(write_hfids: Callable[..., Path], truncate: Callable[[Path], None]) -> None:
    root = write_hfids([8, 8, 8])
    path = root / "data" / "validation-00001-of-00003.parquet"
    truncate(path)
    with pytest.raises(DataError, match=r"^cannot read data/validation-00001-of-00003\.parquet: ") as caught:
        open_splits(config(root))
    assert "\n" not in str(caught.value)
    with pytest.warns(DataWarning, match=r"validation-00001-of-00003\.parquet: .* It is left out\."):
        (found,) = evaluated(config(root, on_bad_image="skip"))
    assert sorted(number for number, _ in chain(*found)) == [*range(8), *range(16, 24)]


def test_files_that_change_after_they_were_opened(write_hfids: Callable[..., Path]) -> None:
    data = config(write_hfids([20]))
    val = open_splits(data).val
    path = Path(write_hfids([20])) / "data" / "validation-00000-of-00001.parquet"
    content = bytearray(path.read_bytes())
    content[100:200] = os.urandom(100)
    content[4:60] = bytes(56)  # the first page's header
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"^cannot read data/validation-00000-of-00001\.parquet: "):
        list(eval_loader(val, data))
    write_hfids([21])
    with pytest.raises(DataError, match=r"parquet: it has 21 rows now, and had 20\.$"):
        list(eval_loader(val, data))
    path.unlink()
    with pytest.raises(DataError, match=r"parquet: there is no such file\.$"):
        list(eval_loader(val, config(path.parent.parent, workers=1)))


def test_fewer_rows_than_processes(write_hfids: Callable[..., Path]) -> None:
    root = write_hfids([1, 1])
    with pytest.raises(DataError, match=r"^2 training images are too few for 3 processes\.$"):
        trained(config(root), 3)
    assert sorted(len(list(chain(*own))) for own in evaluated(config(root), 3)) == [0, 1, 1]
    with pytest.raises(DataError, match=r"^the split 'train' of 'hfids/.*' holds no images\.$"):
        open_splits(config(write_hfids([0])))


def test_images_come_whole(tmp_path: Path, picture: Callable[..., Image.Image]) -> None:
    """Noise in every pixel, as PIL reads it."""
    files, images = [], []
    for seed in range(4):
        file = io.BytesIO()
        picture(seed, (6, 6)).save(file, "PNG")
        files.append(file.getvalue())
        images.append(torch.from_numpy(np.array(picture(seed, (6, 6)))).permute(2, 0, 1))
    data = config(one(tmp_path, files, [0, 1, 2, 0]), image_size=6)
    (batch,) = eval_loader(open_splits(data).val, data)
    torch.testing.assert_close(batch[0] * 255, torch.stack(images).float())
