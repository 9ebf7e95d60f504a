"""The source `coco:`, which detectors are trained on: it has a configuration of its own, `CocoConfig`."""

from __future__ import annotations

from collections.abc import Sequence

from ..config import DataConfig
from ..errors import DataError
from ..sources.protocol import ImageSplits, IndexedSource


class CocoSource(IndexedSource):
    """Images with annotated objects, without a class each."""

    form = "coco:PATH"
    help = "for detectors: a folder or a json in COCO's format (pip install 'lambdanets[detection]')"
    layout = (
        "a json in COCO's format, which is split, or a folder with annotations/instances_train.json and "
        "instances_val.json; lambdanets masks-to-coco writes one from images of masks"
    )
    labelled_images = False

    def open(self, config: DataConfig, *, seed: int, classes: Sequence[str] | None = None) -> ImageSplits:
        raise DataError(
            f"{self.text!r} holds annotated objects, for a detector: train the recipe coco or nuclei."
        )
