"""COCO's figures of a run, on its validation images or on others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from torch import Tensor

from lambdanets.data import CocoConfig, CocoSet, coco_eval_loader, open_coco_split
from lambdanets.train import Run
from lambdanets.train.checkpoint import RunState
from lambdanets.train.engine import device_and_precision, make_trainer, quiet_lightning

from .module import DetectionModule
from .prediction import Finder
from .results import Entry, merge, to_results
from .run_config import DetectionConfig
from .scores import Scores, score
from .tiling import TileOption, TrainingSizes, check_tile


@dataclass(frozen=True)
class Evaluation:
    """What a run finds, and how well.

    Attributes:
        scores: COCO's figures.
        results: what was found, in COCO's results format.
        tiled: number of images that were looked at in tiles.
    """

    scores: Scores
    results: list[Entry]
    tiled: int = 0


def evaluate(
    run: Run[DetectionConfig],
    *,
    data: CocoConfig | None = None,
    weights: Literal["best", "last"] = "best",
    max_detections: int | None = None,
    tile: TileOption = "auto",
) -> Evaluation:
    """Measure a run on the validation side of a COCO source, in one process.

    Args:
        run: from `load_run`.
        data: other images of the same classes, or the same in another form; None takes the run's own.
        weights: the best ones by validation, or those of the last epoch.
        max_detections: of an image, the likeliest ones, that count; the detector gives so many where it would
            give fewer. None takes the run's.
        tile: as for `predict`. Where it asks for tiles, every image is looked at alone.

    Raises:
        ValueError: `tile` is none of those of `predict`.
        DataError: the images cannot be used.
        RunError: the run has no such weights yet.

    Example:
        >>> evaluate(load_run("runs/nuclei")).scores.figures()["mask_ap50"]
    """
    config = run.config
    rules = config.validation
    config = replace(
        config,
        data=data or config.data,
        validation=rules if max_detections is None else replace(rules, max_detections=max_detections),
        engine=replace(config.engine, ema=None, max_val_batches=None),
    )
    if config.engine.threads:
        torch.set_num_threads(config.engine.threads)
    images = open_coco_split(config.data, "val", seed=config.seed, classes=run.classes)
    sizes, tile = TrainingSizes.read(run.files.image_sizes, config.data), check_tile(tile)
    tiled = sum(sizes.tile(size, config.data, tile) is not None for size in images.sizes.tolist())
    if tiled:
        find = Finder(replace(run, config=config), weights, tile, most=max_detections)
        results = merge([_found(find, images)])
        limit = config.validation.max_detections
        scores = score(images.ground_truth(), results, masks=config.data.masks, max_detections=limit)
        return Evaluation(scores, results, tiled)
    network: Any = run.model(weights)
    if max_detections is not None:
        network.roi_heads.detections_per_img = max(network.roi_heads.detections_per_img, max_detections)
    if config.engine.channels_last:
        network = network.to(memory_format=torch.channels_last)
    module = DetectionModule(network, config, classes=run.classes, state=RunState())
    module.val_set = images
    with quiet_lightning():
        trainer = make_trainer(
            **device_and_precision(config.engine),
            devices=1,
            plugins=[LightningEnvironment()],  # alone, whatever started the process
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.validate(module, coco_eval_loader(images, config.data), verbose=False)
    if module.scores is None:
        raise RuntimeError("the first process has the scores")
    return Evaluation(module.scores, module.results)


def _found(find: Finder, images: CocoSet) -> list[Entry]:
    """What is found in the images of a set, one after the other."""
    entries: list[Entry] = []
    bare = images.without_masks()
    for index in range(len(bare)):
        image, target = bare.stored(index)
        objects, _ = find(image.as_subclass(Tensor))
        entries += to_results([objects], [target["image_id"]], images.category_ids)
    return entries
