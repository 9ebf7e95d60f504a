"""Errors of a run, each with a message that the user can act on.

Errors with the attribute `on_all_ranks` are raised by all ranks at once: only rank 0 prints them.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote


@contextmanager
def raised_on_all_ranks() -> Iterator[None]:
    """Mark errors of the block, which fails on all ranks alike, so that only rank 0 prints them."""
    try:
        yield
    except Exception as error:
        error.on_all_ranks = True  # pyright: ignore[reportAttributeAccessIssue]
        raise


class RunError(ValueError):
    """A folder, the files in it, or the settings cannot be used for a run."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read."""


class DamagedCheckpointError(CheckpointError):
    """A file was read, but its content is damaged or is not a checkpoint of a run."""


class NonFiniteLossError(RuntimeError):
    """The training loss, or a weight, became NaN or infinite; nothing was saved after that.

    Args:
        what: Clause that names the failure, such as "the training loss became nan".
        step: Optimiser steps done before the bad one.
        epoch: Epoch of the bad step, counted from 1.
        learning_rate: Learning rate of that step.
        checkpoint: The last good checkpoint, or None.
        report: The part of the message that names the folder of the report; "" without one.
    """

    on_all_ranks = True

    def __init__(
        self,
        what: str,
        step: int,
        epoch: int,
        learning_rate: float,
        checkpoint: Path | None,
        report: str = "",
    ) -> None:
        self.step, self.epoch = step, epoch
        self.learning_rate, self.checkpoint = learning_rate, checkpoint
        last = f"the last good checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint yet"
        found = "; ".join(part for part in (report, last) if part)
        super().__init__(
            f"{what} at step {step} (epoch {epoch}, learning rate {learning_rate:.3g}); "
            f"{found}. Try a smaller optimizer.lr, a longer schedule.warmup_epochs or engine.clip_grad=1."
        )


class PeerLostError(RuntimeError):
    """Another process of a distributed run is lost, and this one cannot continue alone.

    Args:
        reason: Fate of the other process as a clause, such as "ended (...)".
        directory: The run folder.
        saved: The folder holds a checkpoint.
    """

    def __init__(self, reason: str, directory: Path, *, saved: bool) -> None:
        state = (
            "The newest checkpoint is intact. Continue"
            if saved
            else "There is no checkpoint yet. Begin again"
        )
        super().__init__(
            f"another process of this run {reason}. "
            f"{state} with: lambdanets train --resume {quote(str(directory))}"
        )


class WorkerLostError(RuntimeError):
    """A data-loading process ended during training.

    Args:
        reason: How the process ended.
        directory: The run folder.
        workers: Data-loading processes of each rank.
        saved: The folder holds a checkpoint.
    """

    def __init__(self, reason: str, directory: Path, *, workers: int, saved: bool) -> None:
        state = "The newest checkpoint is intact" if saved else "There is no checkpoint yet"
        super().__init__(
            f"a process that reads images was lost ({reason}), probably because memory or shared memory "
            f"(/dev/shm) ran out. {state}. Continue with fewer of them (there were {workers}): "
            f"lambdanets train --resume {quote(str(directory))} --set data.workers={workers // 2}"
        )


class NoMemoryError(RuntimeError):
    """Training needs more memory than is available.

    Args:
        advice: The sizes that used the memory, and the settings to change.
        directory: The run folder.
    """

    def __init__(self, advice: str, directory: Path) -> None:
        super().__init__(f"out of memory with {advice}. The checkpoints of {directory}, if any, are intact.")


class TrainingInterrupted(RuntimeError):
    """A signal asked training to stop, and it stopped cleanly.

    Args:
        number: The number of the signal.
        directory: The run folder.
        saved: Whether a checkpoint of the last step was written.
    """

    on_all_ranks = True

    def __init__(self, number: int, directory: Path, *, saved: bool) -> None:
        self.number, self.directory, self.saved = number, directory, saved
        self.exit_code = 128 + number
        where = "saved at the current step"
        if not saved:
            where = "stopped; the newest checkpoint, if any, is intact"
        super().__init__(
            f"stopped by {signal.Signals(number).name}: {where}. "
            f"Continue with: lambdanets train --resume {quote(str(directory))}"
        )
