"""The processes (ranks) of a run: how they were launched, and how they agree before training starts.

torchrun and srun start all processes at once, and each of them opens the data for itself. An error may occur
on all ranks, or on one while the others would wait for it: `run_on_all_ranks` stops all of them with one
message.
"""

import itertools
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
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

import lambdanets
from lambdanets.train.config import BaseConfig, EngineConfig
from lambdanets.train.errors import RunError, raised_on_all_ranks
from lambdanets.train.serialization import to_json
from lambdanets.utils.text import first_line


class SyncBatchNorms(LayerSync):
    """Synchronises batch norms over all devices, those of timm with a fused activation too.

    PyTorch's own conversion would drop the activation.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        return convert_sync_batchnorm(model)

    def revert(self, model: nn.Module) -> nn.Module:
        return model


class WholeCheckpointFSDP(FSDPStrategy):
    """FSDP that writes one whole checkpoint of the usual format, in place of Lightning's sharded one.

    Lightning's own version refuses the `storage_options` that keep the previous file.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None
    ) -> None:
        # The tensors were gathered on rank 0 when the checkpoint was made.
        ParallelStrategy.save_checkpoint(self, checkpoint, filepath, storage_options)


def strategy(name: str) -> FSDPStrategy | str:
    """Return Lightning's strategy of a name; "fsdp" is replaced by `WholeCheckpointFSDP`."""
    return WholeCheckpointFSDP() if name == "fsdp" else name


def set_timeout(strategy: Strategy, minutes: float) -> None:
    """Set how long the ranks of a strategy wait for each other; no effect on a single device."""
    if isinstance(strategy, DDPStrategy | FSDPStrategy | ModelParallelStrategy):
        strategy._timeout = timedelta(minutes=minutes)


def sharding_error(engine: EngineConfig, device: str) -> str:
    """Return why weights cannot be sharded over devices of a type, such as "cuda"; "" if they can."""
    if engine.ema is not None:
        return "engine.ema needs whole weights on every device; with FSDP leave it out"
    if engine.clip_mode == "agc":
        return (
            "engine.clip_mode=agc needs whole weights on every device; with FSDP take engine.clip_mode=norm"
        )
    if device == "cpu":
        return "engine.strategy=fsdp needs GPUs: PyTorch does not divide a network among CPUs"
    return ""


def launched() -> tuple[int, int] | None:
    """Return (processes per node, nodes) as launched by torchrun or srun; None without either.

    Raises:
        RunError: SLURM does not report the number of processes on each node.
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


def rank_and_world_size() -> tuple[int, int]:
    """Return (rank, number of ranks) of this process under torchrun or srun; (0, 1) without either.

    A SLURM job script that runs without srun has the variables of the job, but not those of a step.
    """
    for rank, size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        if rank in os.environ and size in os.environ:
            return int(os.environ[rank]), int(os.environ[size])
    return 0, 1


def local_rank() -> int:
    """Return the rank of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)


def cluster() -> list[ClusterEnvironment]:
    """Return Lightning's plugin for the launcher, where its own choice does not fit.

    Under SLURM, Lightning would install its own handler of the signals that announce the end of a job, save
    in a different way, and requeue the job. A SLURM job of a single task starts its processes itself, as on
    any machine.
    """
    if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return []
    return [SLURMEnvironment(auto_requeue=False) if _tasks() > 1 else LightningEnvironment()]


def _tasks() -> int:
    return int(os.environ["SLURM_NTASKS"]) if SLURMEnvironment.detect() else 0


RANK_TIMEOUT = timedelta(minutes=30)  # for the slowest rank, like the timeout of PyTorch's process groups
SHUTDOWN_TIMEOUT = timedelta(seconds=10)  # of rank 0, which hosts the store, until the others have read it

T = TypeVar("T")

_store: Any = None  # PyTorch's key-value store; kept alive, as the process group connects to it later
_calls = itertools.count()


def run_on_all_ranks(prepare: Callable[[], T]) -> T:
    """Return `prepare()` once it has succeeded on all ranks of torchrun or srun.

    Raises:
        Exception: The error of `prepare` on this rank, if rank 0 failed too; only rank 0 prints it.
        RunError: `prepare` failed on another rank, whose message this error carries; or a rank did not
            arrive.
    """
    with raised_on_all_ranks():
        started = launched()
    if started in (None, (1, 1)):
        return prepare()
    failure, result = None, None
    try:
        result = prepare()
    except Exception as error:  # of any kind: the other ranks get its message before it is raised
        failure = error
    first, message = _first_failure(None if failure is None else str(failure) or type(failure).__name__)
    if message is None:
        return result  # pyright: ignore[reportReturnType]
    if first == 0 and failure is not None:
        raised = failure
    else:
        raised = RunError(message if first == 0 else f"process {first} of the run: {message}")
    raised.on_all_ranks = True  # pyright: ignore[reportAttributeAccessIssue]
    raise raised from (None if raised is failure else failure)


def _first_failure(message: str | None) -> tuple[int, str | None]:
    """Exchange messages; return the lowest rank that failed and its message, None if all succeeded."""
    global _store
    environment = TorchElasticEnvironment() if TorchElasticEnvironment.detect() else SLURMEnvironment()
    rank, size = environment.global_rank(), environment.world_size()
    _store = store = _store or _rendezvous(environment.main_address, environment.main_port, rank, size)
    prefix = f"lambdanets/{next(_calls)}"
    if rank:
        store.set(f"{prefix}/message/{rank}", json.dumps(message))
        first, failed = json.loads(_wait(store, f"{prefix}/failure", 0, size))
        store.set(f"{prefix}/received/{rank}", "")
        return first, failed
    others = range(1, size)
    messages = [message, *(json.loads(_wait(store, f"{prefix}/message/{n}", n, size)) for n in others)]
    first = next((number for number, each in enumerate(messages) if each is not None), 0)
    store.set(f"{prefix}/failure", json.dumps([first, messages[first]]))
    if messages[first] is not None:
        with suppress(RuntimeError):
            store.wait([f"{prefix}/received/{number}" for number in others], SHUTDOWN_TIMEOUT)
    return first, messages[first]


def _rendezvous(address: str, port: int, rank: int, size: int) -> Any:
    """Connect to the store of the launcher, or of rank 0, which the process group uses later."""
    from torch.distributed.rendezvous import rendezvous

    url = f"tcp://{address}:{port}?rank={rank}&world_size={size}"
    try:
        store, _, _ = next(iter(rendezvous(url, timeout=RANK_TIMEOUT)))
    except RuntimeError as error:
        reason = first_line(error)
        raise RunError(f"process {rank} of {size} could not connect to the others: {reason}") from error
    return store


def _wait(store: Any, key: str, rank: int, size: int) -> bytes:
    try:
        return store.get(key)
    except RuntimeError as error:
        minutes = int(RANK_TIMEOUT.total_seconds() // 60)
        raise RunError(
            f"process {rank} of {size} ended, or did not arrive within {minutes} minutes; see its log"
        ) from error


def check_same_on_all_ranks(config: BaseConfig, fingerprint: str, weights_digest: str = "") -> None:
    """Check that all ranks have the same configuration, data, initial weights and versions.

    Raises:
        RunError: A rank differs from rank 0; raised on all ranks.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    # The paths of data and weights may differ between machines; their content may not.
    data = config.data.without_paths() if fingerprint else config.data
    model = replace(config.model, weights=None) if weights_digest else config.model
    mine = {
        "configuration": to_json(replace(config, data=data, model=model)),
        config.WORDING.samples: fingerprint,
        "weights to start from": weights_digest,
        "versions": f"lambdanets {lambdanets.__version__}, torch {torch.__version__}",
    }
    ranks: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(ranks, mine)
    first = ranks[0]
    for rank, other in enumerate(ranks):
        differing = [name for name in first if other[name] != first[name]]
        if differing:
            with raised_on_all_ranks():
                raise RunError(
                    f"process {rank} of the run has other {' and '.join(differing)} than process 0"
                )
