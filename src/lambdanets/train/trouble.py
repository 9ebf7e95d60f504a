"""What failures of torch's mean for the person who trains."""

import re

import lightning.pytorch as pl
import torch
from torch.distributed import DistBackendError

from lambdanets.train.config import BaseConfig
from lambdanets.train.errors import NoMemoryError, PeerLostError, TrainingInterrupted, WorkerLostError
from lambdanets.train.launch import cannot_divide
from lambdanets.train.layout import RunFiles
from lambdanets.utils.processes import lost_worker
from lambdanets.utils.text import first_line


def tell(
    error: Exception,
    config: BaseConfig,
    trainer: pl.Trainer,
    files: RunFiles,
    *,
    stopped_by: int | None = None,
) -> Exception | None:
    """Return the error that explains a failure inside the trainer, None where it is not foreseen.

    Args:
        error: as the trainer raised it.
        config: the run.
        trainer: that ran.
        files: of the run.
        stopped_by: the signal that asked the run to stop, if one did.
    """
    if "more than 1 value per channel" in str(error):
        return one_value_per_channel(config)
    saved = any(file.exists() for file in files.checkpoints)
    workers = config.data.workers
    lost = lost_worker(error)
    if lost is None and workers and isinstance(error, ConnectionResetError | EOFError):
        lost = "its connection broke off"  # what reading from it meets before torch has looked at it
    if lost is not None:
        if stopped_by is not None:
            return TrainingInterrupted(stopped_by, files.directory, saved=False)
        return WorkerLostError(lost, files.directory, workers=workers, saved=saved)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        device = trainer.strategy.root_device.type
        return NoMemoryError(spare_memory(config, trainer.world_size, device), files.directory)
    reason = lost_peer(error) if trainer.world_size > 1 else None
    return None if reason is None else PeerLostError(reason, files.directory, saved=saved)


def one_value_per_channel(config: BaseConfig) -> ValueError:
    """Return the error for a batch norm that got a single value per channel in training."""
    data = config.data
    return ValueError(
        "batch norms in training need more than one value per channel, but data.batch_size="
        f"{data.batch_size} and data.image_size={data.image_size} give maps of one image and one position; "
        "take a larger data.batch_size or data.image_size"
    )


def spare_memory(config: BaseConfig, world_size: int, device: str) -> str:
    """Where memory went, what to do in order of trying, and which of it a resumed run may do.

    The first things change little but the time. The smaller batch is the largest one, up to half, with which
    an optimiser step still takes the same number of images.

    Args:
        config: the run.
        world_size: number of processes.
        device: type of their devices, such as "cuda".
    """
    data, engine = config.data, config.engine
    where = f"data.batch_size={data.batch_size} images of {data.image_size}x{data.image_size} on each device"
    step = engine.global_batch or data.batch_size * world_size * engine.accumulate
    smaller = [size for size in range(1, data.batch_size // 2 + 1) if step % (size * world_size) == 0]
    means = []
    if smaller:
        how = f"engine.accumulate={step // (smaller[-1] * world_size)}"
        if engine.global_batch is not None:
            how = f"engine.global_batch={step}"
        means.append(f"data.batch_size={smaller[-1]} with {how}, which keeps the step of {step} images")
    if engine.precision in ("32", "64"):
        means.append("engine.precision=bf16-mixed")
    if not engine.checkpointing:
        means.append("engine.checkpointing=true")
    if world_size > 1 and "fsdp" not in engine.strategy and not cannot_divide(engine, device):
        means.append("engine.strategy=fsdp, which divides the weights among the devices")
    resumed = "none of this may change"
    if not engine.checkpointing:
        resumed = "engine.checkpointing may change, but not the batch, the precision or the strategy"
    order = "; ".join(means) or "smaller images or a smaller model"
    return f"{where}; try, in this order: {order}. In a run that is resumed {resumed}"


def lost_peer(error: Exception) -> str | None:
    """Return what happened to another process, to follow its name; None for an error of another kind."""
    said = str(error)
    if "connectFullMesh" in said:
        return "could not be reached; GLOO_SOCKET_IFNAME=DEVICE names the network device between the hosts"
    if found := re.search(r"[Tt]imed out waiting (\d+)ms", said):
        return (
            f"did not answer for {int(found[1]) / 1000:,.0f} s (engine.timeout_minutes); its host may be "
            "down, cut off or stopped"
        )
    if found := re.search(r"[\w ]+ by peer", said):
        return f"ended ({found[0].strip()}); its own last words say why"
    if isinstance(error, DistBackendError) or "gloo" in said:
        return f"ended ({first_line(error)}); its own last words say why"
    return None
