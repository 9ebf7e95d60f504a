"""Pairs for a sheet of the images with the most errors: missed objects red, false yellow, others blue."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lambdanets.data import CocoSet
from lambdanets.detection.comparison_sheet import Pair, make_pair
from lambdanets.detection.matching import Matches
from lambdanets.detection.results import results_to_objects

# Names of the colours of `drawing.COLOURS` that these labels have; correct objects are not named.
NAMES = ("missed", "", "false")
MISSED, CORRECT, FALSE = 1, 2, 3
LEGEND = "left: annotated, missed objects red  ·  right: detected from a score of {:g} on, false ones yellow"


def error_pairs(images: CocoSet, matches: Matches, threshold: float, count: int) -> Iterator[Pair]:
    """Yield the images with the most errors, whose labels are those of `NAMES`.

    Args:
        images: The set whose objects were matched.
        matches: From `match`.
        threshold: Least score of a detection.
        count: Most images.
    """
    by_image = matches.by_image(threshold)
    for index in matches.worst(threshold)[:count]:
        _, found, missed, false = by_image[index]
        height, width = images.sizes[index].tolist()
        objects = results_to_objects(found, images.category_ids, (height, width))
        pair = make_pair(images, index, lambda image, truth, own=objects: own)
        yield replace(
            pair,
            truth=pair.truth | {"labels": _labels(missed, MISSED)},
            found=objects | {"labels": _labels(false, FALSE)},
            notes=(f", {missed.sum()} missed", f", {false.sum()} false"),
        )


def _labels(wrong: np.ndarray, label: int) -> Tensor:
    return torch.from_numpy(np.where(wrong, label, CORRECT))
