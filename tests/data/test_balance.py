"""Balanced epochs, and sets of one dominant class."""

import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lambdanets.data import DataConfig, DataError, open_splits, train_loader
from lambdanets.data.balance import balanced_order, occurrences, warn_dominant_class
from lambdanets.data.batches import TrainBatches
from lambdanets.data.errors import SourceWarning

TARGETS = np.repeat([0, 1, 2], [70, 25, 5])


def test_each_class_occurs_equally_often_in_an_epoch_of_the_same_length() -> None:
    for epoch in range(3):
        order = balanced_order(1, epoch, TARGETS)
        assert len(order) == len(TARGETS)
        assert sorted(np.bincount(TARGETS[order])) == [33, 33, 34]
        times = np.bincount(order, minlength=100)
        for target in range(3):
            own = times[target == TARGETS]
            assert own.max() - own.min() <= 1  # all of a class before any again
    assert not np.array_equal(balanced_order(1, 0, TARGETS), balanced_order(1, 1, TARGETS))
    assert not np.array_equal(balanced_order(1, 0, TARGETS), balanced_order(2, 0, TARGETS))
    # In time every sample of a large class is used.
    assert len({int(row) for epoch in range(20) for row in balanced_order(1, epoch, TARGETS)}) == 100
    firsts = Counter(int(balanced_order(1, epoch, TARGETS)[0] >= 70) for epoch in range(60))
    assert firsts[1] > firsts[0]  # classes are shuffled, not in sequence


def test_occurrences_are_counted_in_order() -> None:
    assert occurrences(np.array([3, 1, 3, 3, 1, 0])).tolist() == [0, 0, 1, 2, 1, 0]


def batches(rank: int, world_size: int, done: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    found = TrainBatches(
        100, 5, seed=3, position=lambda: (2, done), rank=rank, world_size=world_size, balanced=TARGETS
    )
    return [(indices, np.broadcast_to(epochs, indices.shape)) for indices, epochs in found]


def test_processes_share_a_balanced_epoch_that_resumes_exactly() -> None:
    whole = batches(0, 1)
    parts = [batches(rank, 2) for rank in (0, 1)]
    joined = np.concatenate([np.concatenate([a[0], b[0]]) for a, b in zip(*parts, strict=True)])
    assert np.array_equal(joined, np.concatenate([indices for indices, _ in whole]))
    rest = batches(0, 1, done=7)
    assert len(rest) == 13
    for (one, epochs), (other, others) in zip(rest, whole[7:], strict=True):
        assert np.array_equal(one, other)
        assert np.array_equal(epochs, others)
    keys = [pair for indices, epochs in whole for pair in zip(indices, epochs, strict=True)]
    assert len(set(keys)) == 100  # every occurrence of a sample is augmented in its own way


def test_the_loader_balances(write_folder: Callable[..., Path]) -> None:
    root = write_folder({"train/a": 20, "train/b": 4, "val/a": 2, "val/b": 2})
    config = DataConfig(source=f"folder:{root}", image_size=8, batch_size=8, workers=0, sampling="balanced")
    loader = train_loader(open_splits(config).train, config, seed=0, position=lambda: (0, 0))
    targets = torch.cat([targets for _, targets in loader])
    assert targets.bincount().tolist() == [12, 12]


def test_a_dominant_class_is_reported(write_folder: Callable[..., Path]) -> None:
    root = write_folder({"cat": 90, "dog": 10})
    with pytest.warns(
        SourceWarning, match=r"90\.0% of the validation images .* 'cat': always guessing it scores 90"
    ):
        open_splits(DataConfig(source=f"folder:{root}", image_size=8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_dominant_class(np.repeat([0, 1], [8, 2]), ("a", "b"), "images")


def test_sampling_is_checked(write_folder: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.sampling must be one of uniform, balanced"):
        DataConfig(sampling="weighted")  # pyright: ignore[reportArgumentType]
    shards = DataConfig(source=f"tar:{tmp_path}", sampling="balanced", order="shards")
    with pytest.raises(DataError, match=r"sampling=balanced and data\.order=shards exclude each other"):
        open_splits(shards)
    with pytest.raises(
        DataError, match=r"sampling=balanced needs to know all labels, and 'wds/x:y' is streamed"
    ):
        open_splits(DataConfig(source="wds/x:y", sampling="balanced", val_split="val"))
