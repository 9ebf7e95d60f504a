"""The record of a run: epochs in `metrics.csv`, TensorBoard and curves, and the summary at the end."""

import csv
import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from lambdanets.train.checkpoint import RunState, replacing, write_text
from lambdanets.train.config import BaseConfig
from lambdanets.train.learner import Learner
from lambdanets.train.loggers import register_run
from lambdanets.train.progress import format_duration, format_speed
from lambdanets.train.run import RunFiles

# The first and the last columns of metrics.csv; those of the task are between them.
FIRST_COLUMNS = ("epoch", "step", "lr")
LAST_COLUMNS = ("{unit}_per_second", "{unit}_per_cpu_second", "data_wait", "seconds")  # unit: images, ...
CURVES_EVERY = 20.0  # seconds between two drawings of the curves; one takes about a second
LOG_EVERY = 50  # steps between two points of the training loss in TensorBoard


def to_csv(learner: Learner) -> str:
    """Return the text of `metrics.csv`: accuracies and `data_wait` as fractions of 1.

    Cells without a measurement, such as those of an epoch without validation, are empty. Runs that keep an
    average have additional `raw_` columns, measured with the trained weights; their `val_` columns are
    measured with the average.
    """
    text, history = io.StringIO(), learner.state.history
    trained = [f"train_{name}" for name in learner.train_metrics]
    last = [name.format(unit=learner.unit) for name in LAST_COLUMNS]
    known = (*FIRST_COLUMNS, *trained, *learner.columns, *last)
    averaged = any(name.startswith("raw_") for row in history for name in row)
    columns = [name for name in known if averaged or not name.startswith("raw_")]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in history:
        writer.writerow({name: f"{row[name]:.6g}" for name in columns if name in row})
    return text.getvalue()


class EpochRecorder(Callback):
    """Measures the time of batches, and adds a row to the run's state at the end of an epoch."""

    def __init__(self, module: Learner) -> None:
        self.module = module
        self._counted_until = time.perf_counter()
        self._cpu = time.process_time()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._counted_until = time.perf_counter()
        self._cpu = time.process_time()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._cpu = time.process_time()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.module.state.wait_seconds += time.perf_counter() - self.module.waiting_since

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.module.state.train_seconds += time.perf_counter() - self.module.waiting_since
        now = time.process_time()
        self.module.state.cpu_seconds += now - self._cpu
        self._cpu = now
        self._add_epoch_time()
        if trainer.global_step % LOG_EVERY == 0:
            log(trainer, {"step/train_loss": float(outputs["loss"]), "step/lr": self.module.current_lr})

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module, state = self.module, self.module.state
        module.gather_sums()
        self._add_epoch_time()
        items, unit = state.sums["images"], module.unit
        row = {
            "epoch": state.position[0],
            "step": trainer.global_step,
            "lr": module.current_lr,
            **{f"train_{name}": state.sums[name] / items for name in module.train_metrics},
            **module.val_metrics,
            f"{unit}_per_second": items / state.train_seconds,
            f"{unit}_per_cpu_second": items / max(state.cpu_seconds, 1e-9),
            "data_wait": state.wait_seconds / state.train_seconds,
            "seconds": state.epoch_seconds,
        }
        state.history.append(row)
        # For callbacks of the user, such as Lightning's EarlyStopping; the values are those of all ranks.
        module.log_dict({name: float(value) for name, value in row.items()}, logger=False)
        module.start_epoch()

    def _add_epoch_time(self) -> None:
        now = time.perf_counter()
        self.module.state.epoch_seconds += now - self._counted_until
        self._counted_until = now


class EpochPublisher(Callback):
    """Publishes each epoch after it was saved: `metrics.csv`, TensorBoard and the curves.

    The files are written as a whole from the run's state: a resumed run continues its tables without
    repeating lines.
    """

    def __init__(self, files: RunFiles, module: Learner) -> None:
        self.files = files
        self.module = module
        self._drawn = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            register_run(trainer.loggers, self.module.config, self.files)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        history = self.module.state.history
        log(trainer, {name: value for name, value in history[-1].items() if name != "step"})
        if trainer.is_global_zero:
            write_text(self.files.metrics, to_csv(self.module))
            if time.monotonic() - self._drawn > CURVES_EVERY:
                with replacing(self.files.curves) as temporary:
                    self.module.draw_curves(temporary)
                self._drawn = time.monotonic()


def log(trainer: pl.Trainer, values: dict[str, float]) -> None:
    """Pass values to the trainer's loggers at the current step."""
    for logger in trainer.loggers:
        logger.log_metrics(values, step=trainer.global_step)


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The result of a run.

    Attributes:
        directory: The run folder.
        model, parameters: Name of the network and number of its parameters.
        history: Rows of `metrics.csv`, one for each finished epoch.
        best_epoch, best: The best epoch by its validation, and its row.
        images_per_second: Training speed over the whole run and all devices, in the unit of the task.
        seconds: Wall time of all epochs, over all sessions.
        already_complete: The run was complete before, and nothing was done.
        summary: The text of `summary.txt`.
    """

    directory: Path
    model: str
    parameters: int
    history: tuple[dict[str, float], ...]
    best_epoch: int
    best: dict[str, float]
    images_per_second: float
    seconds: float
    already_complete: bool
    summary: str


def finish(learner: Learner, files: RunFiles, splits: Any, *, write: bool = True) -> RunResult:
    """Write the last files of a run, the summary after all others, and return the result."""
    config, state = learner.config, learner.state
    parameters = sum(p.numel() for p in learner.network.parameters())
    last = state.history[-1]
    epoch = f"epoch {state.best_epoch} of {config.engine.epochs}"
    rate = format_speed(speed(state, learner.unit), learner.unit)
    stopped = f"; {reason}" if (reason := learner.early_stop()) else ""
    lines = {
        "model": f"{config.model.name}, {parameters:,} parameters",
        "data": f"{config.data.source}: {learner.format_data(splits)}, {learner.format_classes()}",
        "best": f"{learner.format_best()}, {epoch}",
        "last": f"{learner.format_validation(last)}, training loss {last['train_loss']:.3f}{stopped}",
        "speed": f"{rate} in training, {format_duration(state.seconds)} in all",
        "folder": str(files.directory),
    }
    summary = "".join(f"{name:<8}{text}\n" for name, text in lines.items())
    if write:
        write_text(files.metrics, to_csv(learner))
        with replacing(files.curves) as temporary:
            learner.draw_curves(temporary, f"{config.model.name} on {config.data.source}")
        learner.draw_best(files)
        write_text(files.summary, summary)
    return result(config, state, parameters, files, summary)


def result(
    config: BaseConfig,
    state: RunState,
    parameters: int,
    files: RunFiles,
    summary: str,
    *,
    already_complete: bool = False,
) -> RunResult:
    """Build the result of `train` from the state of a run."""
    return RunResult(
        directory=files.directory,
        model=config.model.name,
        parameters=parameters,
        history=tuple(state.history),
        best_epoch=state.best_epoch,
        best=state.best,
        images_per_second=speed(state, config.WORDING.unit),
        seconds=state.seconds,
        already_complete=already_complete,
        summary=summary,
    )


def speed(state: RunState, unit: str) -> float:
    """Return the training speed, such as images per second: the harmonic mean of the epochs' speeds."""
    return len(state.history) / sum(1 / row[f"{unit}_per_second"] for row in state.history)
