"""The first lines of a run: what it will do, and after some steps how long that will take."""

import time
from pathlib import Path
from shlex import quote
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from lambdanets.models.weight_files import PRETRAINED
from lambdanets.nn import LambdaLayer
from lambdanets.train.config import Wording
from lambdanets.train.learner import Learner
from lambdanets.train.progress import log_once

WARM_UP = 2  # batches that are slower than the others
MEASURED_SECONDS = 10.0  # of training from which the time of the run is estimated
FORWARD = 1 / 3  # time of a forward pass, as a part of the time of a training step
FEW = 20  # fewer validation samples than this give figures that depend on chance


class Opening(Callback):
    """Prints a run's settings before its first step, and an estimate of its time during the first epoch.

    A first epoch that is shorter than the measurement ends with a line that has the remaining time.

    Args:
        module: The Lightning module.
        directory: The run folder.
    """

    def __init__(self, module: Learner, directory: Path) -> None:
        self.module, self.directory = module, directory
        # Before the strategy divides the parameters over devices.
        self._model = describe_model(module)
        self._begin: tuple[float, int] | None = None  # time and number of batches after the warm-up
        self._first_batch = 0
        self._is_measuring = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module, config, engine = self.module, self.module.config, self.module.config.engine
        splits = trainer.datamodule.splits  # pyright: ignore[reportAttributeAccessIssue]
        steps = -(-module.state.batches_per_epoch // module.accumulate)
        samples = config.data.batch_size * trainer.world_size * module.accumulate
        epochs = "epoch" if engine.epochs == 1 else "epochs"
        batches = f"{steps:,} step{'s' * (steps != 1)}"
        counts = module.format_class_sizes(splits)
        self._first_batch = module.state.batches_done
        lines = {
            "recipe": config.recipe,
            "model": self._model,
            "data": f"{config.data.source}: {module.format_data(splits)}, {module.format_classes()}{counts}",
            **note_on_validation(len(splits.val), config.WORDING),
            "device": describe_devices(trainer, engine.precision),
            "steps": f"{engine.epochs} {epochs} of {batches} of {samples:,} {config.WORDING.samples}",
            "folder": str(self.directory),
            "stop": f"Ctrl-C; continue with: lambdanets train --resume {quote(str(self.directory))}",
        }
        log_once("".join(f"{name:<8}{text}\n" for name, text in lines.items()))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        state, engine = self.module.state, self.module.config.engine
        if not self._is_measuring or state.batches_done - self._first_batch < WARM_UP:
            return
        if self._begin is None:
            self._begin = time.monotonic(), state.batches_done
        seconds, batches = time.monotonic() - self._begin[0], state.batches_done - self._begin[1]
        if not batches or seconds < MEASURED_SECONDS:
            return
        self._is_measuring = False
        left = state.batches_per_epoch * engine.epochs - state.batches_done
        validations = -(-(engine.epochs - trainer.current_epoch) // engine.validate_every)
        networks = 1 if engine.ema is None else 2
        left += validations * networks * FORWARD * sum(map(int, trainer.num_val_batches))
        log_once(f"time    about {format_estimate(left * seconds / batches)} left, by the first steps")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._is_measuring = False


def describe_model(module: Learner) -> str:
    """Return name, parameters and initial weights of a module's network."""
    config, network = module.config, module.network
    parameters = list(network.parameters())
    total = sum(each.numel() for each in parameters)
    trained = sum(each.numel() for each in parameters if each.requires_grad)
    frozen = f" ({trained / 1e6:,.2f} M of them trained)" if trained < total else ""
    layers = sum(isinstance(each, LambdaLayer) for each in network.modules())
    found = f", {layers} lambda layer{'s' * (layers > 1)}" if layers else ""
    start = config.model.weights or "random weights"
    if start == PRETRAINED:
        start = "the published weights"
    return f"{config.model.name}, {total / 1e6:,.2f} M parameters{frozen}{found}, from {start}"


def note_on_validation(held: int, wording: Wording) -> dict[str, str]:
    """Return the line of the opening, by its name, that a run with few validation samples has."""
    if held >= FEW:
        return {}
    subject = f"1 validation {wording.sample} is" if held == 1 else f"{held} validation {wording.samples} are"
    return {"note": f"{subject} few: the figures will depend on chance"}


def describe_devices(trainer: pl.Trainer, precision: str) -> str:
    """Return number and kind of a trainer's devices, and the precision."""
    device = trainer.strategy.root_device
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif device.type == "cpu":
        threads = torch.get_num_threads()
        name = f"CPU, {threads} thread{'s' * (threads > 1)}"
    else:
        name = device.type
    number = f"{trainer.world_size} processes, each on " if trainer.world_size > 1 else ""
    nodes = f", {trainer.num_nodes} nodes" if trainer.num_nodes > 1 else ""
    return f"{number}{name}{nodes}, precision {precision}"


def format_estimate(seconds: float) -> str:
    """Format an estimated time with two digits at most."""
    for unit, size, limit in (("s", 1, 90), ("min", 60, 90 * 60), ("h", 3600, 48 * 3600)):
        if seconds < limit:
            return f"{max(seconds / size, 1):.{1 if size == 3600 and seconds < 10 * size else 0}f} {unit}"
    return f"{seconds / 86400:.1f} days"
