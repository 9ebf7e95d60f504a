"""Run cases in a forked process: a crash, an abort or a hang is a result and not the end of the search."""

import os
import pickle
import resource
import select
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

SIZE = 8  # bytes that give the length of a result in the pipe


@dataclass
class Ending:
    """What came of a forked process: `results` in order, and how it ended.

    Args:
        results: What the function yielded before the end.
        how: "done", "raised", "died" or "hung".
        why: The exception or the signal, empty where there is none.
    """

    results: list[Any] = field(default_factory=list)
    how: str = "done"
    why: str = ""


def forked(function: Callable[..., Iterable[Any]], *arguments: Any, timeout: float) -> Ending:
    """Run a generator function in a child process and collect what it yields.

    The caller must not have started threads (an OpenMP pool does not survive a fork).

    Args:
        function: Called as `function(*arguments)` in the child; its results are pickled one by one.
        arguments: Its arguments.
        timeout: Seconds that one result may take.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _work(function, arguments, writer)
    os.close(writer)
    ending = Ending()
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        while True:
            kind, value = _read(pipe, time.monotonic() + timeout)
            if kind == "result":
                ending.results.append(value)
                continue
            ending.how, ending.why = kind, value
            break
    if ending.how == "hung":
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if ending.how == "died" and os.WIFSIGNALED(status):
        ending.why = signal.Signals(os.WTERMSIG(status)).name
    elif ending.how == "died":
        ending.why = f"exit {os.waitstatus_to_exitcode(status)}"
    return ending


def _work(function: Callable[..., Iterable[Any]], arguments: tuple[Any, ...], writer: int) -> None:
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)  # what a dying library prints
        with os.fdopen(writer, "wb", buffering=0) as pipe:
            try:
                for result in function(*arguments):
                    _write(pipe, ("result", result))
                _write(pipe, ("done", ""))
            except Exception as error:
                _write(pipe, ("raised", f"{type(error).__name__}: {error}"))
    finally:
        os._exit(0)


def _write(pipe: Any, message: tuple[str, Any]) -> None:
    data = pickle.dumps(message)
    data = len(data).to_bytes(SIZE, "little") + data
    while data:
        data = data[pipe.write(data) :]


def _read(pipe: Any, deadline: float) -> tuple[str, Any]:
    length = _take(pipe, SIZE, deadline)
    if isinstance(length, str):
        return length, ""
    data = _take(pipe, int.from_bytes(length, "little"), deadline)
    return (data, "") if isinstance(data, str) else pickle.loads(data)


def _take(pipe: Any, size: int, deadline: float) -> bytes | str:
    data = b""
    while len(data) < size:
        if not select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return "hung"
        more = pipe.read(size - len(data))
        if not more:
            return "died"
        data += more
    return data
