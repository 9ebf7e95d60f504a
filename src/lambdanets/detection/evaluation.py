"""COCO's figures of a run, on its validation images or on others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from torch import Tensor

from lambdanets.data import CocoConfig, CocoSet, coco_eval_loader, open_coco_split
from lambdanets.detection.config import DetectionConfig
from lambdanets.detection.duplicates import entries_without_duplicates
from lambdanets.detection.matching import Matches, match
from lambdanets.detection.prediction import Predictor
from lambdanets.detection.results import Entry, merge, to_results
from lambdanets.detection.scores import Scores, score
from lambdanets.detection.tiling import TileOption, TrainingSizes, WholeImage, check_tile
from lambdanets.detection.training import DetectionModule
from lambdanets.models import to_channels_last
from lambdanets.train import Run
from lambdanets.train.checkpoint import RunState
from lambdanets.train.trainer import make_trainer, one_device, quiet_lightning


@dataclass(frozen=True)
class Evaluation:
    """Scores and detections of a run.

    Attributes:
        scores: COCO's figures.
        results: The detections, in COCO's results format.
        images: The images, with their annotated objects.
        tiled: Number of images that were split into tiles.
    """

    scores: Scores
    results: list[Entry]
    images: CocoSet
    tiled: int = 0

    def matches(self) -> Matches:
        """Match the detections to the annotated objects, for figures at a threshold of the score.

        The detections are those that `predict` counts, without objects found twice; COCO's figures have all.
        """
        return match(
            self.images.ground_truth(),
            entries_without_duplicates(self.results),
            masks=self.scores.mask is not None,
            max_detections=self.scores.max_detections,
        )


def evaluate(
    run: Run[DetectionConfig],
    *,
    data: CocoConfig | None = None,
    weights: Literal["best", "last"] = "best",
    max_detections: int | None = None,
    tile: TileOption = "auto",
    device: torch.device | None = None,
) -> Evaluation:
    """Evaluate a run on the validation split of a COCO source, in one process.

    Args:
        run: From `load_run`.
        data: Other images of the same classes, or the same in another size; None takes the run's own.
        weights: The best weights by validation, or those of the last epoch.
        max_detections: Most detections of an image that are scored, by descending score; a lower limit of the
            detector is raised to it. None takes the run's.
        tile: As for `predict`. With tiles, images are processed one by one instead of in batches.
        device: Device in place of the run's.

    Raises:
        ValueError: `tile` is not one of the options of `predict`.
        DataError: The images cannot be used.
        RunError: The run has no such weights yet.

    Example:
        >>> evaluate(load_run("runs/nuclei")).scores.figures()["mask_ap50"]
    """
    config = run.config
    validation = config.validation
    config = replace(
        config,
        data=data or config.data,
        validation=validation
        if max_detections is None
        else replace(validation, max_detections=max_detections),
        engine=replace(config.engine, ema=None, max_val_batches=None),
    )
    if config.engine.threads:
        torch.set_num_threads(config.engine.threads)
    images = open_coco_split(config.data, "val", seed=config.seed, classes=run.classes)
    sizes, tile = TrainingSizes.read(run.files.image_sizes, config.data), check_tile(tile)
    tiled = sum(sizes.tile(size, config.data, tile) is not None for size in images.sizes.tolist())
    if tiled:
        predictor = Predictor(
            replace(run, config=config), weights, tile, max_detections=max_detections, device=device
        )
        results = merge([_results(predictor, images)])
        limit = config.validation.max_detections
        scores = score(images.ground_truth(), results, masks=config.data.masks, max_detections=limit)
        return Evaluation(scores, results, images, tiled)
    network: Any = run.model(weights)
    if max_detections is not None:
        network.roi_heads.detections_per_img = max(network.roi_heads.detections_per_img, max_detections)
    if config.engine.channels_last:
        to_channels_last(network)
    module = DetectionModule(network, config, classes=run.classes, state=RunState())
    module.val_set = images
    with quiet_lightning():
        trainer = make_trainer(
            **one_device(config.engine, device),
            # A single process, even under a launcher of several.
            plugins=[LightningEnvironment()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.validate(module, coco_eval_loader(images, config.data), verbose=False)
    if module.scores is None:
        raise RuntimeError("only rank 0 has the scores")
    return Evaluation(module.scores, module.results, images)


def _results(predictor: Predictor, images: CocoSet) -> list[Entry]:
    """Return the detections in the images of a set, one by one."""
    entries: list[Entry] = []
    unmasked = images.without_masks()
    for index in range(len(unmasked)):
        image, target = unmasked.stored(index)
        objects, _ = predictor(WholeImage(image.as_subclass(Tensor)))
        entries += to_results([objects], [target["image_id"]], images.category_ids)
    return entries
