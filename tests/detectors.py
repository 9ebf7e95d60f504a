"""Detectors small enough for tests, and images with objects for them."""

from typing import Any

import torch
from torch import Tensor

from lambdanets.detection import Detector, DetectorConfig, create_detector

BODY: dict[str, Any] = {
    "depths": (1, 1, 2, 1),
    "widths": (8, 8, 16, 16),
    "stem_width": 8,
    "operator_blocks": ((), (), (1,), "all"),
    "scope": 5,
}
NARROW: dict[str, Any] = {
    "fpn_channels": 16,
    "anchor_sizes": (8, 16, 32, 64, 128),
    "box_dim": 24,
    "mask_dim": 8,
    "mask_convs": 2,
    "rpn_pre_nms_top_n_train": 100,
    "rpn_post_nms_top_n_train": 60,
    "rpn_pre_nms_top_n_test": 60,
    "rpn_post_nms_top_n_test": 40,
    "box_batch_size_per_image": 32,
    "box_detections_per_img": 12,
}


def tiny_config(**changes: Any) -> DetectorConfig:
    """A few thousand weights round a LambdaResNet; changes are fields of the configuration."""
    return DetectorConfig(**{"name": "lambda_resnet_mini", "options": BODY, **NARROW, **changes})


def tiny(*, num_classes: int = 2, masks: bool = True, seed: int = 0, **changes: Any) -> Detector:
    """A detector of `tiny_config`, whose residual branches are awake: at zero they would hide mistakes."""
    torch.manual_seed(seed)
    detector = create_detector(tiny_config(**changes), num_classes=num_classes, masks=masks)
    for norm in detector.modules():
        if isinstance(norm, torch.nn.BatchNorm2d) and not norm.weight.any():
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    return detector


def pictures(*sizes: tuple[int, int], seed: int = 1) -> list[Tensor]:
    """An image of noise, uint8, for each (height, width)."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]


def target(size: tuple[int, int], boxes: list[list[float]], labels: list[int]) -> dict[str, Tensor]:
    """Objects whose masks fill their boxes."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[round(top) : round(bottom), round(left) : round(right)] = 1
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": masks,
    }


def batch() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Two images of different sizes, three objects in one and two in the other."""
    sizes = (96, 64), (70, 110)
    objects = (
        target(sizes[0], [[4, 6, 20, 30], [30, 50, 62, 90], [8, 40, 16, 48]], [1, 2, 1]),
        target(sizes[1], [[10.5, 8.25, 40, 33], [60, 20, 100, 65]], [2, 1]),
    )
    return pictures(*sizes), list(objects)
