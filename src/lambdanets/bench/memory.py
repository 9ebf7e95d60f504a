"""Peak memory of one pass: on a CPU in a process of its own that has done nothing else."""

from __future__ import annotations

import gc
import math
import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import torch

from lambdanets.utils.allocator import M_MMAP_THRESHOLD, call_glibc

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
TIMEOUT = 1800  # seconds
OWN_PAGES = 2**17  # size in bytes from which a tensor gets pages of its own
FREE_FRACTION = 0.8  # largest part of the free memory that the estimated need of an entry may be

# The two answers of `peak_mib` where memory did not suffice.
OUT_OF_MEMORY = ("out of memory", "killed: out of memory")
# In errors of PyTorch's allocator for CPUs, of the driver and Triton, of cuBLAS, and of cuDNN.
OUT_OF_MEMORY_TEXTS = ("allocate memory", "out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED")


class Job(Protocol):
    """A pass whose peak is measured, in a form that can be sent to another process.

    Attributes:
        device: Device of the pass.
        threads: Number of threads of PyTorch.
        whole: Whether the peak includes the weights and inputs that `prepare` allocates, rather than only the
            memory that the pass adds to them.
    """

    @property
    def device(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def whole(self) -> bool: ...

    def warm_up(self) -> None:
        """Run a miniature, which loads libraries and starts thread pools; neither is part of the peak."""

    def prepare(self) -> Callable[[], object]:
        """Return the pass as a call."""
        ...


def peak_mib(job: Job) -> float | str:
    """Return the peak memory of a pass in MiB, or the reason why it is unknown.

    On a CPU it is measured in a fresh process: the peak of the resident memory during the pass, minus the
    resident memory just before it, after imports and a pass on a miniature. On a GPU it is the peak of
    PyTorch's allocations during a second call, in this process, since PyTorch counts them exactly; the first
    call also allocates for tuning. `Job.whole` decides whether weights and inputs are part of the peak.
    """
    if torch.device(job.device).type == "cuda":
        return _measure(job)
    methods = multiprocessing.get_all_start_methods()
    # Children of a fork server have all modules imported, also those that a first call would import, and have
    # run nothing.
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload(["lambdanets.bench", "lambdanets.models", "torch._dynamo"])
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(job, theirs), daemon=True)
    child.start()
    theirs.close()
    try:
        if not ours.poll(TIMEOUT):
            return f"no answer in {TIMEOUT} s"
        return ours.recv()
    except EOFError:
        child.join()
        return OUT_OF_MEMORY[1] if child.exitcode == -signal.SIGKILL else "its process ended early"
    finally:
        child.kill()
        child.join()


def _answer(job: Job, answer: Connection) -> None:
    """Measure a job and send the result to the parent: the main function of the child process."""
    # Ctrl-C also reaches the parent, which ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # With this setting large tensors get separate pages, which return to the system when the tensor is freed.
    # By default glibc raises the size that counts as large, up to 32 MiB, as memory is freed; the peak would
    # then include the fragments of the heap and differ between runs.
    call_glibc("mallopt", M_MMAP_THRESHOLD, OWN_PAGES)
    # Collections visit all imported modules, and so copy their pages from the fork server: once is enough.
    gc.collect()
    gc.freeze()
    torch.set_num_threads(job.threads)
    answer.send(_measure(job))


def _measure(job: Job) -> float | str:
    device = torch.device(job.device)
    if device.type != "cuda" and not CLEAR.exists():
        return "this system does not report peaks"
    try:
        job.warm_up()
        empty = _reset_peak(device)
        run = job.prepare()
        if job.whole:  # building a network leaves free blocks in the heap between those in use
            gc.collect()
            call_glibc("malloc_trim", 0)
        if device.type == "cuda":
            run()
        prepared = _reset_peak(device)
        result = run()
        peak = _read_peak(device) - (empty if job.whole else prepared)
        del result
        return peak
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return OUT_OF_MEMORY[0]


def _reset_peak(device: torch.device) -> float:
    """Reset the recorded peak to the memory that is in use now, and return that in MiB."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / 2**20
    CLEAR.write_text("5")
    return _status_kib("VmRSS") / 2**10


def _read_peak(device: torch.device) -> float:
    """Return the peak since the last reset in MiB."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) / 2**20
    return _status_kib("VmHWM") / 2**10


def _status_kib(name: str) -> int:
    """Return a size of this process in KiB, by its name in /proc/self/status."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise RuntimeError(f"{STATUS} has no {name}")


def free_memory(device: torch.device) -> int:
    """Return the bytes that this process may still take; 2**62 where the system does not report them."""
    if device.type == "cuda":
        # The system counts PyTorch's cache of freed tensors as used.
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        return 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError):
        return int(math.ldexp(1, 62))


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error reports a lack of memory, for which only some libraries have a class."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(text in str(error) for text in OUT_OF_MEMORY_TEXTS)


def release(device: str) -> None:
    """Free the memory that a failed call has allocated, on a GPU also PyTorch's cache of freed tensors.

    Libraries such as cuDNN cannot use that cache. Call this after the `except` clause that caught the error:
    until then the error refers to the frames with the tensors.
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


def is_lost(device: str) -> bool:
    """Return whether a GPU no longer answers: after some errors, no kernel of this process runs any more."""
    if torch.device(device).type != "cuda":
        return False
    for _ in range(2):  # an error of an earlier call may still be pending, and is reported once
        try:
            torch.cuda.synchronize(torch.device(device))
        except RuntimeError:
            continue
        return False
    return True
