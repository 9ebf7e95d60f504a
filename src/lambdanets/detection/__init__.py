"""The detection room: what a detector found, scored as COCO does, and drawn.

What scores and draws is imported when it is used: it brings Lightning and matplotlib along.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lambdanets.detection.drawing import draw_objects as draw_objects
    from lambdanets.detection.pairs import Pair as Pair
    from lambdanets.detection.pairs import draw_pairs as draw_pairs
    from lambdanets.detection.report import draw_precision_recall as draw_precision_recall
    from lambdanets.detection.report import write_per_class as write_per_class
    from lambdanets.detection.results import ground_truth_as_results as ground_truth_as_results
    from lambdanets.detection.results import merge as merge
    from lambdanets.detection.results import of_boxes as of_boxes
    from lambdanets.detection.results import of_masks as of_masks
    from lambdanets.detection.results import to_results as to_results
    from lambdanets.detection.results_json import read_results as read_results
    from lambdanets.detection.results_json import write_results as write_results
    from lambdanets.detection.scores import KindScores as KindScores
    from lambdanets.detection.scores import Scores as Scores
    from lambdanets.detection.scores import score as score

_MODULES = {
    "drawing": ("draw_objects",),
    "pairs": ("Pair", "draw_pairs"),
    "report": ("draw_precision_recall", "write_per_class"),
    "results": ("ground_truth_as_results", "merge", "of_boxes", "of_masks", "to_results"),
    "results_json": ("read_results", "write_results"),
    "scores": ("KindScores", "Scores", "score"),
}
_LAZY = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"lambdanets.detection.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
