"""Files that are whole or not there, and JSON that may come from anywhere."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

SHORT = 200
"""Bytes of a name that leave room for more: file systems take 255."""
NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.EBADF)
"""What file systems answer that cannot put a folder on disk by itself."""


@contextmanager
def replacing(path: Path, *, previous: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`, whose file takes its name, on disk, when the block ends well.

    Args:
        path: The file to be.
        previous: Where the file that is replaced is kept.

    Raises:
        OSError: The disk is full, the folder cannot be written, or the path is that of a folder or a device,
            such as /dev/null; what was there before stands.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    start = os.fsdecode(os.fsencode(path.name)[:SHORT])
    temporary = path.with_name(f".{start}.{os.getpid()}.tmp")
    try:
        with naming(path, temporary):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _sync(temporary)
            if previous is not None and path.exists():
                os.replace(path, previous)
            os.replace(temporary, path)
            try:
                _sync(path.parent)
            except OSError as error:
                if error.errno not in NO_FOLDER_SYNC:
                    raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Make an OSError that names no file, as one of a failed write, or a temporary one, name this file."""
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


def parse_json(text: str | bytes) -> Any:
    """Return what JSON text holds.

    Raises:
        ValueError: It is no JSON, no UTF-8, or nested deeper than Python reads.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply to be read") from None
    except ValueError as error:
        raise ValueError(f"it is not valid JSON: {error}") from None
