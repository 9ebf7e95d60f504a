"""Explanations of PyTorch's errors during training: out of memory, lost processes, unusable batches."""

import re

import lightning.pytorch as pl
import torch
from torch.distributed import DistBackendError

from lambdanets.train.config import BaseConfig
from lambdanets.train.errors import NoMemoryError, PeerLostError, TrainingInterrupted, WorkerLostError
from lambdanets.train.launch import sharding_error
from lambdanets.train.run import RunFiles
from lambdanets.utils.processes import lost_worker


def explain_error(
    error: Exception,
    config: BaseConfig,
    trainer: pl.Trainer,
    files: RunFiles,
    *,
    stopped_by: int | None = None,
) -> Exception | None:
    """Return the error that explains a failure inside the trainer, or None if its cause is unknown.

    Args:
        error: The error that the trainer raised.
        config: The configuration of the run.
        trainer: The trainer.
        files: The files of the run.
        stopped_by: The signal that asked the run to stop, if any.
    """
    if "more than 1 value per channel" in str(error):
        return batch_norm_error(config)
    saved = any(file.exists() for file in files.checkpoints)
    workers = config.data.workers
    lost = lost_worker(error)
    if lost is None and workers and isinstance(error, ConnectionResetError | EOFError):
        lost = "its connection broke off"  # the pipe to a worker closed before PyTorch noticed its end
    if lost is not None:
        if stopped_by is not None:
            return TrainingInterrupted(stopped_by, files.directory, saved=False)
        return WorkerLostError(lost, files.directory, workers=workers, saved=saved)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        device = trainer.strategy.root_device.type
        return NoMemoryError(out_of_memory_advice(config, trainer.world_size, device), files.directory)
    reason = lost_peer_reason(error) if trainer.world_size > 1 else None
    return None if reason is None else PeerLostError(reason, files.directory, saved=saved)


def batch_norm_error(config: BaseConfig) -> ValueError:
    """Return the error for a batch norm that got one value per channel in training."""
    data, wording = config.data, config.WORDING
    return ValueError(
        "batch norms in training need more than one value per channel, but data.batch_size="
        f"{data.batch_size} and data.{wording.size}={getattr(data, wording.size)} give maps of one "
        f"{wording.sample} and one position; take a larger data.batch_size or data.{wording.size}"
    )


def out_of_memory_advice(config: BaseConfig, world_size: int, device: str) -> str:
    """Return the sizes that used the memory, the settings to change, and those a resumed run may change.

    The first suggestions cost only time. The smaller batch is the largest one, up to half the present
    one, with which an optimiser step still takes the same number of images.

    Args:
        config: The configuration of the run.
        world_size: Number of processes.
        device: Type of their devices, such as "cuda".
    """
    data, engine, samples = config.data, config.engine, config.WORDING.samples
    step = engine.global_batch or data.batch_size * world_size * engine.accumulate
    smaller = [size for size in range(1, data.batch_size // 2 + 1) if step % (size * world_size) == 0]
    suggestions = []
    if smaller:
        setting = f"engine.accumulate={step // (smaller[-1] * world_size)}"
        if engine.global_batch is not None:
            setting = f"engine.global_batch={step}"
        suggestions.append(
            f"data.batch_size={smaller[-1]} with {setting}, which keeps the step of {step} {samples}"
        )
    if engine.precision in ("32", "64"):
        suggestions.append("engine.precision=bf16-mixed")
    if not engine.checkpointing:
        suggestions.append("engine.checkpointing=true")
    if world_size > 1 and "fsdp" not in engine.strategy and not sharding_error(engine, device):
        suggestions.append("engine.strategy=fsdp, which divides the weights among the devices")
    resumed = "none of this may change"
    if not engine.checkpointing:
        resumed = "engine.checkpointing may change, but not the batch, the precision or the strategy"
    order = "; ".join(suggestions) or f"smaller {samples} or a smaller model"
    where = f"{config.describe_batch()} on each device"
    return f"{where}; try, in this order: {order}. In a run that is resumed {resumed}"


def lost_peer_reason(error: Exception) -> str | None:
    """Return the end of another process as a clause ("ended (...)"); None for other errors."""
    message = str(error)
    if "connectFullMesh" in message:
        return "could not be reached; GLOO_SOCKET_IFNAME=DEVICE names the network device between the hosts"
    if found := re.search(r"[Tt]imed out waiting (\d+)ms", message):
        return (
            f"did not answer for {int(found[1]) / 1000:,.0f} s (engine.timeout_minutes); its host may be "
            "down, cut off or stopped"
        )
    if found := re.search(r"[\w ]+ by peer", message):
        return f"ended ({found[0].strip()}); its last log lines give the reason"
    if isinstance(error, DistBackendError) or "gloo" in message:
        first_line = (message.splitlines() or [type(error).__name__])[0]
        return f"ended ({first_line}); its last log lines give the reason"
    return None
