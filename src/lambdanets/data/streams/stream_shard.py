"""Which places of an epoch's sequence come in which batch, where they have to be read in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from ..batches import Position, whole_batches

LANES = 16  # parts that a process reads side by side: batches mix them, and workers share them out
REACH = 512  # places in a lane that are mixed


@dataclass(frozen=True)
class StreamShard:
    """The neighbouring places that are one process's, cut into lanes of neighbours.

    Batch b comes from lane `b % lanes`, so that workers that take turns, and are 1, 2, 4, 8 or 16, read a
    lane each or some. Nothing depends on their number.

    Args:
        start: the first place.
        stop: the one behind the last.
        batch_size: places in a batch; the last one may have fewer.
    """

    start: int
    stop: int
    batch_size: int

    def __len__(self) -> int:
        """The number of batches."""
        return -(-(self.stop - self.start) // self.batch_size)

    @property
    def lanes(self) -> int:
        """Fewer where so many would be shorter than what is mixed in each."""
        return min(LANES, max(1, (self.stop - self.start) // REACH))

    def lane(self, number: int) -> np.ndarray:
        """Return the places of a lane, ascending: those of its batches, one after the other."""
        batches = np.array([len(range(lane, len(self), self.lanes)) for lane in range(number + 1)])
        before, own = batches[:-1].sum(), batches[-1]
        short = len(self) * self.batch_size - (self.stop - self.start)
        last = (len(self) - 1) % self.lanes  # the lane that ends with the smaller batch
        start = self.start + before * self.batch_size - (short if last < number else 0)
        return start + np.arange(own * self.batch_size - (short if last == number else 0))


def training_shard(size: int, batch_size: int, *, rank: int, world_size: int) -> StreamShard:
    """Return a process's part of an epoch that has whole batches alone, equally many for each.

    Raises:
        DataError: there are fewer samples than processes.
    """
    batch_size, number = whole_batches(size, batch_size, world_size)
    share = batch_size * number
    return StreamShard(rank * share, (rank + 1) * share, batch_size)


def evaluation_shard(size: int, batch_size: int, *, rank: int, world_size: int) -> StreamShard:
    """Return a process's part of all places: none is left out, and shares differ by one at most."""
    return StreamShard(rank * size // world_size, (rank + 1) * size // world_size, batch_size)


class LaneBatches(Sampler):
    """The numbers of a part's batches in an epoch, each with the epoch's, from where training stands.

    Args:
        part: of a process.
        position: returns (epoch, batches already done in it), asked at the start of every iteration; None
            in evaluation.
    """

    def __init__(self, part: StreamShard, position: Position | None):
        self.part, self.position = part, position

    def __len__(self) -> int:
        return len(self.part)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, done = self.position() if self.position else (0, 0)
        return ((epoch, number) for number in range(done, len(self.part)))
