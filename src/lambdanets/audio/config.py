"""The typed configuration of a run that trains a classifier of recordings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lambdanets.data import AudioDataConfig
from lambdanets.train.config import BaseConfig, HubForm, LossConfig, ModelConfig, Wording

RAW_STEM = (8, 5, 2)  # strides of the stem for samples: 80 samples, 10 ms at 8 kHz
EXAMPLE_LENGTH = 128


@dataclass(frozen=True, kw_only=True)
class AudioConfig(BaseConfig):
    """All settings of a run of classification of recordings."""

    TASK = "audio"
    HUB = HubForm(
        pipeline="audio-classification",
        kind="a classifier of recordings",
        use="predict {folder} recordings",
        source="audio:FOLDER",
        facts=("features", "sample_rate", "bands", "window", "hop", "seconds"),
    )
    STARTS_FROM = (TASK,)
    INPUT = ("features", "sample_rate", "bands", "window", "hop")
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
        defaults: dict[str, Any] = {"in_chans": self.data.channels}
        if self.data.features == "raw":
            defaults["stem_strides"] = RAW_STEM
        return self.model.network(num_classes, loads_weights=loads_weights, **defaults)

    def example_input(self) -> tuple[str, Tensor]:
        channels = self.data.channels
        kind = "bands" if self.data.features == "log-mel" else "channel of samples"
        return f"recordings of {channels} {kind}", torch.empty(1, channels, EXAMPLE_LENGTH)

    def describe_batch(self) -> str:
        """Return the size of a batch, to explain that it needs too much memory."""
        limit = "" if self.data.seconds is None else f" of up to {self.data.seconds:g} s"
        return f"data.batch_size={self.data.batch_size} recordings{limit}"

    def check_start(self) -> None:
        self.model.check_start()

    def load_initial_weights(self, network: nn.Module) -> str:
        return self.model.load_initial_weights(network)
