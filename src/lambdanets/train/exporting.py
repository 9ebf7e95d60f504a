"""`export`: a run, or a model, as one file that runs elsewhere."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from timm.data.config import resolve_model_data_config
from torch import nn

from lambdanets.exporting import Exported, ExportError, export_network
from lambdanets.train.run import Run
from lambdanets.train.subject import fit_to_size
from lambdanets.train.test_sets import wnids
from lambdanets.utils.text import json_text

REDUCTION = 32  # pixels for one of the last map, of networks that do not say theirs
LEAST_MAP = 4  # side of the last map of what is traced for any size: one of 1 would be taken for a constant


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """What is kept beside the graph: each is one entry of the file's, in JSON."""

    model: str
    classes: tuple[str, ...]
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    interpolation: str


def export(
    what: Run | nn.Module,
    file: str | Path,
    *,
    format: Literal["torch", "onnx"],
    weights: Literal["best", "last"] = "best",
    size: int | None = None,
    dynamic_size: bool = False,
    batch_size: int | None = None,
    opset: int | None = None,
) -> Exported:
    """Write the network of a run, or a model, as one file that needs nothing of this package.

    It takes `images` of shape (b c height width), resized, cut and normalised as the entries of the file say
    (`input_size`, `crop_pct`, `interpolation`, `mean`, `std`; `classes` names the outputs; JSON), and gives
    `logits` of shape (b classes). They are `extra_files` of torch.export.load and `metadata_props` of ONNX.
    The file is loaded again and compared with the network before it appears under its name.

    Args:
        what: A run, or a model of timm's registry or ours; it is put into evaluation mode.
        file: Where: .pt2 for format "torch", .onnx for "onnx". Its folder is made if it is not there.
        format: "torch" (torch.export) or "onnx" (for onnxruntime and others).
        weights: The best weights of a run by validation, or those of its last epoch.
        size: Height and width of the images in pixels; those of the run's validation or the model's test.
        dynamic_size: Take images of any height and width; `size` is then one of them.
        batch_size: Images at once; None takes any number.
        opset: Version of ONNX's operators; None leaves it to PyTorch.

    Returns:
        What was written, and the largest difference from the network's outputs.

    Raises:
        RunError: The run has no such weights, or the network cannot take images of this size.
        ExportError: The file exists, the format or a package for it is missing, the network cannot be
            exported, or the file gives something else than the network.

    Example:
        >>> export(load_run("runs/birds"), "birds.onnx", format="onnx")
    """
    for name, value in (("size", size), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ExportError(f"{name} must be at least 1, got {value}")
    network, facts, built_for = _parts(what, weights, size)
    side = facts.input_size[-1]
    network.eval()
    fit_to_size(network, facts.model, side, built_for)
    first, *others = (2, 1, 3) if batch_size is None else (batch_size, batch_size)
    if dynamic_size:
        step = _reduction(network)
        if format == "torch" and side <= step:
            raise ExportError(
                f"for any size a file of format 'torch' takes images above {step} pixels alone, and those "
                f"of {facts.model} have {side}: export it as 'onnx', or for this size alone"
            )
        traced = max(side, LEAST_MAP * step)
        shapes = [(first, traced, traced), *((count, traced - step, traced + step) for count in others)]
        if traced != side:
            shapes.append((others[0], side, side))
    else:
        shapes = [(count, side, side) for count in (first, *others)]
    generator = torch.Generator().manual_seed(0)
    examples = [
        (torch.randn(count, facts.input_size[0], *sides, generator=generator),) for count, *sides in shapes
    ]
    axes = ({0: "batch"} if batch_size is None else {}) | ({2: "height", 3: "width"} if dynamic_size else {})
    return export_network(
        network,
        file,
        examples,
        format=format,
        inputs={"images": axes},
        outputs=["logits"],
        facts={name: json_text(value) for name, value in asdict(facts).items()},
        opset=opset,
    )


def _reduction(network: nn.Module) -> int:
    """Pixels of the image for one of the last map."""
    stages: Any = getattr(network, "feature_info", None)
    return stages[-1]["reduction"] if stages else REDUCTION


def _parts(
    what: Run | nn.Module, weights: Literal["best", "last"], size: int | None
) -> tuple[nn.Module, _Facts, int]:
    """The network, what it takes and gives, and the size that it was built for."""
    if isinstance(what, Run):
        data = what.config.data.resolved()
        side = size or data.image_size
        facts = _Facts(
            model=what.config.model.name,
            classes=what.classes,
            input_size=(data.in_chans, side, side),
            mean=data.mean or (),
            std=data.std or (),
            crop_pct=data.crop_pct,
            interpolation=data.interpolation,
        )
        return what.model(weights), facts, data.image_size
    network: Any = what
    cfg = getattr(network, "pretrained_cfg", None)
    if not cfg:
        raise ExportError(
            f"{type(network).__name__} does not say which images it takes; models of create_model do, and "
            "lambdanets.exporting.export_network takes any network with examples of its inputs"
        )
    form = resolve_model_data_config(network, use_test_size=True)
    side = size or form["input_size"][-1]
    labels = tuple(cfg.get("label_names") or ())
    if len(labels) != network.num_classes:
        labels = wnids() if network.num_classes == len(wnids()) else ()
    facts = _Facts(
        model=cfg.get("architecture") or type(network).__name__,
        classes=labels,
        input_size=(form["input_size"][0], side, side),
        mean=tuple(form["mean"]),
        std=tuple(form["std"]),
        crop_pct=form["crop_pct"],
        interpolation=form["interpolation"],
    )
    return network, facts, cfg["input_size"][-1]
