"""The complete, typed description of a run that trains a detector."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from torch import nn

from lambdanets.data import CocoConfig
from lambdanets.train.config import BaseConfig

from .config import DetectorConfig

if TYPE_CHECKING:
    from .network import Detector

LEAST_DETECTIONS = 11  # recall is told for 1, for 10 and for as many as count


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """How a detector is validated while it trains.

    Args:
        max_detections: of an image, the likeliest ones, that count, more than 10; COCO's is 100. The
            network's own limit is `model.box_detections_per_img`.
        sheet: images that are drawn with what is there beside what was found, in every validation; 0 draws
            none.
        threshold: least score of what is drawn.
    """

    max_detections: int = 100
    sheet: int = 8
    threshold: float = 0.5

    def __post_init__(self) -> None:
        for name, least in (("max_detections", LEAST_DETECTIONS), ("sheet", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"validation.{name} is {least} or more; got {getattr(self, name)}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"validation.threshold is from 0 to 1; got {self.threshold}")


@dataclass(frozen=True, kw_only=True)
class DetectionConfig(BaseConfig):
    """Everything a run of object detection is a function of."""

    TASK = "detection"

    model: DetectorConfig
    data: CocoConfig
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def network(self, num_classes: int, *, loads_weights: bool = False) -> Detector:
        """The detector: images to losses in training, to objects in evaluation."""
        from .network import create_detector

        return create_detector(
            self.model, num_classes=num_classes, masks=self.data.masks, loads_weights=loads_weights
        )

    def load_initial_weights(self, network: nn.Module) -> str:
        """Load `model.weights`, those of a classifier, into the backbone."""
        backbone: Any = network.backbone
        weights = self.model.weights or ""
        backbone.start(weights)
        return f"the backbone starts from {weights}, pyramid and heads at random"

    def with_model(self, name: str) -> Self:
        """The same with another backbone, and none of its options."""
        if name == self.model.name:
            return self
        return replace(self, model=replace(self.model, name=name, options={}))
