"""The checkpoints of a run: the training state in them, and files that are replaced as a whole."""

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import torch
from lightning.fabric.plugins import CheckpointIO
from torch import Tensor

from lambdanets.models.tensor_files import (
    DamagedFileError,
    UnsafeFileError,
    read_archive,
    write_safetensors,
)
from lambdanets.train.errors import CheckpointError, DamagedCheckpointError, RunError, TrainingInterrupted
from lambdanets.train.serialization import decode
from lambdanets.utils import files
from lambdanets.utils.text import first_line


@dataclass(kw_only=True)
class RunState:
    """Progress of a run, stored in every checkpoint besides weights and optimiser.

    Attributes:
        batches_done: Batches trained on since the start of the run, by each device.
        batches_per_epoch: Batches of the training loader.
        sums: Sums of the training metrics of the epoch so far, over all devices, and the number of their
            elements as "images", whatever the unit of the task.
        train_seconds, wait_seconds, epoch_seconds: Wall time of the epoch so far, over all sessions: of the
            training batches, of waiting for them (a part of the first), and of all, validation included.
        cpu_seconds: CPU time of all threads of the training process during these training batches.
        history: Rows of `metrics.csv`, one for each finished epoch.
        best_epoch: The best epoch by its validation; 0 before the first.
        best_confusion: Confusion matrix of a classifier, `[classes, classes]`, truth by prediction; of a
            classifier of several labels the `label_table` of the classes, `[classes, 5]`.
        fingerprint: Hash that identifies the data of both splits; "" for sources without one.
        weights_digest: SHA-256 of the file of initial weights; "" without one.
    """

    batches_done: int = 0
    batches_per_epoch: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    train_seconds: float = 0.0
    wait_seconds: float = 0.0
    epoch_seconds: float = 0.0
    cpu_seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_confusion: Tensor | None = None
    fingerprint: str = ""
    weights_digest: str = ""

    @property
    def position(self) -> tuple[int, int]:
        """The epoch, from 0, and the batches already done in it: where the training data continues."""
        return divmod(self.batches_done, max(self.batches_per_epoch, 1))

    @property
    def seconds(self) -> float:
        """Wall time in seconds of the finished epochs and the current one."""
        return sum(row["seconds"] for row in self.history) + self.epoch_seconds

    @property
    def best(self) -> dict[str, float]:
        """The row of the best epoch; empty before the first."""
        return next((row for row in self.history if row["epoch"] == self.best_epoch), {})

    def is_stopped(self, patience: int | None) -> bool:
        """Return whether the last `patience` validations were all no better than an earlier one."""
        validated = [row["epoch"] for row in self.history if any(name.startswith("val_") for name in row)]
        return patience is not None and sum(epoch > self.best_epoch for epoch in validated) >= patience

    def start_epoch(self) -> None:
        """Reset the running sums and times."""
        self.sums = {}
        self.train_seconds = self.wait_seconds = self.epoch_seconds = self.cpu_seconds = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values and tensors, for a checkpoint that loads with `weights_only=True`."""
        return asdict(self)

    @classmethod
    def type_error_in(cls, plain: Mapping[str, Any]) -> str:
        """Return an error message for the first field that has another type than `to_dict` returns, or ""."""
        for name, kind in get_type_hints(cls).items():
            try:
                if name in plain:
                    decode(kind, plain[name], f"run_state.{name}")
            except ValueError as error:
                return str(error)
        return ""

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "RunState":
        """Return the state that `to_dict` returned as plain values.

        Raises:
            RunError: The state was stored by a version of this package with other fields.
        """
        if plain.keys() != {each.name for each in fields(cls)}:
            raise RunError(
                "the checkpoint is of another version of lambdanets, whose checkpoints have other fields: "
                "continue the run with the version that began it"
            )
        return cls(**plain)


PROGRESS = {"total": {"ready": int, "completed": int}, "current": {"ready": int, "completed": int}}
CHECKPOINT = {
    "epoch": int,
    "global_step": int,
    "pytorch-lightning_version": str,
    "state_dict": {},
    "loops": {
        "fit_loop": {
            "epoch_progress": PROGRESS,
            "epoch_loop.batch_progress": PROGRESS,
            "epoch_loop.automatic_optimization.optim_progress": {"optimizer": {"step": PROGRESS}},
            "epoch_loop.manual_optimization.optim_step_progress": PROGRESS,
            "epoch_loop.scheduler_progress": PROGRESS,
            "epoch_loop.val_loop.batch_progress": PROGRESS,
            "epoch_loop.state_dict": {"_batches_that_stepped": int},
            "state_dict": {},
        }
    },
    "callbacks": {},
    "optimizer_states": [{"state": {}, "param_groups": [{"params": list}]}],
    "lr_schedulers": list,
    "run_state": {},
}
"""The parts that every checkpoint of a run has; Lightning would silently ignore a missing one.

A dict stands for a mapping with these keys, a list for a list of at least one element of this form.
"""
ErrorT = TypeVar("ErrorT", bound=BaseException)


@contextmanager
def replacing(path: Path, *, previous: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which replaces it, flushed to disk, when the block succeeds.

    Args:
        path: The file to write.
        previous: Path that the replaced file is moved to.

    Raises:
        CheckpointError: The disk is full, or the folder is not writable; the present file is unchanged.
    """
    try:
        with files.replacing(path, previous=previous) as temporary:
            yield temporary
    except BaseException as error:
        # A request to stop is not a failed write, even if closing the half-written file failed as well.
        if stop := _find_cause(error, TrainingInterrupted) or _find_cause(error, KeyboardInterrupt):
            raise stop from None
        # torch.save reports a failed write as a RuntimeError, which may lack the OSError as its cause.
        if isinstance(error, OSError | RuntimeError):
            raise _write_error(path, error, previous) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write a small text file as a whole; file names that are not UTF-8 keep their bytes."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def remove_temporary_files(directory: Path) -> None:
    """Remove temporary files that a killed run left behind."""
    for leftover in directory.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def _write_error(path: Path, error: BaseException, previous: Path | None) -> CheckpointError:
    """Return the error of a failed write, with the reason and where the previous file is."""
    kept = f"there was no {path.name} before"
    if path.exists():
        kept = "the previous one is untouched"
    elif previous is not None and previous.exists():
        kept = f"the one before is {previous}"
    cause = _find_cause(error, OSError)
    if cause is not None and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return CheckpointError(
            f"the disk is full: {path} could not be saved; {kept}. Free some space and resume."
        )
    reason = cause.strerror if cause is not None and cause.strerror else error
    return CheckpointError(f"{path} could not be saved ({reason}); {kept}.")


def _find_cause(error: BaseException, kind: type[ErrorT]) -> ErrorT | None:
    """Return the first error of a type in the chain of causes of an error, itself included."""
    # A library may make the chain of causes a cycle.
    seen: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in seen:
        if isinstance(following, kind):
            return following
        seen.append(following)
        following = following.__cause__ or following.__context__
    return None


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's checkpoints, replaced as a whole, and loaded as tensors and plain types only.

    `storage_options={"previous": path}` moves the replaced file to that path.

    Args:
        loaded: Path and content of a checkpoint that was read already, to read it only once.
    """

    def __init__(self, loaded: tuple[Path, dict[str, Any]] | None = None) -> None:
        self._loaded = loaded

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: dict[str, Any] | None = None
    ) -> None:
        previous = (storage_options or {}).get("previous")
        # A file that Python opened reports why a write failed; one that PyTorch opened does not.
        with replacing(Path(path), previous=previous) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        loaded, self._loaded = self._loaded, None
        return loaded[1] if loaded and loaded[0] == Path(path) else load_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint of a run on the CPU; its checksums and the types of all its parts are verified.

    Raises:
        DamagedCheckpointError: The content is damaged, or not a checkpoint of a run.
        CheckpointError: The file is missing; or it cannot be read at present, which does not mean that it is
            damaged; or it holds more than tensors and plain values.
    """
    try:
        content = read_archive(path)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except DamagedFileError as error:
        raise DamagedCheckpointError(f"the checkpoint {error}") from error
    except UnsafeFileError as error:
        raise CheckpointError(f"the checkpoint {error}; put the run's own checkpoint in its place") from error
    except (OSError, MemoryError) as error:
        raise CheckpointError(
            f"the checkpoint {path} cannot be read now ({first_line(error)}); nothing was changed"
        ) from error
    if reason := _wrong_part(content):
        raise DamagedCheckpointError(f"the checkpoint {path} is damaged, or no checkpoint of a run: {reason}")
    return content


def _wrong_part(content: Any) -> str:
    """Return the first part of a checkpoint that is missing or has another type than in a run's; else ""."""
    if reason := _wrong_type(content, CHECKPOINT, ""):
        return reason
    if not all(isinstance(value, Tensor) for value in content["state_dict"].values()):
        return "state_dict holds other things than tensors"
    steps = content["loops"]["fit_loop"]["epoch_loop.automatic_optimization.optim_progress"]
    if steps["optimizer"]["step"]["total"]["completed"] != content["global_step"]:
        return "loops and global_step count different numbers of steps"
    return _wrong_optimizer(content) or RunState.type_error_in(content["run_state"])


def _wrong_type(value: Any, form: Any, where: str) -> str:
    """Return where a value differs from `form`, a template such as `CHECKPOINT`, or ""."""
    kind = form if isinstance(form, type) else Mapping if isinstance(form, dict) else list
    if not isinstance(value, kind) or isinstance(value, bool):
        return f"{where or 'its content'} is a {type(value).__name__}"
    if isinstance(form, dict):
        if missing := [name for name in form if name not in value]:
            return f"{where or 'it'} lacks {', '.join(missing)}"
        inner = [(value[name], each, f"{where}.{name}".lstrip(".")) for name, each in form.items()]
    elif isinstance(form, list):
        if not value:
            return f"{where} is empty"
        inner = [(each, form[0], where) for each in value]
    else:
        inner = []
    return next((reason for each in inner if (reason := _wrong_type(*each))), "")


def _wrong_optimizer(content: Mapping[str, Any]) -> str:
    """Return the fault of the optimiser states of a checkpoint as a clause; "" if there is none."""
    if len(content["optimizer_states"]) > 1:
        return "optimizer_states holds more than one optimiser"
    [states] = content["optimizer_states"]
    state, groups = states["state"], states["param_groups"]
    if not all(isinstance(each, Mapping) for each in state.values()):
        return "optimizer_states.state does not have one mapping for each parameter"
    if not state.keys() <= {name for group in groups for name in group["params"]}:
        return "optimizer_states.state has other parameters than the groups"
    has_momentum = any(group.get("momentum") or "betas" in group for group in groups)
    # With float16 loss scaling, the optimiser skips the first steps until the scale is small enough.
    scaled = "MixedPrecision" in content or "FSDPPrecision" in content
    if has_momentum and not state and content["global_step"] and not scaled:
        return "optimizer_states.state is empty"
    return ""


def newest_intact(
    candidates: list[Path], *, set_aside: bool = True
) -> tuple[Path, dict[str, Any], list[str]] | None:
    """Load the first checkpoint that is intact.

    Args:
        candidates: Paths, the newest first; missing ones are skipped.
        set_aside: Once an intact one is found, rename the damaged ones before it to `NAME.damaged`, so that
            they never replace an intact one.

    Returns:
        Its path, its content, and a sentence on each damaged one before it; None without any checkpoint.

    Raises:
        CheckpointError: All are damaged, or one cannot be read at present; all files stay as they are.
    """
    damaged: dict[Path, str] = {}
    for path in candidates:
        if not path.exists():
            continue
        try:
            content = load_checkpoint(path)
        except DamagedCheckpointError as error:
            damaged[path] = str(error)
            continue
        for bad in damaged if set_aside else ():
            os.replace(bad, bad.with_name(bad.name + ".damaged"))
        return path, content, list(damaged.values())
    if damaged:
        raise CheckpointError("no checkpoint is intact: " + "; ".join(damaged.values()))
    return None


def save_weights(weights: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write tensors, such as a network's state, as safetensors, with metadata and a checksum."""
    with replacing(path) as temporary:
        write_safetensors(temporary, weights, metadata)
