"""The members of a tar archive, from its headers alone; images are not read."""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from lambdanets.utils.text import join_some

from ..errors import DataError
from ..files import is_stray, suffix_of
from ..images import IMAGE_SUFFIXES
from .folder import ORIGINAL_ARCHIVES

LABEL = "cls"  # suffix of the files that hold the class of a sample
LABEL_BYTES = 1024  # size of the largest such file that is read
BLOCK = 512  # bytes of a header of tar
TAIL = 2**16  # most bytes behind the last member that are checked to be zeros
REPORTED = 1000  # members between two updates of the progress bar
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True)
class Members:
    """The images of some shards, as flat arrays that forked workers share without copying.

    Args:
        shards: names of the archives, from a folder that holds all of them.
        shard: index of the archive of each image, of shape [n], ascending.
        offsets: offsets of the images in their archives, in bytes, of shape [n].
        sizes: sizes of the images in bytes, of shape [n].
        names: names of the images in their archives, as bytes, of shape [n].
        labels: content of the .cls file of each image, as bytes, of shape [n]; empty without such a file.
    """

    shards: tuple[str, ...]
    shard: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    names: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.shard)

    def take(self, indices: np.ndarray | slice) -> Members:
        """Return some of the images, in the order of the indices."""
        rows = (self.shard, self.offsets, self.sizes, self.names, self.labels)
        return Members(self.shards, *(row[indices] for row in rows))


@dataclass(frozen=True)
class Scanned:
    """The result of reading the headers of a shard.

    Attributes:
        members: the images of the shard.
        fault: a fault of the shard that leaves these images usable, "" if there is none.
        others: number of files that are no images, by suffix; empty if .cls files define samples, which
            contain other files by design.
        stray: names of hidden files and of files of other programs.
    """

    members: Members
    fault: str
    others: Counter[str] = field(default_factory=Counter)
    stray: frozenset[str] = frozenset()


def scan(
    root: str, shard: str, *, labelled: bool = True, on_progress: Callable[[int], None] = lambda offset: None
) -> Scanned:
    """Find the images of one shard.

    Args:
        root: the folder from which the shard is named.
        shard: name of the archive.
        labelled: every image must have a .cls file, if there are any, as in samples of WebDataset.
        on_progress: called after every `REPORTED` members with the current offset in bytes.

    Raises:
        DataError: the shard has no usable images, or allows no random access.
    """
    path = os.path.join(root, shard)
    size = os.path.getsize(path)
    _check_kind(path, size)
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, bytes] = {}
    links: list[str] = []
    sparse: list[str] = []
    others: Counter[str] = Counter()
    stray: set[str] = set()
    num_complete = 0  # members before the current one
    with _opened(path) as tar:
        while True:
            try:
                member = tar.next()
            except (tarfile.TarError, ValueError) as error:
                cut = "end of data" in str(error)
                fault = _truncated(path, num_complete) if cut else _damaged(path, tar.offset, num_complete)
                break
            if member is None:
                fault = _fault_at_end(path, tar.offset, num_complete)
                break
            tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  # a million would stay in memory
            name = member.name.removeprefix("./")
            suffix = suffix_of(name)
            if member.isdir():
                continue
            if member.size < 0:  # Python's reader would go back, in an endless loop
                fault = _damaged(path, member.offset, num_complete)
                break
            if member.issparse() and (suffix in IMAGE_SUFFIXES or suffix == f".{LABEL}"):
                sparse.append(name)
                continue
            if member.isreg() and not member.issparse() and member.offset_data + member.size > size:
                fault = _truncated(path, num_complete)
                break
            num_complete += 1
            if num_complete % REPORTED == 0:
                on_progress(member.offset_data)
            if strays := [part for part in name.split("/") if is_stray(part)]:
                stray.update(strays if suffix in IMAGE_SUFFIXES else ())
                continue
            if member.issym() or member.islnk():
                links.append(name)
            elif suffix in IMAGE_SUFFIXES:
                images[name] = member.offset_data, member.size
            elif suffix == f".{LABEL}" and member.size <= LABEL_BYTES:
                labels[sample_key(name)] = _content(tar, member)
            else:
                others[suffix] += 1
    if links:
        raise DataError(
            f"{path} holds links ({join_some(links)}) instead of images; pack it again with "
            "tar --dereference --hard-dereference."
        )
    if sparse:
        raise DataError(
            f"{path} holds sparse files ({join_some(sparse)}), whose content is not in one piece; pack it "
            "again without tar's --sparse."
        )
    if labels and labelled:
        images, lacking = _samples(path, images, labels)
        fault = fault or lacking
    if not images:
        raise DataError(f"{path} holds no images; {_instead(others, fault)}.")
    contents = [labels.get(sample_key(name), b"") if labelled else b"" for name in images]
    members = Members(
        (shard,),
        np.zeros(len(images), np.int32),
        np.array([offset for offset, _ in images.values()], np.int64),
        np.array([length for _, length in images.values()], np.int64),
        np.array([os.fsencode(name) for name in images], np.bytes_),
        np.array(contents, np.bytes_),
    )
    return Scanned(members, fault, Counter() if labels else others, frozenset(stray))


def _check_kind(path: str, size: int) -> None:
    if not size:
        raise DataError(f"{path} is an empty file, not a tar archive.")
    with open(path, "rb") as file:
        start = file.read(8)
    for magic, method in COMPRESSED.items():
        if start.startswith(magic):
            raise DataError(
                f"{path} is compressed ({method}) and cannot be read at random offsets: unpack it to a plain "
                ".tar. Images are compressed already."
            )


def _opened(path: str) -> tarfile.TarFile:
    try:
        return tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape")
    except tarfile.TarError as error:
        raise DataError(f"{path} is not a tar archive: {error}.") from error


def sample_key(name: str) -> str:
    """Return the key of a WebDataset sample: the name of its files up to the first dot."""
    head, slash, base = name.rpartition("/")
    return head + slash + base.partition(".")[0]


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read().strip() if file else b""


def _truncated(path: str, num_complete: int) -> str:
    return f"{path} ends too early: {num_complete} of its members are complete"


def _damaged(path: str, offset: int, num_complete: int) -> str:
    return f"{path} is damaged at byte {offset}: the {num_complete} members before it are complete"


def _fault_at_end(path: str, offset: int, num_complete: int) -> str:
    """Check for the end mark of an archive; Python's reader takes anything but a header for the end."""
    with open(path, "rb") as file:
        file.seek(offset)
        tail = file.read(TAIL)
    if len(tail) < BLOCK:
        return _truncated(path, num_complete)
    if any(tail[:BLOCK]):
        return _damaged(path, offset, num_complete)
    if any(tail):
        raise DataError(
            f"{path} has data behind its end marker, as archives do that were joined with cat: join them "
            "with tar --concatenate."
        )
    return ""


def _samples(
    path: str, images: dict[str, tuple[int, int]], labels: dict[str, bytes]
) -> tuple[dict[str, tuple[int, int]], str]:
    """Return the images that have a class, and a fault: images without one or .cls files without an image."""
    # The image of a sample is named key.png; key.seg.png is a mask.
    plain = {
        name: position for name, position in images.items() if sample_key(name) == os.path.splitext(name)[0]
    }
    keys: dict[str, str] = {}
    for name in plain:
        if (other := keys.setdefault(sample_key(name), name)) != name:
            raise DataError(f"{path} holds two images of one sample: {other!r} and {name!r}.")
    labelled = {name: plain[name] for key, name in keys.items() if labels.get(key)}
    if lacking := [name for key, name in keys.items() if not labels.get(key)]:
        return labelled, f"{path} holds images without a .cls file: {join_some(lacking)}"
    if lacking := [f"{key}.{LABEL}" for key in labels if key not in keys]:
        return labelled, f"{path} holds .cls files without an image: {join_some(lacking)}"
    return labelled, ""


def _instead(others: Counter[str], fault: str) -> str:
    if ".tar" in others:
        return f"it holds other archives. {ORIGINAL_ARCHIVES}"
    if fault:
        return fault
    return f"it holds files of other kinds: {join_some(sorted(others))}" if others else "it is empty"
