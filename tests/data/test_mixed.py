"""Batches of both kinds: the ratio, passes without repeats, and going on in the middle."""

from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambdanets.data import DataConfig, MixedSet
from lambdanets.data.batches import MixedBatches
from lambdanets.data.mixed import batch_sizes


class Sized:
    def __init__(self, size: int) -> None:
        self.size, self.classes = size, ("a", "b")

    def __len__(self) -> int:
        return self.size


def batches(
    sizes: tuple[int, int],
    config: DataConfig,
    position: tuple[int, int] = (0, 0),
    rank: int = 0,
    world: int = 1,
) -> MixedBatches:
    own: Any = [Sized(size) for size in sizes]
    return MixedBatches(
        MixedSet(*own), config, seed=3, position=lambda: position, rank=rank, world_size=world
    )


def config(batch_size: int, ratio: float) -> DataConfig:
    return DataConfig(batch_size=batch_size, pseudo_ratio=ratio)


@pytest.mark.parametrize(
    ("size", "ratio", "expected"),
    [(128, 7, (16, 112)), (8, 1, (4, 4)), (10, 2, (3, 7)), (2, 1, (1, 1)), (64, 0.5, (43, 21))],
)
def test_the_shares_of_a_batch(size: int, ratio: float, expected: tuple[int, int]) -> None:
    assert batch_sizes(config(size, ratio)) == expected


@given(st.integers(1, 3), st.integers(6, 40), st.integers(1, 40), st.sampled_from([0.5, 1.0, 3.0]))
def test_an_epoch_is_a_pass_over_the_labelled_and_the_others_run_on(
    world: int, labelled: int, pseudo: int, ratio: float
) -> None:
    own, others = batch_sizes(config(6, ratio))
    epochs = 3
    steps: list[list[tuple[np.ndarray, np.ndarray]]] = []  # of each rank, over all epochs
    for rank in range(world):
        made = [batches((labelled, pseudo), config(6, ratio), (e, 0), rank, world) for e in range(epochs)]
        steps.append([batch for each in made for batch in each])
    lengths = {len(each) for each in steps}
    assert lengths == {epochs * len(made[0])}
    size = min(own, labelled // world)
    assert len(made[0]) == labelled // (size * world)
    seen: Counter[tuple[int, int]] = Counter()
    drawn: list[tuple[int, int]] = []
    for step in zip(*steps, strict=True):
        for rows, passes in step:
            first = rows < labelled
            assert first.sum() == size
            assert first[:size].all()
            assert (~first).sum() == max(1, round(others * size / own))
            seen.update((int(p), int(row)) for row, p in zip(rows[first], passes[first], strict=True))
            drawn += [
                (int(p), int(row) - labelled) for row, p in zip(rows[~first], passes[~first], strict=True)
            ]
    assert set(seen.values()) == {1}
    # Each pass is gone through wholly, each image once, before the next begins.
    assert [p for p, _ in drawn] == [place // pseudo for place in range(len(drawn))]
    for start in range(0, len(drawn), pseudo):
        members = [row for _, row in drawn[start : start + pseudo]]
        assert len(set(members)) == len(members)
        assert set(members) <= set(range(pseudo))


def test_passes_differ() -> None:
    rows = [row for row, _ in batches((64, 16), config(8, 1))]
    orders = np.concatenate([row[row >= 64] for row in rows]).reshape(-1, 16)
    assert len(orders) == 4
    assert all((orders[0] != other).any() for other in orders[1:])
    assert sorted(orders[0]) == sorted(orders[1])


@pytest.mark.parametrize("done", [0, 1, 4])
def test_a_run_goes_on_where_it_was(done: int) -> None:
    whole = list(batches((40, 23), config(8, 3), (2, 0), 1, 2))
    rest = list(batches((40, 23), config(8, 3), (2, done), 1, 2))
    assert len(rest) == len(whole) - done
    for (rows, passes), (other, others) in zip(islice(whole, done, None), rest, strict=True):
        assert np.array_equal(rows, other)
        assert np.array_equal(passes, others)
