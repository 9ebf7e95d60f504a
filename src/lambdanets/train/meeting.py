"""The processes of a launcher meet before anything is trained: what stops one stops all, and is told once.

torchrun and srun start all processes at once, and each reads the images for itself. What is wrong with them
all processes find, or one alone, for whom the others would wait.
"""

import itertools
import json
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from lambdanets.train.errors import RunError, everywhere
from lambdanets.train.launch import launched
from lambdanets.utils.text import first_line

PATIENCE = timedelta(minutes=30)  # for the slowest process, as PyTorch has for its process groups
FAREWELL = timedelta(seconds=10)  # until the others know, before the first process takes the store with it

T = TypeVar("T")

_store: Any = None  # kept: the process group finds its server there
_meetings = itertools.count()


def together(prepare: Callable[[], T]) -> T:
    """What `prepare` returns, once it has succeeded on all processes of torchrun or srun.

    Raises:
        Exception: what `prepare` raised here, where it did so on the first process too; marked as told by it.
        RunError: it failed on another process, whose sentence this is; or a process did not come.
    """
    with everywhere():
        started = launched()
    if started in (None, (1, 1)):
        return prepare()
    failure, result = None, None
    try:
        result = prepare()
    except Exception as error:  # whatever it is, the others are told before it is raised again
        failure = error
    sentence = None if failure is None else str(failure) or type(failure).__name__
    first, told = _verdict(sentence)
    if told is None:
        return result  # pyright: ignore[reportReturnType]
    if first == 0 and failure is not None:
        said = failure
    else:
        said = RunError(told if first == 0 else f"process {first} of the run: {told}")
    said.everywhere = True  # pyright: ignore[reportAttributeAccessIssue]
    raise said from (None if said is failure else failure)


def _verdict(sentence: str | None) -> tuple[int, str | None]:
    """The first process that failed and what it says, None where none did."""
    global _store
    place = TorchElasticEnvironment() if TorchElasticEnvironment.detect() else SLURMEnvironment()
    rank, size = place.global_rank(), place.world_size()
    _store = store = _store or _rendezvous(place.main_address, place.main_port, rank, size)
    about = f"lambdanets/{next(_meetings)}"
    if rank:
        store.set(f"{about}/said/{rank}", json.dumps(sentence))
        verdict = json.loads(_wait(store, f"{about}/verdict", 0, size))
        store.set(f"{about}/heard/{rank}", "")
        return verdict[0], verdict[1]
    others = range(1, size)
    said = [sentence, *(json.loads(_wait(store, f"{about}/said/{n}", n, size)) for n in others)]
    first = next((number for number, words in enumerate(said) if words is not None), 0)
    store.set(f"{about}/verdict", json.dumps([first, said[first]]))
    if said[first] is not None:
        with suppress(RuntimeError):
            store.wait([f"{about}/heard/{number}" for number in others], FAREWELL)
    return first, said[first]


def _rendezvous(address: str, port: int, rank: int, size: int) -> Any:
    """The store of the launcher, or that of the first process, where the process group will meet too."""
    from torch.distributed.rendezvous import rendezvous

    place = f"tcp://{address}:{port}?rank={rank}&world_size={size}"
    try:
        store, _, _ = next(iter(rendezvous(place, timeout=PATIENCE)))
    except RuntimeError as error:
        reason = first_line(error)
        raise RunError(f"process {rank} of {size} could not meet the others: {reason}") from error
    return store


def _wait(store: Any, key: str, whose: int, size: int) -> bytes:
    try:
        return store.get(key)
    except RuntimeError as error:
        minutes = int(PATIENCE.total_seconds() // 60)
        raise RunError(
            f"process {whose} of {size} ended, or did not arrive within {minutes} minutes; see its last words"
        ) from error
