"""One split of a source, as a model sees it: each sample a function of (seed, epoch, index)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .errors import DataError, DataWarning
from .pictures import Pictures
from .randomness import keys
from .tar import TarPictures
from .transforms import Pipeline

ORDER_NEEDS_TAR = "data.order 'shards' needs images in tar archives, tar:PATH; elsewhere it is 'global'."
SMALL = 64  # pixels on a side


class ImageSet(Dataset):
    """Pictures, their classes, and the pipeline that makes tensors of them.

    Args:
        pictures: the source.
        pipeline: from picture to tensor; it decides whether samples vary.
        classes: names, in the order of the targets.
        skip_bad: put its neighbour in the place of a picture that cannot be decoded, with a warning, instead
            of raising.
    """

    exact_resume = True

    def __init__(
        self, pictures: Pictures, pipeline: Pipeline, classes: Sequence[str], *, skip_bad: bool = False
    ):
        self.pictures = pictures
        self.pipeline = pipeline
        self.classes = tuple(classes)
        self.skip_bad = skip_bad
        self.kept: Sequence[np.ndarray] | np.ndarray | None = None
        self.skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def targets(self) -> np.ndarray:
        """Class of each sample, of shape (n,)."""
        return self.pictures.targets

    @property
    def shards(self) -> np.ndarray:
        """Number of the archive of each sample, of shape (n,), where they come from archives."""
        if not isinstance(self.pictures, TarPictures):
            raise DataError(ORDER_NEEDS_TAR)
        return self.pictures.shards

    @property
    def immediate(self) -> bool:
        """Whether a batch costs less to make than to send over from a worker."""
        return self.kept is not None and self.pipeline.light and self.pipeline.image_size <= SMALL

    def path(self, index: int) -> str:
        """Return the file (or the name) a sample comes from."""
        return self.pictures.path(index)

    def item(self, index: int, epoch: int = 0, seed: int = 0) -> tuple[Tensor, int]:
        """Return one sample.

        Args:
            index: from 0 to len - 1.
            epoch: counted from 0; with the seed and the index it decides the random changes.
            seed: of the run.

        Returns:
            A float32 image of shape (channels, image_size, image_size), and its class.
        """
        images, targets = self.batch([index], epoch, seed)
        return images[0], int(targets[0])

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.item(index)

    def batch(
        self, indices: Sequence[int] | np.ndarray, epoch: int | np.ndarray = 0, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Return several samples, of one epoch or of one each.

        Returns:
            Images of shape (b, channels, image_size, image_size), int64 targets of shape (b,).
        """
        rows = np.asarray(indices, dtype=np.intp)
        if isinstance(self.kept, np.ndarray):
            pictures, used = self.kept[rows], rows
        else:
            pairs = [self._read(int(row)) for row in rows]
            pictures, used = [picture for picture, _ in pairs], np.array([index for _, index in pairs])
        images = self.pipeline.finish(pictures, keys(seed, epoch, rows))
        return images, torch.from_numpy(self.targets[used])

    def _read(self, index: int) -> tuple[np.ndarray, int]:
        if self.kept is not None:
            return self.kept[index], index
        try:
            return self.prepared(index), index
        except DataError as error:
            if not self.skip_bad:
                raise
            for step in range(1, len(self)):
                other = (index + step) % len(self)
                try:
                    picture = self.prepared(other)
                except DataError:
                    continue
                told = f"{error} {self.path(other)} stands in for it."
                warnings.warn(told, DataWarning, stacklevel=2)
                return picture, other
            raise DataError(f"not one of the {len(self)} images can be read; the first: {error}") from error

    def leave_out(self, bad: dict[int, str]) -> list[str]:
        """Drop samples for good, with a reason each; those behind them move up.

        Returns:
            The classes that have no samples any more.
        """
        rest = np.setdiff1d(np.arange(len(self)), list(bad))
        emptied = sorted(set(self.targets.tolist()) - set(self.targets[rest].tolist()))
        if isinstance(self.kept, np.ndarray):
            self.kept = self.kept[rest]
        elif self.kept is not None:
            self.kept = [self.kept[index] for index in rest]
        self.pictures = self.pictures.subset(rest)
        self.skipped = (*self.skipped, *(bad[index] for index in sorted(bad)))
        return [self.classes[target] for target in emptied]

    def prepared(self, index: int) -> np.ndarray:
        """Decode one picture and do what does not change between epochs."""
        return self.pipeline.prepare(self.pictures.read(index))
