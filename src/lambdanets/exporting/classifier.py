"""`export_classifier`: the classifier of a run, or a model of the registry, as one file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from timm.data.config import resolve_model_data_config
from torch import nn

from lambdanets.evaluate.target import set_image_size
from lambdanets.evaluate.test_sets import wnids
from lambdanets.exporting.format import ExportError
from lambdanets.exporting.network import Exported, export_network
from lambdanets.train.run import Run
from lambdanets.utils.text import json_text

# Reduction of the last feature map for networks without `feature_info`.
DEFAULT_REDUCTION = 32
# Least side of the last feature map in a trace with dynamic sizes: a side of 1 is traced as a constant.
MIN_MAP_SIDE = 4


@dataclass(frozen=True, kw_only=True)
class _Metadata:
    """Metadata of the file; each field becomes one entry in JSON."""

    model: str
    classes: tuple[str, ...]
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    interpolation: str
    activation: Literal["softmax", "sigmoid"] = "softmax"


def export_classifier(
    source: Run | nn.Module,
    file: str | Path,
    *,
    format: Literal["torch", "onnx"],
    weights: Literal["best", "last"] = "best",
    size: int | None = None,
    dynamic_size: bool = False,
    batch_size: int | None = None,
    opset: int | None = None,
) -> Exported:
    """Write the network of a run, or a model, as one file that runs without this package.

    The file takes `images` [b, c, height, width], resized, cropped and normalised according to its metadata
    (`input_size`, `crop_pct`, `interpolation`, `mean`, `std`; `classes` names the outputs), and returns
    `logits` [b, classes], whose `activation` gives the probabilities: "softmax", or "sigmoid" for several
    labels. The metadata are JSON: `extra_files` of torch.export.load and `metadata_props` of
    ONNX. The file is loaded again and compared with the network before it appears under its name.

    Args:
        source: A run, or a model of timm's registry or ours; it is put into evaluation mode.
        file: Path that ends in .pt2 for format "torch", .onnx for "onnx". Its folder is created if missing.
        format: "torch" (torch.export) or "onnx" (for onnxruntime and others).
        weights: The best weights of a run by validation, or those of its last epoch.
        size: Height and width of the images in pixels; by default those of the run's validation or the
            model's test.
        dynamic_size: Accept images of any height and width; `size` is then one of them.
        batch_size: Fixed number of images in a batch; None accepts any number.
        opset: Version of ONNX's operators; None takes PyTorch's default.

    Returns:
        The file with the largest difference from the network's outputs.

    Raises:
        RunError: The run has no such weights, or the network cannot take images of this size.
        ExportError: The file exists, the format or a package for it is missing, the network cannot be
            exported, or the outputs of the file differ from those of the network.

    Example:
        >>> export_classifier(load_run("runs/birds"), "birds.onnx", format="onnx")
    """
    for name, value in (("size", size), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ExportError(f"{name} must be at least 1, got {value}")
    if isinstance(source, Run):
        network, metadata, native_size = _run_parts(source, weights, size)
    else:
        network, metadata, native_size = _model_parts(source, size)
    network.eval()
    set_image_size(network, metadata.model, metadata.input_size[-1], native_size)
    shapes = _example_shapes(network, metadata, format, dynamic_size=dynamic_size, batch_size=batch_size)
    generator = torch.Generator().manual_seed(0)
    axes = ({0: "batch"} if batch_size is None else {}) | ({2: "height", 3: "width"} if dynamic_size else {})
    return export_network(
        network,
        file,
        [(torch.randn(*shape, generator=generator),) for shape in shapes],
        format=format,
        inputs={"images": axes},
        outputs=["logits"],
        metadata={name: json_text(value) for name, value in asdict(metadata).items()},
        opset=opset,
    )


def _example_shapes(
    network: nn.Module, metadata: _Metadata, format: str, *, dynamic_size: bool, batch_size: int | None
) -> list[tuple[int, int, int, int]]:
    """Return the shapes of the traced example and of further ones, [b, c, height, width]."""
    channels, _, side = metadata.input_size
    first, *others = (2, 1, 3) if batch_size is None else (batch_size, batch_size)
    if not dynamic_size:
        return [(count, channels, side, side) for count in (first, *others)]
    step = _reduction(network)
    if format == "torch" and side <= step:
        raise ExportError(
            f"with dynamic sizes, a file of format 'torch' takes only images of more than {step} pixels, and "
            f"those of {metadata.model} have {side}: export it as 'onnx', or with a fixed size"
        )
    traced = max(side, MIN_MAP_SIDE * step)
    shapes = [
        (first, channels, traced, traced),
        *((count, channels, traced - step, traced + step) for count in others),
    ]
    if traced != side:
        shapes.append((others[0], channels, side, side))
    return shapes


def _reduction(network: nn.Module) -> int:
    """Return the reduction of the last feature map: side of the image over that of the map."""
    stages: Any = getattr(network, "feature_info", None)
    return stages[-1]["reduction"] if stages else DEFAULT_REDUCTION


def _run_parts(
    run: Run, weights: Literal["best", "last"], size: int | None
) -> tuple[nn.Module, _Metadata, int]:
    """Return the network of a run, its metadata and the image size that it was built for."""
    data = run.config.data.resolved()
    side = size or data.image_size
    metadata = _Metadata(
        model=run.config.model.name,
        classes=run.classes,
        input_size=(data.in_chans, side, side),
        mean=data.mean or (),
        std=data.std or (),
        crop_pct=data.crop_pct,
        interpolation=data.interpolation,
        activation="sigmoid" if data.multi_label else "softmax",
    )
    return run.model(weights), metadata, data.image_size


def _model_parts(network: Any, size: int | None) -> tuple[nn.Module, _Metadata, int]:
    """Return a model of the registry, its metadata and the image size that it was built for."""
    pretrained_cfg = getattr(network, "pretrained_cfg", None)
    if not pretrained_cfg:
        raise ExportError(
            f"{type(network).__name__} does not state which images it takes; models of create_model do, and "
            "lambdanets.exporting.export_network takes any network with examples of its inputs"
        )
    data = resolve_model_data_config(network, use_test_size=True)
    side = size or data["input_size"][-1]
    classes = tuple(pretrained_cfg.get("label_names") or ())
    if len(classes) != network.num_classes:
        classes = wnids() if network.num_classes == len(wnids()) else ()
    metadata = _Metadata(
        model=pretrained_cfg.get("architecture") or type(network).__name__,
        classes=classes,
        input_size=(data["input_size"][0], side, side),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        crop_pct=data["crop_pct"],
        interpolation=data["interpolation"],
    )
    return network, metadata, pretrained_cfg["input_size"][-1]
