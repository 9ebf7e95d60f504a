"""Images read out of tar archives at random places, as they stand: nothing is unpacked."""

from __future__ import annotations

import os
from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image

from .config import MAX_PIXELS
from .errors import DataError
from .files import regular
from .images import check_image, read_image, reason
from .pictures import real
from .tar_index import read_members
from .tar_paths import all_shards
from .tar_scan import Members

OPEN = 64  # shards that one process keeps open


class TarPictures:
    """Images inside tar archives, with a class each.

    Args:
        root: the folder from which the archives are named.
        members: where the images lie.
        targets: classes of shape (n,).
        in_chans: 3 for RGB, 1 for grey.
        max_pixels: larger images are refused.
    """

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
        self._files = _Files(tuple(os.path.join(root, shard) for shard in members.shards))

    def __len__(self) -> int:
        return len(self.members)

    @property
    def shards(self) -> np.ndarray:
        """Which archive each image lies in, of shape (n,)."""
        return self.members.shard

    def read(self, index: int) -> Image.Image:
        return read_image(self.open(index), in_chans=self.in_chans, max_pixels=self.max_pixels)

    def check(self, index: int) -> None:
        """Find out what `read` would say."""
        check_image(self.open(index), max_pixels=self.max_pixels)

    def encoded(self, index: int) -> tuple[bytes, str]:
        return self.open(index).getvalue(), os.path.splitext(self.path(index))[1].lower()

    def open(self, index: int) -> Named:
        """Return an image's file, as it is in the archive, in memory."""
        members = self.members
        name = self.path(index)
        size = int(members.sizes[index])
        try:
            content = self._files.read(int(members.shard[index]), int(members.offsets[index]), size)
        except OSError as error:
            raise DataError(f"cannot read {name}: {reason(error)}.") from error
        if len(content) < size:
            raise DataError(f"cannot read {name}: the archive has become shorter.")
        return Named(content, name)

    def path(self, index: int) -> str:
        members = self.members
        return f"{members.shards[members.shard[index]]}#{os.fsdecode(members.names[index])}"

    def place(self, index: int) -> str:
        shard = self.members.shards[self.members.shard[index]]
        return f"{real(os.path.join(self.root, shard))}#{os.fsdecode(self.members.names[index])}"

    def subset(self, indices: np.ndarray) -> TarPictures:
        members, targets = self.members.take(indices), self.targets[indices]
        return TarPictures(self.root, members, targets, self.in_chans, self.max_pixels)


def unlabelled_tar(root: str, in_chans: int, max_pixels: int = MAX_PIXELS) -> TarPictures:
    """Return all images of tar archives, whatever their classes; every target is 0.

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
    folder, shards = all_shards(root)
    members = read_members(folder, shards, labelled=False)
    return TarPictures(folder, members, np.zeros(len(members), np.int64), in_chans, max_pixels)


class Named(BytesIO):
    """An image's file in memory, under the name that it is known by."""

    def __init__(self, content: bytes, name: str):
        super().__init__(content)
        self.name = name  # what a reader's complaint calls it


class _File:
    """One open archive; it is closed when nobody reads from it any more, in whichever thread that is."""

    def __init__(self, path: str):
        self.number = regular(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class _Files:
    """Archives that are opened when they are first read.

    `pread` has no position that threads or forked workers could move for one another.
    """

    def __init__(self, paths: tuple[str, ...]):
        self.paths = paths
        self._opened = lru_cache(OPEN)(_File)

    def __reduce__(self) -> tuple[type[_Files], tuple[tuple[str, ...]]]:
        return _Files, (self.paths,)  # a spawned worker opens its own

    def read(self, shard: int, offset: int, size: int) -> bytes:
        file = self._opened(self.paths[shard])  # held here, so that no other thread closes it meanwhile
        return os.pread(file.number, size, offset)
