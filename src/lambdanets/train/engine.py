"""`train`: from a configuration to a finished run folder, or from an unfinished one to a finished one."""

import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.summary.writer import event_file_writer

from lambdanets.data import DataError, open_splits
from lambdanets.train.checkpoint import AtomicCheckpointIO, write_text
from lambdanets.train.config import BaseConfig, Config, EngineConfig, RunConfig, load_classes
from lambdanets.train.errors import RunError, everywhere
from lambdanets.train.launch import (
    SyncBatchNorms,
    cannot_divide,
    cluster,
    launched,
    set_timeout,
    strategy,
)
from lambdanets.train.layout import RunFiles
from lambdanets.train.learner import Learner
from lambdanets.train.loaders import Loaders
from lambdanets.train.meeting import together
from lambdanets.train.module import Classifier
from lambdanets.train.optim import create_optimizer
from lambdanets.train.postmortem import bad_step, clear
from lambdanets.train.progress import LiveProgress, say
from lambdanets.train.recorder import EventLog, Publisher, Recorder
from lambdanets.train.resume import (
    Start,
    check_free,
    check_images,
    check_optimizer,
    check_weights,
    find_start,
    settle,
    weights_digest,
)
from lambdanets.train.saving import Saving
from lambdanets.train.state import RunState
from lambdanets.train.summary import RunResult, finish, result
from lambdanets.train.trouble import tell
from lambdanets.train.typed import to_json
from lambdanets.utils.processes import locked, require_posix
from lambdanets.utils.text import first_line, json_text


@dataclass(frozen=True)
class Task(Generic[Config]):
    """What can be learnt: all that the engine has to know of it.

    Attributes:
        config: how a run of it is described.
        open: from a configuration to the data, which has `classes` and a `fingerprint`.
        learner: the Lightning module.
    """

    config: type[Config]
    open: Callable[[Config], Any]
    learner: type[Learner]


def _open_images(config: RunConfig) -> Any:
    return open_splits(config.data, seed=config.seed)


CLASSIFICATION = Task(RunConfig, _open_images, Classifier)


def train(config: RunConfig | None = None, *, run_dir: str | Path, resume: bool = False) -> RunResult:
    """Train one network on labelled images and leave one folder.

    Args:
        config: what to train; None, when resuming, takes the folder's own.
        run_dir: the run folder; it is made, and must hold no run unless `resume`.
        resume: continue the run in `run_dir` from its newest intact checkpoint. The result equals that of a
            run which was never interrupted: on the CPU, with the same number of threads, to the last bit.

    Returns:
        What came out, and where it is.

    Raises:
        RunError: the folder holds a run already, or none to resume, or one with another configuration or
            other images; or the optimizer, the engine or the model cannot do what is asked of them.
        WeightsError: the weights that the run starts from cannot be found or read, or are of another model.
        InUseError: another process trains in `run_dir`.
        DataError: the images cannot be used.
        NonFiniteLossError: the loss became NaN or infinite.
        PeerLostError: another process of the run ended.
        NoMemoryError: the device, or the machine, has too little memory.
        WorkerLostError: a process that reads images was killed, perhaps for want of memory.
        TrainingInterrupted: Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 or SIGUSR2; the run can be resumed.
        CheckpointError: the disk is full, or no checkpoint is intact.

    Example:
        >>> train(get_recipe("digits"), run_dir="runs/digits")
    """
    return learn(CLASSIFICATION, config, run_dir=run_dir, resume=resume)


def learn(
    task: Task[Config], config: Config | None = None, *, run_dir: str | Path, resume: bool = False
) -> RunResult:
    """As `train`, for any task."""
    require_posix("training")
    files = RunFiles(Path(run_dir))
    with ExitStack() as until_end:

        def claim() -> None:
            if rank_zero_only.rank == 0:
                until_end.enter_context(locked(files.lock, f"the run in {files.directory}"))
                if not resume:
                    check_free(files)

        ready = together(lambda: prepare(task, config, files, resume=resume, claim=claim))
        if isinstance(ready, Complete):
            return complete(ready.config, files, ready.start)
        return _fit(ready, files, resume=resume, claim=claim)


@dataclass(frozen=True)
class Ready:
    """What a process has in hand before anything is written."""

    start: Start | None
    splits: Any
    module: Learner


@dataclass(frozen=True)
class Complete:
    """A run that has nothing left to be done, which takes no images to see."""

    config: BaseConfig
    start: Start


def _fit(ready: Ready, files: RunFiles, *, resume: bool, claim: Callable[[], None]) -> RunResult:
    start, splits, module = ready.start, ready.splits, ready.module
    settled = module.config
    saving = Saving(files, module)
    with quiet(), saving.listening():
        # Before anything is written: what cannot be built leaves no folder behind.
        with everywhere():
            create_optimizer(module.network, settled.optimizer)
            trainer = build_trainer(module, files, saving, start)
            check_shares(splits, trainer.world_size)
        if not resume:
            together(claim)
        if rank_zero_only.rank == 0:
            write_text(files.config, to_json(settled))
            write_text(files.classes, json_text(splits.classes, indent=1) + "\n")
            files.skipped.unlink(missing_ok=True)
            if splits.skipped:
                write_text(files.skipped, "\n".join(splits.skipped) + "\n")
            if not resume:
                clear(files.nonfinite)
        module.last_checkpoint = start.path if start else None
        module.files = files
        module.suspected_step = bad_step(files.nonfinite) if start else -1
        resumed = {"ckpt_path": start.path, "weights_only": True} if start else {}
        if start and start.completes(settled):
            # Killed between its last checkpoint and its summary.
            module.on_load_checkpoint(start.content)
        else:
            try:
                trainer.fit(module, datamodule=Loaders(splits, module), **resumed)
            except (RuntimeError, ValueError, MemoryError, OSError, EOFError) as error:
                told = tell(error, settled, trainer, files, stopped_by=saving.received)
                if told is None:
                    raise
                raise told from error
    return finish(module, files, splits, write=trainer.is_global_zero)


def prepare(
    task: Task[Config],
    config: Config | None,
    files: RunFiles,
    *,
    resume: bool,
    claim: Callable[[], None],
) -> Ready | Complete:
    """Look at the folder, read what there is to read, and build the module.

    A run that is resumed takes its folder at once: damaged files in it are set aside. A new one takes it when
    all is known to fit, as it would have to make it.
    """
    config = settle(config, files, task.config, resume=resume)
    if resume:
        claim()
    start = find_start(files, config) if resume else None
    if config.engine.threads:
        torch.set_num_threads(config.engine.threads)
    if start and start.completes(config) and files.summary.is_file() and files.classes.is_file():
        return Complete(config, start)
    digest = weights_digest(config.model.weights, start)
    splits = task.open(config)
    if resume:
        check_images(files, splits, start)
    module = build_module(task, config, splits.classes, continues=start is not None)
    if start:
        check_weights(start, module, config.model.name)
        check_optimizer(start, create_optimizer(module.network, config.optimizer))
    module.state.fingerprint, module.state.weights_digest = splits.fingerprint, digest
    return Ready(start, splits, module)


def complete(config: BaseConfig, files: RunFiles, start: Start) -> RunResult:
    """What came out of a run that was complete already: it needs no images and writes nothing."""
    network = config.network(len(load_classes(files.classes)), loads_weights=True)
    parameters = sum(p.numel() for p in network.parameters())
    lines = files.summary.read_text(encoding="utf-8").splitlines(keepends=True)
    # The folder may have moved since.
    kept = [line for line in lines if not line.startswith("folder ")]
    summary = "".join([*kept, f"{'folder':<8}{files.directory}\n"])
    return result(config, start.state, parameters, files, summary, already_complete=True)


def build_module(
    task: Task[Config], config: Config, classes: Sequence[str], *, continues: bool = False
) -> Learner:
    """The module of a run before its first step: a function of the configuration, and of `model.weights`.

    Args:
        task: what is learnt.
        config: the run.
        classes: names, in the order of the network's answers.
        continues: a checkpoint follows: the weights that the run started from are not needed.
    """
    torch.manual_seed(config.seed)
    weights = config.model.weights
    network = config.network(len(classes), loads_weights=continues or weights is not None)
    if weights is not None and not continues:
        say(config.start(network))
    if config.engine.channels_last:
        network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    module = task.learner(network, config, classes=classes, state=RunState())
    if config.engine.checkpointing:
        spare_activations(network, config.model.name)  # after the average was made: nobody trains that
    if config.engine.compile:
        network.compile()  # in place, so that the names of the weights stay; the average is not compiled
    return module


def spare_activations(network: Any, name: str) -> None:
    """Let a network of timm's kind compute its activations again in the backward pass.

    Raises:
        RunError: it cannot.
    """
    try:
        network.set_grad_checkpointing(True)
    except (AttributeError, AssertionError, NotImplementedError) as error:
        raise RunError(f"engine.checkpointing: {name} cannot compute its activations again") from error


def build_trainer(module: Learner, files: RunFiles, saving: Saving, start: Start | None) -> pl.Trainer:
    """Lightning's trainer for a run, with our callbacks and nothing that speaks unasked."""
    engine = module.config.engine
    # Points that a killed run logged after the checkpoint are logged again.
    purge = start.content["global_step"] + 1 if start else 0
    trainer = make_trainer(
        **placement(engine),
        max_epochs=engine.epochs,
        gradient_clip_val=engine.clip_grad,
        limit_train_batches=engine.max_batches,
        limit_val_batches=engine.max_val_batches,
        logger=EventLog(files, purge),
        # In this order: an epoch is measured, saved, and only then shown.
        callbacks=[Recorder(module), saving, Publisher(files, module), LiveProgress(module)],
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
    module.accumulate = trainer.accumulate_grad_batches = accumulation(module.config, trainer.world_size)
    check_devices(engine, trainer)
    return trainer


def check_devices(engine: EngineConfig, trainer: pl.Trainer) -> None:
    """Raise RunError where the engine is asked for what its devices cannot do."""
    device = trainer.strategy.root_device.type
    sharded = isinstance(trainer.strategy, ModelParallelStrategy | FSDPStrategy)
    if sharded and (reason := cannot_divide(engine, device)):
        raise RunError(reason)
    if device == "cpu" and engine.sync_batchnorm and trainer.world_size > 1:
        raise RunError("engine.sync_batchnorm needs GPUs: PyTorch cannot synchronise batch norms on CPUs")


def check_shares(splits: Any, world_size: int) -> None:
    """Raise DataError where a process would have no validation image: Lightning takes no empty loader."""
    held = len(splits.val)
    if held < world_size:
        raise DataError(
            f"{held} validation image{'s' * (held != 1)} for {world_size} processes, each of which needs "
            "one: hold out more images, or use fewer devices."
        )


def accumulation(config: BaseConfig, world_size: int) -> int:
    """Batches of an optimiser step.

    Raises:
        RunError: `engine.global_batch` is no multiple of what all devices take at once.
    """
    wanted, at_once = config.engine.global_batch, config.data.batch_size * world_size
    if wanted is None:
        return config.engine.accumulate
    if wanted % at_once:
        fit = [size for size in range(1, config.data.batch_size) if wanted % (size * world_size) == 0]
        hint = f"; data.batch_size={fit[-1]} would do" if fit else ""
        raise RunError(
            f"engine.global_batch={wanted} is no multiple of {at_once} images, which is "
            f"data.batch_size={config.data.batch_size} on {world_size} device{'s' * (world_size > 1)}{hint}"
        )
    return wanted // at_once


def make_trainer(**settings: Any) -> pl.Trainer:
    """Lightning's trainer.

    Raises:
        RunError: this machine, or Lightning, does not have what the settings ask for.
    """
    try:
        return pl.Trainer(**settings)
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise RunError(f"the engine settings cannot be used here: {first_line(error)}") from error


def placement(engine: EngineConfig) -> dict[str, Any]:
    """Where and in which precision to run, as Lightning's Trainer takes it; a launcher's own numbers win."""
    devices, num_nodes = launched() or (engine.devices, engine.num_nodes)
    place = {"devices": devices, "num_nodes": num_nodes, "strategy": strategy(engine.strategy)}
    return arithmetic(engine) | place


def arithmetic(engine: EngineConfig) -> dict[str, Any]:
    """On what kind of device and in which precision, without how many devices there are."""
    exact = {"32": "32-true", "64": "64-true"}
    return {
        "accelerator": engine.accelerator,
        "precision": exact.get(engine.precision, engine.precision),
        "deterministic": engine.deterministic,
        "benchmark": not engine.deterministic,
    }


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's announcements, its advice on choices that are ours, and TensorBoard's thread.

    What fails in that thread is raised at the next event again.
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
