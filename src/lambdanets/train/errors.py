"""What can go wrong in a run, each with one sentence a person can act on.

Those marked `everywhere` are raised by all processes of a run together: the first of them tells the person.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote


@contextmanager
def raised_on_all_ranks() -> Iterator[None]:
    """Mark what goes wrong in the enclosed lines, where all processes of a run do the same."""
    try:
        yield
    except Exception as error:
        error.on_all_ranks = True  # pyright: ignore[reportAttributeAccessIssue]
        raise


class RunError(ValueError):
    """A folder is not a run, or what it holds does not fit together."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read."""


class DamagedCheckpointError(CheckpointError):
    """A file could be read, and what it holds is not, or no longer, a checkpoint of a run."""


class NonFiniteLossError(RuntimeError):
    """The training loss, or a weight, became NaN or infinite; nothing was saved after it did.

    Args:
        what: "the training loss became nan", for example.
        step: optimiser steps done before the bad one.
        epoch: epoch of the bad step, counted from 1.
        learning_rate: learning rate at that step.
        checkpoint: the last good checkpoint, None when there is none yet.
        report: where what led to it was written down, as a half-sentence.
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
        kept = f"the last good checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint yet"
        kept = "; ".join(part for part in (report, kept) if part)
        super().__init__(
            f"{what} at step {step} (epoch {epoch}, learning rate {learning_rate:.3g}); "
            f"{kept}. Try a smaller optimizer.lr, a longer schedule.warmup_epochs or engine.clip_grad=1."
        )


class PeerLostError(RuntimeError):
    """Another process of a run on several devices is lost, and this one cannot go on alone.

    Args:
        reason: what happened to it, to follow its name.
        directory: the run folder.
        saved: whether it holds a checkpoint.
    """

    def __init__(self, reason: str, directory: Path, *, saved: bool) -> None:
        stands = (
            "The newest checkpoint stands. Continue" if saved else "There is no checkpoint yet. Begin again"
        )
        super().__init__(
            f"another process of this run {reason}. "
            f"{stands} with: lambdanets train --resume {quote(str(directory))}"
        )


class WorkerLostError(RuntimeError):
    """A process that reads images for training ended.

    Args:
        reason: how it ended.
        directory: the run folder.
        workers: such processes of each training process.
        saved: whether the folder holds a checkpoint.
    """

    def __init__(self, reason: str, directory: Path, *, workers: int, saved: bool) -> None:
        stands = "The newest checkpoint stands" if saved else "There is no checkpoint yet"
        super().__init__(
            f"a process that reads images was lost ({reason}), probably for want of memory or of shared "
            f"memory (/dev/shm). {stands}. Go on with fewer of them (there were {workers}): "
            f"lambdanets train --resume {quote(str(directory))} --set data.workers={workers // 2}"
        )


class NoMemoryError(RuntimeError):
    """Training needs more memory than there is.

    Args:
        advice: where the memory went and what to do.
        directory: the run folder.
    """

    def __init__(self, advice: str, directory: Path) -> None:
        super().__init__(f"out of memory with {advice}. The checkpoints of {directory}, if any, stand.")


class TrainingInterrupted(RuntimeError):
    """Training was asked to stop by a signal and stopped cleanly.

    Args:
        number: the signal.
        directory: the run folder.
        saved: whether a checkpoint of the very last step was written.
    """

    on_all_ranks = True

    def __init__(self, number: int, directory: Path, *, saved: bool) -> None:
        self.number, self.directory, self.saved = number, directory, saved
        self.exit_code = 128 + number
        where = "saved at the current step" if saved else "stopped; the newest checkpoint, if any, stands"
        super().__init__(
            f"stopped by {signal.Signals(number).name}: {where}. "
            f"Continue with: lambdanets train --resume {quote(str(directory))}"
        )
