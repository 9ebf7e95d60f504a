"""The Lightning module of object detection: losses, COCO's figures, and what is said and drawn of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lambdanets.data import CocoSet, CocoSplits, coco_eval_loader, coco_train_loader
from lambdanets.train.checkpoint import RunState
from lambdanets.train.errors import RunError, raised_on_all_ranks
from lambdanets.train.learner import Learner
from lambdanets.train.run import RunFiles
from lambdanets.viz.figures import Panel, draw_curves

from .network import Detector, outlined
from .pairs import draw_pairs, pair, spread
from .report import draw_precision_recall, write_per_class
from .results import Entry, Objects, merge, to_objects, to_results
from .results_json import write_kinds
from .run_config import DetectionConfig
from .scores import Scores, score
from .tiling import TrainingSizes

LOSSES = {  # torchvision's names, and the columns'
    "loss_objectness": "objectness",
    "loss_rpn_box_reg": "proposals",
    "loss_classifier": "classes",
    "loss_box_reg": "boxes",
    "loss_mask": "masks",
}
KEPT = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")  # of COCO's figures, in the table


class DetectionModule(Learner):
    """Trains a detector on annotated images.

    Args:
        network: the detector.
        config: the run.
        classes: names, in the order of the labels, the first of which is 1.
        state: progress of the run, shared with the callbacks.
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
        kept = (*KEPT, f"ar{config.validation.max_detections}")
        self.columns = tuple(f"val_{kind}_{figure}" for kind in self.kinds for figure in kept)
        self.monitor = f"val_{self.kinds[0]}_ap"
        self.val_set: CocoSet | None = None
        self.sizes: TrainingSizes | None = None  # of the training images
        self.seen: list[int] = []  # images of this validation, by this process
        self.found: list[Entry] = []  # in them
        self.scores: Scores | None = None  # of the newest validation, on the first process
        self.results: list[Entry] = []  # what these are of

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
        return [_plain(image) for image in images], [
            {name: _plain(value) for name, value in target.items() if isinstance(value, Tensor)}
            for target in targets
        ]

    def named_tensors(self, batch: tuple[list[Tensor], list[dict[str, Any]]]) -> dict[str, Tensor]:
        images, targets = self.network_inputs(batch)
        named = {f"{place}.image": image for place, image in enumerate(images)}
        for place, target in enumerate(targets):
            named |= {f"{place}.{name}": value for name, value in target.items()}
        return named

    # Validation

    def on_validation_epoch_start(self) -> None:
        self.seen, self.found = [], []

    def validation_step(self, batch: tuple[list[Tensor], list[dict[str, Any]]], batch_idx: int) -> None:
        images, targets = batch
        network: Any = self.eval_network
        regions = network.regions([_plain(image) for image in images])
        for image, target, found in zip(images, targets, regions, strict=True):
            objects = outlined(found, image.shape[-2:], target["orig_size"])
            self.seen.append(target["image_id"])
            self.found += to_results([objects], [target["image_id"]], self._val.category_ids)

    def on_validation_epoch_end(self) -> None:
        self.scores, figures = None, {}
        parts = self._gathered()
        if parts is not None:
            self.results = merge(found for _, found in parts)
            seen = {number for numbers, _ in parts for number in numbers}
            self.scores = score(
                self._truth(seen),
                self.results,
                masks=self.config.data.masks,
                max_detections=self.config.validation.max_detections,
            )
            # What is undefined, as the AP of a size that no object has, is left out; without any object
            # nothing is found.
            figures = {f"val_{name}": value for name, value in self.scores.figures().items()}
            figures = {name: value for name, value in figures.items() if not math.isnan(value)}
            figures = {self.monitor: 0.0} | figures
            if self.config.validation.sheet and self.files is not None:
                self._draw_sheet(self.files, seen)
        self.val_metrics = self.trainer.strategy.broadcast(figures)

    def _truth(self, seen: set[int]) -> dict[str, list[Entry]]:
        """What is there, in the images that were seen: a trial does not look at all of them."""
        truth = self._val.ground_truth()
        return truth | {
            "images": [each for each in truth["images"] if each["id"] in seen],
            "annotations": [each for each in truth["annotations"] if each["image_id"] in seen],
        }

    def _gathered(self) -> list[tuple[list[int], list[Entry]]] | None:
        """What every process has seen and found, on the first one; None on the others."""
        world, mine = self.trainer.world_size, (self.seen, self.found)
        if world == 1:
            return [mine]
        parts: list[Any] | None = [None] * world if self.trainer.is_global_zero else None
        torch.distributed.gather_object(mine, parts)
        return parts

    @property
    def _val(self) -> CocoSet:
        if self.val_set is None:
            raise RuntimeError("the validation set is known once its loader is made")
        return self.val_set

    def _draw_sheet(self, files: RunFiles, seen: set[int]) -> None:
        """Draw images spread over those that were seen, with what is there and what was found."""
        rules = self.config.validation
        places = [place for place, number in enumerate(self._val.image_ids.tolist()) if number in seen]
        chosen = [places[place] for place in spread(len(places), rules.sheet)]
        found: dict[int, list[Entry]] = {self._val.image_ids[place]: [] for place in chosen}
        for entry in self.results:
            if entry["image_id"] in found:
                found[entry["image_id"]].append(entry)

        def find(image: Tensor, target: dict[str, Any]) -> Objects:
            return to_objects(found[target["image_id"]], self._val.category_ids, target["orig_size"])

        pairs = (pair(self._val, index, find) for index in chosen)
        title = f"{self.config.model.name}, epoch {self.state.position[0]}"
        draw_pairs(pairs, files.sheet, title, names=self.classes, threshold=rules.threshold)

    def on_new_best(self) -> None:
        if self.scores is None or self.files is None:
            return
        write_kinds(self.results, self.files.found, masks=self.config.data.masks)
        write_per_class(self.scores, self.files.per_class)
        title = f"{self.config.model.name}, epoch {self.state.position[0]}"
        draw_precision_recall(self.scores, self.files.precision_recall, title)

    # What is said and drawn

    def format_training(self, means: Mapping[str, float]) -> str:
        return f"loss {means['loss']:.3f}"

    def format_epoch(self, row: Mapping[str, float]) -> str:
        line = f"train {row['train_loss']:.3f}"
        return f"{line}  val {self._say(row, self.kinds[0])}" if self.monitor in row else line

    def format_validation(self, row: Mapping[str, float]) -> str:
        return ", ".join(self._say(row, kind) for kind in self.kinds)

    def _say(self, row: Mapping[str, float], kind: str) -> str:
        ap, ap50 = (100 * row.get(f"val_{kind}_{figure}", 0.0) for figure in ("ap", "ap50"))
        return f"{kind} AP {ap:.1f} AP50 {ap50:.1f}"

    def format_data(self, splits: CocoSplits) -> str:
        return f"{len(splits.train):,} training and {len(splits.val):,} validation images"

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


def _plain(tensor: Tensor) -> Tensor:
    """Without torchvision's label of what it is, which every operation on it would ask about."""
    return tensor.as_subclass(Tensor)
