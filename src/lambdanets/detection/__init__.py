"""The detection room: Mask R-CNN of torchvision's parts on any backbone of ours or of timm."""

from .config import DetectorConfig
from .network import Detector, create_detector

__all__ = [
    "Detector",
    "DetectorConfig",
    "create_detector",
]
