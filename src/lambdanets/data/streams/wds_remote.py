"""Tar files of WebDataset that are fetched while they are read."""

from __future__ import annotations

import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

from ..errors import DataError
from ..files import is_stray
from ..images import IMAGE_SUFFIXES, NamedFile, reason
from ..sources.tar import NUMBER
from ..sources.tar_scan import LABEL, sample_key
from .wds_splits import INFO, SplitInfo, open_url

# Errors of an interrupted connection or a truncated file.
BROKEN = (OSError, EOFError, tarfile.TarError, zlib.error)


class RemoteTars:
    """Tar files from URLs or from the output of commands (`pipe:`), opened by webdataset.

    Args:
        root: prefix of the names.
        names: names of the tar files.
        info: the result of `read_info`; it must list the length of each.
        classes: number of classes.

    Raises:
        DataError: a length is missing.
    """

    def __init__(self, root: str, names: Sequence[str], info: dict[str, SplitInfo], classes: int):
        self.root, self.names, self.classes = root, tuple(names), classes
        known = {name: length for split in info.values() for name, length in split.lengths.items()}
        if unknown := [name for name in names if name not in known]:
            raise DataError(
                f"{os.path.join(root, INFO[0])} does not list the length of {unknown[0]}, by which remote "
                "shards are divided; list it, or copy the shards to a disk, where they are counted."
            )
        self.lengths = np.array([known[name] for name in names], np.int64)

    def read(self, number: int, rows: np.ndarray) -> Iterator[tuple[NamedFile, int]]:
        """Yield the samples of one file at ascending rows; those between them are fetched and dropped.

        Raises:
            DataError: the file is cut off or has another length, or a sample lacks an image or a class.
        """
        url = os.path.join(self.root, self.names[number])
        samples = self._samples(url, set(rows.tolist()), int(rows[-1]), int(self.lengths[number]))
        while True:
            try:
                sample = next(samples, None)
            except BROKEN as error:
                raise DataError(f"cannot read {url}: {reason(error)}.") from error
            if sample is None:
                return
            yield sample

    def _samples(self, url: str, wanted: set[int], last: int, length: int) -> Iterator[tuple[NamedFile, int]]:
        """Yield the samples at the rows `wanted`, up to the row `last`, and check the length of the file."""
        row, sample, has_more = -1, None, False
        with open_url(url) as file, tarfile.open(fileobj=file, mode="r|*") as tar:
            files = (member for member in _members(tar) if member.isfile())
            groups = groupby(files, key=lambda member: sample_key(member.name.removeprefix("./")))
            for row, (key, members) in enumerate(groups):
                sample = self._sample(f"{url}#{key}", tar, members) if row in wanted else None
                if row == last:
                    has_more = last == length - 1 and next(groups, None) is not None
                    break
                if sample is not None:
                    yield sample
        if row < last or sample is None or has_more:
            held = "more" if has_more else row + 1
            raise DataError(
                f"{url} holds {held} samples, and {INFO[0]} says {length}; copy the archive again, or write "
                "its length there."
            )
        yield sample

    def _sample(
        self, name: str, tar: tarfile.TarFile, members: Iterator[tarfile.TarInfo]
    ) -> tuple[NamedFile, int]:
        """Read the image and the class of one sample from its files."""
        image, label = None, ""
        for member in members:
            suffix = member.name.removeprefix("./").rpartition("/")[2].partition(".")[2].lower()
            if f".{suffix}" in IMAGE_SUFFIXES and image is None:
                image = NamedFile(_content(tar, member), f"{name}.{suffix}")
            elif suffix == LABEL:
                label = _content(tar, member).decode("utf-8", "replace").strip()
        if image is None:
            raise DataError(f"{name} holds no image, or breaks off.")
        if not NUMBER.fullmatch(label) or not 0 <= int(label) < self.classes:
            said = f"has the class {label!r}" if label else "has no .cls file, or breaks off"
            raise DataError(f"{name} {said}; wds/ takes the numbers of {self.classes} classes, from 0.")
        return image, int(label)


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members of an archive that are not hidden, without keeping them in memory."""
    while (member := tar.next()) is not None:
        tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  # a million would stay in memory
        if member.size < 0 or member.issparse():
            raise tarfile.ReadError(f"{member.name!r} is a sparse file or has a damaged header")
        parts = member.name.removeprefix("./").split("/")
        if not parts[-1].startswith("__") and not any(map(is_stray, parts)):
            yield member


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read() if file else b""
