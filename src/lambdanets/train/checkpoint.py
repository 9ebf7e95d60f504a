"""Files that are whole or not there: checkpoints, weights and tables survive a kill and a full disk."""

import errno
import os
import pickle
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.fabric.plugins import CheckpointIO
from torch import Tensor

from lambdanets.train.errors import CheckpointError, DamagedCheckpointError, TrainingInterrupted

KEYS = ("state_dict", "optimizer_states", "loops", "global_step", "run_state")  # of a run's checkpoint
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
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _sync(temporary)
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
        _sync(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        # A wish to stop is not a failed write, even where closing the half-written file failed after it.
        if stop := _behind(error, TrainingInterrupted) or _behind(error, KeyboardInterrupt):
            raise stop from None
        # torch.save reports a failed write as a RuntimeError, with the OSError behind it or not at all.
        if isinstance(error, OSError | RuntimeError):
            raise _explain(path, error, previous) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write a small text file as a whole."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sweep(directory: Path) -> None:
    """Remove temporary files that a killed run left behind."""
    for leftover in directory.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
    return CheckpointError(f"{path} could not be saved ({error}); {kept}.")


def _behind(error: BaseException, kind: type[E]) -> E | None:
    """The first error of a kind in the chain that led to this one, itself included."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, kind):
        seen = seen.__cause__ or seen.__context__
    return seen


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
    """A run's checkpoint on the CPU, its checksums verified, nothing but tensors and plain types unpickled.

    Raises:
        DamagedCheckpointError: what the file holds is damaged, or is no checkpoint of a run.
        CheckpointError: the file is missing, or cannot be read now: that says nothing about its content.
    """
    try:
        _verify(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except pickle.UnpicklingError as error:
        raise _damaged(path, error) from error
    except (OSError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"the checkpoint {path} cannot be read now ({_line(error)}); nothing was changed"
        ) from error
    missing = [key for key in KEYS if not isinstance(content, dict) or key not in content]
    if missing:
        raise _damaged(path, f"it is no checkpoint of a run: it lacks {', '.join(missing)}")
    return content


def _verify(path: Path) -> None:
    """Compare the checksums of a checkpoint's archive, which torch does not."""
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                damaged = archive.testzip()
                names = archive.namelist()
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError) as error:
            # zipfile calls an archive bad whose end it could not read.
            if cause := _behind(error, OSError):
                raise cause from None
            raise _damaged(path, error) from error
    if damaged:
        raise _damaged(path, f"in {damaged}")
    if not any(name.endswith("data.pkl") for name in names):
        raise _damaged(path, "it is an archive of another kind")


def _damaged(path: Path, reason: object) -> DamagedCheckpointError:
    return DamagedCheckpointError(f"the checkpoint {path} is damaged ({_line(reason)})")


def _line(reason: object) -> str:
    return (str(reason).splitlines() or [type(reason).__name__])[0]


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
    """Write tensors, such as a network's state, as safetensors, with metadata in the header."""
    from safetensors.torch import save

    # The format knows no shared memory: a table that layers share stands under the name of each.
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in weights.items()}
    with replacing(path) as temporary:
        # Written by Python: a file of safetensors' own is closed to everybody else, whatever the umask says.
        temporary.write_bytes(save(tensors, metadata=metadata))
