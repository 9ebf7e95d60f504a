"""Detection: Mask R-CNN of torchvision's parts on any backbone, trained, scored as COCO does, and drawn.

What takes long to import, such as Lightning, is imported where it is used first.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lambdanets.detection.config import DetectorConfig as DetectorConfig
from lambdanets.detection.run_config import DetectionConfig as DetectionConfig
from lambdanets.detection.run_config import ValidationConfig as ValidationConfig

if TYPE_CHECKING:
    from lambdanets.detection.drawing import draw_objects as draw_objects
    from lambdanets.detection.evaluation import Evaluation as Evaluation
    from lambdanets.detection.evaluation import evaluate as evaluate
    from lambdanets.detection.exporting import ExportedDetector as ExportedDetector
    from lambdanets.detection.exporting import export as export
    from lambdanets.detection.network import Detector as Detector
    from lambdanets.detection.network import create_detector as create_detector
    from lambdanets.detection.pairs import Pair as Pair
    from lambdanets.detection.pairs import draw_pairs as draw_pairs
    from lambdanets.detection.prediction import Detections as Detections
    from lambdanets.detection.prediction import predict as predict
    from lambdanets.detection.prediction import predict_samples as predict_samples
    from lambdanets.detection.report import draw_precision_recall as draw_precision_recall
    from lambdanets.detection.report import write_per_class as write_per_class
    from lambdanets.detection.results import ground_truth_as_results as ground_truth_as_results
    from lambdanets.detection.results import merge as merge
    from lambdanets.detection.results import of_boxes as of_boxes
    from lambdanets.detection.results import of_masks as of_masks
    from lambdanets.detection.results import to_detections as to_detections
    from lambdanets.detection.results import to_results as to_results
    from lambdanets.detection.results_json import read_results as read_results
    from lambdanets.detection.results_json import write_kinds as write_kinds
    from lambdanets.detection.results_json import write_results as write_results
    from lambdanets.detection.scores import KindScores as KindScores
    from lambdanets.detection.scores import Scores as Scores
    from lambdanets.detection.scores import score as score
    from lambdanets.detection.task import load_run as load_run
    from lambdanets.detection.task import train as train

_LAZY = {
    "Detections": "prediction",
    "Detector": "network",
    "Evaluation": "evaluation",
    "ExportedDetector": "exporting",
    "KindScores": "scores",
    "Pair": "pairs",
    "Scores": "scores",
    "create_detector": "network",
    "draw_objects": "drawing",
    "draw_pairs": "pairs",
    "draw_precision_recall": "report",
    "evaluate": "evaluation",
    "export": "exporting",
    "ground_truth_as_results": "results",
    "load_run": "task",
    "merge": "results",
    "of_boxes": "results",
    "of_masks": "results",
    "predict": "prediction",
    "predict_samples": "prediction",
    "read_results": "results_json",
    "score": "scores",
    "to_detections": "results",
    "to_results": "results",
    "train": "task",
    "write_kinds": "results_json",
    "write_per_class": "report",
    "write_results": "results_json",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"lambdanets.detection.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
