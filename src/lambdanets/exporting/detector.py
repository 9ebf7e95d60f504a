"""`export_detector`: the detector of a run as one file."""

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
from lambdanets.detection.comparison_sheet import evenly_spaced
from lambdanets.detection.config import DetectionConfig
from lambdanets.detection.mask_rcnn import Detector
from lambdanets.exporting.format import ExportError
from lambdanets.exporting.network import Exported, export_network
from lambdanets.train import Run
from lambdanets.utils.text import json_text

# Images on which the file is compared with the detector.
NUM_EXAMPLES = 3
TOLERANCE = 1e-3
"""The largest difference between an object of the file and of the detector: of boxes relative to the image's
side, of scores and masks absolute. Rounding moves boxes a little, and the features pooled from them a little
more."""


@dataclass(frozen=True, kw_only=True)
class ExportedDetector(Exported):
    """An exported file; differences are relative to the image's side in boxes, absolute in scores and masks.

    Attributes:
        objects: Number of objects on which the file and the detector were compared.
        images: Origin of the images: "validation" or, where the run's data cannot be read, "random".
    """

    objects: int
    images: Literal["validation", "random"]


def export_detector(
    run: Run[DetectionConfig],
    file: str | Path,
    *,
    format: Literal["torch", "onnx"],
    weights: Literal["best", "last"] = "best",
    size: int | None = None,
    dynamic_size: bool = False,
    opset: int | None = None,
) -> ExportedDetector:
    """Write the detector of a run as one file that runs without this package.

    The file takes `image` [3, height, width], RGB, uint8, resized so that its longer side is `image_size`
    pixels if the metadata entry `resize` is true; normalisation and padding are part of the graph. It returns
    `boxes` [n, 4], left, top, right and bottom in pixels of that image; `labels` [n], from 1, indices of
    `classes`; `scores` [n] in descending order; and, for runs with masks, `masks` [n, 1, 28, 28],
    probabilities stretched over the boxes. The metadata are JSON: `extra_files` of torch.export.load and
    `metadata_props` of ONNX.

    The file is loaded again and compared with the detector, object by object, on images of the run's
    validation set, before it appears under its name.

    Args:
        run: From `load_run`.
        file: Path that ends in .pt2 for format "torch", .onnx for "onnx". Its folder is created if missing.
        format: "torch" (torch.export; torchvision must be imported before the file is loaded, for its
            operators) or "onnx" (for onnxruntime and others).
        weights: The best weights by validation, or those of the last epoch.
        size: Height and width of the image in pixels; by default the size of the run's images.
        dynamic_size: Accept an image of any height and width; in format "torch" above the stride of the
            last map, which is 64 pixels by default.
        opset: Version of ONNX's operators; None takes PyTorch's default.

    Returns:
        The file with the largest difference from the detector.

    Raises:
        RunError: The run has no such weights.
        ExportError: The file exists, the format or a package for it is missing, the size is invalid, or the
            file finds other objects than the detector.

    Example:
        >>> export_detector(load_run("runs/nuclei"), "nuclei.onnx", format="onnx", dynamic_size=True)
    """
    config = run.config
    side = config.data.image_size if size is None else size
    if side < 1:
        raise ExportError(f"size must be at least 1, got {side}")
    detector: Any = run.model(weights)
    sizes = [(side, side)] * NUM_EXAMPLES
    if dynamic_size:
        # A map of a single position would be traced as a constant size.
        least = detector.backbone.strides[-1] + 1
        side = max(side, least)
        sizes = [(side, side), (max(least, side * 3 // 4), side), (side, max(least, side * 2 // 3))]
    examples, origin = _example_images(run, sizes)
    metadata = {
        "model": config.model.name,
        "classes": run.classes,
        "image_size": config.data.image_size if dynamic_size else side,
        "resize": config.data.resize or not dynamic_size,
        "fill": config.data.fill,
        "score_threshold": config.model.box_score_thresh,
    }
    graph = _SingleImageDetector(detector)
    compare = CompareObjects(config.model.box_score_thresh, config.model.box_detections_per_img, side)
    with warnings.catch_warnings():
        # torchvision calls a deprecated function of PyTorch.
        warnings.filterwarnings("ignore", ".*create_unbacked_symint", FutureWarning)
        exported = export_network(
            graph,
            file,
            [(image,) for image in examples],
            format=format,
            inputs={"image": {1: "height", 2: "width"} if dynamic_size else {}},
            outputs=graph.outputs,
            metadata={name: json_text(value) for name, value in metadata.items()},
            opset=opset,
            compare=compare,
        )
    return ExportedDetector(**vars(exported), objects=compare.objects, images=origin)


def _example_images(
    run: Run[DetectionConfig], sizes: Sequence[tuple[int, int]]
) -> tuple[list[Tensor], Literal["validation", "random"]]:
    """Return images of these sizes, from the run's validation set where it can be read."""
    try:
        val_set = open_coco_split(run.config.data, "val", seed=run.config.seed, classes=run.classes)
        images = [val_set[index][0] for index in evenly_spaced(len(val_set), len(sizes))]
    except (DataError, OSError):
        generator = torch.Generator().manual_seed(0)
        noise = [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]
        return noise, "random"
    repeated = [images[index % len(images)].as_subclass(Tensor) for index in range(len(sizes))]
    return [
        v2.functional.resize(image, list(size)) for image, size in zip(repeated, sizes, strict=True)
    ], "validation"


class _SingleImageDetector(nn.Module):
    """A detector called with one image [3, height, width] instead of a list."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector
        self.outputs = ["boxes", "labels", "scores", *(["masks"] if detector.roi_heads.has_mask() else [])]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        with _traceable_nms():
            [regions] = self.detector.regions([image])
        return {name: regions[name] for name in self.outputs}


@contextmanager
def _traceable_nms() -> Iterator[None]:
    """Replace torchvision's `batched_nms`, which branches on the number of boxes: a graph cannot."""
    original = box_ops.batched_nms
    box_ops.batched_nms = batched_nms
    try:
        yield
    finally:
        box_ops.batched_nms = original


def batched_nms(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Suppress boxes within each label, as torchvision's `batched_nms` does, without branches.

    Boxes of different labels are shifted so that they do not overlap.

    Args:
        boxes: [n, 4].
        scores: [n].
        labels: [n].
        threshold: Largest overlap (IoU) of two boxes that are kept.

    Returns:
        The indices of the kept boxes by descending score.
    """
    largest = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).amax(0)
    return nms(boxes + (labels.to(boxes) * (largest + 1))[:, None], scores, threshold)


class CompareObjects:
    """Compares the objects of a file and of the detector: each must have a counterpart among the other's.

    The order of objects with similar scores may differ. An object needs no counterpart if its score is within
    `TOLERANCE` of the threshold, or of the lowest score of a list with `max_detections` objects.

    Args:
        threshold: Least score of a detection.
        max_detections: Most detections of an image.
        side: Of the image, in pixels.

    Attributes:
        objects: Number of objects compared in all calls.
    """

    def __init__(self, threshold: float, max_detections: int, side: int) -> None:
        self.threshold, self.max_detections, self.side = threshold, max_detections, side
        self.objects = 0

    def __call__(
        self, names: Sequence[str], actual: Sequence[Tensor], expected: Sequence[Tensor]
    ) -> tuple[float, float]:
        """Return the largest difference of matching objects, and 1 as its scale.

        Raises:
            ExportError: An output is not finite, or an object has no counterpart.
        """
        for name, value in zip(names, actual, strict=True):
            if not value.isfinite().all():
                raise ExportError(f"the file gives {name} that are not finite; nothing was written")
        ours, reference = (dict(zip(names, outputs, strict=True)) for outputs in (actual, expected))
        # Infinite padding: the minimum over no objects is infinite.
        distances = F.pad(self._distances(ours, reference), (0, 1, 0, 1), value=torch.inf)
        nearest = distances[:-1].amin(1), distances[:, :-1].amin(0)
        finders = ("the detector", "the file"), ("the file", "the detector")
        for (source, other), scores, distance in zip(
            finders, (reference["scores"], ours["scores"]), nearest, strict=True
        ):
            lowest = scores.amin() if len(scores) == self.max_detections else self.threshold
            unmatched = (distance > TOLERANCE) & (scores > lowest + TOLERANCE)
            if unmatched.any():
                raise ExportError(
                    f"{int(unmatched.sum())} of the {len(unmatched)} objects of {source} are not found by "
                    f"{other}; nothing was written"
                )
        self.objects += len(reference["scores"])
        matched = torch.cat([distance[distance <= TOLERANCE] for distance in nearest])
        return (matched.amax().item() if len(matched) else 0.0), 1.0

    def _distances(self, ours: dict[str, Tensor], reference: dict[str, Tensor]) -> Tensor:
        """Return the largest difference between each object of the detector and each of the file."""
        distances = torch.cdist(reference["boxes"].double(), ours["boxes"].double(), p=torch.inf) / self.side
        scores = (reference["scores"].double()[:, None] - ours["scores"].double()).abs()
        distances = torch.maximum(distances, scores)
        distances[reference["labels"][:, None] != ours["labels"]] = torch.inf
        if "masks" in reference:
            masks = torch.cdist(
                reference["masks"].flatten(1).double(), ours["masks"].flatten(1).double(), p=torch.inf
            )
            distances = torch.maximum(distances, masks)
        return distances
