"""Typed configurations of a language model and of a run that trains one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lambdanets.data import TextDataConfig
from lambdanets.models import create_language_model, load_weights
from lambdanets.models.freezing import freeze_stages
from lambdanets.models.weight_files import PRETRAINED, absolute_weights
from lambdanets.train.config import BaseConfig, HubForm, Wording
from lambdanets.train.model_config import check_frozen, check_trained

MAX_SAMPLE = 1_000_000  # tokens


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig:
    """A language model and its options; the size of the vocabulary comes from the text.

    Args:
        name: Name of the model, as `lambdanets.models.create_language_model` takes it.
        options: Further arguments of the model, such as dim, depth, dropout or operator.
        weights: Initial weights: the folder of a run that trained a model of this name and these options, its
            weights.safetensors, or hf-hub:OWNER/NAME. The new run then has its vocabulary. None draws them at
            random.
        frozen_stages: Number of stages that are not trained: the embedding, which is also the head, and the
            blocks behind it. It needs initial weights, whose vocabulary the run has.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    frozen_stages: int = 0

    def __post_init__(self) -> None:
        check_frozen(self)
        if self.weights == "":
            raise ValueError("model.weights is a file or the folder of a run, or None; got ''")
        if self.weights == PRETRAINED:
            raise ValueError(
                "model.weights: no weights of language models are published; name a file or a run's folder"
            )
        if "vocabulary" in self.options:
            raise ValueError("model.options.vocabulary comes from the text; leave it out")

    def resolved(self) -> LanguageModelConfig:
        """Return a copy with an absolute path of `weights`, valid in any working directory."""
        return replace(self, weights=absolute_weights(self.weights))


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """The text that the model writes at every validation, into `samples.txt` of the run folder.

    Args:
        tokens: Length of the text; 0 writes none.
        temperature: Divisor of the logits; 0 takes the most probable token.
    """

    tokens: int = 400
    temperature: float = 0.8

    def __post_init__(self) -> None:
        if not 0 <= self.tokens <= MAX_SAMPLE:
            raise ValueError(f"sample.tokens is from 0 to {MAX_SAMPLE:,}; got {self.tokens}")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"sample.temperature is 0 or more, and finite; got {self.temperature}")


@dataclass(frozen=True, kw_only=True)
class TextConfig(BaseConfig):
    """All settings of a run that trains a language model."""

    TASK = "text"
    HUB = HubForm(
        pipeline="text-generation",
        kind="a language model",
        use='generate {folder} --prompt "Once" --tokens 500',
        source="text:FILE",
        facts=("tokens", "context"),
    )
    STARTS_FROM = (TASK,)
    WORDING = Wording(
        sample="window",
        samples="windows",
        unit="tokens",
        classes=("different token", "different tokens"),
        size="context",
        changed="files of text were added, removed, renamed or changed",
    )

    model: LanguageModelConfig
    data: TextDataConfig
    sample: SamplingConfig = field(default_factory=SamplingConfig)

    def network(self, num_classes: int, *, loads_weights: bool = False) -> nn.Module:
        """Build the language model: tokens `[b, n]` to logits `[b, n, num_classes]`.

        Args:
            num_classes: Size of the vocabulary.
            loads_weights: Without effect.
        """
        network = create_language_model(self.model.name, vocabulary=num_classes, **self.model.options)
        if self.model.frozen_stages:
            freeze_stages(network, self.model.frozen_stages, self.model.name)
        return network

    def example_input(self) -> tuple[str, Tensor]:
        return f"windows of {self.data.context} tokens", torch.zeros(1, self.data.context, dtype=torch.int64)

    def describe_batch(self) -> str:
        return f"data.batch_size={self.data.batch_size} windows of data.context={self.data.context} tokens"

    def pretrained_part(self, network: nn.Module) -> None:
        """Return None: the size of the weights depends on the vocabulary of the text."""

    def check_start(self) -> None:
        check_trained(self.model, "the folder of a run, its weights.safetensors, or hf-hub:OWNER/NAME")

    def load_initial_weights(self, network: nn.Module) -> str:
        load_weights(network, self.model.weights or "")
        return f"starting from {self.model.weights}"
