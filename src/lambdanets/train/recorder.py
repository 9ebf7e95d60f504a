"""Measures the epochs and publishes them: one row each in `metrics.csv`, in TensorBoard and in the curves."""

import csv
import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from lambdanets.train.checkpoint import write_text
from lambdanets.train.layout import RunFiles
from lambdanets.train.learner import Learner
from lambdanets.train.progress import say
from lambdanets.utils.text import first_line

FIRST = ("epoch", "step", "lr")
LAST = ("images_per_second", "images_per_cpu_second", "data_wait", "seconds")
CURVES_EVERY = 20.0  # seconds between drawings of the curves: a drawing takes about one
LOG_EVERY = 50  # steps between points of the training loss in TensorBoard


def to_csv(learner: Learner) -> str:
    """The text of `metrics.csv`: accuracies as fractions, `data_wait` as a fraction of the training time.

    What an epoch has not measured, as without a validation, is empty there. The `raw_` columns, of the
    trained weights, are those of runs that keep an average, whose `val_` ones are the average's.
    """
    text, history = io.StringIO(), learner.state.history
    trained = [f"train_{name}" for name in learner.measured]
    known = (*FIRST, *trained, *learner.columns, *LAST)
    averaged = any(name.startswith("raw_") for row in history for name in row)
    columns = [name for name in known if averaged or not name.startswith("raw_")]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in history:
        writer.writerow({name: f"{row[name]:.6g}" for name in columns if name in row})
    return text.getvalue()


class EventLog(TensorBoardLogger):
    """TensorBoard's events; where they cannot be written, a run goes on without them."""

    def __init__(self, files: RunFiles, purge_step: int) -> None:
        super().__init__(files.directory, name="", version=files.tensorboard.name, purge_step=purge_step)
        self._failed = False

    @property
    def experiment(self) -> Any:
        # Lightning asks for it before anything is logged.
        with self._optional():
            return super().experiment

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if not self._failed:
            with self._optional():
                super().log_metrics(metrics, step)

    def save(self) -> None:
        if not self._failed:
            with self._optional():
                super().save()

    def finalize(self, status: str) -> None:
        if not self._failed:
            with self._optional():
                super().finalize(status)

    @contextmanager
    def _optional(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            # Lightning wraps what fails in a ValueError, and the writer repeats its thread's first error.
            if not self._failed:
                reason = first_line(error.__cause__ or error)
                say(f"TensorBoard's events cannot be written in {self.log_dir} ({reason}); the run goes on")
            self._failed = True


class Recorder(Callback):
    """Times the batches and closes every epoch with its row in the run's state: checkpoints hold it."""

    def __init__(self, module: Learner) -> None:
        self.module = module
        self._counted = time.perf_counter()
        self._cpu = time.process_time()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._counted = time.perf_counter()
        self._cpu = time.process_time()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._cpu = time.process_time()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.module.state.wait_seconds += time.perf_counter() - self.module.free_since

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.module.state.train_seconds += time.perf_counter() - self.module.free_since
        now = time.process_time()
        self.module.state.cpu_seconds += now - self._cpu
        self._cpu = now
        self._count_time()
        if trainer.global_step % LOG_EVERY == 0:
            log(trainer, {"step/train_loss": float(outputs["loss"]), "step/lr": self.module.rate})

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module, state = self.module, self.module.state
        module.gather_sums()
        self._count_time()
        images = state.sums["images"]
        row = {
            "epoch": state.position[0],
            "step": trainer.global_step,
            "lr": module.rate,
            **{f"train_{name}": state.sums[name] / images for name in module.measured},
            **module.validation,
            "images_per_second": images / state.train_seconds,
            "images_per_cpu_second": images / max(state.cpu_seconds, 1e-9),
            "data_wait": state.wait_seconds / state.train_seconds,
            "seconds": state.epoch_seconds,
        }
        state.history.append(row)
        module.start_epoch()

    def _count_time(self) -> None:
        now = time.perf_counter()
        self.module.state.epoch_seconds += now - self._counted
        self._counted = now


class Publisher(Callback):
    """Shows every epoch once it is saved: its row in the table, in TensorBoard and in the curves.

    The files are written from the run's state as a whole, which is why a resumed run continues its tables
    instead of repeating lines.
    """

    def __init__(self, files: RunFiles, module: Learner) -> None:
        self.files = files
        self.module = module
        self._drawn = 0.0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        history = self.module.state.history
        log(trainer, {name: value for name, value in history[-1].items() if name != "step"})
        if trainer.is_global_zero:
            write_text(self.files.metrics, to_csv(self.module))
            if time.monotonic() - self._drawn > CURVES_EVERY:
                self.module.draw_curves(self.files.curves)
                self._drawn = time.monotonic()


def log(trainer: pl.Trainer, values: dict[str, float]) -> None:
    """Give numbers to the trainer's loggers at the current step."""
    for logger in trainer.loggers:
        logger.log_metrics(values, step=trainer.global_step)
