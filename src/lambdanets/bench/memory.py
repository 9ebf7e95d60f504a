"""Peak memory of one pass: on a CPU in a process of its own that has done nothing else."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import torch

from .cases import Case
from .contenders import by_name, made
from .passes import Pass, Result, inputs, prepare

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
PATIENCE = 1800  # seconds
M_MMAP_THRESHOLD, OWN_PAGES = -3, 2**17  # the parameter of glibc's mallopt, and its value in bytes


SHORT = ("out of memory", "killed: out of memory")  # the answers of a process that memory did not suffice for


class Job(Protocol):
    """What a child process is told: whose pass is measured, and how it is set up.

    Attributes:
        device: Where it runs.
        threads: Threads of PyTorch.
        whole: Whether what `prepare` makes counts, weights and inputs, or only what the pass adds to it.
    """

    @property
    def device(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def whole(self) -> bool: ...

    def warm_up(self) -> None:
        """Run a miniature: libraries and thread pools come with the first call, and are nobody's."""

    def prepare(self) -> Callable[[], object]:
        """Return the pass as a call."""
        ...


@dataclass(frozen=True, kw_only=True)
class Request:
    """The pass of a contender in a case; what it adds to its weights and inputs is measured."""

    case: Case
    name: str
    role: str
    which: Pass
    dtype: torch.dtype
    device: str
    threads: int
    channels_last: bool = False
    whole: bool = False

    def warm_up(self) -> None:
        small = self.case.crop()
        if not by_name(self.name, self.role).refuses(small, self.dtype, self.device):
            self._pass(small)()

    def prepare(self) -> Callable[[], Result]:
        return self._pass(self.case)

    def _pass(self, case: Case) -> Callable[[], Result]:
        module = made(by_name(self.name, self.role), case, self.dtype, self.device, self.channels_last)
        given = inputs(case, self.dtype, self.device, channels_last=self.channels_last)
        return prepare(module, self.which, *given)


def peak_mib(job: Job) -> float | str:
    """Return how far a pass raises memory, in MiB, or why that is unknown.

    On a CPU it is the peak of the resident memory of a fresh process above what is resident just before,
    after imports and a pass on a miniature; on a GPU the peak of what PyTorch has allocated there in a second
    call, which it counts exactly, so that no process of its own is needed: the first one's tuning is nobody's
    memory. Whether weights and inputs belong to what is before is the job's to say.
    """
    if torch.device(job.device).type == "cuda":
        return _measure(job)
    methods = multiprocessing.get_all_start_methods()
    # A fork server has imported everything once, also what the first call would, and has never run anything.
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload([__name__, "lambdanets.models", "torch._dynamo"])
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(job, theirs), daemon=True)
    child.start()
    theirs.close()
    try:
        if not ours.poll(PATIENCE):
            return f"no answer in {PATIENCE} s"
        return ours.recv()
    except EOFError:
        child.join()
        return SHORT[1] if child.exitcode == -signal.SIGKILL else "its process ended early"
    finally:
        child.kill()
        child.join()


def _answer(job: Job, answer: Connection) -> None:
    # Ctrl-C is for the parent, which ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Tensors of some size get pages of their own, which go back to the system with them. By default glibc
    # raises that size, up to 32 MiB, as memory is freed: the peak is then that of a heap full of holes,
    # another one in every run.
    _glibc("mallopt", M_MMAP_THRESHOLD, OWN_PAGES)
    torch.set_num_threads(job.threads)
    answer.send(_measure(job))


def _measure(job: Job) -> float | str:
    device = torch.device(job.device)
    if device.type != "cuda" and not CLEAR.exists():
        return "this system does not tell peaks"
    try:
        job.warm_up()
        empty = _begin(device)
        run = job.prepare()
        if job.whole:  # what `prepare` built the network from lies in the heap between what is held
            gc.collect()
            _glibc("malloc_trim", 0)
        if device.type == "cuda":
            run()
        held = _begin(device)
        kept = run()
        peak = _peak(device) - (empty if job.whole else held)
        del kept
        return peak
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return SHORT[0]


def _glibc(function: str, *arguments: int) -> None:
    with suppress(OSError, AttributeError):  # another C library, whose heap has no such rule
        getattr(ctypes.CDLL(None), function)(*arguments)


def _begin(device: torch.device) -> float:
    """Let the peak begin at what is held now, and return this in MiB."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / 2**20
    CLEAR.write_text("5")
    return _status("VmRSS") / 2**10


def _peak(device: torch.device) -> float:
    """Return the most that was held since then, in MiB."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) / 2**20
    return _status("VmHWM") / 2**10


def _status(name: str) -> int:
    """Return a size of /proc/self/status in KiB."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise RuntimeError(f"{STATUS} has no {name}")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory is short; only PyTorch's allocator for GPUs has a class for it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(words in str(error) for words in SHORT_WORDS)


# Of PyTorch's allocator for processors, the driver and Triton, cuBLAS, cuDNN.
SHORT_WORDS = ("allocate memory", "out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED")


def release(device: str) -> None:
    """Give back what a call that failed has held, on a GPU to everybody: libraries allocate there as well.

    Only after the `except` clause that caught its error: the error holds the frames with the tensors.
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


def is_lost(device: str) -> bool:
    """Whether a GPU answers no more: after some errors of a program nothing runs in this process."""
    if torch.device(device).type != "cuda":
        return False
    for _ in range(2):  # another error may still be on its way, and is told once
        try:
            torch.cuda.synchronize(torch.device(device))
        except RuntimeError:
            continue
        return False
    return True
