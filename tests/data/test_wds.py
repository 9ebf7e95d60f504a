"""Shards that are streamed: every sample once, whatever the numbers of processes, workers and shards."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
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
    DataWarning,
    describe,
    eval_loader,
    open_split,
    open_splits,
    train_loader,
    write_shards,
)
from lambdanets.data.sources.tar_images import TarImages
from lambdanets.data.streams import stream_set, stream_shard
from numbered import numbered, numbers

WriteTar = Callable[..., Path]
WriteFolder = Callable[..., Path]
Samples = Callable[..., dict[str, bytes]]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lanes and what is mixed in them are made for large sets."""
    for module in (stream_shard, stream_set):
        monkeypatch.setattr(module, "REACH", 8)


@pytest.fixture
def write_wds(tmp_path: Path, write_tar: WriteTar) -> Callable[..., Path]:
    """Write shards of so many numbered pictures each, the same for both sides, and _info.json."""

    def write(sizes: Sequence[int]) -> Path:
        first = 0
        names = [f"part-{shard:03d}.tar" for shard in range(len(sizes))]
        for name, size in zip(names, sizes, strict=True):
            members = {}
            for number in range(first, first + size):
                members |= {f"{number:05d}.png": numbered(number), f"{number:05d}.cls": b"%d" % (number % 3)}
            write_tar(f"shards/{name}", members)
            first += size
        split = {"name": "x", "num_samples": first, "filenames": names, "shard_lengths": list(sizes)}
        info = {"splits": {"train": split, "validation": split}}
        (tmp_path / "shards" / "_info.json").write_text(json.dumps(info))
        return tmp_path / "shards"

    return write


def config(root: Path | str, **options: object) -> DataConfig:
    values = {
        "source": f"wds/numbers:{root}", "image_size": 4, "batch_size": 5, "workers": 0, "num_classes": 3,
        "mean": (0, 0, 0), "std": (1, 1, 1),
    }  # fmt: skip
    return DataConfig(**(values | options))


def evaluated(data: DataConfig, world_size: int = 1) -> list[list[list[int]]]:
    """The numbers in each batch of each process."""
    val = open_splits(data).val
    found = []
    for rank in range(world_size):
        loader = eval_loader(val, data, rank=rank, world_size=world_size)
        found.append([])
        for images, targets in loader:
            assert targets.dtype == torch.int64
            assert targets.tolist() == [number % 3 for number in numbers(images)]
            found[-1].append(numbers(images))
        assert len(found[-1]) == len(loader)
    return found


def trained(
    data: DataConfig, world_size: int = 1, *, epoch: int = 0, done: int = 0, seed: int = 0
) -> list[list[list[int]]]:
    train = open_splits(data).train
    found = []
    for rank in range(world_size):
        loader = train_loader(
            train, data, seed=seed, position=lambda: (epoch, done), rank=rank, world_size=world_size
        )
        found.append([])
        for images, targets in loader:
            assert targets.tolist() == [number % 3 for number in numbers(images)]
            found[-1].append(numbers(images))
        assert len(found[-1]) == len(loader) - done
    return found


GRID = [
    # processes, workers, shards
    (1, 0, [23]),
    (1, 3, [23]),
    (2, 5, [300]),
    (3, 2, [1, 1, 1]),
    (2, 3, [10, 3, 25, 2]),
    (4, 4, [31, 1, 90]),
    (5, 1, [7] * 11),
    (3, 2, [40] * 6),
]


@pytest.mark.parametrize(("world_size", "workers", "sizes"), GRID)
def test_evaluation_sees_every_sample_once(
    write_wds: Callable[..., Path], world_size: int, workers: int, sizes: list[int]
) -> None:
    root = write_wds(sizes)
    found = evaluated(config(root, workers=workers), world_size)
    assert sorted(chain(*chain(*found))) == list(range(sum(sizes)))
    assert evaluated(config(root), world_size) == found  # whatever the number of workers


@pytest.mark.parametrize(("world_size", "workers", "sizes"), GRID)
def test_training_sees_a_sample_at_most_once_and_processes_take_as_many_steps(
    write_wds: Callable[..., Path], world_size: int, workers: int, sizes: list[int]
) -> None:
    data = config(write_wds(sizes), workers=workers)
    size, whole = sum(sizes), min(5, sum(sizes) // world_size)
    orders = []
    for epoch in range(2):
        # Without worker processes, that take the same samples, in the second epoch.
        found = trained(replace(data, workers=0 if epoch else workers), world_size, epoch=epoch)
        seen = list(chain(*chain(*found)))
        assert {len(own) for own in found} == {size // (whole * world_size)}
        assert {len(batch) for batch in chain(*found)} == {whole}
        assert len(set(seen)) == len(seen)
        assert set(seen) <= set(range(size))
        orders.append(found)
    assert orders[0] != orders[1] or size < 5
    assert trained(config(data.source.partition(":")[2]), world_size) == orders[0]


def test_orders_are_functions_of_the_seed_and_the_epoch(write_wds: Callable[..., Path]) -> None:
    data = config(write_wds([30, 20, 50]))
    assert trained(data, seed=4, epoch=7) == trained(data, seed=4, epoch=7)
    several = [trained(data, seed=seed, epoch=epoch) for seed, epoch in ((4, 7), (4, 8), (5, 7), (5, 8))]
    assert all(several[a] != several[b] for a in range(4) for b in range(a))


def test_a_loader_goes_on_to_the_next_epoch(write_wds: Callable[..., Path]) -> None:
    data = config(write_wds([30, 20, 50]), workers=2)
    at = [(0, 0)]
    loader = train_loader(open_splits(data).train, data, seed=0, position=lambda: at[0])
    for epoch in range(3):
        at[0] = epoch, 0
        assert [numbers(images) for images, _ in loader] == trained(data, epoch=epoch)[0]


@pytest.mark.parametrize(("workers", "done"), [(0, 7), (0, 20), (2, 1), (2, 19), (3, 7), (3, 20)])
def test_resuming_in_the_middle_of_an_epoch(write_wds: Callable[..., Path], workers: int, done: int) -> None:
    root = write_wds([60, 41, 99])
    whole = trained(config(root), 2, epoch=3)
    rest = trained(config(root, workers=workers), 2, epoch=3, done=done)
    assert rest == [own[done:] for own in whole]


def test_what_waits_in_one_epoch_comes_in_another(write_wds: Callable[..., Path]) -> None:
    data = config(write_wds([24]))
    missed = [set(range(24)) - set(chain(*trained(data, epoch=epoch)[0])) for epoch in range(40)]
    assert {len(some) for some in missed} == {4}
    assert set.union(*missed) == set(range(24))


def test_neighbours_are_mixed(write_wds: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (stream_shard, stream_set):
        monkeypatch.setattr(module, "REACH", 40)
    (found,) = trained(config(write_wds([100])))
    spread = [max(batch) - min(batch) for batch in found]
    assert np.median(spread) > 10  # in order it would be 4


def test_only_what_is_wanted_is_read_and_in_order(
    write_wds: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[str, int]] = []
    plain = TarImages.open

    def watched(self: TarImages, index: int) -> object:
        read.append((self.members.shards[self.members.shard[index]], int(self.members.offsets[index])))
        return plain(self, index)

    monkeypatch.setattr(TarImages, "open", watched)
    data = config(write_wds([20] * 4))
    splits = open_splits(data)
    for rank in range(4):
        read.clear()
        list(eval_loader(splits.val, data, rank=rank, world_size=4))
        assert {shard for shard, _ in read} == {f"part-{rank:03d}.tar"}
        assert len(read) == len(set(read)) == 20
    read.clear()
    monkeypatch.setattr(stream_shard, "LANES", 1)
    loader = train_loader(splits.train, data, seed=1, position=lambda: (2, 11), rank=0, world_size=1)
    list(loader)
    assert len(read) == len(set(read)) == 25  # nothing of the 11 batches that are done
    runs = [shard for place, (shard, _) in enumerate(read) if place == 0 or shard != read[place - 1][0]]
    assert len(runs) <= 3
    for shard in set(runs):
        offsets = [offset for name, offset in read if name == shard]
        assert offsets == sorted(offsets) or runs[0] == runs[-1] == shard


def test_a_sample_is_varied_by_seed_epoch_and_sample_alone(
    picture: Callable[..., Image.Image], write_folder: WriteFolder, tmp_path: Path
) -> None:
    folder = write_folder({"train/cat": 9, "train/dog": 8, "val/cat": 2, "val/dog": 2})
    write_shards(DataConfig(source=f"folder:{folder}"), tmp_path / "shards", images=6)
    augment = AugmentConfig(crop="pad", pad=2, flip=0.5, color_jitter=0.3)
    found = []
    for workers, world_size, batch_size in ((0, 1, 2), (2, 2, 3)):
        data = config(
            tmp_path / "shards", image_size=12, batch_size=batch_size, workers=workers, augment=augment
        )
        train = open_splits(data).train
        of_one = {}
        for rank in range(world_size):
            loader = train_loader(
                train, data, seed=3, position=lambda: (1, 0), rank=rank, world_size=world_size
            )
            of_one |= {image.numpy().tobytes(): target for images, targets in loader for image, target in
                       zip(images, targets.tolist(), strict=True)}  # fmt: skip
        found.append(of_one)
    assert (len(found[0]), len(found[1])) == (16, 12)
    assert len(found[0].keys() & found[1].keys()) >= 11  # the first leaves out one of 17


def test_the_same_images_as_tar(write_folder: WriteFolder, tmp_path: Path) -> None:
    folder = write_folder({"train/cat": 5, "train/dog": 4, "val/cat": 3, "val/dog": 2})
    out = tmp_path / "shards"
    write_shards(DataConfig(source=f"folder:{folder}"), out, images=3)
    data, other = (config(out, source=f"{kind}:{out}", num_classes=None) for kind in ("wds/x", "tar"))
    splits, expected = open_splits(data), open_splits(other)
    assert splits.classes == ("cat", "dog")
    pairs = zip(eval_loader(splits.val, data), eval_loader(expected.val, other), strict=True)
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in pairs)
    facts = describe(splits)
    assert facts == {"classes": 2, "train": "9 images, streamed", "val": "5 images, streamed", "skipped": 0}
    train, classes = open_split(data, "train")
    assert (len(train), classes) == (9, ("cat", "dog"))


def test_the_fingerprint_tells_other_shards(write_wds: Callable[..., Path]) -> None:
    marks = [open_splits(config(write_wds(sizes))).fingerprint for sizes in ([5, 6], [6, 5], [5, 6])]
    assert marks[0] == marks[2] != marks[1]


@pytest.mark.parametrize(
    ("split", "size"),
    [
        ("part-{000..002}.tar", 9),
        ("part-{000,002}.tar|999", 6),
        ("part-001.tar::part-002.tar", 7),
        ("validation", 9),
    ],
)
def test_splits_by_name_and_by_pattern(write_wds: Callable[..., Path], split: str, size: int) -> None:
    pytest.importorskip("braceexpand")
    with pytest.warns(DataWarning, match=r"'part-00\d\.tar'.* are both trained on and validated on\.$"):
        splits = open_splits(config(write_wds([2, 3, 4]), train_split=split, val_split="train"))
    assert len(splits.train) == size


def test_without_a_list_of_splits_the_shards_are_named(write_wds: Callable[..., Path]) -> None:
    root = write_wds([2, 3])
    (root / "_info.json").rename(root / "info.json")
    assert len(open_splits(config(root)).train) == 5
    (root / "info.json").unlink()
    shards = {"train_split": "part-000.tar", "val_split": "part-001.tar"}
    assert len(open_splits(config(root, **shards)).val) == 3
    says = rf"the split 'train' is not found in {root}/_info.json, as there is no such file; name it, or the"
    with pytest.raises(DataError, match=says):
        open_splits(config(root))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"source": "wds/numbers"}, "data.source 'wds/numbers' lacks a path: write wds/NAME:PATH"),
        ({"num_classes": None}, "does not name its classes; say how many with data.num_classes"),
        ({"num_classes": 2}, "part-000.tar has the class '2' in a .cls file; wds/ takes the numbers of 2 cl"),
        ({"val_split": "test"}, "'test' is not found in .*, which lists 'train', 'validation'; name it"),
        ({"val_split": "part-007.tar"}, "there is no tar archive .*part-007.tar"),
    ],
)
def test_what_cannot_be_opened(write_wds: Callable[..., Path], options: dict[str, object], says: str) -> None:
    with pytest.raises(DataError, match=says):
        open_splits(config(write_wds([5, 3]), **options))


@pytest.mark.parametrize(
    ("info", "says"),
    [
        ("[1, 2", "_info.json must be JSON with the splits by name"),
        ({"train": {"filenames": ["a.tar"]}}, "_info.json must be JSON with the splits by name"),
        (
            {"train": {"filenames": ["a.tar"], "shard_lengths": [3]}},
            "_info.json lists a.tar, and there is no such file",
        ),
        (
            {"train": {"filenames": ["part-000.tar"], "shard_lengths": [3], "alt_label": "other"}},
            "says that the classes of 'train' are in JSON files; only .cls files are read",
        ),
    ],
)
def test_a_list_of_splits_that_is_wrong(write_wds: Callable[..., Path], info: object, says: str) -> None:
    root = write_wds([5])
    (root / "_info.json").write_text(info if isinstance(info, str) else json.dumps({"splits": info}))
    with pytest.raises(DataError, match=says) as caught:
        open_splits(config(root))
    assert "\n" not in str(caught.value)


def damaged(samples: Samples, kind: str) -> dict[str, bytes]:
    members = samples([0, 1, 2, 0])
    change = {
        "no image": {"000002.png": None},
        "no label": {"000002.cls": None},
        "word": {"000002.cls": b"cat"},
        "labels": {f"{number:06d}.cls": None for number in range(4)},
        "empty": dict.fromkeys(members),
    }[kind]
    return {name: part for name, part in (members | change).items() if part is not None}


@pytest.mark.parametrize(
    ("kind", "says", "left"),
    [
        ("no image", "holds .cls files without an image: '000002.cls'. ", 3),
        ("no label", "holds images without a .cls file: '000002.png'. ", 3),
        ("word", "has the class 'cat' in a .cls file; wds/ takes the numbers of 3 classes, from 0", None),
        ("labels", "has no .cls files; wds/ takes the numbers", None),
        ("empty", "holds no images; it is empty", None),
    ],
)
def test_samples_that_are_not_whole(
    write_tar: WriteTar, samples: Samples, kind: str, says: str, left: int | None
) -> None:
    path = write_tar("shards/a.tar", damaged(samples, kind))
    data = config(path.parent, val_split="a.tar")
    with pytest.raises(DataError, match=f"^{path} {says}") as caught:
        open_split(data)
    assert "\n" not in str(caught.value)
    data = config(path.parent, val_split="a.tar", on_bad_image="skip")
    if left is None:
        with pytest.raises(DataError, match=f"^{path} {says}"):
            open_split(data)
    else:
        with pytest.warns(DataWarning, match=f"^{path} {says}The rest is left out"):
            assert len(open_split(data)[0]) == left


def test_a_truncated_shard(write_wds: Callable[..., Path], truncate: Callable[[Path], None]) -> None:
    root = write_wds([8, 8, 8])
    truncate(root / "part-001.tar")
    says = f"^{root}/part-001.tar ends too early: .* Copy or make the shard again, or use only its"
    with pytest.raises(DataError, match=says):
        open_splits(config(root))
    data = config(root, on_bad_image="skip", workers=2)
    with pytest.warns(DataWarning, match="part-001.tar ends too early: .* The rest is left out"):
        found = list(chain(*chain(*evaluated(data, 2))))
    assert len(set(found)) == len(found)
    assert {*range(8), *range(16, 24)} < set(found) < set(range(24))


def test_an_image_that_cannot_be_decoded(write_tar: WriteTar, samples: Samples) -> None:
    members = samples([0, 1, 2, 0, 1, 2])
    members["000001.png"] = b"no picture"
    path = write_tar("shards/a.tar", members)
    data = config(path.parent, image_size=12, val_split="a.tar", batch_size=3)
    with pytest.raises(DataError, match=r"^cannot read a\.tar#000001\.png: not an image"):
        list(eval_loader(open_split(data)[0], data))
    data = config(path.parent, image_size=12, val_split="a.tar", batch_size=3,
                  on_bad_image="skip")  # fmt: skip
    with pytest.warns(DataWarning, match=r"a\.tar#000001\.png: .* a\.tar#000002\.png stands in for it"):
        first, second = eval_loader(open_split(data)[0], data)
    assert first[1].tolist() == [0, 2, 2]
    assert torch.equal(first[0][1], first[0][2])
    assert second[1].tolist() == [0, 1, 2]
    lone = config(path.parent, image_size=12, val_split="a.tar", batch_size=1,
                  on_bad_image="skip")  # fmt: skip
    with pytest.raises(DataError, match="not one of the 1 images of a batch can be read; the first: cannot"):
        list(eval_loader(open_split(lone)[0], lone))
