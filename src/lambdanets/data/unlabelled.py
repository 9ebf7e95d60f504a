"""Images without labels: all that a source holds, named from its root."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from .config import MAX_PIXELS
from .errors import DataError
from .files import find_images, warn_left_out
from .folder import TRAIN_NAMES, VAL_NAMES, existing, relative
from .images import IMAGE_SUFFIXES
from .pictures import FilePictures, Pictures
from .tar import unlabelled_tar
from .tar_paths import SUFFIX, side_word


class FolderPictures(FilePictures):
    """Image files named from the root of their folder."""

    def __init__(
        self, root: str, names: Sequence[str], targets: Sequence[int], in_chans: int, max_pixels: int
    ):
        super().__init__(names, targets, in_chans, max_pixels)
        self.root = root

    def file(self, index: int) -> str:
        return os.path.join(self.root, self.path(index))

    def subset(self, indices: np.ndarray) -> FolderPictures:
        names = [self.path(index) for index in indices]
        targets = self.targets[indices].tolist()
        return FolderPictures(self.root, names, targets, self.in_chans, self.max_pixels)


def open_pictures(source: str, in_chans: int = 3, max_pixels: int = MAX_PIXELS) -> Pictures:
    """Find all images of a source, whatever their classes.

    Args:
        source: "folder:PATH", with images in any folders, or "tar:PATH".
        in_chans: 3 for RGB, 1 for grey.
        max_pixels: larger images are refused when they are read.

    Returns:
        The pictures, all of class 0, with the names that `path` gives from the root of the source; those of a
        folder in the order of their names.

    Raises:
        DataError: there is no such source, or it holds no images.
    """
    kind, _, root = source.partition(":")
    if kind == "tar" and root:
        return unlabelled_tar(root, in_chans, max_pixels)
    if kind != "folder" or not root:
        raise DataError(f"images without labels come from folder:PATH or tar:PATH, got {source!r}.")
    path = existing(root)
    found = find_images(str(path), IMAGE_SUFFIXES)
    if not found.images:
        raise DataError(f"{path} holds no images.")
    warn_left_out(str(path), found.others, found.stray)
    names = sorted(relative(name, path) for name in found.images)
    return FolderPictures(str(path), names, [0] * len(names), in_chans, max_pixels)


def training_side(names: Sequence[str]) -> list[int] | None:
    """Find the images on the training side of a source that is split.

    Args:
        names: of its images, as `open_pictures` names them. Their first folder is their side, such as train/
            or val/; else, in archives, a word of the archive's name.

    Returns:
        Places among the names; None where there are no training images, or no validation images.
    """
    sides = list(map(_side, names))
    if set(sides).isdisjoint(TRAIN_NAMES) or set(sides).isdisjoint(VAL_NAMES):
        return None
    return [index for index, side in enumerate(sides) if side in TRAIN_NAMES]


def _side(name: str) -> str:
    place, archived, _ = name.partition(f"{SUFFIX}#")
    folder, inside, _ = place.lower().partition("/")
    if inside and folder in (*TRAIN_NAMES, *VAL_NAMES):
        return folder
    return side_word(place) if archived else ""
