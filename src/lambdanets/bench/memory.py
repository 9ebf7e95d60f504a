"""Peak memory of one pass, in a process of its own that has done nothing else."""

from __future__ import annotations

import gc
import multiprocessing
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from .cases import Case
from .contenders import by_name
from .passes import Pass, Result, inputs, prepare

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
PATIENCE = 1800  # seconds


@dataclass(frozen=True, kw_only=True)
class Request:
    """Whose pass is measured, and how it is set up; what a child process is told."""

    case: Case
    name: str
    role: str
    which: Pass
    dtype: torch.dtype
    device: str
    threads: int


def peak_mib(request: Request) -> float | str:
    """Return how far the first pass raises the memory of a fresh process, in MiB, or why that is unknown.

    On a CPU it is the peak of the resident memory above what is resident just before, after imports, inputs
    and a pass on a miniature; on a GPU the peak of what PyTorch has allocated there.
    """
    methods = multiprocessing.get_all_start_methods()
    # A fork server has imported everything once, also what the first call would, and has never run anything.
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload([__name__, "torch._dynamo"])
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_measure, args=(request, theirs), daemon=True)
    child.start()
    theirs.close()
    try:
        if not ours.poll(PATIENCE):
            return f"no answer in {PATIENCE} s"
        return ours.recv()
    except EOFError:
        child.join()
        return "killed: out of memory" if child.exitcode == -signal.SIGKILL else "its process ended early"
    finally:
        child.kill()
        child.join()


def _measure(request: Request, answer: Connection) -> None:
    # Ctrl-C is for the parent, which ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(request.threads)
    contender = by_name(request.name, request.role)
    small = request.case.crop()
    if not contender.refuses(small):
        # Libraries and thread pools come with the first call and are nobody's temporaries.
        _pass(request, small)()
    run = _pass(request, request.case)
    gc.collect()
    try:
        if torch.device(request.device).type == "cuda":
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            run()
            torch.cuda.synchronize()
            answer.send((torch.cuda.max_memory_allocated() - before) / 2**20)
        elif CLEAR.exists():
            CLEAR.write_text("5")  # sets the peak back to what is resident now
            before = _status("VmRSS")
            kept = run()
            answer.send((_status("VmHWM") - before) / 2**10)
            del kept
        else:
            answer.send("this system does not tell peaks")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        answer.send("out of memory")


def _pass(request: Request, case: Case) -> Callable[[], Result]:
    module = by_name(request.name, request.role).build(case).to(request.device, request.dtype)
    return prepare(module, request.which, *inputs(case, request.dtype, request.device))


def _status(name: str) -> int:
    """Return a size of /proc/self/status in KiB."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise RuntimeError(f"{STATUS} has no {name}")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory is short; PyTorch's CPU allocator raises a plain RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
