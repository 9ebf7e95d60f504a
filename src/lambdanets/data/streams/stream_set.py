"""A set that is read in sequence: files of samples, each from its beginning to its end."""

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

Sample = tuple[NamedFile, int, int]  # image file, class, and index in the set


class SampleFiles(Protocol):
    """Files that hold samples one after the other.

    Attributes:
        names: names of the files.
        lengths: number of samples in each file, of shape [files].
    """

    names: tuple[str, ...]
    lengths: np.ndarray

    def read(self, number: int, rows: np.ndarray) -> Iterator[tuple[NamedFile, int]]:
        """Yield the image file and the class index of some samples of one file.

        Args:
            number: index of the file.
            rows: indices of the samples in the file, ascending.
        """
        ...


class StreamSet:
    """The samples of files in sequence: one file after the other, each from its beginning to its end.

    In training, each epoch has its own order of the files and starts at its own position of that sequence,
    which is circular; the samples of each lane of a `StreamShard` are shuffled locally. The content of a
    batch is a function of (seed, epoch, number of the batch, rank), the augmentation of a sample one of
    (seed, epoch, sample).

    Args:
        files: the files of samples.
        pipeline: transforms from an image to a tensor.
        classes: names, in the order of the targets.
        train: shuffle the samples; the pipeline augments them.
        skip_bad: replace an image that cannot be decoded by another of its batch, with a warning, instead
            of raising.
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
        self._first = np.cumsum(files.lengths) - files.lengths  # index of the first sample of each file

    def __len__(self) -> int:
        return int(self.files.lengths.sum())

    def batches(
        self, shard: StreamShard, number: int, *, step: int, epoch: int = 0, seed: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches `number`, `number + step`, `number + 2 * step`, ... of a shard.

        Args:
            shard: shard of the process.
            number: number of the first batch.
            step: a multiple of the number of lanes, so that all batches are of one lane.
            epoch: counted from 0.
            seed: seed of the run.

        Yields:
            float32 images of shape [b, channels, image_size, image_size], int64 targets of shape [b].
        """
        positions = shard.lane(number % shard.lanes)
        if self.train:
            positions = jittered(seed, epoch, positions, REACH)
        size = shard.batch_size
        starts = range(number // shard.lanes * size, len(positions), step // shard.lanes * size)
        batches = [positions[start : start + size] for start in starts]
        # Samples are read in ascending order; those that belong to later batches are held in `read`.
        ascending = np.sort(np.concatenate(batches))
        samples = zip(ascending.tolist(), self._read(ascending, epoch, seed), strict=True)
        read: dict[int, Sample] = {}
        for batch in batches:
            for position in batch.tolist():
                while position not in read:
                    read.update([next(samples)])
            yield self._collated([read.pop(position) for position in batch.tolist()], epoch, seed)

    def _read(self, positions: np.ndarray, epoch: int, seed: int) -> Iterator[Sample]:
        """Yield the samples at ascending positions of an epoch's sequence."""
        order = np.arange(len(self.files.lengths))
        if self.train:
            positions = (positions + beginning(seed, epoch, len(self))) % len(self)
            order = shard_order(seed, epoch, order)
        ends = np.cumsum(self.files.lengths[order])
        visit = np.searchsorted(ends, positions, side="right")
        # The circular sequence may end in the file in which it began: that is a second visit.
        new = (np.diff(visit) != 0) | (np.diff(positions) < 0)
        for some in np.split(np.arange(len(positions)), 1 + np.flatnonzero(new)):
            number = int(order[visit[some[0]]])
            rows = positions[some] - (ends[visit[some[0]]] - self.files.lengths[number])
            indices = (self._first[number] + rows).tolist()
            for index, (file, target) in zip(indices, self.files.read(number, rows), strict=True):
                yield file, target, index

    def _collated(self, samples: Sequence[Sample], epoch: int, seed: int) -> tuple[Tensor, Tensor]:
        """Decode and augment the samples of a batch; replace those that cannot be decoded."""
        found = [self._prepared(file) for file, _, _ in samples]
        good = [row for row, image in enumerate(found) if not isinstance(image, DataError)]
        images, targets = [], []
        for row, image in enumerate(found):
            used = row
            if isinstance(image, DataError):
                if not good:
                    raise DataError(
                        f"not one of the {len(found)} images of a batch can be read; the first: {found[0]}"
                    )
                used = next((other for other in good if other > row), good[0])
                replaced = f"{image} {samples[used][0].name} stands in for it."
                warnings.warn(replaced, DataWarning, stacklevel=2)
            images.append(found[used])
            targets.append(samples[used][1])
        indices = np.array([index for _, _, index in samples])
        return self.pipeline.finish(images, keys(seed, epoch, indices)), torch.tensor(targets)

    def _prepared(self, file: NamedFile) -> np.ndarray | DataError:
        try:
            image = read_image(file, in_chans=self.pipeline.in_chans, max_pixels=self.pipeline.max_pixels)
            return self.pipeline.prepare(image)
        except DataError as error:
            if not self.skip_bad:
                raise
            return error


def digest(sides: Sequence[StreamSet]) -> str:
    """Return a hash of the names and lengths of the files of each set, in order."""
    lines = [
        f"{number}\0{name}\0{length}"
        for number, side in enumerate(sides)
        for name, length in zip(side.files.names, side.files.lengths.tolist(), strict=True)
    ]
    return blake2b("\n".join(lines).encode(errors="surrogateescape"), digest_size=16).hexdigest()
