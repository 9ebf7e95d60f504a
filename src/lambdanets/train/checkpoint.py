"""Files that are whole or not there: checkpoints, weights and tables survive a kill and a full disk."""

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.fabric.plugins import CheckpointIO
from torch import Tensor

from lambdanets.models.tensor_files import (
    DamagedFileError,
    UnsafeFileError,
    read_archive,
    write_safetensors,
)
from lambdanets.train.errors import CheckpointError, DamagedCheckpointError, TrainingInterrupted
from lambdanets.train.state import RunState
from lambdanets.utils import files
from lambdanets.utils.text import first_line

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
"""What a run's checkpoint has at least; Lightning passes over in silence what is missing in one.

A dict stands for one with these keys, a list for one of at least one element of this form.
"""
E = TypeVar("E", bound=BaseException)


@contextmanager
def replacing(path: Path, *, previous: Path | None = None) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place, on disk for sure, when the block ends well.

    Args:
        path: the file to be.
        previous: where the file that is replaced is kept.

    Raises:
        CheckpointError: the disk is full, or the folder cannot be written; what was there before stands.
    """
    try:
        with files.replacing(path, previous=previous) as temporary:
            yield temporary
    except BaseException as error:
        # A wish to stop is not a failed write, even where closing the half-written file failed after it.
        if stop := _behind(error, TrainingInterrupted) or _behind(error, KeyboardInterrupt):
            raise stop from None
        # torch.save reports a failed write as a RuntimeError, with the OSError behind it or not at all.
        if isinstance(error, OSError | RuntimeError):
            raise _explain(path, error, previous) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write a small text file as a whole; names of files that are not UTF-8 keep their bytes."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def sweep(directory: Path) -> None:
    """Remove temporary files that a killed run left behind."""
    for leftover in directory.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def _explain(path: Path, error: BaseException, previous: Path | None) -> CheckpointError:
    kept = f"there was no {path.name} before"
    if path.exists():
        kept = "the previous one is untouched"
    elif previous is not None and previous.exists():
        kept = f"the one before is {previous}"
    cause = _behind(error, OSError)
    if cause is not None and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return CheckpointError(
            f"the disk is full: {path} could not be saved; {kept}. Free some space and resume."
        )
    reason = cause.strerror if cause is not None and cause.strerror else error
    return CheckpointError(f"{path} could not be saved ({reason}); {kept}.")


def _behind(error: BaseException, kind: type[E]) -> E | None:
    """The first error of a kind in the chain that led to this one, itself included."""
    seen: list[BaseException] = []  # a library may close the chain of errors to a ring
    following: BaseException | None = error
    while following is not None and following not in seen:
        if isinstance(following, kind):
            return following
        seen.append(following)
        following = following.__cause__ or following.__context__
    return None


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's checkpoints, written beside and renamed into place, loaded as tensors and plain types only.

    `storage_options={"previous": path}` keeps the file that is replaced under that name.

    Args:
        loaded: a checkpoint that was read already, by its path, so that it need not be read twice.
    """

    def __init__(self, loaded: tuple[Path, dict[str, Any]] | None = None) -> None:
        self._loaded = loaded

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: dict[str, Any] | None = None
    ) -> None:
        previous = (storage_options or {}).get("previous")
        # A file of Python's own tells why a write failed; torch's does not.
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
    """Read a run's checkpoint on the CPU; its checksums and the types of all its parts are verified.

    Raises:
        DamagedCheckpointError: what the file holds is damaged, or is no checkpoint of a run.
        CheckpointError: the file is missing, or cannot be read now, which says nothing about its content; or
            it holds more than tensors and plain values.
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
    """Return what is missing in a checkpoint, or is of another type than a run writes, or ""."""
    if reason := _misfit(content, CHECKPOINT, ""):
        return reason
    if not all(isinstance(value, Tensor) for value in content["state_dict"].values()):
        return "state_dict holds other things than tensors"
    steps = content["loops"]["fit_loop"]["epoch_loop.automatic_optimization.optim_progress"]
    if steps["optimizer"]["step"]["total"]["completed"] != content["global_step"]:
        return "loops are not those of global_step"
    return _wrong_optimizer(content) or RunState.misfit(content["run_state"])


def _misfit(value: Any, form: Any, where: str) -> str:
    """Return where a value is not of a form, as `CHECKPOINT` is one, or ""."""
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
    return next((reason for each in inner if (reason := _misfit(*each))), "")


def _wrong_optimizer(content: Mapping[str, Any]) -> str:
    if len(content["optimizer_states"]) > 1:
        return "optimizer_states holds more than one optimiser"
    [states] = content["optimizer_states"]
    state, groups = states["state"], states["param_groups"]
    if not all(isinstance(each, Mapping) for each in state.values()):
        return "optimizer_states.state is not one of each parameter"
    if not state.keys() <= {name for group in groups for name in group["params"]}:
        return "optimizer_states.state has other parameters than the groups"
    moving = any(group.get("momentum") or "betas" in group for group in groups)
    # In float16 the first steps may all have been left out, until the scale of the loss was small enough.
    scaled = "MixedPrecision" in content or "FSDPPrecision" in content
    if moving and not state and content["global_step"] and not scaled:
        return "optimizer_states.state is empty"
    return ""


def newest_intact(
    candidates: list[Path], *, set_aside: bool = True
) -> tuple[Path, dict[str, Any], list[str]] | None:
    """The first checkpoint that loads, with its content, and a sentence on each damaged one before it.

    Args:
        candidates: paths, the newest first; missing ones are passed over.
        set_aside: once an intact one is found, rename the damaged ones before it to `NAME.damaged`, so that
            they never take the place of a good one.

    Returns:
        None when there is no checkpoint at all.

    Raises:
        CheckpointError: there are some and all are damaged, or one cannot be read now; all stay as they are.
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
