"""Locks between processes, and signals that a process leaves to its parent."""

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

# Requests to stop: Ctrl-C, the end of a job, a closed terminal, and what batch systems send before the end.
STOP_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)

_held: set[int] = set()  # descriptors of locked files


class InUseError(ValueError):
    """Another process holds the lock."""


class NotPosixError(RuntimeError):
    """The system lacks what POSIX has, such as locks on files."""

    everywhere = True


class NoLockWarning(UserWarning):
    """A file system offers no locks."""


# Locks


def require_posix(what: str) -> Any:
    """Return the module `fcntl`.

    Args:
        what: needs it, for the sentence.

    Raises:
        NotPosixError: this system has none.
    """
    try:
        import fcntl
    except ModuleNotFoundError:
        raise NotPosixError(
            f"{what} needs a POSIX system, such as Linux or macOS; on Windows use WSL"
        ) from None
    return fcntl


@contextmanager
def locked(path: Path, what: str, *, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock of a file; it ends with this process, however that ends.

    The file holds host and id of the process, and is removed at the end. Where the file cannot be locked, as
    on some network file systems or in a folder that is read-only, a warning says so and work goes on.

    Args:
        path: the file; it and its folder are made.
        what: is locked, for the sentence.
        patience: seconds to wait for another process to release it.

    Raises:
        InUseError: another process holds the lock.
        NotPosixError: this system has no locks.

    Example:
        >>> with locked(Path("runs/digits/.lock"), "the run in runs/digits"):
        ...     write()
    """
    fcntl = require_posix(f"the lock on {what}")
    until = time.monotonic() + patience
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = _try_lock(path, fcntl)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            warnings.warn(
                f"{path} cannot be locked ({reason}): no other process is kept from {what}",
                NoLockWarning,
                stacklevel=3,
            )
            yield
            return
        if descriptor is not None:
            break
        if time.monotonic() >= until:
            raise InUseError(f"{what} is in use by another process{_holder(path)}; wait for it or stop it")
        time.sleep(0.2)
    try:
        yield
    finally:
        with suppress(OSError):
            if _is_at(path, descriptor):  # and not another's, where the folder was moved and made anew
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
        os.close(descriptor)  # the process that held it has just removed the file


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is still the one at a path."""
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
    # A lock lasts as long as any process has the file open: a forked child must not keep it.
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)


# Signals


def listened_signals() -> tuple[int, ...]:
    """Return the signals to take as requests to stop.

    One that is ignored stays so, as SIGHUP under nohup; of Ctrl-C and SIGTERM each is meant for this process.
    """
    always = (signal.SIGINT, signal.SIGTERM)
    return tuple(
        number for number in STOP_SIGNALS if number in always or signal.getsignal(number) != signal.SIG_IGN
    )


# Processes that read data


def leave_signals_to_parent(worker: int = 0) -> None:
    """Let a data-loading process outlive requests to stop, which reach the whole process group.

    Its parent decides: a SIGTERM of the parent's still ends the process, and so does the parent's end, for
    which torch's loop of a worker looks. Where a signal's sender cannot be known (macOS), SIGTERM ends it.

    Args:
        worker: number of the process; a `worker_init_fn` of torch's DataLoader is called with it.
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
    """Return how a data-loading process of this one ended, None where the error is of another kind.

    torch raises its error wherever the process happens to be, and other errors may follow from it.

    Args:
        error: as it was caught.
    """
    seen: list[BaseException] = []  # a library may close the chain of errors to a ring
    reason = None
    following: BaseException | None = error
    while following is not None and following not in seen:
        seen.append(following)
        text = str(following)
        if "DataLoader worker (pid" in text:
            found = re.search(r"by signal: ([\w ]+)|(exit code -?\d+)", text)
            if found:
                return (found[1] or found[2]).strip()
            reason = "it ended unexpectedly"  # an error before this one may know more
        elif "unable to" in text and ("/torch_" in text or "shared memory" in text):
            return "no shared memory was left"
        following = following.__cause__ or following.__context__
    return reason
