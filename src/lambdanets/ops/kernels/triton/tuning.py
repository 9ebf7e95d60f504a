"""Which tile a program takes: a device tries them on the tensors of the first call of a problem.

What was fastest is kept in a file for as long as device, versions and tiles stay the same. Ties go to the
earlier tile of `tile.tiles`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import lru_cache, partial
from pathlib import Path
from tempfile import NamedTemporaryFile

import torch
import triton
from torch import Tensor
from triton.runtime.errors import OutOfResources
from triton.testing import do_bench

from ...problem import Problem
from .call import Call
from .geometry import power
from .programs import rounded
from .tile import Tile, tiles

TIE = 1.03  # a tile is taken before an earlier one where that takes so many times longer
WARM_UP, TRIAL = 5, 20  # milliseconds of each tile

Calls = Callable[[Tile], Sequence[Call]]

_taken: dict[tuple[object, ...], Tile] = {}


def run(program: str, problem: Problem, tensors: Sequence[Tensor], calls: Calls) -> None:
    """Launch a program with its tile, which is found by trials the first time.

    Nothing is tried, and the first tile that the device has room for is taken, where no clock may decide what
    is rounded (`torch.use_deterministic_algorithms`), while a CUDA graph is recorded, by the interpreter, and
    where trials, which empty the device's cache by writing 256 MiB, would take more memory than is left.

    Args:
        program: "output", "dq", "dv" or "de".
        problem: What it is run for.
        tensors: What it reads, whose order in memory counts for its speed.
        calls: Its launches with a tile.

    Raises:
        OutOfResources: If the device has room for no tile.
    """
    candidates, device = tiles(problem, program), tensors[0].device
    if device.type != "cuda":
        launch(calls(candidates[0]))
        return
    with torch.cuda.device(device):
        key = (program, alike(program, problem), device, rounded(), *map(_order, tensors))
        tile = _taken.get(key)
        if torch.are_deterministic_algorithms_enabled():
            tile = None
        elif tile is None and not torch.cuda.is_current_stream_capturing():
            with suppress(torch.OutOfMemoryError):  # the next call tries again
                tile = _taken[key] = kept(_file(key), candidates, lambda: fastest(candidates, calls))
        if tile is None:
            first_with_room(candidates, calls)
        else:
            launch(calls(tile))


@lru_cache(maxsize=4096)
def alike(program: str, problem: Problem) -> Problem:
    """The problem whose tile serves those of about its sizes: photos of many sizes are not tried apart."""
    grids = {"grid": problem.grid, "context_grid": problem.context.key_grid}
    powers = {name: tuple(map(power, grid)) for name, grid in grids.items()}
    content = problem.content and program in ("output", "dq")
    return replace(problem, batch=power(problem.batch), content=content, **powers)  # type: ignore[arg-type]


def _order(x: Tensor) -> tuple[int, ...]:
    """A tensor's axes as they follow each other in memory."""
    return tuple(sorted(range(x.ndim), key=x.stride))


def launch(calls: Sequence[Call]) -> None:
    for call in calls:
        call.launch()


def first_with_room(candidates: Sequence[Tile], calls: Calls) -> None:
    """Launch with the first tile that fits into the device's shared memory."""
    for tile in candidates[:-1]:
        with suppress(OutOfResources):
            launch(calls(tile))
            return
    launch(calls(candidates[-1]))


def fastest(candidates: Sequence[Tile], calls: Calls) -> Tile:
    """The first of the tiles that are within `TIE` of the fastest; those without room are left out.

    Raises:
        OutOfResources: If there is room for none.
    """
    times = {}
    for tile in candidates:
        with suppress(OutOfResources):
            times[tile] = _milliseconds(partial(launch, calls(tile)))
    if not times:
        launch(calls(candidates[-1]))  # to say what it would take
    return next(tile for tile in times if times[tile] <= TIE * min(times.values()))


def kept(file: Path | None, candidates: Sequence[Tile], find: Callable[[], Tile]) -> Tile:
    """The tile that a file names, if it is one of the candidates; or what `find` finds, written to the file.

    A file that cannot be read or written is as none: the tile is found again by the next process.
    """
    if file is None:
        return find()
    with suppress(OSError, ValueError, TypeError):
        tile = Tile(**json.loads(file.read_text()))
        if tile in candidates:
            return tile
    tile = find()
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", dir=file.parent, delete=False) as written:  # whole, or not there
            json.dump(asdict(tile), written)
        os.replace(written.name, file)
    return tile


def _file(key: tuple[object, ...]) -> Path | None:
    """Where the tile of a key is kept: in the user's cache, under what could make another one the fastest."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # there is no home
        return None
    program, problem, _device, *rest = key
    where = (torch.cuda.get_device_name(), torch.__version__, triton.__version__)
    name = hashlib.sha256(repr((program, str(problem), *rest, *where)).encode()).hexdigest()
    return cache / "lambdanets" / "tiles" / f"{name}.json"


def _milliseconds(call: Callable[[], None]) -> float:
    found = do_bench(call, warmup=WARM_UP, rep=TRIAL, return_mode="median")
    assert isinstance(found, float)
    return found
