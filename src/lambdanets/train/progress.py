"""Progress of a run for the user: a live bar in a terminal, one line per epoch elsewhere."""

import os
import sys
import time
from contextlib import suppress
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.progress import Progress, TaskID, TextColumn

from lambdanets.train.learner import Learner
from lambdanets.utils.log import logger
from lambdanets.utils.progress import progress_bar_column

REFRESH = 0.25  # seconds between two updates of the bar: reading the running sums stalls an accelerator
WORTH_SHOWING, WORTH_ADVICE = 0.05, 0.10  # fractions of the training time spent waiting for data
WORTH_SECONDS = 5.0  # of waiting per epoch, below which no advice is given


class LiveProgress(Callback):
    """Progress bar of the epoch with loss, accuracy, speed and the remaining time of the whole run."""

    def __init__(self, module: Learner, console: Console | None = None) -> None:
        self.module = module
        self.console = console or Console(file=sys.stdout)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._started = self._updated_at = time.monotonic()
        self._batches_before = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = time.monotonic()
        self._batches_before = self.module.state.batches_done
        if not trainer.is_global_zero or not self.console.is_terminal:
            return
        columns = (
            TextColumn("{task.description}"),
            progress_bar_column(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("[grey62]{task.fields[detail]}"),
        )
        self._progress = Progress(*columns, console=self.console, refresh_per_second=4, transient=True)
        self._task = self._progress.add_task("", total=self.module.state.batches_per_epoch, detail="")
        self._progress.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._progress is None or self._task is None or time.monotonic() - self._updated_at < REFRESH:
            return
        self._updated_at = time.monotonic()
        state = self.module.state
        seconds = state.train_seconds or 1.0
        epochs = self.module.config.engine.epochs
        speed = (batch_idx + 1) * self.module.batch_items(batch) * trainer.world_size / seconds
        self._progress.update(
            self._task,
            description=f"epoch {trainer.current_epoch + 1:>{len(str(epochs))}}/{epochs}",
            completed=batch_idx + 1,
            detail=f"{self.module.format_training(self.module.running_means())}  "
            f"{format_speed(speed, self.module.unit)}  {format_duration(self._remaining_seconds())} left"
            f"{format_data_wait(state.wait_seconds / seconds)}",
        )

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._progress is None or self._task is None:
            return
        total = trainer.num_val_batches[0] if trainer.num_val_batches else None
        self._progress.update(
            self._task, description="validation", completed=batch_idx + 1, total=total, detail=""
        )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        state, epochs = self.module.state, self.module.config.engine.epochs
        if trainer.is_global_zero:
            row = state.history[-1]
            left = (
                f"  {format_duration(self._remaining_seconds())} left" if state.position[0] < epochs else ""
            )
            log_once(epoch_line(self.module, row) + left + format_data_wait(row["data_wait"]))
            # Decided by the history: a resumed run does not print the advice again.
            if is_data_bound(row) and not any(map(is_data_bound, state.history[:-1])):
                local = max(trainer.world_size // trainer.num_nodes, 1)
                workers = getattr(trainer.train_dataloader, "num_workers", 0)
                log_once(
                    slow_data_advice(
                        row["data_wait"], self.module, workers=workers, cores=available_cores() // local
                    )
                )
        if self._progress is not None and self._task is not None:
            self._progress.update(
                self._task, description="", completed=0, total=state.batches_per_epoch, detail=""
            )

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._stop()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            with suppress(OSError):  # the terminal is gone
                self._progress.stop()
            self._progress = None

    def _remaining_seconds(self) -> float:
        """Return the remaining seconds of the run, from the mean speed of this session with validation."""
        state = self.module.state
        done = state.batches_done - self._batches_before
        total = state.batches_per_epoch * self.module.config.engine.epochs
        return (time.monotonic() - self._started) / max(done, 1) * (total - state.batches_done)


def epoch_line(learner: Learner, row: dict[str, float]) -> str:
    """Format a finished epoch as a line for a terminal of 80 columns."""
    epochs = learner.config.engine.epochs
    unit = learner.unit
    number = f"epoch {int(row['epoch']):>{len(str(epochs))}}/{epochs}"
    return f"{number}  {learner.format_epoch(row)}  {format_speed(row[f'{unit}_per_second'], unit)}"


def format_speed(speed: float, unit: str) -> str:
    """Format a number of units per second, such as images, with a decimal below 10."""
    return f"{speed:,.{0 if speed >= 10 else 1}f} {unit}/s"


def format_data_wait(fraction: float) -> str:
    """Format the fraction of the training time spent waiting for data; "" if it is small."""
    return f"  data {100 * fraction:.0f} %" if fraction >= WORTH_SHOWING else ""


def is_data_bound(row: dict[str, float]) -> bool:
    """Return whether waiting for data took enough of an epoch to print advice."""
    fraction = row.get("data_wait", 0.0)
    return fraction > WORTH_ADVICE and fraction * row["seconds"] > WORTH_SECONDS


def slow_data_advice(fraction: float, learner: Learner, *, workers: int, cores: int) -> str:
    """Return advice for a run that waits for data: suggestions in the order to try them.

    Args:
        fraction: Fraction of the training time spent waiting.
        learner: The Lightning module.
        workers: Data-loading processes of this rank; 0 if there are none, as with data in memory.
        cores: CPU cores per rank.
    """
    samples = learner.config.WORDING.samples
    if workers == 0 and learner.config.data.workers:
        suggestions = [f"fewer changes in data.augment (the {samples} are in memory already)"]
    else:
        more = f"more data.workers ({workers} now, with {cores} cores for each process)"
        suggestions = [*([more] if workers < cores else []), *learner.data_advice()]
    return f"training waited for {samples} {100 * fraction:.0f} % of its time; try {', '.join(suggestions)}"


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def format_duration(seconds: float) -> str:
    """Format seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def log_once(sentence: str) -> None:
    """Log a message on rank 0."""
    if rank_zero_only.rank == 0:
        logger.info(sentence)
