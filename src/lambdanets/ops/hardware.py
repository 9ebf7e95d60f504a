"""The machine that kernels run on: the fastest matrix products of its CPU, estimated times, free memory.

The rates behind the estimates are those of one CPU core, measured by `benchmarks/planner`, and guesses for a
data-centre GPU. The planner compares estimates with each other, so only their ratios matter, and ratios vary
less between machines than rates do.
"""

from __future__ import annotations

import ctypes
import os
import time
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .problem import Problem

ONEDNN_MIN_MACS = 2**20  # fewest multiply-adds of a product for which a separate oneDNN call is faster
FULL_AVX512_FAMILY = 26  # the first AMD CPU family (Zen 5) whose AVX-512 units are 512 bits wide

# Floating-point operations per second; a multiply-add counts as two.
ONEDNN_RATE = 220e9  # of a large float32 product on a core, where oneDNN takes it
CPU_RATE = 125e9  # of any other float32 product on a core; half of it in float64
HALF_RATE = 340e9  # of a half-precision product on a core
GPU_RATES = {2: 400e12, 4: 40e12, 8: 20e12}  # by bytes per element

BANDWIDTH = {"cpu": 17e9, "cuda": 3e12}  # bytes per second, read or written
CALL_SECONDS = {"cpu": 3.6e-6, "cuda": 8e-6}  # overhead of one PyTorch call
HALF_RATE_SIDE = 5  # a product with one side of this length runs at half the rate

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
# Control groups: folder, files of limits, file of usage, line of memory.stat with the reclaimable bytes.
CGROUP_V1 = "memory", ("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file"
CGROUP_V2 = "", ("memory.max", "memory.high"), "memory.current", "inactive_file"
USABLE_MEMORY = 0.9  # the fraction of the free memory that a call may take


def amd_family() -> int:
    """Return the family of an AMD CPU; 0 for any other CPU or if the system does not report it."""
    try:
        lines = [line.split(":") for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line]
    except OSError:
        return 0
    fields = {name.strip(): value.strip() for name, value, *_ in reversed(lines)}
    family = fields.get("cpu family", "")
    return int(family) if fields.get("vendor_id") == "AuthenticAMD" and family.isdecimal() else 0


# Whether oneDNN multiplies float32 faster than PyTorch's own products. These use MKL, which on AMD CPUs is
# limited to AVX2, half the rate of the 512-bit units that oneDNN uses. On other CPUs both libraries come near
# the peak, and one batched call of PyTorch is faster than a oneDNN call for each matrix.
ONEDNN = (
    torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    and amd_family() >= FULL_AVX512_FAMILY
)
_HALF_CHECKS = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
SLOW_CPU_DTYPES = frozenset(
    dtype
    for dtype, check in _HALF_CHECKS.items()
    if not (torch.backends.mkldnn.is_available() and getattr(torch.ops.mkldnn, check)())
)
"""The half precisions that this CPU has no multiply instructions for: PyTorch's loops for them are many times
slower than its float32 products (`benchmarks/products`)."""


def compute_dtype(dtype: torch.dtype, device: str) -> torch.dtype:
    """Return the dtype in which to multiply tensors of `dtype`: float32 on CPUs that are slow in `dtype`."""
    return torch.float32 if device == "cpu" and dtype in SLOW_CPU_DTYPES else dtype


def log_norm_dtype(device: str) -> torch.dtype:
    """Return the dtype of log norms: float64, or float32 on devices without it.

    At position n of a sequence log norms grow by about 1/n, which float32 rounds.
    """
    return torch.float32 if device == "mps" else torch.float64


def on_gpu(problem: Problem) -> bool:
    """Return whether the problem's tensors are on a CUDA device."""
    return problem.device == "cuda"


def gemm_seconds(
    problem: Problem, rows: int, inner: int, columns: int, count: int = 1, *, itemsize: int = 0
) -> float:
    """Estimate the seconds of `count` products (rows, inner) x (inner, columns).

    They are one batched call, except for large float32 products of oneDNN, which takes a call for each.

    Args:
        problem: The problem, for its device and dtype.
        rows: Rows of the left factor.
        inner: Columns of the left factor, rows of the right one.
        columns: Columns of the right factor.
        count: Number of products.
        itemsize: Bytes per element, where the kernel multiplies in another dtype than the problem's.
    """
    itemsize = itemsize or problem.itemsize
    macs = rows * inner * columns
    if not macs:
        return 0.0
    efficiency = 1.0
    for side in (rows, inner, columns):
        efficiency *= side / (side + HALF_RATE_SIDE)
    if on_gpu(problem):
        return 2 * macs * count / (GPU_RATES[itemsize] * efficiency) + CALL_SECONDS["cuda"]
    if itemsize < 4:
        itemsize = compute_dtype(problem.dtype, "cpu").itemsize
    large = macs >= ONEDNN_MIN_MACS
    separate_calls = itemsize == 4 and ONEDNN and large
    rate = large_gemm_rate(itemsize) if large or itemsize < 4 else CPU_RATE * min(1, 4 / itemsize)
    calls = count if separate_calls else 1
    return 2 * macs * count / (rate * efficiency) + calls * CALL_SECONDS["cpu"]


def large_gemm_rate(itemsize: int) -> float:
    """Return the floating-point operations per second of a large product on a CPU core.

    Args:
        itemsize: Bytes per element.
    """
    if itemsize < 4:
        return HALF_RATE
    return (ONEDNN_RATE if ONEDNN else CPU_RATE) * min(1, 4 / itemsize)


def move_seconds(problem: Problem, moved: int, calls: int = 1) -> float:
    """Estimate the seconds of operations limited by bandwidth.

    Args:
        problem: The problem, for its device.
        moved: Bytes that the operations read and write, in all.
        calls: Number of PyTorch calls, each with an overhead of `CALL_SECONDS`.
    """
    kind = "cuda" if on_gpu(problem) else "cpu"
    return moved / BANDWIDTH[kind] + calls * CALL_SECONDS[kind]


def available_memory(device: str) -> int | None:
    """Return the bytes that a call may take on a device type now; None if the machine does not report them.

    This is nine tenths of the least of: the free memory of the device or machine, the memory left in the
    control groups (v1 and v2) of this process, and the memory left under its own limits (`ulimit`). On a CPU
    the freed memory that this process keeps is added. The value is cached for up to a second.

    Args:
        device: "cpu" or "cuda".
    """
    return _available_memory(device, int(time.monotonic()))


@lru_cache(maxsize=4)
def _available_memory(device: str, second: int) -> int | None:
    """Return the available bytes; `second`, the current one, makes the cached value expire."""
    if device == "cuda":
        if not torch.cuda.is_available():
            return None
        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return int(USABLE_MEMORY * (torch.cuda.mem_get_info()[0] + cached))
    if device != "cpu" or not hasattr(os, "sysconf"):
        return None
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = [total, *_free_of_machine(), *_free_of_groups(), *_free_of_process()]
    return int(USABLE_MEMORY * min(total, max(min(free), 0) + _kept_memory()))


class _AllocatorState(ctypes.Structure):
    """The result of glibc's `mallinfo2`."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "free_chunks", "fast_chunks", "mapped_blocks", "mapped_bytes", "unused", "fast_bytes"),
            *("used_bytes", "free_bytes", "top_bytes"),
        )
    )


def _kept_memory() -> int:
    """Return the bytes of freed memory that glibc keeps in this process; 0 with another C library.

    Freed memory that was never written to is not counted, as it takes no memory of the machine.
    """
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError, TypeError):  # Windows raises TypeError
        return 0
    mallinfo2.restype = _AllocatorState
    state = mallinfo2()
    pages = _read_text(PROC / "self" / "statm").split() or ["0"] * 2
    resident = int(pages[1]) * os.sysconf("SC_PAGE_SIZE")
    return max(0, min(state.free_bytes, resident - state.used_bytes - state.mapped_bytes))


def _free_of_machine() -> list[int]:
    """Return the available bytes of the machine; empty if the system does not report them."""
    lines = _read_text(PROC / "meminfo").splitlines()
    return [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]


def _free_of_groups() -> list[int]:
    """Return the bytes left in each control group with a limit, from the process's own group to the root."""
    free = []
    for line in _read_text(PROC / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, limits, usage, reclaimable = CGROUP_V1 if controllers else CGROUP_V2
        # In a container the path may be that on the host. It does not exist here, and the limit is then in
        # the root, the last of the parents.
        group = PurePosixPath(path)
        for folder in (CGROUPS / root / str(each).lstrip("/") for each in (group, *group.parents)):
            texts = [_read_text(folder / name).strip() for name in limits]
            sizes = [int(text) for text in texts if text.isdigit()]  # "max" is no limit
            if not sizes:
                continue
            used = int(_read_text(folder / usage).strip() or 0)
            for stat in _read_text(folder / "memory.stat").splitlines():
                name, _, size = stat.partition(" ")
                if name == reclaimable:
                    used -= int(size)  # cached files, which the system drops when memory is short
            free.append(min(sizes) - used)
    return free


def _free_of_process() -> list[int]:
    """Return the bytes left under the limits on the address space and on the data of this process."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return []
    sizes = _read_text(PROC / "self" / "statm").split() or ["0"] * 6  # in pages; macOS has none
    free = []
    for limit, size in ((resource.RLIMIT_AS, sizes[0]), (resource.RLIMIT_DATA, sizes[5])):
        soft = resource.getrlimit(limit)[0]
        if soft != resource.RLIM_INFINITY:
            free.append(soft - int(size) * os.sysconf("SC_PAGE_SIZE"))
    return free


def _read_text(path: Path) -> str:
    """Return the text of a file, empty if it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""
