"""Training of a detector: its Lightning module, its task, and `train` and `load_run`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lambdanets.data import CocoSet, CocoSplits, coco_eval_loader, coco_train_loader, open_coco
from lambdanets.data.coco.splits import check_objects
from lambdanets.detection.comparison_sheet import draw_pairs, evenly_spaced, make_pair
from lambdanets.detection.config import DetectionConfig
from lambdanets.detection.mask_rcnn import Detector
from lambdanets.detection.masks import Objects, encode_regions
from lambdanets.detection.results import Entry, merge, results_to_objects, to_results, write_kinds
from lambdanets.detection.scores import Scores, draw_precision_recall, score, write_per_class
from lambdanets.detection.tiling import TrainingSizes
from lambdanets.train import Run
from lambdanets.train import load_run as load_any_run
from lambdanets.train.checkpoint import RunState
from lambdanets.train.engine import Task, train_task
from lambdanets.train.errors import RunError, raised_on_all_ranks
from lambdanets.train.learner import Learner
from lambdanets.train.reporting import RunResult
from lambdanets.train.run import RunFiles
from lambdanets.viz.figures import Panel, draw_curves

# torchvision's names of the losses, and the columns of metrics.csv.
LOSSES = {
    "loss_objectness": "objectness",
    "loss_rpn_box_reg": "proposals",
    "loss_classifier": "classes",
    "loss_box_reg": "boxes",
    "loss_mask": "masks",
}
# COCO's figures in metrics.csv.
LOGGED_FIGURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


class DetectionModule(Learner):
    """Trains a detector on annotated images.

    Args:
        network: The detector.
        config: The run.
        classes: Names of the classes; labels count from 1 in this order.
        state: Progress of the run, shared with the callbacks.
    """

    network: Detector

    def __init__(
        self, network: nn.Module, config: DetectionConfig, *, classes: Sequence[str], state: RunState
    ) -> None:
        super().__init__(network, config, classes=classes, state=state)
        self.kinds = ("mask", "box") if config.data.masks else ("box",)
        self.losses_shown = {
            loss: name for loss, name in LOSSES.items() if config.data.masks or name != "masks"
        }
        self.train_metrics = ("loss", *self.losses_shown.values())
        logged = (*LOGGED_FIGURES, f"ar{config.validation.max_detections}")
        self.columns = tuple(f"val_{kind}_{figure}" for kind in self.kinds for figure in logged)
        self.monitor = f"val_{self.kinds[0]}_ap"
        self.val_set: CocoSet | None = None
        self.sizes: TrainingSizes | None = None
        # Images that this process has validated since the validation began, and their detections.
        self.seen: list[int] = []
        self.found: list[Entry] = []
        # Scores and detections of the newest validation, on rank 0.
        self.scores: Scores | None = None
        self.results: list[Entry] = []

    def train_loader(self, splits: CocoSplits, *, rank: int, world_size: int) -> DataLoader:
        self.sizes = TrainingSizes.of(splits.train.sizes)
        return coco_train_loader(
            splits.train,
            self.config.data,
            seed=self.config.seed,
            position=lambda: self.state.position,
            rank=rank,
            world_size=world_size,
        )

    def val_loader(self, splits: CocoSplits, *, rank: int, world_size: int) -> DataLoader:
        self.val_set = splits.val
        return coco_eval_loader(splits.val, self.config.data, rank=rank, world_size=world_size)

    # Training

    def on_fit_start(self) -> None:
        if isinstance(self.trainer.strategy, FSDPStrategy | ModelParallelStrategy):
            with raised_on_all_ranks():
                raise RunError("a detector trains with engine.strategy=ddp, not with FSDP")
        super().on_fit_start()

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.sizes is not None and self.files is not None and self.trainer.is_global_zero:
            self.sizes.write(self.files.image_sizes)

    def step(self, batch: tuple[list[Tensor], list[dict[str, Any]]]) -> tuple[Tensor, list[Tensor], int]:
        images, targets = self.network_inputs(batch)
        losses = self.network(images, targets)
        total = torch.stack([losses[name].float() for name in self.losses_shown]).sum()
        each = [losses[name] * len(images) for name in self.losses_shown]
        return total, [total * len(images), *each], len(images)

    def network_inputs(self, batch: tuple[list[Tensor], list[dict[str, Any]]]) -> tuple[Any, ...]:
        images, targets = batch
        return [_plain_tensor(image) for image in images], [
            {name: _plain_tensor(value) for name, value in target.items() if isinstance(value, Tensor)}
            for target in targets
        ]

    def named_tensors(self, batch: tuple[list[Tensor], list[dict[str, Any]]]) -> dict[str, Tensor]:
        images, targets = self.network_inputs(batch)
        named = {f"{index}.image": image for index, image in enumerate(images)}
        for index, target in enumerate(targets):
            named |= {f"{index}.{name}": value for name, value in target.items()}
        return named

    # Validation

    def on_validation_epoch_start(self) -> None:
        self.seen, self.found = [], []

    def validation_step(self, batch: tuple[list[Tensor], list[dict[str, Any]]], batch_idx: int) -> None:
        images, targets = batch
        network: Any = self.eval_network
        detected = network.regions([_plain_tensor(image) for image in images])
        for image, target, regions in zip(images, targets, detected, strict=True):
            objects = encode_regions(regions, image.shape[-2:], target["orig_size"])
            self.seen.append(target["image_id"])
            self.found += to_results([objects], [target["image_id"]], self._val.category_ids)

    def on_validation_epoch_end(self) -> None:
        self.scores, figures = None, {}
        shards = self._gather()
        if shards is not None:
            self.results = merge(found for _, found in shards)
            seen = {image_id for image_ids, _ in shards for image_id in image_ids}
            self.scores = score(
                self._ground_truth(seen),
                self.results,
                masks=self.config.data.masks,
                max_detections=self.config.validation.max_detections,
            )
            # Undefined figures, such as the AP of a size without objects, are left out; without any object
            # the monitored figure is 0.
            figures = {f"val_{name}": value for name, value in self.scores.figures().items()}
            figures = {name: value for name, value in figures.items() if not math.isnan(value)}
            figures = {self.monitor: 0.0} | figures
            if self.config.validation.sheet and self.files is not None:
                self._draw_sheet(self.files, seen)
        self.val_metrics = self.trainer.strategy.broadcast(figures)

    def _ground_truth(self, seen: set[int]) -> dict[str, list[Entry]]:
        """Return the ground truth of the validated images: a short trial does not validate all."""
        truth = self._val.ground_truth()
        return truth | {
            "images": [each for each in truth["images"] if each["id"] in seen],
            "annotations": [each for each in truth["annotations"] if each["image_id"] in seen],
        }

    def _gather(self) -> list[tuple[list[int], list[Entry]]] | None:
        """Return the image ids and detections of every rank, on rank 0; None on the others."""
        world_size, shard = self.trainer.world_size, (self.seen, self.found)
        if world_size == 1:
            return [shard]
        shards: list[Any] | None = [None] * world_size if self.trainer.is_global_zero else None
        torch.distributed.gather_object(shard, shards)
        return shards

    @property
    def _val(self) -> CocoSet:
        if self.val_set is None:
            raise RuntimeError("there is no validation set before its loader is made")
        return self.val_set

    def _draw_sheet(self, files: RunFiles, seen: set[int]) -> None:
        """Draw images spread over the validated ones, with annotated and detected objects."""
        validation = self.config.validation
        indices = [index for index, image_id in enumerate(self._val.image_ids.tolist()) if image_id in seen]
        chosen = [indices[index] for index in evenly_spaced(len(indices), validation.sheet)]
        found: dict[int, list[Entry]] = {self._val.image_ids[index]: [] for index in chosen}
        for entry in self.results:
            if entry["image_id"] in found:
                found[entry["image_id"]].append(entry)

        def detect(image: Tensor, target: dict[str, Any]) -> Objects:
            return results_to_objects(found[target["image_id"]], self._val.category_ids, target["orig_size"])

        pairs = (make_pair(self._val, index, detect) for index in chosen)
        title = f"{self.config.model.name}, epoch {self.state.position[0]}"
        draw_pairs(pairs, files.sheet, title, names=self.classes, threshold=validation.threshold)

    def on_new_best(self) -> None:
        if self.scores is None or self.files is None:
            return
        write_kinds(self.results, self.files.found, masks=self.config.data.masks)
        write_per_class(self.scores, self.files.per_class)
        title = f"{self.config.model.name}, epoch {self.state.position[0]}"
        draw_precision_recall(self.scores, self.files.precision_recall, title)

    # Log lines and curves

    def format_training(self, means: Mapping[str, float]) -> str:
        return f"loss {means['loss']:.3f}"

    def format_epoch(self, row: Mapping[str, float]) -> str:
        line = f"train {row['train_loss']:.3f}"
        return f"{line}  val {self._format_figures(row, self.kinds[0])}" if self.monitor in row else line

    def format_validation(self, row: Mapping[str, float]) -> str:
        return ", ".join(self._format_figures(row, kind) for kind in self.kinds)

    def _format_figures(self, row: Mapping[str, float], kind: str) -> str:
        ap, ap50 = (100 * row.get(f"val_{kind}_{figure}", 0.0) for figure in ("ap", "ap50"))
        return f"{kind} AP {ap:.1f} AP50 {ap50:.1f}"

    def format_data(self, splits: CocoSplits) -> str:
        return f"{len(splits.train):,} training and {len(splits.val):,} validation images"

    def format_class_sizes(self, splits: CocoSplits) -> str:
        return f", {splits.train.objects:,} objects to train on"

    def data_advice(self) -> list[str]:
        return [f"images stored at about {self.config.data.image_size} pixels where they are larger"]

    def draw_curves(self, path: Path, title: str = "") -> None:
        losses = {name: f"train_{name}" for name in self.losses_shown.values()}
        figures = {
            f"{kind} {label}": f"val_{kind}_{figure}"
            for kind in self.kinds
            for figure, label in (("ap", "AP"), ("ap50", "AP50"))
        }
        panels = (
            Panel("training losses", losses),
            Panel("average precision (%)", figures, scale=100, best=self.monitor),
        )
        draw_curves(self.state.history, path, panels, title)


def _plain_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor without torchvision's subclass, whose dispatch slows every operation."""
    return tensor.as_subclass(Tensor)


def _open_splits(config: DetectionConfig) -> CocoSplits:
    splits = open_coco(config.data, seed=config.seed)
    check_objects(config.data, splits)
    return splits


DETECTION = Task(DetectionConfig, _open_splits, DetectionModule)


def train(
    config: DetectionConfig | None = None,
    *,
    run_dir: str | Path,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
) -> RunResult:
    """Train a detector on annotated images and write one folder.

    Arguments, result and errors are those of `lambdanets.train.train`. In addition to the files of every run,
    the folder holds `results/` in COCO's format, `precision_recall.png` and `classes.csv` of the best
    validation, and `sheet.png` of the newest one, with annotated and detected objects side by side.

    Example:
        >>> train(get_recipe("nuclei"), run_dir="runs/nuclei")
    """
    return train_task(DETECTION, config, run_dir=run_dir, resume=resume, callbacks=callbacks)


def load_run(path: str | Path) -> Run[DetectionConfig]:
    """Open the folder of a run that trained a detector.

    Args:
        path: The folder that `train` wrote; it may have been moved since.

    Raises:
        RunError: The folder is no such run, or its configuration or its classes cannot be read.
    """
    return load_any_run(path, DetectionConfig)
