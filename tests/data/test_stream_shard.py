"""Positions of a sequence are divided exactly: among processes, then among lanes, for any numbers."""

from itertools import chain, product

import numpy as np
import pytest

from lambdanets.data import DataError
from lambdanets.data.randomness import beginning, jittered, shard_order
from lambdanets.data.streams import stream_shard
from lambdanets.data.streams.stream_shard import LaneBatches, StreamShard, evaluation_shard, training_shard


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_shard, "REACH", 7)


def batches(shard: StreamShard) -> list[list[int]]:
    """Batch b is the next of lane b % lanes."""
    left = [shard.lane(number).tolist() for number in range(shard.lanes)]
    found = []
    for number in range(len(shard)):
        lane = left[number % shard.lanes]
        found.append(lane[: shard.batch_size])
        del lane[: shard.batch_size]
    assert not any(left)
    return found


GRID = list(product([1, 2, 5, 16, 17, 100, 113, 240], [1, 3, 8, 50], [1, 2, 5]))


@pytest.mark.parametrize(("size", "batch_size", "world_size"), GRID)
def test_evaluation_has_every_place_once(size: int, batch_size: int, world_size: int) -> None:
    shards = [
        evaluation_shard(size, batch_size, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    found = [batches(shard) for shard in shards]
    assert sorted(chain(*chain(*found))) == list(range(size))
    sizes = [sum(map(len, own)) for own in found]
    assert max(sizes) - min(sizes) <= 1
    for own in found:
        assert all(len(batch) == batch_size for batch in own[:-1])
        assert all(1 <= len(batch) <= batch_size for batch in own[-1:])


@pytest.mark.parametrize(("size", "batch_size", "world_size"), GRID)
def test_training_has_as_many_whole_batches_for_each(size: int, batch_size: int, world_size: int) -> None:
    if size < world_size:
        with pytest.raises(DataError, match=f"{size} training images are too few for {world_size} processes"):
            training_shard(size, batch_size, rank=0, world_size=world_size)
        return
    shards = [
        training_shard(size, batch_size, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    found = [batches(shard) for shard in shards]
    whole = min(batch_size, size // world_size)
    assert {len(own) for own in found} == {size // (whole * world_size)}
    assert {len(batch) for batch in chain(*found)} == {whole}
    seen = list(chain(*chain(*found)))
    assert len(set(seen)) == len(seen) > size - whole * world_size
    assert set(seen) <= set(range(size))


def test_lanes_are_neighbours_and_few_where_they_would_be_short() -> None:
    shard = StreamShard(10, 250, 4)
    assert shard.lanes == 16
    assert chain(*(shard.lane(number).tolist() for number in range(16)))
    positions = np.concatenate([shard.lane(number) for number in range(16)])
    assert positions.tolist() == list(range(10, 250))
    assert (StreamShard(0, 20, 4).lanes, StreamShard(0, 6, 4).lanes, StreamShard(0, 0, 4).lanes) == (2, 1, 1)
    assert len(StreamShard(0, 0, 4)) == 0


def test_batches_are_numbered_from_where_training_stands() -> None:
    sampler = LaneBatches(StreamShard(0, 20, 4), lambda: (3, 2))
    assert (len(sampler), list(sampler)) == (5, [(3, 2), (3, 3), (3, 4)])
    assert list(LaneBatches(StreamShard(0, 9, 4), None)) == [(0, 0), (0, 1), (0, 2)]


@pytest.mark.parametrize("reach", [1, 5, 30, 500])
def test_what_is_mixed_waits_for_less_than_its_reach(reach: int) -> None:
    positions = np.arange(1000, 1200)
    mixed = jittered(3, 1, positions, reach)
    assert sorted(mixed.tolist()) == positions.tolist()
    assert (mixed.tolist() == positions.tolist()) == (reach == 1)
    assert mixed.tolist() == jittered(3, 1, positions, reach).tolist()
    if reach > 1:
        others = [jittered(seed, epoch, positions, reach).tolist() for seed, epoch in ((3, 2), (4, 1))]
        assert mixed.tolist() not in others
        assert others[0] != others[1]
    read, waiting, most = 1000, set(), 0
    for place in mixed:
        while place not in waiting:
            waiting.add(read)
            read += 1
        most = max(most, len(waiting))
        waiting.remove(place)
    assert most <= reach
    assert reach < 30 or most > min(reach, 200) / 8  # it does mix
    assert np.abs(mixed - positions).max() < reach


def test_epochs_begin_anywhere_and_visit_shards_in_any_order() -> None:
    begun = [beginning(5, epoch, 10) for epoch in range(500)]
    assert set(begun) == set(range(10))
    assert min(map(begun.count, range(10))) > 20
    orders = [tuple(shard_order(5, epoch, np.arange(3)).tolist()) for epoch in range(200)]
    assert len(set(orders)) == 6
    assert all(sorted(order) == [0, 1, 2] for order in orders)
