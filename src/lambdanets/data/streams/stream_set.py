"""Sets that are read in sequence: shards of samples, each from its beginning to its end."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, DataWarning
from ..images import NamedFile, read_image
from ..randomness import beginning, jittered, keys, shard_order
from ..transforms import Pipeline
from .stream_shard import REACH, StreamShard

Sample = tuple[NamedFile, int, int]  # an image's file, its class, and its number in the set


class SampleFiles(Protocol):
    """Files that hold samples one after the other.

    Attributes:
        names: of the files.
        lengths: number of samples in each file, of shape [files].
    """

    names: tuple[str, ...]
    lengths: np.ndarray

    def read(self, number: int, rows: np.ndarray) -> Iterator[tuple[NamedFile, int]]:
        """Yield the image file and the class of the samples of one file at ascending rows."""
        ...


class StreamSet:
    """The samples of shards in sequence: one shard after the other, each from its beginning to its end.

    In training an epoch visits the shards in an order of its own, beginning at a place of its own and going
    round, and each lane of a part mixes its samples. What is in a batch is a function of (seed, epoch,
    number of the batch, rank), and what becomes of a sample one of (seed, epoch, sample).

    Args:
        shards: where the samples are.
        pipeline: from picture to tensor.
        classes: names, in the order of the targets.
        train: mix the samples.
        skip_bad: put its neighbour in the batch in the place of an image that cannot be decoded, with a
            warning, instead of raising.
    """

    skipped: tuple[str, ...] = ()

    def __init__(
        self,
        files: SampleFiles,
        pipeline: Pipeline,
        classes: tuple[str, ...],
        *,
        train: bool,
        skip_bad: bool = False,
    ):
        self.pipeline, self.classes = pipeline, classes
        self.files, self.train, self.skip_bad = files, train, skip_bad
        self._first = np.cumsum(files.lengths) - files.lengths

    def __len__(self) -> int:
        return int(self.files.lengths.sum())

    def batches(
        self, part: StreamShard, number: int, *, step: int, epoch: int = 0, seed: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batch `number` of a part, and every further one of its lane that is a multiple of `step` on.

        Returns:
            Images of shape (b, channels, image_size, image_size), int64 targets of shape (b,).
        """
        places = part.lane(number % part.lanes)
        if self.train:
            places = jittered(seed, epoch, places, REACH)
        size = part.batch_size
        starts = range(number // part.lanes * size, len(places), step // part.lanes * size)
        due = [places[start : start + size] for start in starts]
        ahead = np.sort(np.concatenate(due))
        reading = zip(ahead.tolist(), self._read(ahead, epoch, seed), strict=True)
        waiting: dict[int, Sample] = {}
        for batch in due:
            for place in batch.tolist():
                while place not in waiting:
                    waiting.update([next(reading)])
            yield self._made([waiting.pop(place) for place in batch.tolist()], epoch, seed)

    def _read(self, places: np.ndarray, epoch: int, seed: int) -> Iterator[Sample]:
        """The samples at ascending places of an epoch's sequence."""
        shards = np.arange(len(self.files.lengths))
        if self.train:
            places = (places + beginning(seed, epoch, len(self))) % len(self)
            shards = shard_order(seed, epoch, shards)
        ends = np.cumsum(self.files.lengths[shards])
        visit = np.searchsorted(ends, places, side="right")
        new = (np.diff(visit) != 0) | (np.diff(places) < 0)  # going round may lead into the same shard again
        for some in np.split(np.arange(len(places)), 1 + np.flatnonzero(new)):
            shard = int(shards[visit[some[0]]])
            inside = places[some] - (ends[visit[some[0]]] - self.files.lengths[shard])
            indices = (self._first[shard] + inside).tolist()
            for index, (file, target) in zip(indices, self.files.read(shard, inside), strict=True):
                yield file, target, index

    def _made(self, samples: Sequence[Sample], epoch: int, seed: int) -> tuple[Tensor, Tensor]:
        found = [self._prepared(file) for file, _, _ in samples]
        good = [place for place, picture in enumerate(found) if not isinstance(picture, DataError)]
        pictures, targets = [], []
        for place, picture in enumerate(found):
            used = place
            if isinstance(picture, DataError):
                if not good:
                    raise DataError(
                        f"not one of the {len(found)} images of a batch can be read; the first: {found[0]}"
                    )
                used = next((other for other in good if other > place), good[0])
                told = f"{picture} {samples[used][0].name} stands in for it."
                warnings.warn(told, DataWarning, stacklevel=2)
            pictures.append(found[used])
            targets.append(samples[used][1])
        indices = np.array([index for _, _, index in samples])
        return self.pipeline.finish(pictures, keys(seed, epoch, indices)), torch.tensor(targets)

    def _prepared(self, file: NamedFile) -> np.ndarray | DataError:
        try:
            image = read_image(file, in_chans=self.pipeline.in_chans, max_pixels=self.pipeline.max_pixels)
            return self.pipeline.prepare(image)
        except DataError as error:
            if not self.skip_bad:
                raise
            return error


def digest(sides: Sequence[StreamSet]) -> str:
    """Return a hash of the names and lengths of the shards on each side."""
    lines = [
        f"{number}\0{name}\0{length}"
        for number, side in enumerate(sides)
        for name, length in zip(side.files.names, side.files.lengths.tolist(), strict=True)
    ]
    return blake2b("\n".join(lines).encode(errors="surrogateescape"), digest_size=16).hexdigest()
