"""The callback that saves checkpoints, and stops a run cleanly on signals."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from lambdanets.train.checkpoint import save_weights
from lambdanets.train.errors import CheckpointError, TrainingInterrupted
from lambdanets.train.learner import Learner
from lambdanets.train.run import RunFiles
from lambdanets.utils.processes import listened_signals

REPEAT_WINDOW = 5.0  # seconds in which a repeated signal counts once: launchers forward signals
STOPPING = "stopping at the next step that can be resumed; interrupt again to stop immediately"
VOTE_EVERY = 10  # optimiser steps between votes of the ranks on whether to save or stop
SLOW = 0.5  # seconds per optimiser step, above which the ranks vote after every step


class CheckpointCallback(Callback):
    """Saves the last, previous and best checkpoint, inside long epochs too, and stops cleanly on signals.

    Inside an epoch, checkpoints are saved only after an optimiser step, and never after the last step of the
    epoch: Lightning continues exactly from these points and from the end of an epoch. A request that arrives
    at another moment, such as during validation, is served at the next such point.

    It does not derive from Lightning's `Checkpoint`, whose callbacks run last: an epoch is saved before
    anything is printed or drawn, which could fail.

    Args:
        files: The files of the run.
        module: The Lightning module.
    """

    def __init__(self, files: RunFiles, module: Learner) -> None:
        self.files = files
        self.module = module
        self.received: int | None = None  # number of the signal that asked to stop
        self._received_at = 0.0
        self._handled_signals: tuple[int, ...] = ()  # the handled signals
        self.failed = False
        self._saved_at = time.monotonic()
        self._vote_every = VOTE_EVERY
        self._last_vote = 0, time.monotonic()  # step and time
        self._owner = os.getpid()

    # Signals

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle signals as requests to stop, from before the loaders fork until the trainer ends."""
        self._handled_signals = listened_signals()
        before = {number: signal.getsignal(number) for number in self._handled_signals}
        self._install_handlers()
        try:
            yield
        finally:
            if _in_main_thread():
                for number, handler in before.items():
                    signal.signal(number, handler)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning has replaced our handlers by now: its own would stop the run without a checkpoint.
        self._install_handlers()
        self._saved_at = time.monotonic()
        self._last_vote = trainer.global_step, time.monotonic()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self.failed = True

    def _install_handlers(self) -> None:
        """Install the signal handlers; only the main thread may."""
        if _in_main_thread():
            for number in self._handled_signals:
                signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: the first requests a stop at the next safe step, a later one stops at once."""
        if os.getpid() != self._owner:
            # A data-loading process that was just forked: its parent handles the signal.
            return
        if self.failed and number == signal.SIGTERM:
            # A launcher ends all processes when one has failed: this one still has to print its error.
            return
        if self.received is not None:
            # Ctrl-C may be pressed twice at once; torchrun forwards signals that its processes already got.
            again = number != signal.SIGINT or TorchElasticEnvironment.detect()
            if again and time.monotonic() - self._received_at < REPEAT_WINDOW:
                return
            raise TrainingInterrupted(number, self.files.directory, saved=False)
        self.received, self._received_at = number, time.monotonic()
        if rank_zero_only.rank == 0:
            with suppress(OSError):  # stderr may be closed
                sys.stderr.write(f"\n{STOPPING}\n")

    # Saving

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        engine, done = self.module.config.engine, batch_idx + 1
        if done % self.module.accumulate or done >= self.module.state.batches_per_epoch:
            return
        due = engine.save_steps is not None and trainer.global_step % engine.save_steps == 0
        if trainer.world_size > 1:
            if not due and trainer.global_step % self._vote_every:
                return
            # A job scheduler leaves a job seconds to stop: if steps are slow, the ranks vote after each.
            steps = max(trainer.global_step - self._last_vote[0], 1)
            slow = (time.monotonic() - self._last_vote[1]) / steps > SLOW
            self._vote_every = 1 if _any_rank(trainer, slow) else VOTE_EVERY
            self._last_vote = trainer.global_step, time.monotonic()
        age = (time.monotonic() - self._saved_at) / 60
        due |= engine.save_minutes is not None and age >= engine.save_minutes
        stop = _any_rank(trainer, self.received is not None)
        if _any_rank(trainer, due) or stop:
            self._save_last(trainer)
        if stop:
            raise self._interruption(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module, state = self.module, self.module.state
        self._check_folder(trainer)
        module.check_finite(weights=True)
        row = state.history[-1]
        if module.monitor in row and (
            not state.best or module.ranking_key(row) > module.ranking_key(state.best)
        ):
            state.best_epoch = int(row["epoch"])
            module.on_new_best()
            # The best before the last: a run killed between the two files repeats this epoch.
            trainer.save_checkpoint(self.files.best, weights_only=False)
            weights = module.eval_weights()
            if trainer.is_global_zero:
                metadata = {"epoch": str(state.best_epoch), module.monitor: str(row[module.monitor])}
                save_weights(weights, self.files.weights, module.weights_metadata() | metadata)
        self._save_last(trainer)
        if module.early_stop():
            trainer.should_stop = True

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Not at the end of the epoch: other callbacks still have to print and draw it.
        if self.module.state.batches_done and _any_rank(trainer, self.received is not None):
            raise self._interruption(trainer)

    def _save_last(self, trainer: pl.Trainer) -> None:
        """Save last.ckpt, and move the one before to previous.ckpt; all ranks must call it."""
        self._check_folder(trainer)
        self.module.check_finite(weights=True)
        keep = {"previous": self.files.previous}
        trainer.save_checkpoint(self.files.last, weights_only=False, storage_options=keep)
        self.module.last_checkpoint = self.files.last
        self._saved_at = time.monotonic()

    def _check_folder(self, trainer: pl.Trainer) -> None:
        if trainer.is_global_zero and not self.files.config.is_file():
            # A checkpoint would create the folder again, without the other files of the run.
            raise CheckpointError(
                f"{self.files.directory} was moved or removed during the run; nothing more is saved. If it "
                "was moved, --resume with its new path continues from its newest checkpoint."
            )

    def _interruption(self, trainer: pl.Trainer) -> TrainingInterrupted:
        """Return the error that stops the run, with the signal that any rank received."""
        received = torch.tensor(float(self.received or 0), device=self.module.device)
        number = int(trainer.strategy.reduce(received, reduce_op="max"))  # not all ranks got one
        return TrainingInterrupted(number, self.files.directory, saved=True)


def _in_main_thread() -> bool:
    """Return whether this is the main thread, the only one that may set signal handlers."""
    return threading.current_thread() is threading.main_thread()


def _any_rank(trainer: pl.Trainer, flag: bool) -> bool:
    """Return whether a flag is true on any rank; all ranks must call it."""
    return trainer.strategy.reduce_boolean_decision(flag, all=False)
