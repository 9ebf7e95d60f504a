"""The processes (ranks) of a run: how they were launched, and what they agree on before training."""

import itertools
import json
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.plugins import LayerSync
from lightning.pytorch.strategies import (
    DDPStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    ParallelStrategy,
    Strategy,
)
from timm.layers import convert_sync_batchnorm  # pyright: ignore[reportPrivateImportUsage]
from torch import nn

from lambdanets.train.config import EngineConfig
from lambdanets.train.errors import RunError, raised_on_all_ranks


class SyncBatchNorms(LayerSync):
    """Batch statistics over all devices, in timm's norms with an activation too, which PyTorch would lose."""

    def apply(self, model: nn.Module) -> nn.Module:
        return convert_sync_batchnorm(model)

    def revert(self, model: nn.Module) -> nn.Module:
        return model


class WholeCheckpointFSDP(FSDPStrategy):
    """FSDP whose checkpoints are one whole file of the usual form, written and replaced as all others.

    Lightning's own takes no file to keep the previous one in.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None
    ) -> None:
        # The tensors were gathered on the first process when the checkpoint was made.
        ParallelStrategy.save_checkpoint(self, checkpoint, filepath, storage_options)


def strategy(name: str) -> FSDPStrategy | str:
    """What Lightning's trainer takes for the name of a strategy."""
    return WholeCheckpointFSDP() if name == "fsdp" else name


def set_timeout(strategy: Strategy, minutes: float) -> None:
    """Set how long the processes of a strategy wait for each other, where it has several."""
    if isinstance(strategy, DDPStrategy | FSDPStrategy | ModelParallelStrategy):
        strategy._timeout = timedelta(minutes=minutes)


def sharding_error(engine: EngineConfig, device: str) -> str:
    """Why weights cannot be divided among devices of a type, such as "cuda"; "" where they can."""
    if engine.ema is not None:
        return "engine.ema needs whole weights on every device; with FSDP leave it out"
    if device == "cpu":
        return "engine.strategy=fsdp needs GPUs: PyTorch does not divide a network among CPUs"
    return ""


def launched() -> tuple[int, int] | None:
    """Processes on each node, and nodes, as torchrun or SLURM's srun started them; None where neither did.

    Raises:
        RunError: SLURM does not tell the processes on each node.
    """
    variables = os.environ
    if TorchElasticEnvironment.detect():
        local = int(variables["LOCAL_WORLD_SIZE"])
        return local, int(variables["WORLD_SIZE"]) // local
    if _tasks() < 2:
        return None
    if "SLURM_NTASKS_PER_NODE" not in variables:
        raise RunError(
            f"SLURM started {_tasks()} processes and does not say how many on each node: ask for them with "
            "--ntasks-per-node, not with --ntasks"
        )
    local = int(variables["SLURM_NTASKS_PER_NODE"])
    return local, _tasks() // local


def shard() -> tuple[int, int]:
    """Which of how many processes of torchrun or of srun this is.

    A job script of SLURM's that is no srun has the job's variables, too, but not those of a step.
    """
    for rank, size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        if rank in os.environ and size in os.environ:
            return int(os.environ[rank]), int(os.environ[size])
    return 0, 1


def local_rank() -> int:
    """Which process of its machine this is."""
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)


def cluster() -> list[ClusterEnvironment]:
    """What Lightning is told about the launcher, beyond what it finds out itself.

    Under SLURM it would put a handler of its own on the signals that announce the end of a job, save in
    another way than ours, and queue the job again. One task of SLURM's starts its processes itself, as
    anywhere else.
    """
    if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return []
    return [SLURMEnvironment(auto_requeue=False) if _tasks() > 1 else LightningEnvironment()]


def _tasks() -> int:
    return int(os.environ["SLURM_NTASKS"]) if SLURMEnvironment.detect() else 0


PATIENCE = timedelta(minutes=30)  # for the slowest process, as PyTorch has for its process groups
FAREWELL = timedelta(seconds=10)  # until the others know, before the first process takes the store with it

T = TypeVar("T")

_store: Any = None  # kept: the process group finds its server there
_meetings = itertools.count()


def run_on_all_ranks(prepare: Callable[[], T]) -> T:
    """What `prepare` returns, once it has succeeded on all processes of torchrun or srun.

    Raises:
        Exception: what `prepare` raised here, where it did so on the first process too; marked as told by it.
        RunError: it failed on another process, whose sentence this is; or a process did not come.
    """
    with raised_on_all_ranks():
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
    said.on_all_ranks = True  # pyright: ignore[reportAttributeAccessIssue]
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
        reason = str(error).strip().splitlines()[0]
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
