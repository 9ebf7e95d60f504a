"""The source `digits`: the handwritten digits of scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..config import DataConfig
from ..image_source import ArrayImages
from .folder import split_rows
from .protocol import ImageSplits, IndexedSource


class DigitsSource(IndexedSource):
    """1,797 grey scans of 8 x 8 pixels, part of scikit-learn's installation."""

    form = "digits"
    help = "scikit-learn's 1,797 scanned handwritten digits, 8x8 pixels; part of the installation"
    package = ("sklearn", "'lambdanets[train]'")
    statistics = ((0.305,), (0.376,))  # over all digits, with 0 for paper and 1 for ink

    def open(self, config: DataConfig, *, seed: int, classes: Sequence[str] | None = None) -> ImageSplits:
        from sklearn.datasets import load_digits

        pixels, targets = (np.asarray(array) for array in load_digits(return_X_y=True))
        arrays = np.round(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        names = [f"digits#{index:04d}" for index in range(len(arrays))]
        train, val = (
            ArrayImages(arrays[rows], targets[rows], [names[row] for row in rows], config.in_chans)
            for rows in split_rows(targets, names, config.val_fraction, seed)
        )
        return ImageSplits(train, val, tuple("0123456789"))
