"""Where decoded pictures come from, one random-access collection for each kind of source."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from io import BytesIO
from typing import Any, Protocol

import numpy as np
from PIL import Image

from .config import MAX_PIXELS
from .errors import DataError
from .files import open_regular
from .images import UNREADABLE, as_mode, check_image, header, read_image, reason


class Pictures(Protocol):
    """Pictures with a class each.

    `read` raises DataError where a picture cannot be decoded. `encoded` gives its file as it is, and the
    suffix that belongs to it; where there is none, a PNG of the picture. `path` is for people; `place` is one
    for each image, from whichever folder it was found.
    """

    targets: np.ndarray

    def __len__(self) -> int: ...
    def read(self, index: int) -> Image.Image: ...
    def encoded(self, index: int) -> tuple[bytes, str]: ...
    def path(self, index: int) -> str: ...
    def place(self, index: int) -> str: ...
    def subset(self, indices: np.ndarray) -> Pictures: ...


def real(path: str) -> str:
    """Return where a file really lies; its folder is looked up once."""
    if os.path.islink(path):
        return os.path.realpath(path)
    folder, name = os.path.split(path)
    return os.path.join(_real(folder), name)


@lru_cache(4096)
def _real(folder: str) -> str:
    return os.path.realpath(folder)


class ArrayPictures:
    """Pictures that are an array already.

    Args:
        arrays: uint8 of shape (n, height, width), grey.
        targets: classes of shape (n,).
        names: one for each picture, shown instead of a path.
    """

    def __init__(self, arrays: np.ndarray, targets: np.ndarray, names: Sequence[str], in_chans: int):
        self.arrays, self.targets, self.names, self.in_chans = arrays, targets, list(names), in_chans

    def __len__(self) -> int:
        return len(self.arrays)

    def read(self, index: int) -> Image.Image:
        return as_mode(Image.fromarray(self.arrays[index]), self.in_chans)

    def encoded(self, index: int) -> tuple[bytes, str]:
        return _png(Image.fromarray(self.arrays[index]))

    def path(self, index: int) -> str:
        return self.names[index]

    def place(self, index: int) -> str:
        return self.path(index)

    def subset(self, indices: np.ndarray) -> ArrayPictures:
        names = [self.names[index] for index in indices]
        return ArrayPictures(self.arrays[indices], self.targets[indices], names, self.in_chans)


class FilePictures:
    """Image files with a class each.

    Args:
        paths: of the files.
        targets: classes, one for each path.
        in_chans: 3 for RGB, 1 for grey.
        max_pixels: larger images are refused.
    """

    def __init__(
        self, paths: Sequence[str], targets: Sequence[int], in_chans: int, max_pixels: int = MAX_PIXELS
    ):
        # One array of bytes instead of a million strings: forked workers share it without copying, as no
        # reference is counted when it is read.
        self.names = np.array([os.fsencode(path) for path in paths], dtype=np.bytes_)
        self.targets = np.asarray(targets, dtype=np.int64)
        self.in_chans, self.max_pixels = in_chans, max_pixels

    def __len__(self) -> int:
        return len(self.names)

    def file(self, index: int) -> str:
        """Return where the file is."""
        return self.path(index)

    def read(self, index: int) -> Image.Image:
        return read_image(self.file(index), in_chans=self.in_chans, max_pixels=self.max_pixels)

    def check(self, index: int) -> None:
        """Find out what `read` would say."""
        check_image(self.file(index), max_pixels=self.max_pixels)

    def encoded(self, index: int) -> tuple[bytes, str]:
        path = self.file(index)
        try:
            with open_regular(path) as file:
                return file.read(), os.path.splitext(path)[1].lower()
        except OSError as error:
            raise DataError(f"cannot read {path}: {reason(error)}.") from error

    def path(self, index: int) -> str:
        return os.fsdecode(self.names[index])

    def place(self, index: int) -> str:
        return real(self.file(index))

    def subset(self, indices: np.ndarray) -> FilePictures:
        paths = [self.path(index) for index in indices]
        return FilePictures(paths, self.targets[indices].tolist(), self.in_chans, self.max_pixels)


class DatasetPictures:
    """A random-access data set of torchvision or of timm.

    Args:
        data_set: gives (image, target) pairs; a timm ImageDataset is read past its own decoding, which would
            replace damaged images silently.
        indices: the part of it that is used.
        targets: classes of shape (n,), one for each index.
        in_chans: 3 for RGB, 1 for grey.
        name: of the data set, for messages.
        max_pixels: larger images are refused, where the data set gives files.
    """

    def __init__(
        self,
        data_set: Any,
        indices: np.ndarray,
        targets: np.ndarray,
        in_chans: int,
        name: str,
        max_pixels: int = MAX_PIXELS,
    ):
        self.data_set, self.indices, self.targets = data_set, indices, targets
        self.in_chans, self.name, self.max_pixels = in_chans, name, max_pixels

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Image.Image:
        with self._naming(index):
            image = self._stored(index)
            if isinstance(image, Image.Image):
                return as_mode(image, self.in_chans)
            with image:
                return read_image(image, in_chans=self.in_chans, max_pixels=self.max_pixels)

    def encoded(self, index: int) -> tuple[bytes, str]:
        with self._naming(index):
            image = self._stored(index)
            if isinstance(image, Image.Image):
                return _png(as_mode(image, 1 if image.mode in ("1", "L") else 3))
            with image:
                content = image.read()
            return content, f".{header(BytesIO(content), self.max_pixels).format}".lower()

    def _stored(self, index: int) -> Any:
        return getattr(self.data_set, "reader", self.data_set)[int(self.indices[index])][0]

    def _empty(self, index: int) -> bool:
        """Whether a row of Hugging Face's has no image, which timm's reader takes for granted."""
        reader: Any = getattr(self.data_set, "reader", self.data_set)
        if not hasattr(reader, "image_key"):
            return False
        image = reader.dataset[int(self.indices[index])][reader.image_key]
        return image is None or not (image["bytes"] or image["path"])

    @contextmanager
    def _naming(self, index: int) -> Iterator[None]:
        try:
            yield
        except DataError as error:
            raise DataError(f"cannot read {self.path(index)}: {str(error).rpartition(': ')[2]}") from error
        except (*UNREADABLE, AssertionError) as error:
            why = "the row has no image" if self._empty(index) else reason(error)
            raise DataError(f"cannot read {self.path(index)}: {why}.") from error

    def path(self, index: int) -> str:
        if hasattr(self.data_set, "filename"):
            with suppress(TypeError):  # where a row has no image
                if name := self.data_set.filename(int(self.indices[index])):
                    return str(name)
        return self.place(index)

    def place(self, index: int) -> str:
        return f"{self.name}#{int(self.indices[index])}"

    def subset(self, indices: np.ndarray) -> DatasetPictures:
        rest, targets = self.indices[indices], self.targets[indices]
        return DatasetPictures(self.data_set, rest, targets, self.in_chans, self.name, self.max_pixels)


def _png(image: Image.Image) -> tuple[bytes, str]:
    file = BytesIO()
    image.save(file, "PNG", exif=b"")  # the picture is as it is shown; an orientation would turn it again
    return file.getvalue(), ".png"
