"""`export_audio`: the classifier of recordings of a run as one file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from lambdanets.audio.config import AudioConfig
from lambdanets.data.audio.features import FLOOR_DB, Features, lowest_frequency
from lambdanets.exporting.format import ExportError
from lambdanets.exporting.network import Exported, export_network
from lambdanets.train.run import Run
from lambdanets.utils.text import json_text

LENGTHS = (100, 61, 37)  # elements of the compared examples; the first is traced
RAW_FACTOR = 80  # samples of an example for each of its elements


def export_audio(
    run: Run[AudioConfig],
    file: str | Path,
    *,
    format: Literal["torch", "onnx"],
    weights: Literal["best", "last"] = "best",
    batch_size: int | None = None,
    opset: int | None = None,
) -> Exported:
    """Write the network of a run as one file that runs without this package.

    The file takes `features` [b, c, n] of any length n and `mask` [b, n], True at the elements of recordings,
    and returns `logits` [b, classes]. The metadata have the names of the classes and how features are
    computed. The file is loaded again and compared with the network before it appears under its name.

    Args:
        run: The run.
        file: Path that ends in .pt2 for format "torch", .onnx for "onnx". Its folder is created if missing.
        format: "torch" (torch.export) or "onnx" (for onnxruntime and others).
        weights: The best weights of the run by validation, or those of its last epoch.
        batch_size: Fixed number of recordings in a batch; None accepts any number.
        opset: Version of ONNX's operators; None takes PyTorch's default.

    Returns:
        The file with the largest difference from the network's outputs.

    Raises:
        RunError: The run has no such weights.
        ExportError: The file exists, the format or a package for it is missing, the network cannot be
            exported, or the outputs of the file differ from those of the network.

    Example:
        >>> export_audio(load_run("runs/words"), "words.onnx", format="onnx")
    """
    if batch_size is not None and batch_size < 1:
        raise ExportError(f"batch_size must be at least 1, got {batch_size}")
    data = run.config.data
    counts = (2, 1, 3) if batch_size is None else (batch_size,) * len(LENGTHS)
    factor = RAW_FACTOR if data.features == "raw" else 1
    generator = torch.Generator().manual_seed(0)
    examples = []
    for count, length in zip(counts, LENGTHS, strict=True):
        length *= factor
        features = torch.randn(count, data.channels, length, generator=generator)
        ends = length - torch.arange(count) * (length // (count + 1))  # the first row has no padding
        examples.append((features, torch.arange(length) < ends[:, None]))
    axes = {0: "batch"} if batch_size is None else {}
    return export_network(
        run.model(weights),
        file,
        examples,
        format=format,
        inputs={"features": axes | {2: "length"}, "mask": axes | {1: "length"}},
        outputs=["logits"],
        metadata={name: json_text(value) for name, value in _metadata(run).items()},
        opset=opset,
    )


def _metadata(run: Run[AudioConfig]) -> dict[str, object]:
    """Return the information that users of the file need."""
    data = run.config.data
    features = Features(data)
    plain: dict[str, object] = {
        "model": run.config.model.name,
        "classes": run.classes,
        "features": data.features,
        "sample_rate": features.rate,
        "normalisation": "subtract the mean of all features of a recording, divide by their deviation",
    }
    if data.features == "log-mel":
        plain |= {
            "bands": data.bands,
            "n_fft": features.n_fft,
            "win_length": features.window,
            "hop_length": features.hop,
            "f_min": lowest_frequency(features.rate),
            "floor_db": FLOOR_DB,
        }
    return plain
