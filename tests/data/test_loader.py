"""Batches depend on the seed and the position alone: not on workers, ranks or where a run was resumed."""

from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lambdanets.data import (
    AugmentConfig,
    DataConfig,
    DataError,
    DataWarning,
    ImageSet,
    eval_loader,
    open_splits,
    train_loader,
)

WriteFolder = Callable[..., Path]
Truncate = Callable[[Path], None]
AUGMENT = AugmentConfig(crop="pad", pad=2, flip=0.5, color_jitter=0.3, random_erasing=0.3)


class Counting(ImageSet):
    """Ten-class set whose images are their own index, so that a batch tells what is in it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.classes = tuple("0123456789")
        self.cached = None

    def __len__(self) -> int:
        return self.size

    def batch(self, indices: np.ndarray, epoch: int = 0, seed: int = 0) -> tuple[Tensor, Tensor]:
        return torch.as_tensor(np.asarray(indices)), torch.full((len(indices),), epoch)


def order(size: int, batch_size: int, position: tuple[int, int] = (0, 0), **options: int) -> list[list[int]]:
    data = DataConfig(batch_size=batch_size, workers=0)
    loader = train_loader(Counting(size), data, **({"seed": 0, "position": lambda: position} | options))
    return [indices.tolist() for indices, _ in loader]


def folder_sets(root: Path, **options: object) -> tuple[DataConfig, ImageSet, ImageSet]:
    values = {"source": f"folder:{root}", "image_size": 12, "batch_size": 4, "workers": 0, "augment": AUGMENT}
    data = DataConfig(**(values | options))
    splits = open_splits(data)
    return data, splits.train, splits.val


def same(first: DataLoader, second: DataLoader) -> bool:
    pairs = list(zip(first, second, strict=True))
    return bool(pairs) and all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in pairs)


def test_an_epoch_visits_samples_once_and_in_another_order_each_time() -> None:
    first, second = order(23, 5), order(23, 5, (1, 0))
    for epoch in (first, second):
        assert [len(batch) for batch in epoch] == [5] * 4
        seen = list(chain(*epoch))
        assert len(set(seen)) == 20
        assert set(seen) < set(range(23))
    assert first != second
    assert order(23, 5) == first
    assert order(23, 5, seed=1) != first


@pytest.mark.parametrize("done", [0, 1, 3, 4])
def test_resuming_in_the_middle_of_an_epoch(done: int) -> None:
    assert order(23, 5, (2, done)) == order(23, 5, (2, 0))[done:]


def test_length_is_that_of_the_whole_epoch() -> None:
    loader = train_loader(Counting(23), DataConfig(batch_size=5, workers=0), seed=0, position=lambda: (0, 3))
    assert len(loader) == 4
    assert len(list(loader)) == 1


def test_position_is_asked_whenever_an_iteration_starts() -> None:
    asked: list[int] = []

    def position() -> tuple[int, int]:
        asked.append(len(asked))
        return asked[-1], 0

    loader = train_loader(Counting(8), DataConfig(batch_size=4, workers=0), seed=0, position=position)
    assert asked == []
    epochs = [{int(epoch) for _, targets in loader for epoch in targets} for _ in range(3)]
    assert epochs == [{0}, {1}, {2}]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_an_epoch_without_repeats(world_size: int) -> None:
    ranks = [order(50, 4, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert {len(batches) for batches in ranks} == {50 // (4 * world_size)}
    seen = [index for batches in ranks for batch in batches for index in batch]
    assert len(seen) == len(set(seen)) == 50 // (4 * world_size) * 4 * world_size
    # the same images make up a step whether one process or several take it
    together = order(50, 4 * world_size)
    assert [list(chain(*step)) for step in zip(*ranks, strict=True)] == together


def test_a_set_smaller_than_a_batch() -> None:
    assert [len(batch) for batch in order(7, 128)] == [7]
    assert [len(batch) for rank in range(3) for batch in order(7, 128, rank=rank, world_size=3)] == [2, 2, 2]
    with pytest.raises(DataError, match="2 training images are too few for 3 processes"):
        order(2, 128, world_size=3)


@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_sees_everything_once(world_size: int) -> None:
    data = DataConfig(batch_size=4, workers=0)
    seen = []
    for rank in range(world_size):
        loader = eval_loader(Counting(23), data, rank=rank, world_size=world_size)
        batches = [indices.tolist() for indices, _ in loader]
        assert len(batches) == len(loader)
        own = list(chain(*batches))
        assert own == sorted(own)
        seen += own
    assert sorted(seen) == list(range(23))


@pytest.mark.parametrize("cache", [True, False])
def test_workers_change_nothing(write_folder: WriteFolder, cache: bool) -> None:
    root = write_folder({"train/a": 9, "train/b": 8, "val/a": 3, "val/b": 2})
    data, train, val = folder_sets(root, cache=cache)
    parallel, _, _ = folder_sets(root, cache=cache, workers=2)
    for at in [(0, 0), (0, 2), (1, 0)]:
        loaders = [train_loader(train, each, seed=5, position=lambda at=at: at) for each in (data, parallel)]
        assert [loader.num_workers for loader in loaders] == [0, 2]
        assert same(*loaders)
    assert same(eval_loader(val, data), eval_loader(val, parallel))


def test_a_set_in_memory_with_light_changes_needs_no_workers() -> None:
    data = DataConfig(image_size=8, in_chans=1, workers=2, augment=AugmentConfig(crop="pad", pad=1))
    loader = train_loader(open_splits(data).train, data, seed=0, position=lambda: (0, 0))
    assert loader.num_workers == 0
    images, targets = next(iter(loader))
    assert images.shape == (128, 1, 8, 8)
    assert targets.dtype == torch.int64
    assert images.is_contiguous()


def test_loading_leaves_the_global_generators_alone(write_folder: WriteFolder) -> None:
    data, train, _ = folder_sets(write_folder({"train/a": 8, "train/b": 1, "val/a": 1, "val/b": 1}))
    state = torch.get_rng_state()
    list(train_loader(train, data, seed=0, position=lambda: (0, 0)))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unchecked_bad_image_ends_the_run_in_one_sentence(
    write_folder: WriteFolder, truncate: Truncate, workers: int
) -> None:
    root = write_folder({"train/a": 6, "train/b": 1, "val/a": 1, "val/b": 1})
    truncate(root / "train" / "a" / "004.png")
    data, train, _ = folder_sets(root, check=False, workers=workers)
    with pytest.raises(DataError) as caught:
        list(train_loader(train, data, seed=0, position=lambda: (0, 0)))
    expected = rf"cannot read {root / 'train' / 'a' / '004.png'}: image file is truncated"
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)


def test_an_unchecked_bad_image_is_replaced_by_its_neighbour(
    write_folder: WriteFolder, truncate: Truncate
) -> None:
    root = write_folder({"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1})
    _, whole, _ = folder_sets(root, augment=AugmentConfig())
    for name in ("a/002.png", "b/000.png"):
        truncate(root / "train" / name)
    _, train, _ = folder_sets(root, check=False, on_bad_image="skip", augment=AugmentConfig())
    with pytest.warns(DataWarning, match=r"a/002\.png: .*b/001\.png stands in for it"):
        image, target = train[2]
    assert torch.equal(image, whole[4][0])
    assert target == 1
    for path in (root / "train").glob("*/*"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="not one of the 6 images can be read; the first: "):
        train[0]


def test_more_processes_than_a_machine_can_use_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 10)
    assert (
        train_loader(Counting(8), DataConfig(workers=40), seed=0, position=lambda: (0, 0)).num_workers == 40
    )
    with pytest.raises(DataError, match=r"data.workers=41 .* of 10 cores .*set 40 or fewer"):
        train_loader(Counting(8), DataConfig(workers=41), seed=0, position=lambda: (0, 0))
