"""How long the steps of a kernel take: the machine as the planner imagines it.

Rates of one processor core, measured by `benchmarks/planner`, and of a data-centre GPU, which are guesses
until they are measured. Only ratios matter for a choice, and those vary less between machines than the rates.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
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
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # v2, v1
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


@lru_cache(maxsize=8)
def memory(device: str) -> int | None:
    """Bytes that a call may take on a device type: nine tenths of what there is; None if it is not here."""
    if device == "cuda":
        return int(0.9 * torch.cuda.mem_get_info()[1]) if torch.cuda.is_available() else None
    if device != "cpu" or not hasattr(os, "sysconf"):
        return None
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # "max" where the container has no limit
            limits.append(int(Path(name).read_text()))
    return int(0.9 * min(limits))
