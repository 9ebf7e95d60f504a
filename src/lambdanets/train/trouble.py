"""What failures of torch's mean for the person who trains."""

import re

import torch
from torch.distributed import DistBackendError

from lambdanets.train.config import RunConfig
from lambdanets.train.errors import NoMemoryError, PeerLostError
from lambdanets.train.layout import RunFiles


def tell(error: Exception, config: RunConfig, world_size: int, files: RunFiles) -> Exception | None:
    """What a failure of torch's means for the person, None where it is nothing that is foreseen."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        return NoMemoryError(spare_memory(config, world_size), files.directory)
    reason = lost_peer(error) if world_size > 1 else None
    return None if reason is None else PeerLostError(reason, files.directory)


def spare_memory(config: RunConfig, world_size: int) -> str:
    """Where memory went, and what to do in order of trying: the first things change nothing but the time."""
    data, engine = config.data, config.engine
    where = f"data.batch_size={data.batch_size} images of {data.image_size}x{data.image_size} on each device"
    means = []
    if data.batch_size > 1:
        step = engine.global_batch or data.batch_size * world_size * engine.accumulate
        half = data.batch_size // 2
        fits = step % (half * world_size) == 0
        keeps = f"with engine.global_batch={step}, which accumulates to the same step" * fits
        means.append(" ".join(part for part in (f"data.batch_size={half}", keeps) if part))
    if engine.precision in ("32", "64"):
        means.append("engine.precision=bf16-mixed")
    if not engine.checkpointing:
        means.append("engine.checkpointing=true")
    if world_size > 1 and "fsdp" not in engine.strategy:
        means.append("engine.strategy=fsdp, which divides the weights among the devices")
    return f"{where}; try, in this order: {'; '.join(means) or 'smaller images or a smaller model'}"


def lost_peer(error: Exception) -> str | None:
    """How the communication between processes broke off, if it did."""
    said = str(error)
    if found := re.search(r"[\w ]+ by peer", said):
        return found[0].strip()
    if isinstance(error, DistBackendError) or "gloo" in said:
        return (said.splitlines() or [type(error).__name__])[0]
    return None
