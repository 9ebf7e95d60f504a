"""Detection: Mask R-CNN of torchvision's modules on any backbone, its training, COCO's scores, drawings.

Modules with slow imports, such as Lightning, are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lambdanets.detection.config import DetectionConfig as DetectionConfig
from lambdanets.detection.config import DetectorConfig as DetectorConfig
from lambdanets.detection.config import ValidationConfig as ValidationConfig

if TYPE_CHECKING:
    from lambdanets.detection.comparison_sheet import Pair as Pair
    from lambdanets.detection.comparison_sheet import draw_pairs as draw_pairs
    from lambdanets.detection.drawing import draw_objects as draw_objects
    from lambdanets.detection.evaluation import Evaluation as Evaluation
    from lambdanets.detection.evaluation import evaluate as evaluate
    from lambdanets.detection.mask_rcnn import Detector as Detector
    from lambdanets.detection.mask_rcnn import create_detector as create_detector
    from lambdanets.detection.matching import Matches as Matches
    from lambdanets.detection.matching import match as match
    from lambdanets.detection.prediction import Detections as Detections
    from lambdanets.detection.prediction import predict as predict
    from lambdanets.detection.prediction import predict_samples as predict_samples
    from lambdanets.detection.results import ground_truth_as_results as ground_truth_as_results
    from lambdanets.detection.results import merge as merge
    from lambdanets.detection.results import of_boxes as of_boxes
    from lambdanets.detection.results import of_masks as of_masks
    from lambdanets.detection.results import read_results as read_results
    from lambdanets.detection.results import to_detections as to_detections
    from lambdanets.detection.results import to_results as to_results
    from lambdanets.detection.results import write_kinds as write_kinds
    from lambdanets.detection.results import write_results as write_results
    from lambdanets.detection.scores import KindScores as KindScores
    from lambdanets.detection.scores import Scores as Scores
    from lambdanets.detection.scores import draw_precision_recall as draw_precision_recall
    from lambdanets.detection.scores import score as score
    from lambdanets.detection.scores import write_per_class as write_per_class
    from lambdanets.detection.training import load_run as load_run
    from lambdanets.detection.training import train as train
    from lambdanets.exporting.detector import ExportedDetector as ExportedDetector
    from lambdanets.exporting.detector import export_detector

    export = export_detector

_LAZY = {
    "Detections": "lambdanets.detection.prediction",
    "Detector": "lambdanets.detection.mask_rcnn",
    "Evaluation": "lambdanets.detection.evaluation",
    "KindScores": "lambdanets.detection.scores",
    "Matches": "lambdanets.detection.matching",
    "Pair": "lambdanets.detection.comparison_sheet",
    "Scores": "lambdanets.detection.scores",
    "create_detector": "lambdanets.detection.mask_rcnn",
    "draw_objects": "lambdanets.detection.drawing",
    "draw_pairs": "lambdanets.detection.comparison_sheet",
    "draw_precision_recall": "lambdanets.detection.scores",
    "evaluate": "lambdanets.detection.evaluation",
    "ground_truth_as_results": "lambdanets.detection.results",
    "load_run": "lambdanets.detection.training",
    "match": "lambdanets.detection.matching",
    "merge": "lambdanets.detection.results",
    "of_boxes": "lambdanets.detection.results",
    "of_masks": "lambdanets.detection.results",
    "predict": "lambdanets.detection.prediction",
    "predict_samples": "lambdanets.detection.prediction",
    "read_results": "lambdanets.detection.results",
    "score": "lambdanets.detection.scores",
    "to_detections": "lambdanets.detection.results",
    "to_results": "lambdanets.detection.results",
    "train": "lambdanets.detection.training",
    "write_kinds": "lambdanets.detection.results",
    "write_per_class": "lambdanets.detection.scores",
    "write_results": "lambdanets.detection.results",
    # Public names of the room above.
    "ExportedDetector": "lambdanets.exporting",
    "export": "lambdanets.exporting",
}
_RENAMED = {"export": "export_detector"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), _RENAMED.get(name, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
