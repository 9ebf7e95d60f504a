"""Measures the epochs and publishes them: one row each in `metrics.csv`, in TensorBoard and in the curves."""

import csv
import io
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from lambdanets.train.checkpoint import write_text
from lambdanets.train.figures import draw_curves
from lambdanets.train.layout import RunFiles
from lambdanets.train.module import Classifier

COLUMNS = (
    "epoch", "step", "lr", "train_loss", "train_top1", "val_loss", "val_top1", "val_top5",
    "raw_loss", "raw_top1", "raw_top5",
    "images_per_second", "images_per_cpu_second", "data_wait", "seconds",
)  # fmt: skip
CURVES_EVERY = 20.0  # seconds between drawings of the curves: a drawing takes about one
LOG_EVERY = 50  # steps between points of the training loss in TensorBoard


def to_csv(history: list[dict[str, float]]) -> str:
    """The text of `metrics.csv`: accuracies as fractions, `data_wait` as a fraction of the training time.

    A column that an epoch trained by an older version lacks is empty there. The `raw_` ones, of the trained
    weights, are those of runs that keep an average, whose `val_` ones are the average's.
    """
    text = io.StringIO()
    averaged = any("raw_top1" in row for row in history)
    columns = [name for name in COLUMNS if averaged or not name.startswith("raw_")]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in history:
        writer.writerow({name: f"{row[name]:.6g}" for name in columns if name in row})
    return text.getvalue()


class Recorder(Callback):
    """Times the batches and closes every epoch with its row in the run's state: checkpoints hold it."""

    def __init__(self, module: Classifier) -> None:
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
        row = {
            "epoch": state.position[0],
            "step": trainer.global_step,
            "lr": module.rate,
            "train_loss": state.loss_sum / state.images,
            "train_top1": state.correct / state.images,
            **module.validation,
            "images_per_second": state.images / state.train_seconds,
            "images_per_cpu_second": state.images / max(state.cpu_seconds, 1e-9),
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

    def __init__(self, files: RunFiles, module: Classifier) -> None:
        self.files = files
        self.module = module
        self._drawn = 0.0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        history = self.module.state.history
        log(trainer, {name: value for name, value in history[-1].items() if name != "step"})
        if trainer.is_global_zero:
            write_text(self.files.metrics, to_csv(history))
            if time.monotonic() - self._drawn > CURVES_EVERY:
                draw_curves(history, self.files.curves)
                self._drawn = time.monotonic()


def log(trainer: pl.Trainer, values: dict[str, float]) -> None:
    """Give numbers to the trainer's loggers at the current step."""
    for logger in trainer.loggers:
        logger.log_metrics(values, step=trainer.global_step)
