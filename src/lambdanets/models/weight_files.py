"""Files of weights: found in folders and on the Hugging Face hub, read without running code, written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timm.models import clean_state_dict
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from lambdanets.utils.files import parse_json, replacing
from lambdanets.utils.text import first_line, join_some

from .hub_access import NoConnectionError, hub_access
from .shipped import find_run, shipped_run
from .tensor_files import (
    DamagedFileError,
    UnsafeFileError,
    read_archive,
    read_safetensors,
    write_safetensors,
)

HUB, SHORT_HUB, LOCAL = "hf-hub:", "hub:", "local-dir:"
PRETRAINED = "pretrained"
"""Value of `model.weights` for the weights of the model that timm publishes."""
WEIGHTS_FORMS = "the folder of a run, a file, hf-hub:OWNER/NAME, or pretrained (timm's weights of the model)"
NAMES = ("weights.safetensors", "model.safetensors", "pytorch_model.bin")
"""Names of files of weights: in a run, of timm's models on the hub, and of older models there."""
HUB_NAMES = (*NAMES[1:], NAMES[0])
"""Names of files of weights on the hub, of which that of a run is the rarest."""
TIMM_NAMES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
TIMM_SUFFIXES = (".safetensors", ".pth", ".pth.tar", ".bin")
"""Names and suffixes of the files that timm looks for in a folder, in its order."""
CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict")
"""Keys under which training scripts save weights: those of timm in its order, then one of this package."""
CHECKPOINT_PREFIXES = ("average.", "network.")
"""Prefixes of the weights in a checkpoint of a run: their average has precedence."""


def absolute_weights(weights: str | None) -> str | None:
    """Return a value of `model.weights` with an absolute path, valid in any working directory.

    Names of the Hugging Face hub and of trained networks in the package, "pretrained" and None are returned
    as they are.
    """
    if weights is None or weights == PRETRAINED or weights.startswith(HUB):
        return weights
    if find_run(weights) == shipped_run(weights):
        return weights
    if weights.startswith(SHORT_HUB):
        return HUB + weights.removeprefix(SHORT_HUB)
    return str(Path(weights).expanduser().absolute())


class WeightsError(ValueError):
    """Weights cannot be found or read, or do not match the model."""


class OtherClassesError(WeightsError):
    """Weights have another number of classes than the model.

    Args:
        source: Source of the weights, for the message.
        have: Number of classes of the weights.
        need: Number of classes of the model.
    """

    def __init__(self, source: str | Path, have: int, need: int) -> None:
        self.sentence = f"the weights in {source} are for {have} classes and the model is for {need}"
        super().__init__(f"{self.sentence}; head='replace' leaves their head out")


def find_weights(source: str | Path) -> Path:
    """Return the file of a source of weights; a file on the hub is downloaded unless it is in the cache.

    Args:
        source: A file, a folder (of a run, or as on the hub), or hf-hub:OWNER/NAME (also hub:OWNER/NAME) with
            an optional @REVISION.

    Raises:
        WeightsError: If there is none.
    """
    text = str(source)
    if text.startswith((HUB, SHORT_HUB)):
        return hub_file(text, HUB_NAMES)
    path = find_run(text)
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
    """Read a state_dict from a file, and verify the checksums of the file if it has any.

    The file is in the safetensors format or was written by `torch.save`. In the latter case the state_dict
    may be the whole content, or be stored under the first existing key of `CONTAINERS`, or under the only key
    whose value is a state_dict. Prefixes of DDP, torch.compile and AveragedModel are removed from the names.
    Of a checkpoint of a run (.ckpt), the average of the weights is returned if there is one.

    Args:
        path: The file. None of its code is run: a pickle of other objects than tensors and plain values is
            rejected.

    Returns:
        Tensors by name.

    Raises:
        WeightsError: If the file is damaged, or contains no weights.
        OSError: If it cannot be read.
    """
    weights = _state_dict(path, read_content(path))
    if path.suffix == ".ckpt":
        for prefix in CHECKPOINT_PREFIXES:
            network = {
                name.removeprefix(prefix): tensor
                for name, tensor in weights.items()
                if name.startswith(prefix)
            }
            if network:
                return network
    return weights


def read_content(path: Path) -> Any:
    """Read the complete content of a file of weights, and verify the checksums of the file if it has any.

    Raises:
        WeightsError: If it is damaged, or cannot be read without running its code.
        OSError: If it cannot be read.
    """
    try:
        return read_safetensors(path) if path.suffix == ".safetensors" else read_archive(path)
    except DamagedFileError as error:
        raise WeightsError(f"{error}{same_weights(path)}") from error
    except UnsafeFileError as error:
        raise WeightsError(
            f"{error}; ask for safetensors or for a file of the state_dict alone from its author"
        ) from error


def _state_dict(path: Path, content: Any) -> dict[str, Tensor]:
    """Return the state_dict in the content of a file, without the prefixes of wrappers."""
    candidates = {"": content, **(content if isinstance(content, Mapping) else {})}
    states = [name for name, value in candidates.items() if _is_state_dict(value)]
    known = [name for name in ("", *CONTAINERS) if name in states]
    if not known and len(states) > 1:
        raise WeightsError(
            f"{path} holds several networks' weights, {join_some(states)}: save the one to load in a file "
            "without the others"
        )
    if not states:
        container = next(
            (candidates[name] for name in CONTAINERS if isinstance(candidates.get(name), Mapping)), content
        )
        found = join_some(map(str, container)) if isinstance(container, Mapping) else type(container).__name__
        raise WeightsError(
            f"{path} holds no weights: expected tensors by name, at the top or in 'state_dict' or 'model', "
            f"found {found or 'nothing'}"
        )
    weights = dict(candidates[known[0] if known else states[0]])
    if all(name == "n_averaged" or name.startswith("module.") for name in weights):
        weights.pop("n_averaged", None)  # the number of steps that AveragedModel has averaged
    return clean_state_dict(weights)


def _is_state_dict(value: object) -> bool:
    if not isinstance(value, Mapping) or not value:
        return False
    return all(isinstance(name, str) and isinstance(each, Tensor) for name, each in value.items())


def same_weights(path: Path) -> str:
    """Return a hint that names another file of the run with the same weights, or ""."""
    others = {
        "weights.safetensors": path.parent / "checkpoints" / "best.ckpt",
        "best.ckpt": path.parent.parent / "weights.safetensors",
    }
    other = others.get(path.name)
    return f"; {other} has the same weights" if other is not None and other.is_file() else ""


def check_source(name: str, *, weights: bool) -> None:
    """Verify the files from which timm will create a model that is not in its registry.

    Args:
        name: local-dir:FOLDER, or hf-hub:OWNER/NAME, which is verified only if it was downloaded before.
        weights: Whether timm will read the weights in addition to the configuration.

    Raises:
        WeightsError: If a file is damaged, or timm cannot use it.
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
    """Raise WeightsError unless a file is a model configuration in timm's format."""
    try:
        config = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{path} cannot be used: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        raise WeightsError(f"{path} cannot be used: it names no architecture, as timm's configurations do")
    for part in ("model_args", "pretrained_cfg"):
        if not isinstance(config.get(part, {}), dict):
            raise WeightsError(f"{path} cannot be used: {part} is a {type(config[part]).__name__}")


def hub_file(source: str, names: Sequence[str]) -> Path:
    """Return a file of the Hugging Face hub in the cache, after its download if needed.

    Args:
        source: hf-hub:OWNER/NAME or hub:OWNER/NAME, with an optional @REVISION.
        names: Names of files, the first of which that exists is returned.

    Raises:
        WeightsError: There is none, or it cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    name = source.removeprefix("hf-").removeprefix(SHORT_HUB)
    repository, _, revision = name.partition("@")
    reason: Exception | None = None
    try:
        with hub_access():
            for file in names:
                try:
                    return Path(hf_hub_download(repository, file, revision=revision or None))
                except EntryNotFoundError as error:
                    reason = reason or error
            if isinstance(reason, LocalEntryNotFoundError):
                raise reason
    except NoConnectionError as error:
        raise WeightsError(f"{HUB}{name} cannot be downloaded: {error}") from error
    except (OSError, ValueError, RuntimeError) as error:
        reason = error
    raise WeightsError(f"{HUB}{name} gives no {' and no '.join(names)}: {first_line(reason)}") from reason


def save_for_hub(
    model: nn.Module,
    folder: str | Path,
    *,
    labels: Sequence[str] = (),
    images: Mapping[str, Any] | None = None,
    multi_label: bool = False,
) -> Path:
    """Write a model as a folder for the Hugging Face hub, in the format of timm's models there.

    The folder has `model.safetensors` (weights) and timm's `config.json` (architecture, options, labels and
    image preprocessing). After `import lambdanets` it opens with
    `create_model("local-dir:FOLDER", pretrained=True)`, of this package or of timm, and with `AutoModel`,
    `AutoModelForImageClassification` and `pipeline` of transformers (4.56 or newer). Once uploaded
    it opens under OWNER/NAME (for timm hf-hub:OWNER/NAME). The pipeline converts images to RGB, so it needs a
    model of three channels.

    Args:
        model: A model of `create_model`, of this package or of timm, accelerated or not.
        folder: The folder; it is created if needed, and existing files of these names are replaced.
        labels: Names of the classes, in the order of the logits.
        images: Preprocessing of the training images, with timm's keys: `input_size` (channels, height,
            width), `mean`, `std`, `crop_pct`, `interpolation`. Missing keys have the model's defaults.
        multi_label: Whether an image may have several labels: the pipeline then takes the sigmoid of each
            logit, otherwise their softmax.

    Returns:
        The folder.

    Raises:
        WeightsError: If the model does not record how it was created, or its number of classes differs from
            that of the labels.
        OSError: If a file cannot be written.

    Example:
        >>> model = create_model("lambda_resnet_cifar")
        >>> folder = save_for_hub(model, "cifar", images={"crop_pct": 0.9})
        >>> copy = create_model("local-dir:cifar", pretrained=True)
    """
    cfg: Any = getattr(model, "pretrained_cfg", None)
    model_args: Any = getattr(model, "_model_args", None)
    if not cfg or model_args is None:
        raise WeightsError(
            f"{type(model).__name__} does not record how it was created; save_for_hub takes models of "
            "create_model (timm 1.0.31 or newer keeps their options)"
        )
    if labels and len(labels) != model.num_classes:
        raise WeightsError(
            f"labels must name the {model.num_classes} classes of the model, got {len(labels)}"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {"pretrained_cfg": dict(images or {})} | ({"label_names": list(labels)} if labels else {})
    with replacing(folder / "model.safetensors") as weights_path:
        write_safetensors(weights_path, model.state_dict(), {"format": "pt"})
    with replacing(folder / "config.json") as config_path:
        save_config_for_hf(model, str(config_path), model_config=config)
        content = json.loads(config_path.read_text(encoding="utf-8"))
        # transformers passes the number of classes to timm itself; passing it twice is an error.
        content.get("model_args", {}).pop("num_classes", None)
        if multi_label:
            content["problem_type"] = "multi_label_classification"
        config_path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return folder
