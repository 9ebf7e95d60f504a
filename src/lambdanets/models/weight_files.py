"""Weights in a file, in a folder or on the Hugging Face hub, read as tensors and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.models import clean_state_dict
from torch import Tensor

from lambdanets.utils.files import parse_json
from lambdanets.utils.text import first_line, join_some

from .tensor_files import DamagedFileError, UnsafeFileError, read_archive, read_safetensors

HUB, LOCAL = "hf-hub:", "local-dir:"
NAMES = ("weights.safetensors", "model.safetensors", "pytorch_model.bin")
"""Files with weights: of a run, of timm on the hub, and of what is older there."""
TIMM_NAMES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
TIMM_SUFFIXES = (".safetensors", ".pth", ".pth.tar", ".bin")
"""The files that timm looks for in a folder, in its order."""
CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict")
"""Names under which training scripts save weights, as timm knows them and in its order; the last is ours."""
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
    """Read the tensors of a file by name; where it has checksums, they are verified.

    Safetensors, or what `torch.save` wrote of a state_dict: by itself, under the first of `CONTAINERS` that
    is there, or under the only name that holds tensors by name. What DDP, torch.compile and AveragedModel
    add to the names is taken off. A run's own checkpoint (.ckpt) gives the average of its weights where it
    has one.

    Args:
        path: The file. Nothing in it is run: a pickle of more than tensors and plain types is refused.

    Raises:
        WeightsError: It is damaged, or holds no weights.
        OSError: It cannot be read at all.
    """
    weights = _state_dict(path, read_content(path))
    if path.suffix == ".ckpt":
        for part in PARTS:
            inside = {
                name.removeprefix(part): each for name, each in weights.items() if name.startswith(part)
            }
            if inside:
                return inside
    return weights


def read_content(path: Path) -> Any:
    """Read all that is in a file of weights; where it has checksums, they are verified.

    Raises:
        WeightsError: It is damaged, or cannot be read without running what is in it.
        OSError: It cannot be read at all.
    """
    try:
        return read_safetensors(path) if path.suffix == ".safetensors" else read_archive(path)
    except DamagedFileError as error:
        raise WeightsError(f"{error}{same_weights(path)}") from error
    except UnsafeFileError as error:
        raise WeightsError(f"{error}; ask for safetensors, or have the state_dict saved by itself") from error


def _state_dict(path: Path, content: Any) -> dict[str, Tensor]:
    """Return the tensors by name in what a file holds, under the names that the network itself gives them."""
    held = {"": content, **(content if isinstance(content, Mapping) else {})}
    states = [name for name, value in held.items() if _is_state_dict(value)]
    known = [name for name in ("", *CONTAINERS) if name in states]
    if not known and len(states) > 1:
        raise WeightsError(
            f"{path} holds several networks' weights, {join_some(states)}: save the one that is meant by "
            "itself"
        )
    if not states:
        container = next((held[name] for name in CONTAINERS if isinstance(held.get(name), Mapping)), content)
        found = join_some(map(str, container)) if isinstance(container, Mapping) else type(container).__name__
        raise WeightsError(
            f"{path} holds no weights: expected tensors by name, at the top or in 'state_dict' or 'model', "
            f"found {found or 'nothing'}"
        )
    weights = dict(held[known[0] if known else states[0]])
    if all(name == "n_averaged" or name.startswith("module.") for name in weights):
        weights.pop("n_averaged", None)  # of AveragedModel: the steps that were averaged
    return clean_state_dict(weights)


def _is_state_dict(value: object) -> bool:
    if not isinstance(value, Mapping) or not value:
        return False
    return all(isinstance(name, str) and isinstance(each, Tensor) for name, each in value.items())


def same_weights(path: Path) -> str:
    """Say which other file of a run has the weights of this one."""
    others = {
        "weights.safetensors": path.parent / "checkpoints" / "best.ckpt",
        "best.ckpt": path.parent.parent / "weights.safetensors",
    }
    other = others.get(path.name)
    return f"; {other} has the same weights" if other is not None and other.is_file() else ""


def check_source(name: str, *, weights: bool) -> None:
    """Verify the files from which timm makes a model that is not in its registry, before timm reads them.

    Args:
        name: local-dir:FOLDER, or hf-hub:OWNER/NAME, of which there is only something to verify once it has
            been fetched.
        weights: Whether they are read too, beside the configuration.

    Raises:
        WeightsError: One is damaged, or is not what timm can read.
    """
    if name.startswith(LOCAL):
        folder = Path(name.removeprefix(LOCAL))
        config = folder / "config.json"
        files = [folder / file for file in TIMM_NAMES] + [
            file for suffix in TIMM_SUFFIXES for file in sorted(folder.glob(f"*{suffix}"))
        ]
    elif name.startswith(HUB):
        from huggingface_hub import try_to_load_from_cache

        repository, _, revision = name.removeprefix(HUB).partition("@")
        found = [
            try_to_load_from_cache(repository, file, revision=revision or None)
            for file in ("config.json", *NAMES[1:])
        ]
        config, *files = [Path(file) if isinstance(file, str) else Path() for file in found]
    else:
        return
    if config.is_file():
        _check_config(config)
    file = next((file for file in files if file.is_file()), None)
    if weights and file is not None:
        read_content(file)


def _check_config(path: Path) -> None:
    try:
        config = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{path} cannot be used: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        raise WeightsError(f"{path} cannot be used: it names no architecture, as timm's configurations do")
    for part in ("model_args", "pretrained_cfg"):
        if not isinstance(config.get(part, {}), dict):
            raise WeightsError(f"{path} cannot be used: {part} is a {type(config[part]).__name__}")


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
    raise WeightsError(f"{HUB}{name} gives no {' and no '.join(NAMES[1:])}: {first_line(reason)}") from reason
