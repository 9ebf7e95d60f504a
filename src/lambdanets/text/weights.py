"""The network of a run, and the vocabulary that a file of weights belongs to."""

from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from lambdanets.data import DataError, Vocabulary
from lambdanets.models import WeightsError
from lambdanets.text.config import TextConfig
from lambdanets.train import Run
from lambdanets.utils.files import parse_json


def stored_vocabulary(weights: Path) -> Vocabulary:
    """Return the vocabulary in the metadata of a run's weights.safetensors.

    Raises:
        WeightsError: The file cannot be read, or has none.
    """
    try:
        with safe_open(weights, framework="numpy") as file:
            metadata = file.metadata() or {}
        return Vocabulary(parse_json(metadata.get("classes", "[]")))
    except (SafetensorError, DataError, ValueError, TypeError) as error:
        raise WeightsError(
            f"{weights} does not name the tokens of its model: model.weights takes the folder of a run that "
            "trained a language model, or its weights.safetensors"
        ) from error


def open_network(run: Run[TextConfig], weights: Literal["best", "last"]) -> nn.Module:
    """Return the network of a run in evaluation mode, on an accelerator if there is one.

    Raises:
        RunError: The run has no such weights yet.
    """
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return run.model(weights).to(device or "cpu")
