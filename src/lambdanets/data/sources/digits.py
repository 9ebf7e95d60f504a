"""The source `digits`: scanned handwritten digits, a file of the package.

They are the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, UCI Machine
Learning Repository, 1998, CC BY 4.0; see NOTICE), in the order of the UCI repository and of scikit-learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..config import DataConfig
from ..image_source import ArrayImages
from .folder import split_rows
from .protocol import ImageSplits, IndexedSource

INK = 16  # largest pixel


class DigitsSource(IndexedSource):
    """1,797 grey scans of 8 x 8 pixels, a file of the package."""

    form = "digits"
    help = "1,797 scanned handwritten digits, 8x8 pixels; part of the installation"
    statistics = ((0.305,), (0.376,))  # over all digits, with 0 for paper and 1 for ink

    def open(self, config: DataConfig, *, seed: int, classes: Sequence[str] | None = None) -> ImageSplits:
        pixels, targets = read_digits()
        arrays = np.round(pixels * (255 / INK)).astype(np.uint8)
        names = [f"digits#{index:04d}" for index in range(len(arrays))]
        train, val = (
            ArrayImages(arrays[rows], targets[rows], [names[row] for row in rows], config.in_chans)
            for rows in split_rows(targets, names, config.val_fraction, seed)
        )
        return ImageSplits(train, val, tuple("0123456789"))


def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels, uint8 from 0 to 16 `[1797, 8, 8]`, and the labels, int64 `[1797]`."""
    with np.load(Path(__file__).with_name("digits.npz")) as arrays:
        return arrays["pixels"], arrays["labels"].astype(np.int64)
