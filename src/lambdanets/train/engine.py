"""`train`: start a run from a configuration, or continue the run in a folder."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from torch import nn
from torch.utils.data import DataLoader

from lambdanets.data import DataError, open_splits
from lambdanets.models import to_channels_last
from lambdanets.models.weight_files import PRETRAINED
from lambdanets.train.checkpoint import RunState, write_text
from lambdanets.train.classifier import Classifier
from lambdanets.train.config import BaseConfig, Config, RunConfig, dump_config, load_classes
from lambdanets.train.diagnosis import explain_error
from lambdanets.train.errors import RunError, raised_on_all_ranks
from lambdanets.train.initial_weights import describe_other_split
from lambdanets.train.launch import run_on_all_ranks
from lambdanets.train.learner import Learner
from lambdanets.train.losses import class_weights
from lambdanets.train.multi_label import MultiLabelClassifier
from lambdanets.train.nonfinite import clear_report, reported_step
from lambdanets.train.optim import create_optimizer
from lambdanets.train.progress import log_once
from lambdanets.train.reporting import RunResult, finish, result
from lambdanets.train.resume import (
    ResumePoint,
    check_data,
    check_free,
    check_length,
    check_optimizer,
    check_weights,
    find_resume_point,
    resolve_config,
    weights_digest,
)
from lambdanets.train.run import RunFiles
from lambdanets.train.saving import CheckpointCallback
from lambdanets.train.trainer import build_trainer, quiet_lightning
from lambdanets.utils.processes import locked, require_posix
from lambdanets.utils.text import json_text


class Loaders(pl.LightningDataModule):
    """Creates the data loaders of the trainer, starting at the current position of the run.

    Args:
        splits: The training and validation data.
        module: The Lightning module, whose state holds the position.
    """

    def __init__(self, splits: Any, module: Learner) -> None:
        super().__init__()
        self.splits, self.module = splits, module

    def train_dataloader(self) -> DataLoader:
        config, state = self.module.config, self.module.state
        rank, world_size = self._rank_and_world_size()
        with raised_on_all_ranks():
            loader = self.module.train_loader(self.splits, rank=rank, world_size=world_size)
            batches = min(len(loader), config.engine.max_batches or len(loader))
            if state.batches_per_epoch not in (0, batches):
                raise RunError(
                    f"the run had {state.batches_per_epoch} batches in an epoch and has {batches} now; "
                    f"resume it with the same {config.WORDING.samples} and the same number of devices"
                )
        state.batches_per_epoch = batches
        return loader

    def val_dataloader(self) -> DataLoader:
        rank, world_size = self._rank_and_world_size()
        return self.module.val_loader(self.splits, rank=rank, world_size=world_size)

    def _rank_and_world_size(self) -> tuple[int, int]:
        """Return (rank of this process, number of processes)."""
        if self.trainer is None:
            raise RuntimeError("the loaders are made inside Trainer.fit")
        return self.trainer.global_rank, self.trainer.world_size


@dataclass(frozen=True)
class Task(Generic[Config]):
    """A kind of training that the engine can carry out.

    Attributes:
        config: The configuration class.
        open: Opens the data of a configuration; the result has `train`, `val`, `classes`, `fingerprint`,
            `skipped`.
        learner: Creates the Lightning module, such as its class; arguments are those of `Learner`.
    """

    config: type[Config]
    open: Callable[[Config], Any]
    learner: Callable[..., Learner]


def _open_images(config: RunConfig) -> Any:
    splits = open_splits(config.data, seed=config.seed)
    class_weights(config.loss, splits.train, splits.classes)  # before anything is written
    return splits


def _create_classifier(network: nn.Module, config: RunConfig, **options: Any) -> Classifier:
    kind = MultiLabelClassifier if config.data.multi_label else Classifier
    return kind(network, config, **options)


CLASSIFICATION = Task(RunConfig, _open_images, _create_classifier)


def train(
    config: RunConfig | None = None,
    *,
    run_dir: str | Path,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
) -> RunResult:
    """Train a classifier on labelled images, and write everything to one folder.

    Args:
        config: The run; None, when resuming, takes the configuration in the folder.
        run_dir: The run folder, created if missing; it must not hold a run unless `resume`.
        resume: Continue the run in `run_dir` from its newest intact checkpoint. The result equals that of a
            run without interruption: on the CPU, with the same number of threads, to the last bit. With
            another `engine.epochs` the rest of the run has the learning rates of a run of that length.
        callbacks: Callbacks of Lightning; each epoch is saved after they were called. `pl_module` is a
            `Learner`: `pl_module.state.history` has the rows of metrics.csv. Their `state_dict` is saved and
            restored with the run.

    Returns:
        The result, and the folder.

    Raises:
        RunError: The folder already holds a run, or none to resume, or one with another configuration or
            other images; or the optimiser, the engine or the model do not support the settings.
        WeightsError: The initial weights cannot be found or read, or belong to another model.
        InUseError: Another process trains in `run_dir`.
        DataError: The images cannot be used.
        NonFiniteLossError: The loss became NaN or infinite.
        PeerLostError: Another process of the run ended.
        NoMemoryError: The device, or the machine, has too little memory.
        WorkerLostError: A data-loading process was killed, perhaps because memory ran out.
        TrainingInterrupted: Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 or SIGUSR2; the run can be resumed.
        CheckpointError: The disk is full, or no checkpoint is intact.

    Example:
        >>> train(get_recipe("digits"), run_dir="runs/digits")
    """
    return train_task(CLASSIFICATION, config, run_dir=run_dir, resume=resume, callbacks=callbacks)


def train_task(
    task: Task[Config],
    config: Config | None = None,
    *,
    run_dir: str | Path,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
) -> RunResult:
    """Train any task; arguments, result and errors are those of `train`."""
    require_posix("training")
    files = RunFiles(Path(run_dir))
    with ExitStack() as resources:

        def lock_folder() -> None:
            if rank_zero_only.rank == 0:
                resources.enter_context(locked(files.lock, f"the run in {files.directory}"))
                if not resume:
                    check_free(files)

        ready = run_on_all_ranks(
            lambda: prepare_run(task, config, files, resume=resume, lock_folder=lock_folder)
        )
        if isinstance(ready, AlreadyComplete):
            return completed_result(ready.config, files, ready.start)
        return _fit(ready, files, resume=resume, lock_folder=lock_folder, callbacks=callbacks)


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to start, before anything is written."""

    start: ResumePoint | None
    splits: Any
    module: Learner


@dataclass(frozen=True)
class AlreadyComplete:
    """A run that was resumed and has no training left; its data are not opened."""

    config: BaseConfig
    start: ResumePoint


def _fit(
    ready: Prepared,
    files: RunFiles,
    *,
    resume: bool,
    lock_folder: Callable[[], None],
    callbacks: Sequence[Callback],
) -> RunResult:
    """Write the first files of a run, train it, and write the last ones; errors are explained."""
    start, splits, module = ready.start, ready.splits, ready.module
    config = module.config
    saving = CheckpointCallback(files, module)
    with quiet_lightning(), saving.listening():
        # Before anything is written: a run that cannot be built leaves no folder.
        with raised_on_all_ranks():
            create_optimizer(module.network, config.optimizer)
            trainer = build_trainer(module, files, saving, start, callbacks)
            check_shards(splits, trainer.world_size, config)
        if not resume:
            run_on_all_ranks(lock_folder)
        if rank_zero_only.rank == 0:
            if start and not start.is_complete(config):
                files.summary.unlink(missing_ok=True)  # of a shorter run
            write_text(files.config, dump_config(config))
            write_text(files.classes, json_text(splits.classes, indent=1) + "\n")
            files.skipped.unlink(missing_ok=True)
            if splits.skipped:
                write_text(files.skipped, "\n".join(splits.skipped) + "\n")
            if not resume:
                clear_report(files.nonfinite)
        module.last_checkpoint = start.path if start else None
        module.files = files
        module.suspected_step = reported_step(files.nonfinite) if start else -1
        resumed = {"ckpt_path": start.path, "weights_only": True} if start else {}
        if start and start.is_complete(config):
            # The run was killed between its last checkpoint and its summary.
            module.on_load_checkpoint(start.content)
        else:
            try:
                trainer.fit(module, datamodule=Loaders(splits, module), **resumed)
            except (RuntimeError, ValueError, MemoryError, OSError, EOFError) as error:
                explained = explain_error(error, config, trainer, files, stopped_by=saving.received)
                if explained is None:
                    raise
                raise explained from error
    return finish(module, files, splits, write=trainer.is_global_zero)


def prepare_run(
    task: Task[Config],
    config: Config | None,
    files: RunFiles,
    *,
    resume: bool,
    lock_folder: Callable[[], None],
) -> Prepared | AlreadyComplete:
    """Check the run folder, open the data, and build the module, on each rank.

    A resumed run locks its folder first, because damaged files in it may be renamed. A new run locks it after
    all checks, because the lock creates the folder.
    """
    config = resolve_config(config, files, task.config, resume=resume)
    if resume:
        lock_folder()
    start = find_resume_point(files, config) if resume else None
    if start:
        check_length(start, config, files)
    if config.engine.threads:
        torch.set_num_threads(config.engine.threads)
    if start and start.is_complete(config) and files.summary.is_file() and files.classes.is_file():
        return AlreadyComplete(config, start)
    digest = weights_digest(config.model.weights, start)
    splits = task.open(config)
    if resume:
        check_data(files, splits, start, config.WORDING)
    if not start and (warning := describe_other_split(config, splits.fingerprint)):
        log_once(warning)
    module = build_learner(task, config, splits.classes, continues=start is not None)
    if start:
        check_weights(start, module, config.model.name)
        check_optimizer(start, create_optimizer(module.network, config.optimizer))
    module.state.fingerprint, module.state.weights_digest = splits.fingerprint, digest
    return Prepared(start, splits, module)


def completed_result(config: BaseConfig, files: RunFiles, start: ResumePoint) -> RunResult:
    """Return the result of a run that was already complete; nothing is written."""
    network = config.network(len(load_classes(files.classes)), loads_weights=True)
    parameters = sum(p.numel() for p in network.parameters())
    lines = files.summary.read_text(encoding="utf-8").splitlines(keepends=True)
    # The folder may have been moved.
    others = [line for line in lines if not line.startswith("folder ")]
    summary = "".join([*others, f"{'folder':<8}{files.directory}\n"])
    return result(config, start.state, parameters, files, summary, already_complete=True)


def build_learner(
    task: Task[Config], config: Config, classes: Sequence[str], *, continues: bool = False
) -> Learner:
    """Build the module of a run before its first step, from the configuration and the initial weights.

    Args:
        task: The task.
        config: The run.
        classes: Class names, in the order of the network's outputs.
        continues: A checkpoint is loaded afterwards: the initial weights are not needed.
    """
    torch.manual_seed(config.seed)
    weights = config.model.weights
    network = config.network(len(classes), loads_weights=continues or weights not in (None, PRETRAINED))
    if weights is not None and not continues:
        log_once(config.load_initial_weights(network))
    if config.engine.channels_last:
        to_channels_last(network)
    module = task.learner(network, config, classes=classes, state=RunState())
    if config.engine.checkpointing:
        # After the constructor copied the network for the moving average, which needs no backward pass.
        enable_activation_checkpointing(network, config.model.name)
    if config.engine.compile:
        # In place, so that the names of the weights stay; the moving average is not compiled.
        network.compile()
    return module


def enable_activation_checkpointing(network: Any, name: str) -> None:
    """Let a network in timm's interface recompute its activations in the backward pass.

    Raises:
        RunError: The network does not support it.
    """
    try:
        network.set_grad_checkpointing(True)
    except (AttributeError, AssertionError, NotImplementedError) as error:
        raise RunError(
            f"engine.checkpointing: {name} does not support recomputing its activations"
        ) from error


def check_shards(splits: Any, world_size: int, config: BaseConfig) -> None:
    """Raise DataError if a rank would have no validation sample: Lightning accepts no empty loader."""
    held, wording = len(splits.val), config.WORDING
    if held < world_size:
        raise DataError(
            f"{held} validation {wording.sample if held == 1 else wording.samples} for {world_size} "
            f"processes, each of which needs one: hold out more {wording.samples}, or use fewer devices."
        )
