"""The choice of a tile: at the first call of a problem, all candidates are timed on its tensors.

The fastest is cached in a file for as long as device, versions and candidates stay the same. Of candidates
that are about equally fast, the first of `tiling.candidate_tiles` is selected.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import lru_cache, partial
from pathlib import Path

import torch
import triton
from torch import Tensor
from triton.runtime.errors import OutOfResources
from triton.testing import do_bench

from lambdanets.utils.files import replacing, user_cache

from ...problem import Problem
from .launch import KernelCall, uses_tf32
from .tiling import Tile, candidate_tiles, next_power_of_2

TIE = 1.03  # a tile ties with the fastest if its time is at most TIE times the lowest
WARM_UP, TRIAL = 5, 20  # milliseconds for each tile

Calls = Callable[[Tile], Sequence[KernelCall]]
"""A function from a tile to the calls that compute a result."""

_tuned: dict[tuple[object, ...], Tile] = {}


def run(result: str, problem: Problem, tensors: Sequence[Tensor], calls: Calls) -> None:
    """Launch the kernel of a result with the fastest tile, which is tuned on the first call of a problem.

    In four cases nothing is tuned, and the first tile that fits the device is taken: under
    `torch.use_deterministic_algorithms`, since measured times must not decide how results are rounded; while
    a CUDA graph is recorded; in Triton's interpreter; and if trials, which write 256 MiB to clear the
    device's cache, need more memory than is free.

    Args:
        result: "output", "dq", "dv" or "de".
        problem: The problem.
        tensors: The kernel's tensors: tiles are tuned for their device and the order of their strides.
        calls: A function from a tile to the calls that compute the result.

    Raises:
        OutOfResources: If no tile fits the device.
    """
    candidates, device = candidate_tiles(problem, result), tensors[0].device
    if device.type != "cuda":
        launch_all(calls(candidates[0]))
        return
    with torch.cuda.device(device):
        layouts = map(_axis_order, tensors)
        key = (result, representative(result, problem), device, uses_tf32(), *layouts)
        tile = _tuned.get(key)
        if torch.are_deterministic_algorithms_enabled():
            tile = None
        elif tile is None and not torch.cuda.is_current_stream_capturing():
            with suppress(torch.OutOfMemoryError):  # the next call tries again
                find = partial(fastest_tile, candidates, calls)
                tile = _tuned[key] = load_or_find(_cache_file(key), candidates, find)
        if tile is None:
            launch_first_fitting(candidates, calls)
        else:
            launch_all(calls(tile))


@lru_cache(maxsize=4096)
def representative(result: str, problem: Problem) -> Problem:
    """Return the problem with batch and grids rounded up to powers of two, whose tile serves both.

    Args:
        result: "output", "dq", "dv" or "de".
        problem: The problem.
    """
    grids = {"grid": problem.grid, "context_grid": problem.context.key_grid}
    rounded = {name: tuple(map(next_power_of_2, grid)) for name, grid in grids.items()}
    content = problem.content and result in ("output", "dq")
    batch = next_power_of_2(problem.batch)
    return replace(problem, batch=batch, content=content, **rounded)  # type: ignore[arg-type]


def _axis_order(x: Tensor) -> tuple[int, ...]:
    """Return a tensor's axes in the order of their strides."""
    return tuple(sorted(range(x.ndim), key=x.stride))


def launch_all(calls: Sequence[KernelCall]) -> None:
    """Launch calls in order."""
    for call in calls:
        call.launch()


def launch_first_fitting(candidates: Sequence[Tile], calls: Calls) -> None:
    """Launch with the first tile that the device has enough registers and shared memory for.

    Raises:
        OutOfResources: If none fits.
    """
    for tile in candidates[:-1]:
        with suppress(OutOfResources):
            launch_all(calls(tile))
            return
    launch_all(calls(candidates[-1]))


def fastest_tile(candidates: Sequence[Tile], calls: Calls) -> Tile:
    """Return the first tile within `TIE` of the fastest, among those that fit into the device.

    Raises:
        OutOfResources: If none fits.
    """
    times = {}
    for tile in candidates:
        with suppress(OutOfResources):
            times[tile] = _milliseconds(partial(launch_all, calls(tile)))
    if not times:
        launch_all(calls(candidates[-1]))  # raises the error with the memory that it needs
    return next(tile for tile in times if times[tile] <= TIE * min(times.values()))


def load_or_find(file: Path | None, candidates: Sequence[Tile], find: Callable[[], Tile]) -> Tile:
    """Return the tile cached in a file if it is a candidate; else call `find` and write its tile to the file.

    A file that cannot be read or written is ignored: the next process then tunes again.
    """
    if file is None:
        return find()
    with suppress(OSError, ValueError, TypeError):
        tile = Tile(**json.loads(file.read_text()))
        if tile in candidates:
            return tile
    tile = find()
    with suppress(OSError), replacing(file) as temporary:
        temporary.write_text(json.dumps(asdict(tile)))
    return tile


def _cache_file(key: tuple[object, ...]) -> Path | None:
    """Return the file of a key in the user's cache, named by all that affects which tile is the fastest."""
    cache = user_cache()
    if cache is None:
        return None
    result, problem, _device, *rest = key
    versions = (torch.cuda.get_device_name(), torch.__version__, triton.__version__)
    name = hashlib.sha256(repr((result, str(problem), *rest, *versions)).encode()).hexdigest()
    return cache / "tiles" / f"{name}.json"


def _milliseconds(call: Callable[[], None]) -> float:
    """Return the median time of a call on the device, in milliseconds."""
    found = do_bench(call, warmup=WARM_UP, rep=TRIAL, return_mode="median")
    assert isinstance(found, float)
    return found
