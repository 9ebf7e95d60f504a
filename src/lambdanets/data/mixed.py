"""Labelled and pseudo-labelled images in every batch, in a given ratio."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .config import DataConfig
from .errors import DataError
from .image_set import ImageSet
from .randomness import derived_seed

PSEUDO = "pseudo"


class MixedSet(Dataset):
    """Two sets as one: indices from `len(labelled)` on are those of pseudo-labelled images.

    Args:
        labelled: images whose labels are known.
        pseudo: images labelled by a network, with the same classes.
    """

    def __init__(self, labelled: ImageSet, pseudo: ImageSet):
        self.labelled, self.pseudo = labelled, pseudo
        self.classes = labelled.classes

    def __len__(self) -> int:
        return len(self.labelled) + len(self.pseudo)

    @property
    def targets(self) -> np.ndarray:
        """Class index of each sample, int64 of shape [n]."""
        return np.concatenate([self.labelled.targets, self.pseudo.targets])

    @property
    def skipped(self) -> tuple[str, ...]:
        """One sentence for each image that was left out."""
        return (*self.labelled.skipped, *self.pseudo.skipped)

    @property
    def immediate(self) -> bool:
        """Whether making a batch costs less than sending it from a worker process."""
        return self.labelled.immediate and self.pseudo.immediate

    def path(self, index: int) -> str:
        """Return the file, or another name, of a sample."""
        own = len(self.labelled)
        return self.labelled.path(index) if index < own else self.pseudo.path(index - own)

    def batch(self, indices: np.ndarray, epoch: int | np.ndarray = 0, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Return several samples, the labelled ones first.

        Args:
            indices: b of them.
            epoch: index of the pass over the sample's own set: one for all samples, or an array of shape [b].
            seed: seed of the run.

        Returns:
            float32 images of shape [b, channels, image_size, image_size], int64 targets of shape [b].
        """
        rows = np.asarray(indices, dtype=np.intp)
        epochs = np.broadcast_to(epoch, rows.shape)
        own = rows < len(self.labelled)
        images, targets = self.labelled.batch(rows[own], epochs[own], seed)
        # With the run's seed, images of equal index and pass would get the same augmentation in both sets.
        others = rows[~own] - len(self.labelled)
        more, labels = self.pseudo.batch(others, epochs[~own], derived_seed(seed, PSEUDO))
        return torch.cat([images, more]), torch.cat([targets, labels])


def batch_sizes(config: DataConfig) -> tuple[int, int]:
    """Return the numbers of labelled and of pseudo-labelled images in a batch of one process.

    Raises:
        DataError: one of them would be 0.
    """
    size, ratio = config.batch_size, config.pseudo_ratio
    labelled = round(size / (1 + ratio))
    if not 0 < labelled < size:
        missing = "labelled" if labelled == 0 else "pseudo-labelled"
        raise DataError(
            f"a batch of {size} images at data.pseudo_ratio={ratio:g} has no {missing} one; "
            "take a larger data.batch_size or a ratio nearer to 1."
        )
    return labelled, size - labelled
