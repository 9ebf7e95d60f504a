"""Atomic writing of files, the user's cache, and parsing of JSON from outside."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

MAX_NAME_BYTES = 200  # of a file's name in that of its temporary file, which file systems limit to 255
NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.EBADF)
"""Errors of file systems that cannot sync a folder."""


@contextmanager
def replacing(path: Path, *, previous: Path | None = None) -> Iterator[Path]:
    """Write a file atomically: yield a temporary path, whose file replaces `path` when the block succeeds.

    The file is synced to the disk before it gets its name. If the block fails, `path` is unchanged.

    Args:
        path: The file.
        previous: Path to which an existing file is moved.

    Raises:
        OSError: The disk is full, the folder cannot be written, or the path is that of a folder or a device,
            such as /dev/null.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    start = os.fsdecode(os.fsencode(path.name)[:MAX_NAME_BYTES])
    temporary = path.with_name(f".{start}.{os.getpid()}.tmp")
    try:
        with naming(path, temporary):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            move_into_place(temporary, path, previous=previous)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def move_into_place(finished: Path, path: Path, *, previous: Path | None = None) -> None:
    """Sync a file to the disk, then rename it to `path`, in the same file system.

    Args:
        finished: The file that was written.
        path: Its final path.
        previous: Path to which an existing file is moved.
    """
    _sync(finished)
    if previous is not None and path.exists():
        os.replace(path, previous)
    os.replace(finished, path)
    try:
        _sync(path.parent)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise


@contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Give an OSError of the block `path` as its file name, if it has none or that of the temporary file.

    The error of a failed write has no file name.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary), temporary):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def user_cache() -> Path | None:
    """Return this package's folder in the user's cache; None if the user has no home, or a relative one.

    By the XDG convention a relative `XDG_CACHE_HOME` is ignored. The folder may not exist.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():
        try:
            cache = Path.home() / ".cache"
        except RuntimeError:
            return None
    return cache / "lambdanets" if cache.is_absolute() else None


def parse_json(text: str | bytes) -> Any:
    """Parse JSON text.

    Raises:
        ValueError: The text is not JSON or not UTF-8, or is nested too deeply for Python.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply to be read") from None
    except ValueError as error:
        raise ValueError(f"it is not valid JSON: {error}") from None
