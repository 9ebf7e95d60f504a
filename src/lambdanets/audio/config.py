"""The typed configuration of a run that trains a classifier of recordings."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor, nn

from lambdanets.data import AudioDataConfig
from lambdanets.models import create_model, load_weights
from lambdanets.train.config import BaseConfig, LossConfig, ModelConfig, Wording, set_batch_norm_momentum

RAW_STEM = (8, 5, 2)  # strides of the stem for samples: 80 samples, 10 ms at 8 kHz
EXAMPLE_LENGTH = 128


@dataclass(frozen=True, kw_only=True)
class AudioConfig(BaseConfig):
    """All settings of a run of classification of recordings."""

    TASK = "audio"
    WORDING = Wording(
        sample="recording",
        samples="recordings",
        unit="recordings",
        size="seconds",
        changed="recordings were added, removed, renamed or moved",
    )

    model: ModelConfig
    data: AudioDataConfig
    loss: LossConfig = field(default_factory=LossConfig)

    def network(self, num_classes: int, *, loads_weights: bool = False) -> nn.Module:
        """Build the classifier: features `[b, c, n]` and a mask `[b, n]` to logits `[b, num_classes]`."""
        options = {"in_chans": self.data.channels, **self.model.options, "num_classes": num_classes}
        if self.data.features == "raw":
            options.setdefault("stem_strides", RAW_STEM)
        if loads_weights:
            options["pretrained"] = False
        network = create_model(self.model.name, **options)
        set_batch_norm_momentum(network, self.model.bn_momentum)
        return network

    def example_input(self) -> tuple[str, Tensor]:
        channels = self.data.channels
        kind = "bands" if self.data.features == "log-mel" else "channel of samples"
        return f"recordings of {channels} {kind}", torch.empty(1, channels, EXAMPLE_LENGTH)

    def describe_batch(self) -> str:
        """Return the size of a batch, to explain that it needs too much memory."""
        limit = "" if self.data.seconds is None else f" of up to {self.data.seconds:g} s"
        return f"data.batch_size={self.data.batch_size} recordings{limit}"

    def with_model(self, name: str) -> Self:
        """Return a copy with another model and none of the model options."""
        return self if name == self.model.name else replace(self, model=ModelConfig(name=name))

    def load_initial_weights(self, network: nn.Module) -> str:
        """Load `model.weights`; a head for another number of classes keeps its random weights."""
        weights = self.model.weights or ""
        replaced = load_weights(network, weights, head="replace")
        kept = f"; {' and '.join(replaced)} keep random weights" if replaced else ""
        return f"starting from {weights}{kept}"
