"""Collections of labelled images that can be read in any order: a class for each way of storing them."""

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


class ImageSource(Protocol):
    """Images with a class each, any of which can be read at any time.

    Attributes:
        targets: class indices, int64 of shape [n]; of images with several labels 0 and 1, [n, classes].
        checkable: whether `check` decodes an image, so that all can be checked before training starts; images
            of other sources are decoded only when they are read.
        shards: index of the archive that holds each image, of shape [n]; None if there are no archives.
    """

    targets: np.ndarray
    checkable: bool = False
    shards: np.ndarray | None = None

    def __len__(self) -> int: ...

    def read(self, index: int) -> Image.Image:
        """Decode an image.

        Returns:
            The upright image, of mode RGB or, for one channel, L.

        Raises:
            DataError: it cannot be decoded; the message names it.
        """
        ...

    def check(self, index: int) -> None:
        """Raise the DataError that `read` would raise, if any."""

    def encoded(self, index: int) -> tuple[bytes, str]:
        """Return the content of the image's file, and its suffix; a PNG where the source has no files."""
        ...

    def path(self, index: int) -> str:
        """Return the path or name of an image, for messages, fingerprints and files of labels."""
        ...

    def location(self, index: int) -> str:
        """Return a name that is the same for an image, whichever path or link leads to it."""
        ...

    def subset(self, indices: np.ndarray) -> ImageSource:
        """Return the images at some indices, in the order of the indices."""
        ...


def real_path(path: str) -> str:
    """Return the real path of a file; that of its folder is cached."""
    if os.path.islink(path):
        return os.path.realpath(path)
    folder, name = os.path.split(path)
    return os.path.join(_real_folder(folder), name)


@lru_cache(4096)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


class ArrayImages(ImageSource):
    """Images in an array.

    Args:
        arrays: uint8 of shape [n, height, width], grey.
        targets: class indices of shape [n].
        names: one for each image, used as its path.
        in_chans: channels of the images that `read` returns: 3 for RGB, 1 for grey.
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

    def location(self, index: int) -> str:
        return self.path(index)

    def subset(self, indices: np.ndarray) -> ArrayImages:
        names = [self.names[index] for index in indices]
        return ArrayImages(self.arrays[indices], self.targets[indices], names, self.in_chans)


class FileImages(ImageSource):
    """Image files with a class each.

    Args:
        paths: paths of the files.
        targets: class indices, one for each path; or 0 and 1 for each class, [n, classes].
        in_chans: 3 for RGB, 1 for grey.
        max_pixels: larger images are refused.
    """

    checkable = True

    def __init__(
        self,
        paths: Sequence[str],
        targets: Sequence[int] | np.ndarray,
        in_chans: int,
        max_pixels: int = MAX_PIXELS,
    ):
        # Forked workers share one array of bytes without copying it. A list of strings would be copied, as
        # reading an element changes its reference count.
        self.names = np.array([os.fsencode(path) for path in paths], dtype=np.bytes_)
        self.targets = np.asarray(targets, dtype=np.int64)
        self.in_chans, self.max_pixels = in_chans, max_pixels

    def __len__(self) -> int:
        return len(self.names)

    def file(self, index: int) -> str:
        """Return the path of the file."""
        return self.path(index)

    def read(self, index: int) -> Image.Image:
        return read_image(self.file(index), in_chans=self.in_chans, max_pixels=self.max_pixels)

    def check(self, index: int) -> None:
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

    def location(self, index: int) -> str:
        return real_path(self.file(index))

    def subset(self, indices: np.ndarray) -> FileImages:
        paths = [self.path(index) for index in indices]
        return FileImages(paths, self.targets[indices], self.in_chans, self.max_pixels)


class FolderImages(FileImages):
    """Image files whose `path` is relative to the folder `root`; `file` is the whole path."""

    def __init__(
        self, root: str, names: Sequence[str], targets: Sequence[int], in_chans: int, max_pixels: int
    ):
        super().__init__(names, targets, in_chans, max_pixels)
        self.root = root

    def file(self, index: int) -> str:
        return os.path.join(self.root, self.path(index))

    def subset(self, indices: np.ndarray) -> FolderImages:
        names = [self.path(index) for index in indices]
        targets = self.targets[indices].tolist()
        return FolderImages(self.root, names, targets, self.in_chans, self.max_pixels)


class DatasetImages(ImageSource):
    """A random-access data set of torchvision or of timm.

    Args:
        data_set: data set of (image, target) pairs. The reader of a timm ImageDataset is used directly: the
            data set itself would replace damaged images silently.
        indices: indices into `data_set` of the samples of this split.
        targets: class indices of shape [n], one for each of `indices`.
        in_chans: 3 for RGB, 1 for grey.
        name: name of the data set, for messages.
        max_pixels: larger images are refused, where the data set returns files.
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
        """Return whether a row of a Hugging Face data set has no image; timm's reader expects one."""
        reader: Any = getattr(self.data_set, "reader", self.data_set)
        if not hasattr(reader, "image_key"):
            return False
        image = reader.dataset[int(self.indices[index])][reader.image_key]
        return image is None or not (image["bytes"] or image["path"])

    @contextmanager
    def _naming(self, index: int) -> Iterator[None]:
        """Raise a DataError that names the image in place of a decoder's error."""
        try:
            yield
        except DataError as error:
            raise DataError(f"cannot read {self.path(index)}: {str(error).rpartition(': ')[2]}") from error
        except (*UNREADABLE, AssertionError) as error:
            why = "the row has no image" if self._empty(index) else reason(error)
            raise DataError(f"cannot read {self.path(index)}: {why}.") from error

    def path(self, index: int) -> str:
        if hasattr(self.data_set, "filename"):
            with suppress(TypeError):  # raised by timm for a row without an image
                if name := self.data_set.filename(int(self.indices[index])):
                    return str(name)
        return self.location(index)

    def location(self, index: int) -> str:
        return f"{self.name}#{int(self.indices[index])}"

    def subset(self, indices: np.ndarray) -> DatasetImages:
        rest, targets = self.indices[indices], self.targets[indices]
        return DatasetImages(self.data_set, rest, targets, self.in_chans, self.name, self.max_pixels)


def _png(image: Image.Image) -> tuple[bytes, str]:
    file = BytesIO()
    # The image is upright already; an EXIF orientation would rotate it again.
    image.save(file, "PNG", exif=b"")
    return file.getvalue(), ".png"
