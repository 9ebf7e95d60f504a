"""The processes of a run: who started them, and what Lightning is told about it."""

import os
from datetime import timedelta
from typing import Any

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
from lambdanets.train.errors import RunError


class SyncBatchNorms(LayerSync):
    """Batch statistics over all devices, in timm's norms with an activation too, which PyTorch would lose."""

    def apply(self, model: nn.Module) -> nn.Module:
        return convert_sync_batchnorm(model)

    def revert(self, model: nn.Module) -> nn.Module:
        return model


class Sharded(FSDPStrategy):
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
    return Sharded() if name == "fsdp" else name


def set_timeout(strategy: Strategy, minutes: float) -> None:
    """Set how long the processes of a strategy wait for each other, where it has several."""
    if isinstance(strategy, DDPStrategy | FSDPStrategy | ModelParallelStrategy):
        strategy._timeout = timedelta(minutes=minutes)


def cannot_divide(engine: EngineConfig, device: str) -> str:
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


def share() -> tuple[int, int]:
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
