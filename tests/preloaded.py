"""Python processes that start at once, as forks of one that has imported the libraries.

A new interpreter needs about five seconds of CPU time to import PyTorch, timm and what Lightning imports;
`Preloaded` runs `python WORDS...` without them. It is a process with its own id, signals, environment and
output, and imports Lightning, which reads the environment at that moment, and lambdanets itself.

    python tests/preloaded.py                     # the server; its standard input is a socket
"""

import atexit
import gc
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO

LIBRARIES = (
    "torch", "torch._dynamo", "torchvision", "timm", "torchmetrics", "matplotlib.pyplot",
    "tensorboard", "torch.utils.tensorboard", "tyro", "rich.console", "torch.distributed.run",
)  # fmt: skip
NUMBER = struct.Struct("i")


class Preloaded:
    """`python WORDS...`, with the methods of `subprocess.Popen` that tests use; output goes to files.

    Args:
        words: `-m MODULE`, `-c PROGRAM` or the path of a script, followed by its arguments.
        env: The environment of the process.
        cwd: Its folder.
        new_session: Whether it leads a session and a process group of its own.
        stdout: The file descriptor of its output; a file that `printed` and `communicate` read if None.
    """

    def __init__(
        self,
        *words: object,
        env: Mapping[str, str],
        cwd: Path | None = None,
        new_session: bool = False,
        stdout: int | None = None,
    ) -> None:
        self.returncode: int | None = None
        self._output = [tempfile.TemporaryFile(mode="w+") for _ in range(2)]  # noqa: SIM115
        self._ending, writer = os.pipe()
        request = {"words": [str(word) for word in words], "env": dict(env), "new_session": new_session}
        request["cwd"] = str(cwd or Path.cwd())
        out, errors = (file.fileno() for file in self._output)
        files = [out if stdout is None else stdout, errors, writer]
        socket.send_fds(_server(), [json.dumps(request).encode() + b"\n"], files)
        os.close(writer)
        (self.pid,) = NUMBER.unpack(os.read(self._ending, NUMBER.size))

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        return self._wait(0)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end of the process and return its output and its errors."""
        if self._wait(timeout) is None:
            raise subprocess.TimeoutExpired("preloaded", timeout or 0)
        return self._read(self._output[0]), self._read(self._output[1])

    def wait(self, timeout: float | None = None) -> int:
        self.communicate(timeout)
        assert self.returncode is not None
        return self.returncode

    def printed(self) -> str:
        """Return the output so far."""
        return self._read(self._output[0])

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _wait(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._ending], [], [], timeout)[0]:
            (self.returncode,) = NUMBER.unpack(os.read(self._ending, NUMBER.size))
            os.close(self._ending)
        return self.returncode

    @staticmethod
    def _read(file: IO[str]) -> str:
        # Not `seek`: the process writes where this file's offset is.
        return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode()


def run_preloaded(
    *words: object, env: Mapping[str, str], cwd: Path | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run `python WORDS...` as `subprocess.run` does with `capture_output=True, text=True`."""
    process = Preloaded(*words, env=env, cwd=cwd)
    try:
        out, errors = process.communicate(timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(words, process.wait(), out, errors)


@cache
def _server() -> socket.socket:
    """Start the server; it ends when this process ends and with it this socket."""
    mine, its = socket.socketpair()
    server = subprocess.Popen(
        [sys.executable, __file__], stdin=its.fileno(), env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    its.close()
    atexit.register(server.wait)
    atexit.register(mine.close)
    return mine


def serve() -> list[str]:
    """Fork a process for each request; in that process return its words."""
    for name in LIBRARIES:
        # A process that needs a missing library reports it itself.
        with suppress(ImportError):
            __import__(name)
    # The collector leaves these objects alone, so the memory pages with them stay shared between processes.
    gc.collect()
    gc.freeze()
    requests = socket.socket(fileno=os.dup(0))
    while True:
        data, files, _, _ = socket.recv_fds(requests, 1 << 16, 3)
        while data and not data.endswith(b"\n"):
            data += requests.recv(1 << 16)
        if not data:
            os._exit(0)
        if os.fork() == 0:
            requests.close()
            if _fork_and_report(files[2]):
                break
            os._exit(0)
        for file in files:
            os.close(file)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    request = json.loads(data)
    _become(request, files)
    return request["words"]


def _fork_and_report(ending: int) -> bool:
    """Return True in the forked process; report its id and its exit code in the other one."""
    child = os.fork()
    if child == 0:
        return True
    os.write(ending, NUMBER.pack(child))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _, status = os.waitpid(child, 0)
    os.write(ending, NUMBER.pack(os.waitstatus_to_exitcode(status)))
    return False


def _become(request: dict, files: list[int]) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in enumerate((nothing, *files[:2])):
        os.dup2(source, target)
    for file in (nothing, *files):
        os.close(file)
    # The server's own stream believes that it is of the same kind of file as the server's output.
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if request["new_session"]:
        os.setsid()
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])


def _run(words: list[str]) -> int:
    """Run a module, a program or a script as the interpreter does; return its exit code."""
    sys.argv = words
    path = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:1] = ["" if words[0] in ("-c", "-m") else str(Path(words[0]).parent), *path]
    try:
        if words[0] == "-c":
            exec(compile(words.pop(1), "<string>", "exec"), {"__name__": "__main__"})
        elif words[0] == "-m":
            runpy.run_module(words.pop(1), run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    code = _run(serve())
    # The interpreter's own end takes a second, in which it frees what it shares with the server.
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        # A program may have closed it.
        if stream is not None:
            stream.flush()
    os._exit(code)
