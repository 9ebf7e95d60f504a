"""The detection room: what a detector found, scored as COCO does, and drawn."""

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
