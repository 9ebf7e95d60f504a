"""The configuration of a classifier's network: its name, options, initial weights and frozen parts."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from timm.models import is_model_pretrained
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lambdanets.models import WeightsError, accelerate, create_model, load_weights
from lambdanets.models.freezing import body_and_head, classifier_names, freeze_stages
from lambdanets.models.hub_access import NoConnectionError, hub_access
from lambdanets.models.weight_files import PRETRAINED, WEIGHTS_FORMS, absolute_weights
from lambdanets.utils.text import first_line

UNFROZEN = {"frozen_stages": 0, "head_epochs": 0, "norms": "batch"}
"""Fields of `model` that keep weights as they are, and the values with which all are trained."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A registered model and its options (`num_classes` and `in_chans` come from the data).

    Args:
        name: Name in timm's registry.
        options: Further arguments of the model.
        weights: Initial weights: a file, the folder of a run, hf-hub:OWNER/NAME (see
            `lambdanets.models.load_weights`), or "pretrained", the weights of the model that timm publishes;
            None draws them at random. A head for another number of classes is not loaded. A resumed run loads
            its own checkpoint instead.
        bn_momentum: Weight of a batch in the running statistics of batch norms, in PyTorch's convention (0.1
            where TensorFlow has 0.9); None keeps the model's own.
        frozen_stages: Number of stages that are not trained, the stem being the first; their batch norms keep
            their statistics.
        head_epochs: Number of first epochs in which only the head is trained, with all batch norms, dropout
            and stochastic depth before it in evaluation mode.
        accelerate: Compute the lambda layers of a model of timm with the kernels of this package; the names
            of its weights stay the same.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    bn_momentum: float | None = None
    frozen_stages: int = 0
    head_epochs: int = 0
    accelerate: bool = False

    def __post_init__(self) -> None:
        take_initial_weights(self)
        check_frozen(self)
        if self.bn_momentum is not None and not 0 < self.bn_momentum <= 1:
            raise ValueError(f"model.bn_momentum is above 0 and at most 1, or None; got {self.bn_momentum}")

    def resolved(self) -> ModelConfig:
        """Return a copy with an absolute path of `weights`, so that a run can be resumed from any folder."""
        return replace(self, weights=absolute_weights(self.weights))

    def check_start(self) -> None:
        """Raise ValueError if a new run of this model lacks trained weights that its settings need."""
        check_trained(self)
        check_published(self.name, self.options, self.weights)

    def network(self, num_classes: int, *, loads_weights: bool, **defaults: Any) -> nn.Module:
        """Build the network.

        Args:
            num_classes: Number of classes of the data.
            loads_weights: The caller loads weights afterwards: published ones are not downloaded.
            **defaults: Options that `options` may replace.
        """
        options = {**defaults, **self.options, "num_classes": num_classes}
        published = self.weights == PRETRAINED and not loads_weights
        try:
            with hub_access() if published else nullcontext():
                network = create_model(self.name, **options, pretrained=published)
        except NoConnectionError as error:
            raise WeightsError(
                f"the published weights of {self.name} cannot be loaded: {error}; give your own with "
                "--weights FILE"
            ) from error
        except (OSError, RuntimeError) as error:
            if not published:
                raise
            raise WeightsError(
                f"the published weights of {self.name} cannot be loaded: {first_line(error)}"
            ) from error
        if self.accelerate:
            try:
                accelerate(network)
            except ValueError as error:
                raise ValueError(f"model.accelerate has no effect on {self.name}: {error}") from error
        if self.bn_momentum is not None:
            for module in network.modules():
                if isinstance(module, _BatchNorm):
                    module.momentum = self.bn_momentum
        if self.frozen_stages:
            freeze_stages(network, self.frozen_stages, self.name)
        if self.head_epochs and not body_and_head(network)[0]:
            raise ValueError(f"model.head_epochs: {self.name} does not name its head")
        return network

    def load_initial_weights(self, network: Any) -> str:
        """Load `weights`; a head for another number of classes keeps its random weights.

        Returns:
            A sentence on them.
        """
        if self.weights == PRETRAINED:  # `network` has loaded them
            source = f"the published weights of {self.name}"
            # timm leaves out a head for another number of classes.
            is_new = network.num_classes != network.pretrained_cfg["num_classes"]
            heads = tuple(f"{name}." for name in classifier_names(network) if is_new)
            replaced = [name for name, _ in network.named_parameters() if name.startswith(heads)]
        else:
            source = self.weights or ""
            replaced = load_weights(network, source, head="replace")
        if not replaced:
            return f"starting from {source}"
        kept = " and ".join(replaced)
        return (
            f"starting from {source}; {kept} keep random weights: its head is for another number of classes"
        )


def take_initial_weights(model: Any) -> None:
    """Check where the initial weights of a model come from; `options.pretrained` becomes `weights`.

    Args:
        model: The configuration of a model of timm's registry, from its `__post_init__`.

    Raises:
        ValueError: The fields contradict each other.
    """
    if model.weights == "":
        raise ValueError("model.weights is a file, a folder or hf-hub:OWNER/NAME, or None; got ''")
    if "pretrained" in model.options:
        options = {name: value for name, value in model.options.items() if name != "pretrained"}
        if model.options["pretrained"]:
            if model.weights not in (None, PRETRAINED):
                raise ValueError(
                    "model.weights and model.options.pretrained=true both give initial weights; keep one"
                )
            object.__setattr__(model, "weights", PRETRAINED)
        object.__setattr__(model, "options", options)
    if "checkpoint_path" in model.options:
        raise ValueError(
            "model.options.checkpoint_path: the weights that a run starts from go to model.weights"
        )


def check_frozen(model: Any) -> None:
    """Raise ValueError if a number of frozen stages or of epochs of the head is negative."""
    for name in ("frozen_stages", "head_epochs"):
        if getattr(model, name, 0) < 0:
            raise ValueError(f"model.{name} is 0 or more; got {getattr(model, name)}")


def check_trained(model: Any, forms: str = WEIGHTS_FORMS) -> None:
    """Raise ValueError if a new run would keep random weights as they are.

    Args:
        model: The configuration of a model.
        forms: Sources of weights of such a model, for the error.
    """
    for name, unfrozen in UNFROZEN.items():
        value = getattr(model, name, unfrozen)
        if value != unfrozen and model.weights is None:
            raise ValueError(
                f"model.{name}={value} needs trained weights to start from: add --weights with {forms}"
            )


def check_published(name: str, options: Mapping[str, Any], weights: str | None) -> None:
    """Raise WeightsError if `weights` is "pretrained" and timm has no weights of the model."""
    own = options.get("pretrained_cfg") or options.get("pretrained_cfg_overlay")
    if weights == PRETRAINED and not (own or ":" in name or is_model_pretrained(name)):
        raise WeightsError(
            f"no trained weights of {name} are published: choose a --model of timm that has some, or other "
            f"weights with --weights: {WEIGHTS_FORMS}"
        )
