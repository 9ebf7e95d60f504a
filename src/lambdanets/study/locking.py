"""One process at a time; a lock ends with its process, however that ends."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class AtWork(ValueError):
    """Another process holds the lock."""


@contextmanager
def locked(path: Path, what: str, *, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock of a file.

    Args:
        path: the file; it is made.
        what: is locked, for the sentence.
        patience: seconds to wait for another process to let go.

    Raises:
        AtWork: another process holds the lock.
    """
    until = time.monotonic() + patience
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise AtWork(f"another process is at work on {what}; wait for it or stop it") from None
                time.sleep(0.2)
        yield
