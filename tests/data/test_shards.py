"""Shards hold the files of their source, and other programs read them."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.data import create_dataset

from lambdanets.data import (
    DataConfig,
    DataError,
    ImageSet,
    open_splits,
    write_shards,
)
from lambdanets.data.sources.tar_images import TarImages, unlabelled_tar
from lambdanets.data.sources.tar_index import INDEX, read_members
from lambdanets.utils.processes import InUseError

WriteFolder = Callable[..., Path]
COUNTS = {"train/dog": 5, "train/cat": 4, "val/dog": 2, "val/cat": 3}


def config(source: str, **options: object) -> DataConfig:
    return DataConfig(**({"source": source, "image_size": 12, "batch_size": 4, "workers": 0} | options))


@pytest.fixture
def photos(write_folder: WriteFolder) -> Path:
    """A folder of which one image is a JPEG with its suffix in capitals, and one lies deeper."""
    root = write_folder(COUNTS)
    with Image.open(root / "train" / "dog" / "000.png") as image:
        image.save(root / "train" / "dog" / "000.JPEG")
    (root / "train" / "dog" / "000.png").unlink()
    (root / "train" / "cat" / "more").mkdir()
    (root / "train" / "cat" / "001.png").rename(root / "train" / "cat" / "more" / "1.png")
    return root


def contents(side: ImageSet) -> list[tuple[str, int]]:
    assert isinstance(side.images, TarImages)
    files = [side.images.encoded(index)[0] for index in range(len(side))]
    return sorted(
        (hashlib.md5(file).hexdigest(), int(target)) for file, target in zip(files, side.targets, strict=True)
    )


def test_files_are_copied_as_they_are(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    written = write_shards(config(f"folder:{photos}"), out, images=4)
    assert (written.images, written.shards) == ({"train": 9, "val": 5}, {"train": 3, "val": 2})
    assert written.classes == ("cat", "dog")
    splits = open_splits(config(f"tar:{out}"))
    assert splits.classes == ("cat", "dog")
    for name, side in (("train", splits.train), ("val", splits.val)):
        expected = [
            (hashlib.md5(path.read_bytes()).hexdigest(), target)
            for target, label in enumerate(("cat", "dog"))
            for path in (photos / name / label).rglob("*.*")
        ]
        assert contents(side) == sorted(expected)
    assert sorted({splits.train.path(index)[-4:] for index in range(9)}) == [".jpg", ".png"]
    assert np.bincount(splits.train.images.shards).tolist() == [4, 4, 1]
    assert splits.train.targets.tolist() != sorted(splits.train.targets)


def test_the_same_seed_gives_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder, seed in zip(folders, (1, 1, 2), strict=True):
        folder.mkdir()  # an empty one may be there
        write_shards(config(f"folder:{photos}"), folder, images=5, seed=seed)
    first, again, other = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert first == again
    assert set(first) == {
        "_index.npz", "_info.json", "classes.json", "train-000000.tar", "train-000001.tar", "val-000000.tar"
    }  # fmt: skip
    assert first["train-000000.tar"] != other["train-000000.tar"]


def test_the_index_is_what_the_headers_say(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    write_shards(config(f"folder:{photos}"), out, images=3)
    shards = [f"train-{index:06d}.tar" for index in range(3)]
    kept, fresh = (read_members(str(out), shards, indexed=indexed) for indexed in (True, False))
    with np.load(out / INDEX) as file:
        assert len(file["names"]) == 14
    assert unlabelled_tar(str(out), 3).path(0) == "train-000000.tar#" + fresh.names[0].decode()
    for name in ("shard", "offsets", "sizes", "names", "labels"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(fresh, name))


def test_shards_of_shards_and_of_digits(tmp_path: Path) -> None:
    options = {"image_size": 8, "in_chans": 1, "mean": (0.0,), "std": (1.0,)}
    write_shards(config("digits"), tmp_path / "once", images=500)
    write_shards(config(f"tar:{tmp_path / 'once'}"), tmp_path / "twice", images=300, seed=7)
    digits = open_splits(config("digits", **options))
    for name in ("once", "twice"):
        copy = open_splits(config(f"tar:{tmp_path / name}", **options))
        assert copy.classes == digits.classes
        for ours, theirs in ((copy.train, digits.train), (copy.val, digits.val)):
            rows = [
                sorted(
                    (image.numpy().tobytes(), int(target))
                    for image, target in map(side.item, range(len(side)))
                )
                for side in (ours, theirs)
            ]
            assert rows[0] == rows[1]


def test_a_named_sources_files_are_copied(photos: Path, tmp_path: Path) -> None:
    write_shards(config(f"torch/image_folder:{photos}", val_split="val"), tmp_path / "shards")
    splits = open_splits(config(f"tar:{tmp_path / 'shards'}"))
    expected = open_splits(config(f"folder:{photos}"))
    assert splits.classes == expected.classes
    rows = [
        sorted((image.numpy().tobytes(), int(target)) for image, target in map(side.item, range(9)))
        for side in (splits.train, expected.train)
    ]
    assert rows[0] == rows[1]


def test_the_package_webdataset_reads_them(photos: Path, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    out = tmp_path / "shards"
    write_shards(config(f"folder:{photos}"), out, images=5)
    shards = sorted(str(path) for path in out.glob("train-*.tar"))
    data_set = webdataset.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("jpg;png", "cls")
    read = list(data_set)
    splits = open_splits(config(f"tar:{out}"))
    assert [target for _, target in read] == splits.train.targets.tolist()
    for index, (image, _) in enumerate(read):
        assert image.convert("RGB").tobytes() == splits.train.images.read(index).tobytes()


def test_timm_reads_them(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    out = tmp_path / "shards"
    write_shards(config(f"folder:{photos}"), out, images=5)
    expected = open_splits(config(f"tar:{out}"))
    for split, side in (("train", expected.train), ("validation", expected.val)):
        read = list(create_dataset("wds/photos", root=str(out), split=split, is_training=False))
        assert [target for _, target in read] == side.targets.tolist()
        for index, (image, _) in enumerate(read):
            assert image.tobytes() == side.images.read(index).tobytes()


def test_shards_of_a_size(tmp_path: Path) -> None:
    out, full = tmp_path / "out", 10**6
    written = write_shards(config("digits"), out, megabytes=1)
    sizes = [path.stat().st_size for path in sorted(out.glob("train-*.tar"))]
    assert len(sizes) == written.shards["train"] == 4
    # An archive ends on a multiple of 10,240 bytes, and the files of a digit take less than that.
    assert all(full - 2 * 10240 < size <= full for size in sizes[:-1])
    assert len(open_splits(config(f"tar:{out}", image_size=8)).train) == written.images["train"]
    write_shards(config("digits"), tmp_path / "both", images=400, megabytes=1)
    shards = open_splits(config(f"tar:{tmp_path / 'both'}", image_size=8)).train.images.shards
    assert np.bincount(shards).tolist() == [400, 400, 400, 400, 18]


@pytest.mark.parametrize("there", [False, True])
def test_the_folder_may_be_a_link(photos: Path, tmp_path: Path, there: bool) -> None:
    if there:
        (tmp_path / "large").mkdir()
    (tmp_path / "out").symlink_to("large")
    write_shards(config(f"folder:{photos}"), tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "large" / "train-000000.tar").is_file()
    assert not list(tmp_path.glob(".*"))


def test_images_larger_than_a_shard_are_alone(write_folder: WriteFolder, tmp_path: Path) -> None:
    root = write_folder({"train/a": 2, "train/b": 1, "val/a": 1, "val/b": 1})
    for path in (root / "train" / "a").iterdir():
        noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        assert path.stat().st_size > 10**6
    written = write_shards(config(f"folder:{root}"), tmp_path / "out", megabytes=1)
    assert (written.images, written.shards) == ({"train": 3, "val": 2}, {"train": 3, "val": 1})
    assert len(open_splits(config(f"tar:{tmp_path / 'out'}")).train) == 3


def test_classes_keep_their_names_and_order(
    write_tar: Callable[..., Path], samples: Callable[..., dict[str, bytes]], tmp_path: Path
) -> None:
    """An order that is not sorted, and a class without images, through shards of shards and a stream."""
    names = ("zebra", "eel", "ant", "Émile's")
    write_tar("s/train.tar", samples([2, 0, 1]))
    write_tar("s/val.tar", samples([0, 1, 2], first=5))
    (tmp_path / "s" / "classes.json").write_text(json.dumps(names))
    write_shards(config(f"tar:{tmp_path / 's'}"), tmp_path / "once")
    write_shards(config(f"tar:{tmp_path / 'once'}"), tmp_path / "twice")
    of_file = {
        hashlib.md5(content).hexdigest(): int(target)
        for content, target in zip(list(samples([2, 0, 1]).values())[::2], "201", strict=True)
    }
    for name in ("once", "twice"):
        splits = open_splits(config(f"tar:{tmp_path / name}"))
        assert splits.classes == names
        assert dict(contents(splits.train)) == of_file
    pytest.importorskip("webdataset")
    assert open_splits(config(f"wds/pets:{tmp_path / 'twice'}")).classes == names


def test_what_cannot_be_sharded(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match="exists already and is not an empty folder"):
        write_shards(config(f"folder:{photos}"), photos)
    with pytest.raises(DataError, match="'wds/photos:x' is streamed and cannot be shuffled into shards"):
        write_shards(config("wds/photos:x"), out)
    for limit in ("images", "megabytes"):
        with pytest.raises(ValueError, match=rf"{limit} of a shard must be 1 or more, got 0\."):
            write_shards(config(f"folder:{photos}"), out, **{limit: 0})

    def gone(done: int, total: int) -> None:
        if done == 10:
            with pytest.raises(InUseError, match=rf"^{out} is in use by another process"):
                write_shards(config(f"folder:{photos}"), out)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(config(f"folder:{photos}"), out, progress=gone)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]
