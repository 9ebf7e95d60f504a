"""How long the steps of a kernel take: the machine as the planner imagines it.

Rates of one processor core, measured by `benchmarks/planner`, and of a data-centre GPU, which are guesses
until they are measured. Only ratios matter for a choice, and those vary less between machines than the rates.
"""

from __future__ import annotations

import os
import time
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import torch

from .products import LARGE, ONEDNN, product_dtype

if TYPE_CHECKING:
    from .problem import Problem

LARGE_PRODUCT = 190e9  # operations per second of a large product in float32, where oneDNN takes it
PRODUCT = 85e9  # ... of any other in float32; in float64 half of it
HALF = 380e9  # ... in half precision
GPU = {2: 400e12, 4: 40e12, 8: 20e12}  # by bytes per element
BANDWIDTH = {"cpu": 12e9, "cuda": 3e12}  # bytes per second, read or written
CALL = {"cpu": 9e-6, "cuda": 8e-6}  # seconds of a call from Python
PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
# Control groups: folder, files of limits, file of what is used, line of memory.stat of what is reclaimable.
V1 = "memory", ("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file"
V2 = "", ("memory.max", "memory.high"), "memory.current", "inactive_file"
SMALL = 4  # a side of a product this long halves the rate


def on_gpu(problem: Problem) -> bool:
    return problem.device == "cuda"


def gemm_seconds(
    problem: Problem, rows: int, inner: int, columns: int, count: int = 1, *, itemsize: int = 0
) -> float:
    """Seconds of `count` products (rows x inner) (inner x columns), in one call where they are small.

    Args:
        itemsize: Bytes per element where the kernel works in another type than the problem's.
    """
    itemsize = itemsize or problem.itemsize
    macs = rows * inner * columns
    if not macs:
        return 0.0
    filled = 1.0
    for side in (rows, inner, columns):
        filled *= side / (side + SMALL)
    if on_gpu(problem):
        return 2 * macs * count / (GPU[itemsize] * filled) + CALL["cuda"]
    if itemsize < 4:
        itemsize = product_dtype(problem.dtype, "cpu").itemsize
    own_calls = itemsize == 4 and ONEDNN and macs >= LARGE
    rate = PRODUCT * min(1, 4 / itemsize) if macs < LARGE and itemsize >= 4 else large_product(itemsize)
    return 2 * macs * count / (rate * filled) + (count if own_calls else 1) * CALL["cpu"]


def large_product(itemsize: int) -> float:
    """Operations per second of a large product on a core, by bytes per element of what it computes in."""
    if itemsize < 4:
        return HALF
    return (LARGE_PRODUCT if ONEDNN else PRODUCT) * min(1, 4 / itemsize)


def move_seconds(problem: Problem, moved: int, calls: int = 1) -> float:
    """Seconds to move bytes from and to memory, in some calls."""
    kind = "cuda" if on_gpu(problem) else "cpu"
    return moved / BANDWIDTH[kind] + calls * CALL[kind]


def memory(device: str) -> int | None:
    """Return the bytes that a call may take on a device type now, None if it is not here.

    These are nine tenths of what is available: of the device or machine, of the control groups (v1 and v2)
    that this process is in, and under its own limits (`ulimit`). It is read again after a second.

    Args:
        device: "cpu" or "cuda".
    """
    return _memory(device, int(time.monotonic()))


@lru_cache(maxsize=4)
def _memory(device: str, second: int) -> int | None:
    if device == "cuda":
        if not torch.cuda.is_available():
            return None
        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return int(0.9 * (torch.cuda.mem_get_info()[0] + cached))
    if device != "cpu" or not hasattr(os, "sysconf"):
        return None
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = [total, *_free_of_machine(), *_free_of_groups(), *_free_of_process()]
    return int(0.9 * max(min(free), 0))


def _free_of_machine() -> list[int]:
    lines = _read(PROC / "meminfo").splitlines()
    return [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]


def _free_of_groups() -> list[int]:
    """Return what is left in each control group with a limit, from the process's own up to the root."""
    free = []
    for line in _read(PROC / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, limits, usage, cached = V1 if controllers else V2
        # A container's path may be that of the host, where nothing lies here: its root then has the limit.
        group = PurePosixPath(path)
        for place in (CGROUPS / root / str(each).lstrip("/") for each in (group, *group.parents)):
            texts = [_read(place / name).strip() for name in limits]
            known = [int(text) for text in texts if text.isdigit()]  # "max" is no limit
            if not known:
                continue
            used = int(_read(place / usage).strip() or 0)
            for stat in _read(place / "memory.stat").splitlines():
                name, _, number = stat.partition(" ")
                if name == cached:
                    used -= int(number)  # of files; the system takes it back
            free.append(min(known) - used)
    return free


def _free_of_process() -> list[int]:
    """Return what is left under the limits on the address space and on the data of this process."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return []
    sizes = _read(PROC / "self" / "statm").split() or ["0"] * 6  # in pages; macOS has none
    free = []
    for limit, size in ((resource.RLIMIT_AS, sizes[0]), (resource.RLIMIT_DATA, sizes[5])):
        soft = resource.getrlimit(limit)[0]
        if soft != resource.RLIM_INFINITY:
            free.append(soft - int(size) * os.sysconf("SC_PAGE_SIZE"))
    return free


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
