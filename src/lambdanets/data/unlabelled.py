"""Images without labels: all that a folder holds, named from its root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from .errors import DataError
from .folder import IMAGE_SUFFIXES, existing
from .images import read_image
from .pictures import Pictures


class FolderPictures:
    """Image files of a folder, named from its root; all are of class 0 until somebody knows better."""

    def __init__(self, root: str, names: np.ndarray, in_chans: int):
        self.root, self.names, self.in_chans = root, names, in_chans
        self.targets = np.zeros(len(names), np.int64)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Image.Image:
        return read_image(os.path.join(self.root, self.path(index)), in_chans=self.in_chans)

    def path(self, index: int) -> str:
        return os.fsdecode(self.names[index])

    def subset(self, indices: np.ndarray) -> FolderPictures:
        made = FolderPictures(self.root, self.names[indices], self.in_chans)
        made.targets = self.targets[indices]
        return made


def open_pictures(source: str, in_chans: int = 3) -> Pictures:
    """Find all images of a source, whatever the folders they are in.

    Args:
        source: "folder:PATH".
        in_chans: 3 for RGB, 1 for grey.

    Returns:
        The pictures in the order of their names, which `path` gives from the root of the source.

    Raises:
        DataError: there is no such folder, or it holds no images.
    """
    kind, _, root = source.partition(":")
    if kind != "folder" or not root:
        raise DataError(f"images without labels come from folder:PATH, got {source!r}.")
    path = existing(root)
    names = sorted(_names(path))
    if not names:
        raise DataError(f"{path} holds no images.")
    return FolderPictures(str(path), np.array([os.fsencode(name) for name in names], np.bytes_), in_chans)


def _names(path: Path) -> Iterator[str]:
    for folder, inner, files in os.walk(path):
        inner[:] = [name for name in inner if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                yield os.path.relpath(os.path.join(folder, name), path).replace(os.sep, "/")
