"""Shards behind commands and URLs give what the same files on a disk do, or say why not."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lambdanets.data import (
    DataConfig,
    DataError,
    StreamSet,
    eval_loader,
    open_split,
    open_splits,
    train_loader,
)
from lambdanets.data.streams import stream_set, stream_shard

WriteTar = Callable[..., Path]
Samples = Callable[..., dict[str, bytes]]
LENGTHS = {"a.tar": 7, "b.tar": 12, "c.tar": 1}


@pytest.fixture
def root(write_tar: WriteTar, samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("webdataset")
    for module in (stream_shard, stream_set):
        monkeypatch.setattr(module, "REACH", 4)
    first = 0
    for name, length in LENGTHS.items():
        write_tar(f"shards/{name}", samples([number % 3 for number in range(length)], first=first))
        first += length
    listed(tmp_path / "shards", LENGTHS)
    return tmp_path / "shards"


def listed(root: Path, lengths: dict[str, int]) -> None:
    split = {"name": "x", "num_samples": 0, "filenames": list(lengths), "shard_lengths": [*lengths.values()]}
    (root / "_info.json").write_text(json.dumps({"splits": {"train": split, "validation": split}}))


def config(place: str, **options: object) -> DataConfig:
    values = {"source": f"wds/x:{place}", "image_size": 12, "batch_size": 3, "workers": 0, "num_classes": 3}
    return DataConfig(**(values | options))


def same(data: DataConfig, other: DataConfig, world_size: int, epoch: int = 1) -> None:
    one, two = open_splits(data), open_splits(other)
    assert one.fingerprint == two.fingerprint
    for rank in range(world_size):
        place = {"rank": rank, "world_size": world_size}
        for a, b in (
            (eval_loader(one.val, data, **place), eval_loader(two.val, other, **place)),
            (
                train_loader(one.train, data, seed=2, position=lambda: (epoch, 1), **place),
                train_loader(two.train, other, seed=2, position=lambda: (epoch, 1), **place),
            ),
        ):
            for first, second in zip(a, b, strict=True):
                assert torch.equal(first[0], second[0])
                assert torch.equal(first[1], second[1])


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (2, 2), (3, 1)])
@pytest.mark.parametrize("scheme", ["pipe:cat {}", "file://{}"])
def test_they_are_what_the_files_are(root: Path, scheme: str, world_size: int, workers: int) -> None:
    same(config(scheme.format(root), workers=workers), config(str(root)), world_size)


def test_patterns_and_compressed_shards(root: Path) -> None:
    split = {"train_split": "{a,b}.tar", "val_split": "c.tar::a.tar"}
    same(config(f"pipe:cat {root}", **split), config(str(root), **split), 2)
    split["train_split"] = "b.tar"  # whose beginning follows its end
    for epoch in range(6):
        same(config(f"pipe:cat {root}", **split), config(str(root), **split), 1, epoch)
    plain = config(str(root), val_split="a.tar")
    with tarfile.open(root / "a.tar") as tar, tarfile.open(root / "z.tar", "w:gz") as packed:
        for member in tar:
            packed.addfile(member, tar.extractfile(member))
    listed(root, {"z.tar": 7})
    data = config(f"pipe:cat {root}", val_split="z.tar")
    for a, b in zip(eval_loader(open_split(data)[0], data), eval_loader(open_split(plain)[0], plain),
                    strict=True):  # fmt: skip
        assert torch.equal(a[0], b[0])


def opened(root: Path) -> tuple[StreamSet, DataConfig]:
    data = config(f"pipe:cat {root}")
    return open_splits(data).val, data


@pytest.mark.parametrize(("said", "held"), [(11, "more"), (13, "12")])
def test_a_shard_of_another_length(root: Path, said: int, held: str) -> None:
    listed(root, LENGTHS | {"b.tar": said})
    data = config(f"pipe:cat {root}")
    with pytest.raises(DataError, match=f"cat {root}/b.tar holds {held} samples, and _info.json says {said}"):
        list(eval_loader(open_splits(data).val, data))


def test_the_last_shard_of_all_is_longer(root: Path) -> None:
    listed(root, {"a.tar": 7, "b.tar": 11})
    val, data = opened(root)
    with pytest.raises(DataError, match=r"b\.tar holds more samples"):
        list(eval_loader(val, data))


def test_a_shard_that_breaks_off(root: Path) -> None:
    content = (root / "b.tar").read_bytes()
    val, data = opened(root)
    (root / "b.tar").write_bytes(content[: len(content) // 2 + 100])
    with pytest.raises(
        DataError, match=r"^pipe:cat .*/b\.tar#000014 has no \.cls file, or breaks off"
    ) as caught:
        list(eval_loader(val, data))
    assert "\n" not in str(caught.value)
    (root / "b.tar").unlink()
    with pytest.raises(DataError, match=r"^cannot read pipe:cat .*b\.tar: "):
        list(eval_loader(val, data))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"000002.png": None}, "a.tar#000002 holds no image, or breaks off"),
        (
            {"000002.cls": None},
            "a.tar#000002 has no .cls file, or breaks off; wds/ takes the numbers of 3 classes, from 0",
        ),
        ({"000002.cls": b"3"}, "a.tar#000002 has the class '3'; wds/ takes"),
        ({"000002.cls": b"cat"}, "a.tar#000002 has the class 'cat'; wds/ takes"),
        ({"000002.png": b"nothing"}, "cannot read pipe:cat .*a.tar#000002.png: not an image"),
    ],
)
def test_samples_that_are_not_whole(
    root: Path, write_tar: WriteTar, samples: Samples, change: dict[str, bytes | None], says: str
) -> None:
    members = samples([0] * 7) | change
    write_tar("shards/a.tar", {name: part for name, part in members.items() if part is not None})
    val, data = opened(root)
    with pytest.raises(DataError, match=says):
        list(eval_loader(val, data))


def test_a_member_of_a_negative_size(root: Path, negative: Callable[[Path, str], int]) -> None:
    val, data = opened(root)
    negative(root / "b.tar", "000018.cls")
    with pytest.raises(
        DataError, match=r"^cannot read pipe:cat .*b\.tar: '000018\.cls' is a sparse file or has"
    ):
        list(eval_loader(val, data))


def test_what_other_programs_left_is_no_data(root: Path, write_tar: WriteTar, samples: Samples) -> None:
    stray = samples([2])
    members = samples([0] * 7) | {f"__MACOSX/{name}": part for name, part in stray.items()}
    write_tar("shards/a.tar", members | {f"@eaDir/{name}": part for name, part in stray.items()})
    for source in (f"pipe:cat {root}", str(root)):
        data = config(source)
        assert sum(len(targets) for _, targets in eval_loader(open_splits(data).val, data)) == 20


def test_what_cannot_be_opened(root: Path) -> None:
    with pytest.raises(DataError, match=r"does not name its classes; say how many with data\.num_classes"):
        open_splits(config(f"pipe:cat {root}", num_classes=None))
    with pytest.raises(DataError, match=r"_info\.json does not list the length of d\.tar, by which remote"):
        open_splits(config(f"pipe:cat {root}", train_split="d.tar"))
    with pytest.raises(DataError, match=r"cannot read nothing://x/_info\.json: .*copy them to a disk"):
        open_splits(config("nothing://x"))
    (root / "_info.json").unlink()
    with pytest.raises(
        DataError, match=r"cannot read pipe:cat .*_info\.json: .*copy them to a disk"
    ) as caught:
        open_splits(config(f"pipe:cat {root}"))
    assert "\n" not in str(caught.value)
