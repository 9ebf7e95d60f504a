"""Lightning's trainer of a run or an evaluation: devices, precision, callbacks, and no output of its own."""

import logging
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from tensorboard.summary.writer import event_file_writer

from lambdanets.train.checkpoint import AtomicCheckpointIO
from lambdanets.train.config import BaseConfig, EngineConfig
from lambdanets.train.errors import RunError
from lambdanets.train.frozen import FrozenParts
from lambdanets.train.launch import SyncBatchNorms, cluster, launched, set_timeout, sharding_error, strategy
from lambdanets.train.learner import Learner
from lambdanets.train.loggers import create_loggers
from lambdanets.train.opening import Opening
from lambdanets.train.progress import LiveProgress
from lambdanets.train.reporting import EpochPublisher, EpochRecorder
from lambdanets.train.resume import ResumePoint
from lambdanets.train.run import RunFiles
from lambdanets.train.saving import CheckpointCallback
from lambdanets.utils.text import first_line


def build_trainer(
    module: Learner,
    files: RunFiles,
    saving: CheckpointCallback,
    start: ResumePoint | None,
    callbacks: Sequence[Callback],
) -> pl.Trainer:
    """Create the trainer of a run, with the callbacks of this package and without Lightning's own output."""
    engine = module.config.engine
    # Events that a killed run logged after the checkpoint are removed: they are logged again.
    purge_step = start.content["global_step"] + 1 if start else 0
    trainer = make_trainer(
        **trainer_placement(engine),
        max_epochs=engine.epochs,
        gradient_clip_val=engine.clip_grad,
        limit_train_batches=engine.max_batches,
        limit_val_batches=engine.max_val_batches,
        logger=create_loggers(module.config, files, purge_step),
        # The order matters: an epoch is measured, then saved with the state of the user's callbacks, then
        # printed and drawn.
        callbacks=[
            FrozenParts(module),
            EpochRecorder(module),
            *callbacks,
            saving,
            EpochPublisher(files, module),
            Opening(module, files.directory),
            LiveProgress(module),
        ],
        enable_checkpointing=False,
        plugins=[
            AtomicCheckpointIO((start.path, start.content) if start else None),
            *cluster(),
            *([SyncBatchNorms()] if engine.sync_batchnorm else []),
        ],
        default_root_dir=files.directory,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    set_timeout(trainer.strategy, engine.timeout_minutes)
    module.accumulate = trainer.accumulate_grad_batches = accumulation_steps(
        module.config, trainer.world_size
    )
    check_devices(engine, trainer)
    return trainer


def check_devices(engine: EngineConfig, trainer: pl.Trainer) -> None:
    """Raise RunError if the devices do not support the settings of the engine."""
    device = trainer.strategy.root_device.type
    sharded = isinstance(trainer.strategy, ModelParallelStrategy | FSDPStrategy)
    if sharded and (reason := sharding_error(engine, device)):
        raise RunError(reason)
    if device == "cpu" and engine.sync_batchnorm and trainer.world_size > 1:
        raise RunError("engine.sync_batchnorm needs GPUs: PyTorch cannot synchronise batch norms on CPUs")


def accumulation_steps(config: BaseConfig, world_size: int) -> int:
    """Return the batches of an optimiser step.

    Raises:
        RunError: `engine.global_batch` is no multiple of the samples that all devices take at once.
    """
    global_batch, samples_per_pass = config.engine.global_batch, config.data.batch_size * world_size
    if global_batch is None:
        return config.engine.accumulate
    if global_batch % samples_per_pass:
        divisors = [
            size for size in range(1, config.data.batch_size) if global_batch % (size * world_size) == 0
        ]
        hint = f"; data.batch_size={divisors[-1]} would divide it" if divisors else ""
        raise RunError(
            f"engine.global_batch={global_batch} is no multiple of {samples_per_pass} "
            f"{config.WORDING.samples}, which is data.batch_size={config.data.batch_size} on {world_size} "
            f"device{'s' * (world_size > 1)}{hint}"
        )
    return global_batch // samples_per_pass


def make_trainer(**settings: Any) -> pl.Trainer:
    """Create Lightning's trainer.

    Raises:
        RunError: This machine, or Lightning, does not support the settings.
    """
    try:
        return pl.Trainer(**settings)
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise RunError(f"the engine settings cannot be used here: {first_line(error)}") from error


def trainer_placement(engine: EngineConfig) -> dict[str, Any]:
    """Return devices, nodes, strategy and precision as arguments of Lightning's trainer.

    Under torchrun or srun, their numbers of processes and nodes replace the configured ones.
    """
    devices, num_nodes = launched() or (engine.devices, engine.num_nodes)
    placement = {"devices": devices, "num_nodes": num_nodes, "strategy": strategy(engine.strategy)}
    return device_and_precision(engine) | placement


def device_and_precision(engine: EngineConfig) -> dict[str, Any]:
    """Return the type of device and the precision as arguments of Lightning's trainer."""
    exact = {"32": "32-true", "64": "64-true"}
    return {
        "accelerator": engine.accelerator,
        "precision": exact.get(engine.precision, engine.precision),
        "deterministic": engine.deterministic,
        "benchmark": not engine.deterministic,
    }


def one_device(engine: EngineConfig, device: torch.device | None) -> dict[str, Any]:
    """Return precision and one device as arguments of Lightning's trainer; None takes the engine's type."""
    settings = device_and_precision(engine) | {"devices": 1}
    if device is not None:
        settings["accelerator"] = device.type
        settings["devices"] = 1 if device.index is None or device.type == "cpu" else [device.index]
    return settings


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's messages and advice, and errors of TensorBoard's thread.

    TensorBoard raises these errors again when the next event is logged, where `EventLog` handles them.
    """
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    excepthook = threading.excepthook

    def report(failure: Any) -> None:
        if type(failure.thread).__module__ != event_file_writer.__name__:
            excepthook(failure)

    threading.excepthook = report
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            threading.excepthook = excepthook
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
