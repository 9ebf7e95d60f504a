"""Batches of annotated images depend on the seed and the position alone."""

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lambdanets.data import (
    CocoConfig,
    CocoSplits,
    DataError,
    coco_eval_loader,
    coco_train_loader,
    open_coco,
)

WriteCoco = Callable[..., Path]
Entry = Callable[..., dict[str, Any]]
SIZES = [
    (24, 16),
    (16, 24),
    (20, 20),
    (24, 14),
    (14, 24),
    (22, 16),
    (18, 24),
    (24, 15),
    (20, 18),
    (16, 22),
    (24, 16),
]


@pytest.fixture
def root(write_coco: WriteCoco, coco_entry: Entry) -> Path:
    entries = [coco_entry(k, 1 + k % len(SIZES), k % 5, k % 4, 5, 6 + k % 3) for k in range(17)]
    return write_coco(train=(SIZES, entries), val=(SIZES[:7], entries[:5]))


def opened(root: Path, **options: Any) -> tuple[CocoConfig, CocoSplits]:
    values = {"source": f"coco:{root}", "image_size": 24, "scale": (0.5, 2.0), "batch_size": 2, "workers": 0}
    values["crop"] = not options.get("group_by_ratio", False)
    config = CocoConfig(**(values | options))
    return config, open_coco(config)


def train(
    root: Path, at: tuple[int, int] = (0, 0), place: dict[str, int] | None = None, **options: Any
) -> DataLoader:
    config, splits = opened(root, **options)
    return coco_train_loader(splits.train, config, **({"seed": 3, "position": lambda: at} | (place or {})))


def same(first: DataLoader | list[Any], second: DataLoader | list[Any]) -> bool:
    pairs = list(zip(first, second, strict=True))
    assert pairs
    for (images, targets), (others, other_targets) in pairs:
        assert isinstance(images, list)
        for image, other in zip(images, others, strict=True):
            if type(image) is not type(other) or not torch.equal(image, other):
                return False
        for target, other in zip(targets, other_targets, strict=True):
            assert target.keys() == other.keys()
            for name, value in target.items():
                if isinstance(value, torch.Tensor):
                    if type(value) is not type(other[name]) or not torch.equal(value, other[name]):
                        return False
                elif value != other[name]:
                    return False
            if target["boxes"].canvas_size != other["boxes"].canvas_size:
                return False
    return True


def ids(loader: DataLoader) -> list[list[int]]:
    return [[target["image_id"] for target in targets] for _, targets in loader]


def test_workers_change_nothing(root: Path) -> None:
    for at in [(0, 0), (1, 2)]:
        assert same(train(root, at), train(root, at, workers=2))
    config, splits = opened(root)
    parallel, _ = opened(root, workers=2)
    assert same(coco_eval_loader(splits.val, config), coco_eval_loader(splits.val, parallel))


@pytest.mark.parametrize("grouped", [False, True])
def test_resuming_in_the_middle_of_an_epoch(root: Path, grouped: bool) -> None:
    whole = list(train(root, (2, 0), group_by_ratio=grouped))
    assert same(train(root, (2, 3), group_by_ratio=grouped), whole[3:])
    assert not same(train(root, (3, 0), group_by_ratio=grouped), whole)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_an_epoch_without_repeats(root: Path, world_size: int, grouped: bool) -> None:
    loaders = [
        train(root, (1, 0), {"rank": rank, "world_size": world_size}, group_by_ratio=grouped)
        for rank in range(world_size)
    ]
    ranks = [ids(loader) for loader in loaders]
    number = len(SIZES) // (2 * world_size)
    assert [len(batches) for batches in ranks] == [len(loader) for loader in loaders] == [number] * world_size
    seen = list(chain(*chain(*ranks)))
    assert len(seen) == len(set(seen)) == number * 2 * world_size
    together = ids(train(root, (1, 0), batch_size=2 * world_size, group_by_ratio=grouped))
    assert [list(chain(*step)) for step in zip(*ranks, strict=True)] == together


def test_too_few_images_for_the_processes(root: Path) -> None:
    with pytest.raises(DataError, match="11 training images are too few for 12 processes"):
        train(root, place={"rank": 0, "world_size": 12})


@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_sees_everything_once(root: Path, world_size: int) -> None:
    config, splits = opened(root)
    seen = [
        number
        for rank in range(world_size)
        for batch in ids(coco_eval_loader(splits.val, config, rank=rank, world_size=world_size))
        for number in batch
    ]
    assert sorted(seen) == splits.val.image_ids.tolist()


def test_evaluation_draws_no_masks(root: Path) -> None:
    config, splits = opened(root)
    for images, targets in coco_eval_loader(splits.val, config):
        for image, target, whole in zip(images, targets, map(splits.val.item, range(9)), strict=False):
            assert "masks" in whole[1]
            assert set(target) == set(whole[1]) - {"masks"}
            assert torch.equal(image, whole[0])
        break


def test_batches_of_one_shape(root: Path) -> None:
    ratios = {number: np.log2(width / height) for number, (width, height) in enumerate(SIZES, start=1)}
    bounds = [-1, -0.5, 0, 0.5, 1]
    group = {number: int(np.digitize(ratio, bounds)) for number, ratio in ratios.items()}
    sizes = np.bincount(list(group.values()))
    epochs = [ids(train(root, (epoch, 0), group_by_ratio=True)) for epoch in range(4)]
    for batches in epochs:
        mixed = sum(len({group[number] for number in batch}) > 1 for batch in batches)
        # no more mixed batches than the groups' rests make, though one image is left out
        assert mixed <= (sizes % 2).sum() // 2 + 1
        assert len(batches) == 5
    assert len({tuple(chain(*batches)) for batches in epochs}) == 4
    ungrouped = list(chain(*(ids(train(root, (epoch, 0))) for epoch in range(4))))
    assert sum(len({group[n] for n in batch}) > 1 for batch in ungrouped) > 10
    # groups come in any order, not one after the other
    order = [
        [group[batch[0]] for batch in batches if len({group[number] for number in batch}) == 1]
        for batches in epochs
    ]
    assert any(each != sorted(each) for each in order)


def test_a_set_smaller_than_a_batch(root: Path) -> None:
    assert [len(batch) for batch in ids(train(root, batch_size=64, group_by_ratio=True))] == [11]
