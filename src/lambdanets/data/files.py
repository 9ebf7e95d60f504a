"""Files of a folder: which of them are images by their names, which are left out, and how to open one."""

from __future__ import annotations

import os
import stat
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from lambdanets.utils.text import join_some

from .errors import DataError, SourceWarning

# Names in lower case of files and folders that operating systems and file managers add; some hold copies and
# thumbnails that look like images.
STRAY = frozenset(
    {"__macosx", "@eadir", "@recycle", "#recycle", "$recycle.bin", "system volume information", "lost+found"}
    | {"thumbs.db", "desktop.ini"}
)
FILE_TYPES = {  # names in error messages of paths that are not regular files
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@dataclass(frozen=True)
class FileKind:
    """Kind of the files that a folder is searched for.

    Attributes:
        noun: its name in messages, such as "image".
        suffixes: suffixes of such files, in lower case.
    """

    noun: str
    suffixes: tuple[str, ...]


@dataclass
class Found:
    """The files in a folder and in all folders inside it.

    Attributes:
        images: paths of the files that are images by their suffix, in the order of their folders.
        others: the number of other files by suffix.
        stray: paths of hidden folders and images, and of files of other programs.
        linked: whether a symbolic link led to any of them.
    """

    images: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    stray: list[str] = field(default_factory=list)
    linked: bool = False


def is_stray(name: str) -> bool:
    """Return whether a file or folder is hidden or of another program, by its name."""
    return (name.startswith(".") and name not in (".", "..")) or name.lower() in STRAY


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder or a link to one; a link to itself is neither."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def suffix_of(name: str) -> str:
    """Return the suffix of a file name in lower case, for counting."""
    return os.path.splitext(name)[1].lower() or "no suffix"


def find_files(paths: Iterable[str | os.PathLike[str]], suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Yield each path that is a file, of any suffix, and the files of some suffixes inside each folder.

    A folder without such files is yielded itself, so that it can be reported. A warning counts the files of a
    folder that are left out.
    """
    for path in map(Path, paths):
        if not path.is_dir():
            yield path
            continue
        found = find_images(str(path), suffixes)
        warn_left_out(str(path), found.others, found.stray)
        yield from sorted(map(Path, found.images)) or [path]


def find_images(top: str, suffixes: tuple[str, ...]) -> Found:
    """Find the images in a folder and in the folders inside, also behind symbolic links.

    Args:
        top: the folder.
        suffixes: suffixes of images, in lower case.

    Raises:
        DataError: a folder cannot be read, or a link leads to a folder that holds the link.
    """
    found = Found(linked=os.path.islink(top))
    by_folder: dict[str, list[str]] = {}
    # Each folder still to read, and the real paths of the folders that hold the links on the way to it.
    waiting: list[tuple[str, tuple[str, ...]]] = [(top, ())]
    while waiting:
        folder, linked_from = waiting.pop()
        names = []
        for entry in _entries(folder):
            if is_folder(entry):
                if is_stray(entry.name):
                    found.stray.append(entry.path)
                elif entry.is_symlink():
                    found.linked = True
                    path_of_links = (*linked_from, os.path.realpath(folder))
                    _check_loop(entry.path, path_of_links)
                    waiting.append((entry.path, path_of_links))
                else:
                    waiting.append((entry.path, linked_from))
            elif not entry.name.lower().endswith(suffixes):
                if not is_stray(entry.name):
                    found.others[suffix_of(entry.name)] += 1
            elif is_stray(entry.name):
                found.stray.append(entry.path)
            else:
                found.linked = found.linked or entry.is_symlink()
                names.append(entry.name)
        by_folder[folder] = sorted(names)
    found.images = [os.path.join(folder, name) for folder in sorted(by_folder) for name in by_folder[folder]]
    return found


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise DataError(f"the folder {folder} cannot be read: {why}.") from error


def _check_loop(link: str, linked_from: Sequence[str]) -> None:
    """Raise DataError if a link leads to a folder that holds the link, directly or through earlier links."""
    target = os.path.realpath(link)
    for folder in linked_from:
        if os.path.commonpath([folder, target]) == target:
            raise DataError(
                f"{link} is a link to {target}, a folder that holds the link itself, so that its images "
                "would be found without end; remove the link."
            )


def warn_left_out(where: str, others: Counter[str], stray: Iterable[str] = ()) -> None:
    """Warn once about files of a folder or of archives that are not read: counts by suffix, and strays."""
    parts = []
    if others:
        ranked = sorted(others.items(), key=lambda item: (-item[1], item[0]))
        counts = [f"{number:,} {suffix}" for suffix, number in ranked]
        number = others.total()
        parts.append(f"{number:,} file{'s' * (number > 1)} ({join_some(counts, form=str)})")
    names = Counter(os.path.basename(path) for path in stray)
    if names:
        parts.append(f"hidden files and files of other programs ({join_some(sorted(names))})")
    if parts:
        warnings.warn(f"{where}: left out {' and '.join(parts)}.", SourceWarning, stacklevel=2)


def identity(path: str) -> tuple[int, int] | None:
    """Return device and inode, which are the same for all names of a file; None if there is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a regular file for reading; a pipe or a device might never end.

    Raises:
        OSError: there is no such file, or it is no regular one.
    """
    return open(path, "rb", opener=regular_opener)


def regular_opener(path: str | os.PathLike[str], flags: int) -> int:
    """Open a file like `os.open`, as an opener for `open(opener=...)`.

    Raises:
        OSError: there is no such file, or it is neither a regular file nor a folder.
    """
    # Without O_NONBLOCK, opening a pipe that has no writer would block.
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o666)
    file_type = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if file_type in (stat.S_IFREG, stat.S_IFDIR):
        return descriptor
    os.close(descriptor)
    raise OSError(f"it is {FILE_TYPES.get(file_type, 'something else')}, not a file")
