"""File locks between processes, signals that request a stop, and lost data-loading processes."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# Requests to stop: Ctrl-C, the end of a job, a closed terminal, and warnings of batch systems before the end.
STOP_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)

_held: set[int] = set()  # descriptors of locked files


class InUseError(ValueError):
    """Another process holds the lock."""


class NotPosixError(RuntimeError):
    """The system lacks functions of POSIX, such as file locks."""

    on_all_ranks = True  # raised by all ranks of a distributed run at once; see `train.errors`


class NoLockWarning(UserWarning):
    """A file system has no locks."""


# Locks


def require_posix(feature: str) -> Any:
    """Return the module `fcntl`.

    Args:
        feature: The feature that needs it, for the message.

    Raises:
        NotPosixError: The system does not have it.
    """
    try:
        import fcntl
    except ModuleNotFoundError:
        raise NotPosixError(
            f"{feature} needs a POSIX system, such as Linux or macOS; on Windows use WSL"
        ) from None
    return fcntl


@contextmanager
def locked(path: Path, resource: str, *, patience: float = 0.0) -> Iterator[None]:
    """Hold a file lock, which the system releases however this process ends.

    The file has host and id of the process, and is removed at the end. If it cannot be locked, as on some
    network file systems or in a read-only folder, the block runs without a lock after a warning.

    Args:
        path: The lock file; it and its folder are created.
        resource: Name of the resource that the lock protects, for the messages.
        patience: Seconds to wait for another process to release the lock.

    Raises:
        InUseError: Another process holds the lock.
        NotPosixError: The system has no file locks.

    Example:
        >>> with locked(Path("runs/digits/.lock"), "the run in runs/digits"):
        ...     write()
    """
    fcntl = require_posix(f"the lock on {resource}")
    until = time.monotonic() + patience
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = _try_lock(path, fcntl)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            warnings.warn(
                f"{path} cannot be locked ({reason}): other processes can use {resource} at the same time",
                NoLockWarning,
                stacklevel=3,
            )
            yield
            return
        if descriptor is not None:
            break
        if time.monotonic() >= until:
            raise InUseError(
                f"{resource} is in use by another process{_holder(path)}; wait for it or stop it"
            )
        time.sleep(0.2)
    try:
        yield
    finally:
        with suppress(OSError):
            if _is_at(path, descriptor):  # another process may have created the folder again
                path.unlink()
        _held.discard(descriptor)
        os.close(descriptor)


def _try_lock(path: Path, fcntl: Any) -> int | None:
    """Return the descriptor of the locked file, None where another process holds the lock."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, descriptor):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode())
                _held.add(descriptor)
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the process that held the lock has just removed the file


def _is_at(path: Path, descriptor: int) -> bool:
    """Return whether an open file is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    try:
        number, host = path.read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return ""
    return f" (process {number} on {host})"


def _release_in_child() -> None:
    # A lock lasts while any process has the file open: a forked child must close it.
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)


# Signals


def listened_signals() -> tuple[int, ...]:
    """Return the signals to handle as requests to stop.

    Ignored signals remain ignored, such as SIGHUP under nohup, except for SIGINT and SIGTERM.
    """
    always = (signal.SIGINT, signal.SIGTERM)
    return tuple(
        number for number in STOP_SIGNALS if number in always or signal.getsignal(number) != signal.SIG_IGN
    )


# Processes that read data


def leave_signals_to_parent(worker: int = 0) -> None:
    """Make a data-loading process ignore requests to stop, which reach the whole process group.

    The process still ends on a SIGTERM from its parent, and when its parent ends, which the worker loop of
    PyTorch checks. Where the sender of a signal is not available (macOS), any SIGTERM ends it.

    Args:
        worker: Index of the worker, which DataLoader passes to its `worker_init_fn`; not used.
    """
    for number in STOP_SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_on_parents_sigterm, args=(os.getppid(),), daemon=True).start()


def _end_on_parents_sigterm(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def lost_worker(error: BaseException) -> str | None:
    """Return how a data-loading process (a child of this one) ended; None if the error has another cause.

    PyTorch raises its error at an arbitrary line of the main process, and other errors may follow from it.

    Args:
        error: The error, with its chain of causes.
    """
    seen: list[BaseException] = []  # the chain of errors may be a cycle
    reason = None
    following: BaseException | None = error
    while following is not None and following not in seen:
        seen.append(following)
        text = str(following)
        if "DataLoader worker (pid" in text:
            found = re.search(r"by signal: ([\w ]+)|(exit code -?\d+)", text)
            if found:
                return (found[1] or found[2]).strip()
            reason = "it ended unexpectedly"  # an earlier error may have the reason
        elif "unable to" in text and ("/torch_" in text or "shared memory" in text):
            return "no shared memory was left"
        following = following.__cause__ or following.__context__
    return reason
