"""Targets of an evaluation: a run, or a published model with weights from any source."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from timm.data.config import resolve_model_data_config
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from timm.models import is_model, is_model_pretrained
from torch import nn

from lambdanets.data import DataConfig, DataWarning
from lambdanets.models import WeightsError, create_model, load_weights
from lambdanets.models.hub_access import NoConnectionError, hub_access
from lambdanets.models.weight_files import OtherClassesError
from lambdanets.models.weights import check_finite
from lambdanets.train.config import EngineConfig
from lambdanets.train.errors import RunError
from lambdanets.train.run import Run
from lambdanets.utils.files import parse_json
from lambdanets.utils.text import first_line

MULTI_LABEL = "multi_label_classification"  # of transformers
MODEL_PREFIXES = ("hf-hub:", "local-dir:")  # of models outside the registry


@dataclass(frozen=True, kw_only=True)
class EvalTarget:
    """A network with everything that its evaluation needs.

    Attributes:
        name: Name of the model.
        weights: Description of the weights.
        network: The network, in evaluation mode.
        classes: Class names in the order of the logits.
        data: The images, and how they are prepared for the network.
        engine: Device and precision.
        binary: The loss is the binary cross entropy of each class, as in the training.
        device: Device in place of the engine's, with its index; None takes the engine's.
        built_for: Height and width in pixels of the images that the network was built for.
        seed: Seed of the split, if the images are not split already.
    """

    name: str
    weights: str
    network: nn.Module
    classes: tuple[str, ...]
    data: DataConfig
    engine: EngineConfig
    built_for: int
    seed: int = 0
    binary: bool = False
    device: torch.device | None = None

    def at_size(self, size: int) -> EvalTarget:
        """Return a target for another image size; a network that depends on it (a ViT) is changed in place.

        Raises:
            RunError: The network cannot take images of this size.
        """
        data = replace(self.data, image_size=size)
        set_image_size(self.network, self.name, size, self.built_for)
        return replace(self, data=data, built_for=size)


def target_from_run(run: Run, *, weights: Literal["best", "last"] = "best") -> EvalTarget:
    """Return the target of a run, with its own validation images.

    Raises:
        RunError: The run has no such weights yet.
    """
    config = run.config
    return EvalTarget(
        name=config.model.name,
        weights=f"{weights} weights",
        network=run.model(weights),
        classes=run.classes,
        data=config.data,
        engine=config.engine,
        built_for=config.data.image_size,
        seed=config.seed,
        binary=config.loss.name == "binary",
    )


def target_from_model(
    name: str, source: str | None = None, *, checkpoint: str | Path | None = None
) -> EvalTarget:
    """Return the target of a model by name, with images prepared by the model's own configuration.

    As in timm's validation, image size and crop are those for testing, if the model has such.

    Args:
        name: Name in the registry, hf-hub:OWNER/NAME, or the folder of a model (also local-dir:FOLDER).
        source: The images, as in `DataConfig`; None for a network that gets images one by one.
        checkpoint: Weights for `load_weights`; None takes the published weights.

    Raises:
        RunError: The model does not exist, has no published weights, or they cannot be downloaded; or it does
            not have the classes of ImageNet-1k, -12k or -21k and does not name its classes.
        WeightsError: The checkpoint cannot be found or read, or belongs to another model.

    Example:
        >>> target_from_model("lambda_resnet26t.c1_in1k", "folder:/data/imagenet")
    """
    network = create_trained_model(name, checkpoint=checkpoint)
    cfg: Any = network.pretrained_cfg
    built_for = cfg["input_size"][-1]
    form = resolve_model_data_config(network, use_test_size=True)
    if form["crop_mode"] != "center":
        warnings.warn(
            f"timm prepares the images for {name} with crop_mode {form['crop_mode']!r}; here they "
            "are centre-cropped, which gives slightly different results",
            DataWarning,
            stacklevel=2,
        )
    data = DataConfig(
        source=DataConfig.source if source is None else source,
        image_size=built_for,
        in_chans=form["input_size"][0],
        mean=form["mean"],
        std=form["std"],
        crop_pct=form["crop_pct"],
        interpolation=form["interpolation"],
        val_fraction=1.0,
        multi_label=_has_labels(name),
        # Each image is read once anyway: a bad one is found then.
        check=False,
        cache=False,
    )
    target = EvalTarget(
        name=name,
        weights=_describe_weights(name, checkpoint),
        network=network,
        classes=_classes(name, network),
        data=data,
        # On a CPU convolutions are faster in channels-last format.
        engine=EngineConfig(channels_last=not torch.accelerator.is_available()),
        built_for=built_for,
    )
    return target.at_size(form["input_size"][-1])


def create_trained_model(name: str, *, checkpoint: str | Path | None = None) -> nn.Module:
    """Create a model by name, with its weights, in evaluation mode.

    Args:
        name: Name in the registry, hf-hub:OWNER/NAME, or the folder of a model (also local-dir:FOLDER).
        checkpoint: Weights for `load_weights`; None takes the published weights.

    Raises:
        RunError: The model does not exist, has no published weights, or they cannot be downloaded.
        WeightsError: The checkpoint cannot be found or read, belongs to another model, or holds NaN or
            infinity.
    """
    network = _create(name, pretrained=checkpoint is None)
    if checkpoint is not None:
        try:
            load_weights(network, checkpoint)
        except OtherClassesError as error:
            run = Path(checkpoint)
            is_run = (run / "config.json").is_file()
            advice = f"; name the run itself in place of {name}: {run}" if is_run else ""
            raise WeightsError(f"{error.sentence}{advice}") from error
    check_finite(network.state_dict(), network, name)
    return network.eval()


def _describe_weights(name: str, checkpoint: str | Path | None) -> str:
    if checkpoint is not None:
        return f"weights of {checkpoint}"
    return "weights of the folder" if is_model_folder(name) else "published weights"


def set_image_size(network: nn.Module, name: str, size: int, built_for: int) -> None:
    """Prepare a network that depends on the image size (a ViT) for another height and width.

    Raises:
        RunError: The network cannot take images of this size.
    """
    set_size: Any = getattr(network, "set_input_size", None)
    if set_size is not None and size != built_for:
        try:
            set_size(img_size=size)
        except (AssertionError, ValueError, RuntimeError) as error:
            raise RunError(f"{name} cannot take images of {size}x{size}: {error}") from error


def is_model_name(name: str) -> bool:
    """Return whether a word is the name of a model: of timm's registry, or with one of `MODEL_PREFIXES`."""
    return name.startswith(MODEL_PREFIXES) or is_model(name)


def is_run_folder(word: str) -> bool:
    """Return whether a word of the command line is read as a run: a folder with config.json, or no model."""
    if is_model_folder(word):
        return False
    return (Path(word) / "config.json").is_file() or not is_model_name(word)


def is_model_folder(word: str) -> bool:
    """Return whether a word is a folder with a model in the form of the hub, as `push --folder` writes it."""
    return "architecture" in _read_config(Path(word) / "config.json")


def _create(name: str, *, pretrained: bool) -> nn.Module:
    """Create a model by name; raise RunError if it does not exist or cannot be downloaded."""
    if is_model_folder(name):
        name = f"local-dir:{name}"
    if pretrained and not name.startswith(MODEL_PREFIXES) and not is_model_pretrained(name):
        raise RunError(f"no trained weights of {name} are published; give your own with --checkpoint FILE")
    downloads = name.startswith("hf-hub:") or (pretrained and not name.startswith("local-dir:"))
    try:
        with hub_access() if downloads else nullcontext():
            return create_model(name, pretrained=pretrained)
    except NoConnectionError as error:
        own = "" if name.startswith("hf-hub:") else "; give your own weights with --checkpoint FILE"
        raise RunError(f"{name} cannot be created: {error}{own}") from error
    except (OSError, RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise RunError(f"{name} cannot be created: {first_line(error)}") from error


def _has_labels(name: str) -> bool:
    """Return whether a model of the hub, or in a folder of its form, gives several labels to an image."""
    folder = Path(name.removeprefix("local-dir:"))
    file: Any = folder / "config.json"
    if name.startswith("hf-hub:"):
        from huggingface_hub import try_to_load_from_cache

        repository, _, revision = name.removeprefix("hf-hub:").partition("@")
        file = try_to_load_from_cache(repository, "config.json", revision=revision or None)
    return isinstance(file, str | Path) and _read_config(Path(file)).get("problem_type") == MULTI_LABEL


def _read_config(file: Path) -> dict[str, Any]:
    """Return the content of a config.json; {} if there is none."""
    try:
        plain = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return plain if isinstance(plain, dict) else {}


def _classes(name: str, network: Any) -> tuple[str, ...]:
    """Return the class names of a published model; the wnids if it has those of ImageNet without names."""
    labels = tuple(network.pretrained_cfg.get("label_names") or ())
    if len(labels) == network.num_classes:
        return labels
    subset = infer_imagenet_subset({"num_classes": network.num_classes})
    if subset is None:
        raise RunError(
            f"{name} has {network.num_classes:,} classes, whose names are unknown; only models of ImageNet's "
            "classes can be used by name, and runs of any classes"
        )
    return tuple(ImageNetInfo(subset).label_names())
