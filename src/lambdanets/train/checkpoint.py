"""Files that are whole or not there: checkpoints, weights and tables survive a kill and a full disk."""

import errno
import os
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from torch import nn

from lambdanets.train.errors import CheckpointError


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
    except (OSError, RuntimeError) as error:
        # torch.save reports a failed write as a RuntimeError, with the OSError behind it or not at all.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise _explain(path, error) from error
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
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


def _explain(path: Path, error: BaseException) -> CheckpointError:
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, OSError):
        seen = seen.__cause__ or seen.__context__
    kept = "the previous one is untouched" if path.exists() else "nothing was written"
    if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
        return CheckpointError(
            f"the disk is full: {path} could not be saved; {kept}. Free some space and resume."
        )
    return CheckpointError(f"{path} could not be saved ({error}); {kept}.")


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
    """A checkpoint on the CPU, its checksums verified, nothing but tensors and plain types unpickled.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        # torch does not compare the checksums of its own archive.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise CheckpointError(f"the checkpoint {path} is damaged (in {damaged})")
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except (OSError, RuntimeError, EOFError, ValueError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"the checkpoint {path} is damaged ({str(error).splitlines()[0]})") from error


def newest_intact(
    candidates: list[Path], *, set_aside: bool = True
) -> tuple[Path, dict[str, Any], list[str]] | None:
    """The first checkpoint that loads, with its content, and a sentence on each damaged one before it.

    Args:
        candidates: paths, the newest first; missing ones are passed over.
        set_aside: rename a damaged file to `NAME.damaged`, so that it never takes the place of a good one.

    Returns:
        None when there is no checkpoint at all.

    Raises:
        CheckpointError: there are some and all are damaged.
    """
    complaints = []
    for path in candidates:
        if not path.exists():
            continue
        try:
            return path, load_checkpoint(path), complaints
        except CheckpointError as error:
            complaints.append(str(error))
            if set_aside:
                os.replace(path, path.with_name(path.name + ".damaged"))
    if complaints:
        raise CheckpointError("no checkpoint is intact: " + "; ".join(complaints))
    return None


def save_weights(network: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """Write a network's weights as safetensors, with metadata in the header."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)
