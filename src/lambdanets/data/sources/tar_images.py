"""Images inside tar archives, read with random access and without unpacking."""

from __future__ import annotations

import os
from functools import lru_cache

import numpy as np
from PIL import Image

from ..config import MAX_PIXELS
from ..errors import DataError
from ..files import regular_opener
from ..image_source import ImageSource, real_path
from ..images import NamedFile, check_image, read_image, reason
from .tar_index import read_members
from .tar_paths import find_all_archives
from .tar_scan import Members

MAX_OPEN = 64  # archives that one process keeps open


class TarImages(ImageSource):
    """Images inside tar archives, with a class each.

    Args:
        root: the folder from which the archives are named.
        members: names, offsets and sizes of the images in the archives.
        targets: class indices of shape [n].
        in_chans: 3 for RGB, 1 for grey.
        max_pixels: larger images are refused.
    """

    checkable = True

    def __init__(
        self,
        root: str,
        members: Members,
        targets: np.ndarray,
        in_chans: int,
        max_pixels: int = MAX_PIXELS,
    ):
        self.root, self.members, self.in_chans, self.max_pixels = root, members, in_chans, max_pixels
        self.targets = np.asarray(targets, dtype=np.int64)
        self.shards = members.shard
        self._files = _Files(tuple(os.path.join(root, shard) for shard in members.shards))

    def __len__(self) -> int:
        return len(self.members)

    def read(self, index: int) -> Image.Image:
        return read_image(self.open(index), in_chans=self.in_chans, max_pixels=self.max_pixels)

    def check(self, index: int) -> None:
        check_image(self.open(index), max_pixels=self.max_pixels)

    def encoded(self, index: int) -> tuple[bytes, str]:
        return self.open(index).getvalue(), os.path.splitext(self.path(index))[1].lower()

    def open(self, index: int) -> NamedFile:
        """Return the file of an image, as it is in the archive, in memory."""
        members = self.members
        name = self.path(index)
        size = int(members.sizes[index])
        try:
            content = self._files.read(int(members.shard[index]), int(members.offsets[index]), size)
        except OSError as error:
            raise DataError(f"cannot read {name}: {reason(error)}.") from error
        if len(content) < size:
            raise DataError(f"cannot read {name}: the archive has become shorter.")
        return NamedFile(content, name)

    def path(self, index: int) -> str:
        members = self.members
        return f"{members.shards[members.shard[index]]}#{os.fsdecode(members.names[index])}"

    def location(self, index: int) -> str:
        shard = self.members.shards[self.members.shard[index]]
        return f"{real_path(os.path.join(self.root, shard))}#{os.fsdecode(self.members.names[index])}"

    def subset(self, indices: np.ndarray) -> TarImages:
        members, targets = self.members.take(indices), self.targets[indices]
        return TarImages(self.root, members, targets, self.in_chans, self.max_pixels)


def unlabelled_tar(root: str, in_chans: int, max_pixels: int = MAX_PIXELS) -> TarImages:
    """Return all images of tar archives, without their classes; every target is 0.

    Args:
        root: a folder, searched with everything inside, one archive, or a pattern of them.
        in_chans: 3 for RGB, 1 for grey.
        max_pixels: larger images are refused when they are read.

    Raises:
        DataError: there are no archives, or one of them is damaged or holds no images.

    Example:
        >>> unlabelled_tar("/data/jft", in_chans=3).path(0)
        'jft-000000.tar#00000000.jpg'
    """
    folder, shards = find_all_archives(root)
    members = read_members(folder, shards, labelled=False)
    return TarImages(folder, members, np.zeros(len(members), np.int64), in_chans, max_pixels)


class _File:
    """One open archive; it is closed when the last thread that reads from it drops its reference."""

    def __init__(self, path: str):
        self.descriptor = regular_opener(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class _Files:
    """Archives that are opened when they are first read; at most `MAX_OPEN` stay open.

    `pread` does not use the position of the file, which threads and forked workers share.
    """

    def __init__(self, paths: tuple[str, ...]):
        self.paths = paths
        self._opened = lru_cache(MAX_OPEN)(_File)

    def __reduce__(self) -> tuple[type[_Files], tuple[tuple[str, ...]]]:
        return _Files, (self.paths,)  # a spawned worker opens its own

    def read(self, shard: int, offset: int, size: int) -> bytes:
        # This reference keeps the file open if another thread evicts it from the cache.
        file = self._opened(self.paths[shard])
        return os.pread(file.descriptor, size, offset)
