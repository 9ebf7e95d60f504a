"""One split of a source for a classifier: each sample is a function of (seed, epoch, index)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .balance import class_counts
from .errors import DataError, DataWarning
from .image_source import ImageSource
from .randomness import keys
from .transforms import Pipeline

ORDER_NEEDS_SHARDS = "data.order 'shards' needs images in tar archives, tar:PATH; elsewhere it is 'global'."
MAX_IMMEDIATE_SIZE = 64  # height and width in pixels up to which cached batches are made without workers


class ImageSet(Dataset):
    """Images with a class each, and the pipeline that turns them into tensors.

    Args:
        images: images of one split.
        pipeline: transforms from an image to a tensor; it decides whether samples are augmented.
        classes: names, in the order of the targets.
        skip_bad: replace an image that cannot be decoded by its neighbour, with a warning, instead of
            raising.

    Attributes:
        cached: all prepared images, if they are in memory: uint8 of shape [n, height, width, channels], or a
            list of such arrays without n where their sizes differ.
        skipped: one sentence for each image that was left out.
    """

    def __init__(
        self, images: ImageSource, pipeline: Pipeline, classes: Sequence[str], *, skip_bad: bool = False
    ):
        self.images = images
        self.pipeline = pipeline
        self.classes = tuple(classes)
        self.skip_bad = skip_bad
        self.cached: Sequence[np.ndarray] | np.ndarray | None = None
        self.skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def targets(self) -> np.ndarray:
        """Class index of each sample, int64 of shape [n]; with several labels 0 and 1, [n, classes]."""
        return self.images.targets

    @property
    def shards(self) -> np.ndarray:
        """Index of the archive of each sample, of shape [n].

        Raises:
            DataError: the images are not in archives.
        """
        if self.images.shards is None:
            raise DataError(ORDER_NEEDS_SHARDS)
        return self.images.shards

    @property
    def immediate(self) -> bool:
        """Whether making a batch costs less than sending it from a worker process."""
        return (
            self.cached is not None and self.pipeline.light and self.pipeline.image_size <= MAX_IMMEDIATE_SIZE
        )

    def path(self, index: int) -> str:
        """Return the file, or another name, of a sample."""
        return self.images.path(index)

    def item(self, index: int, epoch: int = 0, seed: int = 0) -> tuple[Tensor, int | Tensor]:
        """Return one sample.

        Args:
            index: from 0 to len - 1.
            epoch: counted from 0; with the seed and the index it decides the augmentation.
            seed: seed of the run.

        Returns:
            A float32 image of shape [channels, image_size, image_size], and its class index; with several
            labels float32 of shape [classes].
        """
        images, targets = self.batch([index], epoch, seed)
        return images[0], int(targets[0]) if targets.ndim == 1 else targets[0]

    def __getitem__(self, index: int) -> tuple[Tensor, int | Tensor]:
        return self.item(index)

    def batch(
        self, indices: Sequence[int] | np.ndarray, epoch: int | np.ndarray = 0, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Return several samples.

        Args:
            indices: b of them.
            epoch: one for all samples, or an array of shape [b].
            seed: seed of the run.

        Returns:
            float32 images of shape [b, channels, image_size, image_size], int64 targets of shape [b]; with
            several labels float32 targets of shape [b, classes].

        Raises:
            DataError: an image cannot be read; under `skip_bad`, no image of the set can be read.
        """
        rows = np.asarray(indices, dtype=np.intp)
        if isinstance(self.cached, np.ndarray):
            prepared, used = self.cached[rows], rows
        else:
            pairs = [self._read(int(row)) for row in rows]
            prepared, used = [image for image, _ in pairs], np.array([index for _, index in pairs])
        images = self.pipeline.finish(prepared, keys(seed, epoch, rows))
        targets = torch.from_numpy(self.targets[used])
        return images, targets if targets.ndim == 1 else targets.float()

    def _read(self, index: int) -> tuple[np.ndarray, int]:
        """Return a prepared image and its index; under `skip_bad`, those of the next readable image."""
        if self.cached is not None:
            return self.cached[index], index
        try:
            return self.prepared(index), index
        except DataError as error:
            if not self.skip_bad:
                raise
            for step in range(1, len(self)):
                other = (index + step) % len(self)
                try:
                    image = self.prepared(other)
                except DataError:
                    continue
                warnings.warn(f"{error} {self.path(other)} stands in for it.", DataWarning, stacklevel=2)
                return image, other
            raise DataError(f"not one of the {len(self)} images can be read; the first: {error}") from error

    def leave_out(self, bad: dict[int, str]) -> list[str]:
        """Remove samples permanently; the indices of the samples behind them become lower.

        Args:
            bad: the reason for each, by index.

        Returns:
            The names of the classes that have lost all their samples.
        """
        rest = np.setdiff1d(np.arange(len(self)), list(bad))
        before, after = (class_counts(each, len(self.classes)) for each in (self.targets, self.targets[rest]))
        if isinstance(self.cached, np.ndarray):
            self.cached = self.cached[rest]
        elif self.cached is not None:
            self.cached = [self.cached[index] for index in rest]
        self.images = self.images.subset(rest)
        self.skipped = (*self.skipped, *(bad[index] for index in sorted(bad)))
        return [self.classes[target] for target in np.flatnonzero((before > 0) & (after == 0))]

    def prepared(self, index: int) -> np.ndarray:
        """Decode one image and apply the transforms that are the same in every epoch.

        Returns:
            uint8 of shape [height, width, channels].
        """
        return self.pipeline.prepare(self.images.read(index))
