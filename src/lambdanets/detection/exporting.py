"""A trained detector as one file that runs elsewhere."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import boxes as box_ops
from torchvision.ops import nms
from torchvision.transforms import v2

from lambdanets.data import DataError, open_coco_split
from lambdanets.exporting import Exported, ExportError, export_network
from lambdanets.train import Run
from lambdanets.utils.text import json_text

from .network import Detector
from .pairs import spread
from .run_config import DetectionConfig

COUNT = 3  # of the images on which a file is compared
TOLERANCE = 1e-3
"""How far apart objects of the file and of the detector may be: boxes as a part of the image's side, scores
and masks of 1. Rounding moves boxes a little, and what is pooled from them a little more."""


@dataclass(frozen=True, kw_only=True)
class ExportedDetector(Exported):
    """What was written; differences are parts of the image's side in boxes, and of 1 in scores and masks.

    Attributes:
        objects: How many objects the file and the detector were compared on.
        images: What they were found in: "validation" or, where the run's data are not at hand, "random".
    """

    objects: int
    images: Literal["validation", "random"]


def export(
    run: Run[DetectionConfig],
    file: str | Path,
    *,
    format: Literal["torch", "onnx"],
    weights: Literal["best", "last"] = "best",
    size: int | None = None,
    dynamic_size: bool = False,
    opset: int | None = None,
) -> ExportedDetector:
    """Write the detector of a run as one file that needs nothing of this package.

    It takes `image` of shape (3, height, width), RGB, uint8, resized so that its longer side is `image_size`
    pixels where the file's `resize` says so; normalising and padding are inside. It gives `boxes` of shape
    (n, 4), left, top, right and bottom in pixels of that image; `labels` of shape (n,), from 1 on, of
    `classes`; `scores` of shape (n,), the best first; and, where the run has masks, `masks` of shape
    (n, 1, 28, 28), probabilities spread over the boxes. The entries of the file are JSON, `extra_files` of
    torch.export.load and `metadata_props` of ONNX.

    The file is loaded again and compared with the detector, object by object, on images of the run's
    validation set, before it appears under its name.

    Args:
        run: From `load_run`.
        file: Where: .pt2 for format "torch", .onnx for "onnx". Its folder is made if it is not there.
        format: "torch" (torch.export; to load it torchvision has to be imported, whose operators it calls)
            or "onnx" (for onnxruntime and others).
        weights: The best ones by validation, or those of the last epoch.
        size: Height and width of the image in pixels; the size of the run's images unless said.
        dynamic_size: Take an image of any height and width, in format "torch" above the stride of the
            last map, 64 pixels unless the run says otherwise.
        opset: Version of ONNX's operators; None leaves it to PyTorch.

    Returns:
        What was written, and the largest difference from the detector.

    Raises:
        RunError: The run has no such weights.
        ExportError: The file exists, the format or a package for it is missing, the size is no size for the
            detector, or the file gives something else than the detector.

    Example:
        >>> export(load_run("runs/nuclei"), "nuclei.onnx", format="onnx", dynamic_size=True)
    """
    config = run.config
    side = config.data.image_size if size is None else size
    if side < 1:
        raise ExportError(f"size must be at least 1, got {side}")
    detector: Any = run.model(weights)
    sizes = [(side, side)] * COUNT
    if dynamic_size:
        least = detector.backbone.strides[-1] + 1  # a graph takes one place for all, if traced with one
        side = max(side, least)
        sizes = [(side, side), (max(least, side * 3 // 4), side), (side, max(least, side * 2 // 3))]
    pictures, images = _pictures(run, sizes)
    facts = {
        "model": config.model.name,
        "classes": run.classes,
        "image_size": config.data.image_size if dynamic_size else side,
        "resize": config.data.resize or not dynamic_size,
        "fill": config.data.fill,
        "score_threshold": config.model.box_score_thresh,
    }
    graph = _OneImage(detector)
    compared = _Compared(config.model.box_score_thresh, config.model.box_detections_per_img, side)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*create_unbacked_symint", FutureWarning)  # torchvision's
        made = export_network(
            graph,
            file,
            [(picture,) for picture in pictures],
            format=format,
            inputs={"image": {1: "height", 2: "width"} if dynamic_size else {}},
            outputs=graph.outputs,
            facts={name: json_text(value) for name, value in facts.items()},
            opset=opset,
            compare=compared,
        )
    return ExportedDetector(**vars(made), objects=compared.objects, images=images)


def _pictures(
    run: Run[DetectionConfig], sizes: Sequence[tuple[int, int]]
) -> tuple[list[Tensor], Literal["validation", "random"]]:
    """Images of these sizes, from the run's validation set where it can be read."""
    try:
        held = open_coco_split(run.config.data, "val", seed=run.config.seed, classes=run.classes)
        found = [held[index][0] for index in spread(len(held), len(sizes))]
    except (DataError, OSError):
        generator = torch.Generator().manual_seed(0)
        noise = [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]
        return noise, "random"
    images = [found[index % len(found)].as_subclass(Tensor) for index in range(len(sizes))]
    return [
        v2.functional.resize(image, list(size)) for image, size in zip(images, sizes, strict=True)
    ], "validation"


class _OneImage(nn.Module):
    """A detector from an image to its objects."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector
        self.outputs = ["boxes", "labels", "scores", *(["masks"] if detector.roi_heads.has_mask() else [])]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        with _one_way_to_suppress():
            [found] = self.detector.regions([image])
        return {name: found[name] for name in self.outputs}


@contextmanager
def _one_way_to_suppress() -> Iterator[None]:
    """torchvision suppresses overlaps in one of two ways, by the number of boxes, which a graph cannot."""
    asked = box_ops.batched_nms
    box_ops.batched_nms = _suppressed
    try:
        yield
    finally:
        box_ops.batched_nms = asked


def _suppressed(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """torchvision's `batched_nms`: boxes of other labels are moved out of each other's way."""
    farthest = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).amax(0)
    return nms(boxes + (labels.to(boxes) * (farthest + 1))[:, None], scores, threshold)


class _Compared:
    """Holds objects that a file finds against the detector's: each has to be among the other's.

    They may come in another order where scores are alike, and one may be missing where its score is at the
    threshold, or at that of the last of as many as are kept.

    Args:
        threshold: Least score of a detection.
        most: Detections of an image.
        side: Of the image, in pixels.
    """

    def __init__(self, threshold: float, most: int, side: int) -> None:
        self.threshold, self.most, self.side = threshold, most, side
        self.objects = 0

    def __call__(
        self, names: Sequence[str], found: Sequence[Tensor], expected: Sequence[Tensor]
    ) -> tuple[float, float]:
        for name, value in zip(names, found, strict=True):
            if not value.isfinite().all():
                raise ExportError(f"the file gives {name} that are not finite; nothing was written")
        some, others = (dict(zip(names, outputs, strict=True)) for outputs in (found, expected))
        apart = F.pad(self._apart(some, others), (0, 1, 0, 1), value=torch.inf)
        nearest = apart[:-1].amin(1), apart[:, :-1].amin(0)
        for whose, scores, near in zip(
            ("the detector", "the file"), (others["scores"], some["scores"]), nearest, strict=True
        ):
            last = scores.amin() if len(scores) == self.most else self.threshold
            missed = (near > TOLERANCE) & (scores > last + TOLERANCE)
            if missed.any():
                raise ExportError(
                    f"{whose} alone finds {int(missed.sum())} of {len(missed)} objects; nothing was written"
                )
        self.objects += len(others["scores"])
        agreed = torch.cat([near[near <= TOLERANCE] for near in nearest])
        return (agreed.amax().item() if len(agreed) else 0.0), 1.0

    def _apart(self, some: dict[str, Tensor], others: dict[str, Tensor]) -> Tensor:
        """The largest difference between each of the detector's objects and each of the file's."""
        apart = torch.cdist(others["boxes"].double(), some["boxes"].double(), p=torch.inf) / self.side
        scores = (others["scores"].double()[:, None] - some["scores"].double()).abs()
        apart = torch.maximum(apart, scores)
        apart[others["labels"][:, None] != some["labels"]] = torch.inf
        if "masks" in others:
            masks = torch.cdist(
                others["masks"].flatten(1).double(), some["masks"].flatten(1).double(), p=torch.inf
            )
            apart = torch.maximum(apart, masks)
        return apart
