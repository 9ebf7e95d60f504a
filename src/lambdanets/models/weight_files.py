"""Weights in a file, in a folder or on the Hugging Face hub, read as tensors and nothing else."""

from __future__ import annotations

import errno
from pathlib import Path

import torch
from timm.models import load_state_dict
from torch import Tensor

from ..wording import few

HUB = "hf-hub:"
NAMES = ("weights.safetensors", "model.safetensors", "pytorch_model.bin")
"""Files with weights: of a run, of timm on the hub, and of what is older there."""
PARTS = ("average.", "network.")  # of a run's checkpoint; where there is an average, it is what counts


class WeightsError(ValueError):
    """Weights cannot be found or read, or are not those of the model."""


class OtherClassesError(WeightsError):
    """Weights are for another number of classes than the model."""

    def __init__(self, source: str | Path, have: int, need: int) -> None:
        self.sentence = f"the weights in {source} are for {have} classes and the model is for {need}"
        super().__init__(f"{self.sentence}; head='replace' leaves their head out")


def find_weights(source: str | Path) -> Path:
    """The file that a source of weights means; one on the hub is fetched, unless it was before.

    Args:
        source: A file, a folder (of a run, or as on the hub), or hf-hub:OWNER/NAME, with @REVISION if wanted.

    Raises:
        WeightsError: There is none.
    """
    text = str(source)
    if text.startswith(HUB):
        return _from_hub(text.removeprefix(HUB))
    path = Path(text).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        raise WeightsError(f"there are no weights {path}: no such file or folder")
    for name in NAMES:
        if (path / name).is_file():
            return path / name
    names = ", ".join(NAMES)
    raise WeightsError(f"{path} holds no weights: it has none of {names} (a run has them after an epoch)")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name.

    Safetensors, or what `torch.save` wrote of a state_dict: by itself or under `state_dict_ema`, `model_ema`,
    `state_dict` or `model`, the first of these that is there. Wrappers of DDP and torch.compile before the
    names are taken off. A run's own checkpoint (.ckpt) gives the average of its weights where it keeps one.

    Args:
        path: The file. Nothing in it is run: a pickle of more than tensors and plain types is refused.

    Raises:
        WeightsError: It cannot be read as weights.
        OSError: It cannot be read at all.
    """
    try:
        content = load_state_dict(str(path), use_ema=True, device="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes make unpicklers fail in any way
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which is a seek to nowhere
            raise
        raise _unreadable(path, error) from error
    if not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(
            f"{path} holds no weights: expected tensors by name, at the top or in 'state_dict' or 'model', "
            f"found {few(map(str, content)) or 'nothing'}"
        )
    if path.suffix == ".ckpt":
        for part in PARTS:
            inside = {
                name.removeprefix(part): each for name, each in content.items() if name.startswith(part)
            }
            if inside:
                return inside
    return content


def _unreadable(path: Path, error: Exception) -> WeightsError:
    if path.suffix == ".safetensors":
        return WeightsError(f"{path} is damaged, or no safetensors ({_line(error)})")
    cause = error.__cause__ or error
    try:
        needed = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # no archive of torch's
        needed = []
    if needed or any(sign in str(cause) for sign in ("GLOBAL", "TorchScript")):
        named = f" ({few(sorted(needed), 3, form=str)})" if needed else ""
        return WeightsError(
            f"{path} holds more than tensors{named}, which can run code when it is loaded, and is refused; "
            "ask for safetensors, or have the state_dict saved by itself"
        )
    return WeightsError(f"{path} is damaged, or holds no weights of PyTorch")


def _line(error: Exception | None) -> str:
    return (str(error).splitlines() or [""])[0].rstrip(". ") or type(error).__name__


def _from_hub(name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    reason: Exception | None = None
    offline = False  # found out by trying, which takes long enough once
    try:
        for file in NAMES[1:]:
            options = {"revision": revision or None, "local_files_only": offline}
            try:
                return Path(hf_hub_download(repository, file, **options))
            except EntryNotFoundError as error:
                offline, reason = isinstance(error, LocalEntryNotFoundError), reason or error
    except (OSError, ValueError, RuntimeError) as error:
        reason = error
    raise WeightsError(f"{HUB}{name} gives no {' and no '.join(NAMES[1:])}: {_line(reason)}") from reason
