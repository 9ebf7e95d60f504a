"""The settings that a new run takes from its initial weights: the model, and the form of its inputs."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import Any

from safetensors import SafetensorError, safe_open
from timm.data.config import resolve_data_config
from timm.models import get_pretrained_cfg
from timm.models._hub import load_model_config_from_path

from lambdanets.models import WeightsError
from lambdanets.models.shipped import find_run
from lambdanets.models.weight_files import HUB, PRETRAINED, SHORT_HUB, find_weights, hub_file
from lambdanets.train.config import BaseConfig, Config, task_in
from lambdanets.train.errors import RunError
from lambdanets.train.serialization import decode, encode
from lambdanets.utils.files import parse_json
from lambdanets.utils.text import first_line

SPLIT_FIELDS = ("val_fraction", "hold_out", "group", "group_column", "seed")
DATA_OPTIONS = ("num_classes", "in_chans", "pretrained")  # options that come from the data of a run


@dataclass(frozen=True, kw_only=True)
class WeightsRecord:
    """What a source of weights records besides its tensors.

    Attributes:
        task: Task of the run that trained them; "" where that is not recorded.
        model: Fields of `model`: of a run all, of other sources `name` and `options`, or none.
        data: Fields of `data`.
    """

    task: str = ""
    model: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)


def start_from(config: Config, weights: str, *, given: Collection[str] = ()) -> tuple[Config, str]:
    """Return the configuration of a new run that starts from trained weights.

    The model is that of the weights, where they name it, and images or recordings have the form for which the
    weights were trained: for images size, channels, mean, standard deviation, crop and interpolation.

    Args:
        config: The new run, such as a recipe.
        weights: The weights, as in `model.weights`.
        given: Paths of fields that keep their values in `config`, such as "data.image_size" or
            "model.options.scope"; "model.name" keeps the whole model.

    Returns:
        The configuration, and a line that lists the fields that come from the weights; "" if none does.

    Raises:
        WeightsError: The weights cannot be found, or are those of another task.
        RunError: The weights are for another number of channels than `given` demands.

    Example:
        >>> start_from(get_recipe("finetune"), "runs/photos")[0].model.name
        'lambda_resnet_mini'
    """
    record = read_record(weights, config.model.name)
    if record.task and record.task not in config.STARTS_FROM:
        raise WeightsError(f"{weights} is a run of {record.task}, whose weights are not for {config.TASK}")
    channels = record.data.get("in_chans")
    values = config.values_from(record)
    if channels is not None and "data.in_chans" in given and channels != config.data.in_chans:
        if weights != PRETRAINED:
            raise RunError(
                f"the weights in {weights} are for images of {_channels(channels)}, and data.in_chans is "
                f"{config.data.in_chans}: leave data.in_chans out, and images are converted to the "
                "channels of the weights"
            )
        # timm sums or repeats the first layer's weights over the channels.
        values = {path: value for path, value in values.items() if path not in ("data.mean", "data.std")}
    values = {path: value for path, value in values.items() if not _is_given(path, given)}
    model = {name: value for path, value in values.items() if (name := path.removeprefix("model.")) != path}
    if "options" in model:
        kept = {
            name: value for name, value in config.model.options.items() if f"model.options.{name}" in given
        }
        model["options"] = {**model["options"], **kept}
    data = {name: value for path, value in values.items() if (name := path.removeprefix("data.")) != path}
    config = replace(
        config,
        model=decode(type(config.model), {**encode(config.model), **encode(model), "weights": weights}),
        data=decode(type(config.data), {**encode(config.data), **encode(data)}),
    )
    return config, _describe(values)


def _is_given(path: str, given: Collection[str]) -> bool:
    return path in given or (path.startswith("model.") and "model.name" in given and "image" not in path)


def _describe(values: Mapping[str, Any]) -> str:
    """Return a line on the fields that come from the weights; of a model its name alone."""
    words = []
    for path, value in values.items():
        name = path.rpartition(".")[2]
        if path == "model.name":
            words.append(str(value))
        elif path.startswith("data.") or name in ("image_mean", "image_std"):
            text = ", ".join(f"{each:g}" for each in value) if isinstance(value, list | tuple) else value
            special = {"data.image_size": f"{value} pixels", "data.in_chans": _channels(value)}
            words.append(special.get(path, f"{name} {text}"))
    return f"from the weights: {'; '.join(words)}" if words else ""


def _channels(number: Any) -> str:
    return f"{number} channel{'s' * (number != 1)}"


def read_record(weights: str, model: str) -> WeightsRecord:
    """Return what weights record of their model and its inputs; nothing of a file without metadata.

    Args:
        weights: The weights, as in `model.weights`.
        model: Name of the model of which published weights are taken.

    Raises:
        WeightsError: The weights cannot be found, or their configuration cannot be read.
    """
    if weights == PRETRAINED:
        cfg = get_pretrained_cfg(model)
        return WeightsRecord(data=_image_form(cfg.to_dict()) if cfg else {})
    on_hub = weights.startswith((HUB, SHORT_HUB))
    try:
        config = hub_file(weights, ["config.json"]) if on_hub else find_run(weights) / "config.json"
        if config.is_file():
            plain = parse_json(config.read_text(encoding="utf-8"))
            if "architecture" in plain:
                return _timm_record(*load_model_config_from_path(config.parent))
            return _run_record(plain)
        return _file_record(find_weights(weights))
    except WeightsError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"the configuration of {weights} cannot be read: {first_line(error)}") from error


def describe_other_split(config: BaseConfig, fingerprint: str) -> str:
    """Return a warning if the run of the initial weights divided the same data in another way, else "".

    Args:
        config: The new run.
        fingerprint: Fingerprint of its data, "" if they have none.
    """
    # These import Lightning, for which `lambdanets list` must not wait.
    from lambdanets.train.checkpoint import CheckpointError, load_checkpoint
    from lambdanets.train.run import RunFiles

    weights = config.model.weights
    if weights is None or weights == PRETRAINED or weights.startswith((HUB, SHORT_HUB)):
        return ""
    folder = Path(weights)
    folder = folder if folder.is_dir() else folder.parent
    try:
        plain = parse_json((folder / "config.json").read_text(encoding="utf-8"))
        was, now = ({**each["data"], "seed": each["seed"]} for each in (plain, encode(config)))
        other = [name for name in SPLIT_FIELDS if name in was and name in now and was[name] != now[name]]
        if was["source"] != now["source"] or not other:
            return ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    try:
        before = load_checkpoint(RunFiles(folder).last)["run_state"]["fingerprint"]
    except (CheckpointError, KeyError):
        before = ""
    if before and before == fingerprint:
        return ""  # data that are split already
    paths = {name: name if name == "seed" else f"data.{name}" for name in other}
    changes = "; ".join(f"{path} was {was[name]}, now {now[name]}" for name, path in paths.items())
    settings = " ".join(f"--set {quote(f'{path}={was[name]}')}" for name, path in paths.items())
    samples = config.WORDING.samples
    return (
        f"warning: the run in {folder} split the same data in another way ({changes}): its weights may have "
        f"been trained on validation {samples} of this run, whose figures are then too high; "
        f"{settings} takes the same split"
    )


def _run_record(plain: dict[str, Any]) -> WeightsRecord:
    return WeightsRecord(task=task_in(plain), model=_without_data_options(plain["model"]), data=plain["data"])


def _file_record(path: Path) -> WeightsRecord:
    """Return the metadata of a run's weights.safetensors; nothing of other files."""
    if path.suffix != ".safetensors":
        return WeightsRecord()
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except SafetensorError:
        return WeightsRecord()  # the error is reported when the weights are read
    plain = {name: _value(text) for name, text in metadata.items()}
    if not isinstance(plain.get("options"), dict) or "model" not in plain:
        return WeightsRecord()
    model = {"name": plain.pop("model"), "options": plain.pop("options")}
    return WeightsRecord(model=_without_data_options(model), data=plain)


def _timm_record(cfg: dict[str, Any], name: str, options: dict[str, Any]) -> WeightsRecord:
    model = {"name": name, "options": dict(options or {})}
    return WeightsRecord(model=_without_data_options(model), data=_image_form(cfg))


def _image_form(cfg: dict[str, Any]) -> dict[str, Any]:
    """Return the form of images in a configuration of timm as fields of `data`."""
    form = resolve_data_config(pretrained_cfg=cfg)
    names = ("mean", "std", "crop_pct", "interpolation")
    channels, *_, size = form["input_size"]
    return {"image_size": size, "in_chans": channels} | {name: form[name] for name in names}


def _without_data_options(model: Mapping[str, Any]) -> dict[str, Any]:
    options = {name: value for name, value in model["options"].items() if name not in DATA_OPTIONS}
    return {**model, "options": options}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
