"""The shard of a stream that one process reads, and the assignment of its samples to batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from ..batches import Position, whole_batches

LANES = 16  # lanes of a process: consecutive batches come from different lanes, which workers divide
REACH = 512  # limit of the shift of a sample when those of a lane are shuffled locally


@dataclass(frozen=True)
class StreamShard:
    """A range of consecutive positions in an epoch's sequence of samples, divided into lanes.

    A lane is again a range of consecutive positions, so that it can be read in order. Batch b comes from lane
    `b % lanes`: workers, which make batches in turn, read one or several lanes each if their number is 1, 2,
    4, 8 or 16. The content of the batches does not depend on the number of workers.

    Args:
        start: first position, as an index into the sequence.
        stop: position behind the last.
        batch_size: positions in a batch; the last batch may have fewer.
    """

    start: int
    stop: int
    batch_size: int

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-(self.stop - self.start) // self.batch_size)

    @property
    def lanes(self) -> int:
        """Number of lanes; fewer than `LANES` where a lane would be shorter than `REACH`."""
        return min(LANES, max(1, (self.stop - self.start) // REACH))

    def lane(self, number: int) -> np.ndarray:
        """Return the positions of a lane, ascending: those of its batches, one batch after the other."""
        batches = np.array([len(range(lane, len(self), self.lanes)) for lane in range(number + 1)])
        before, own = batches[:-1].sum(), batches[-1]
        short = len(self) * self.batch_size - (self.stop - self.start)  # positions missing in the last batch
        last = (len(self) - 1) % self.lanes  # the lane that ends with the smaller batch
        start = self.start + before * self.batch_size - (short if last < number else 0)
        return start + np.arange(own * self.batch_size - (short if last == number else 0))


def training_shard(size: int, batch_size: int, *, rank: int, world_size: int) -> StreamShard:
    """Return the shard of a process in training: whole batches, the same number for each process.

    Raises:
        DataError: there are fewer samples than processes.
    """
    batch_size, number = whole_batches(size, batch_size, world_size)
    length = batch_size * number
    return StreamShard(rank * length, (rank + 1) * length, batch_size)


def evaluation_shard(size: int, batch_size: int, *, rank: int, world_size: int) -> StreamShard:
    """Return the shard of a process in evaluation: of all positions, in lengths that differ by one."""
    return StreamShard(rank * size // world_size, (rank + 1) * size // world_size, batch_size)


class LaneBatches(Sampler):
    """Pairs (epoch, number of a batch) for the batches of a shard, from the current position of training.

    Args:
        shard: shard of the process.
        position: returns (epoch, batches already done in it), called at the start of every iteration; None
            in evaluation.
    """

    def __init__(self, shard: StreamShard, position: Position | None):
        self.shard, self.position = shard, position

    def __len__(self) -> int:
        return len(self.shard)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, done = self.position() if self.position else (0, 0)
        return ((epoch, number) for number in range(done, len(self.shard)))
