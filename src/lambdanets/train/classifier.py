"""The Lightning module of image classification: loss, metrics, progress lines and figures."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from lambdanets.data import AugmentConfig, MixedSet, Splits, eval_loader, train_loader
from lambdanets.data.balance import class_counts
from lambdanets.data.mixing import mix
from lambdanets.data.randomness import derived_seed, keys
from lambdanets.train.checkpoint import RunState, replacing
from lambdanets.train.config import RunConfig
from lambdanets.train.errors import RunError
from lambdanets.train.learner import Learner
from lambdanets.train.losses import class_weights, classification_loss
from lambdanets.train.run import RunFiles
from lambdanets.viz.figures import Panel, draw_confusion, draw_curves

UNEVEN = 4  # ratio of the numbers of two classes above which the summary has the balanced accuracy
CONFUSION_LIMIT = 1000  # most classes for which a confusion matrix, [classes, classes], is counted
CURVES = (
    Panel("loss", {"training": "train_loss", "validation": "val_loss"}),
    Panel("accuracy (%)", {"training": "train_top1", "validation": "val_top1"}, scale=100, best="val_top1"),
)


class Classifier(Learner):
    """Trains a classifier on labelled images.

    Args:
        network: Images `[b, c, h, w]` to logits `[b, classes]`.
        config: The configuration of the run.
        classes: Class names, in the order of the logits.
        state: Progress of the run, shared with the callbacks.
    """

    train_metrics = ("loss", "top1")
    columns = ("val_loss", "val_top1", "val_top5", "raw_loss", "raw_top1", "raw_top5")
    monitor = "val_top1"

    def __init__(
        self, network: nn.Module, config: RunConfig, *, classes: Sequence[str], state: RunState
    ) -> None:
        super().__init__(network, config, classes=classes, state=state)
        self.memory_format = torch.channels_last if config.engine.channels_last else torch.contiguous_format
        augment = config.data.augment
        self.mixing = augment if isinstance(augment, AugmentConfig) and augment.mixes else None
        self.class_weights: Tensor | None = None
        metrics = self.create_metrics(len(classes))
        self.metrics = MetricCollection(metrics, compute_groups=False)
        if self.average is not None:
            raw = {name: copy.deepcopy(metric) for name, metric in metrics.items() if name != "confusion"}
            self.raw_metrics = MetricCollection(raw, compute_groups=False)
        self.confusion: Tensor | None = None

    def create_metrics(self, number: int) -> dict[str, Any]:
        """Return the metrics of a validation by name, for a number of classes."""
        metrics: dict[str, Any] = {
            "loss": MeanMetric(),
            "top1": MulticlassAccuracy(number, average="micro"),
            "top5": MulticlassAccuracy(number, average="micro", top_k=min(5, number)),
        }
        if number <= CONFUSION_LIMIT:
            metrics["confusion"] = MulticlassConfusionMatrix(number)
        return metrics

    def train_loader(self, splits: Splits, *, rank: int, world_size: int) -> DataLoader:
        self.class_weights = class_weights(self.config.loss, splits.train, self.classes)
        return train_loader(
            splits.train,
            self.config.data,
            seed=self.config.seed,
            position=lambda: self.state.position,
            rank=rank,
            world_size=world_size,
        )

    def val_loader(self, splits: Splits, *, rank: int, world_size: int) -> DataLoader:
        return eval_loader(splits.val, self.config.data, rank=rank, world_size=world_size)

    # Training

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `[b, classes]` of images `[b, c, h, w]`."""
        return self._run(self.network, images)

    def _run(self, network: nn.Module, images: Tensor) -> Tensor:
        """Return logits; raise RunError if the network cannot take images of this size."""
        try:
            return network(images.to(memory_format=self.memory_format))
        except AssertionError as error:
            # timm asserts the image size; the message is shown to the user without a traceback.
            size = "x".join(map(str, images.shape[1:]))
            raise RunError(f"{self.config.model.name} cannot take images of {size}: {error}") from error

    def prepare_batch(self, batch: tuple[Any, Tensor]) -> tuple[Any, Tensor]:
        epoch = self.state.position[0]
        mixing, epochs = self.mixing, self.config.engine.epochs
        if mixing is None or epoch >= epochs - mixing.mix_off_epochs:
            return batch
        seed = derived_seed(self.config.seed, "mix")
        [key] = keys(seed, self.state.batches_done, np.array([self.global_rank]))
        return mix(*batch, len(self.classes), mixing, key)

    def step(self, batch: tuple[Any, Tensor]) -> tuple[Tensor, list[Tensor], int]:
        images, targets = batch
        logits = self(images)
        loss = self.loss(
            logits, targets, smoothing=self.config.loss.label_smoothing, weights=self.class_weights
        )
        return loss, [loss * len(targets), self.count_right(logits.detach(), targets)], len(targets)

    def loss(
        self, logits: Tensor, targets: Tensor, *, smoothing: float = 0.0, weights: Tensor | None = None
    ) -> Tensor:
        """Return the mean loss; that of the validation is neither smoothed nor weighted."""
        binary = self.config.loss.name == "binary"
        return classification_loss(logits, targets, binary=binary, smoothing=smoothing, weights=weights)

    def count_right(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the number of right predictions; of a mixed image, the class of the larger part is right."""
        return (logits.argmax(1) == (targets if targets.ndim == 1 else targets.argmax(1))).sum()

    def network_inputs(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor]:
        return (batch[0],)

    def named_tensors(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return dict(zip(("images", "targets"), batch, strict=True))

    # Validation

    def on_validation_epoch_start(self) -> None:
        for metrics, _, _ in self._validated():
            metrics.reset()

    def _validated(self) -> list[tuple[MetricCollection, nn.Module, str]]:
        """Return (metrics, network, prefix of the columns): `eval_network` first, then the trained one."""
        evaluated = (self.metrics, self.eval_network, "val_")
        return [evaluated] if self.average is None else [evaluated, (self.raw_metrics, self.network, "raw_")]

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, targets = batch
        for metrics, network, _ in self._validated():
            logits = self._run(network, images).float()
            metrics["loss"].update(self.loss(logits, targets), weight=len(targets))
            for name, metric in metrics.items():
                if name != "loss":
                    self.update_metric(metric, logits, targets)

    def update_metric(self, metric: Any, logits: Tensor, targets: Tensor) -> None:
        """Count a batch of the validation."""
        metric.update(logits, targets)

    def on_validation_epoch_end(self) -> None:
        self.val_metrics = {}
        for metrics, _, prefix in self._validated():
            values, confusion = self.summarise(metrics.compute())
            if prefix == "val_":
                self.confusion = confusion
            self.val_metrics |= {f"{prefix}{name}": float(value) for name, value in values.items()}

    def summarise(self, values: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return the figures of a validation, and the confusion matrix if there is one."""
        return values, values.pop("confusion").cpu() if "confusion" in values else None

    def ranking_key(self, row: Mapping[str, float]) -> tuple[float, ...]:
        return row["val_top1"], -row["val_loss"]

    def on_new_best(self) -> None:
        self.state.best_confusion = self.confusion

    # Progress, summary and figures

    def format_training(self, means: Mapping[str, float]) -> str:
        mixed = self._mixed(self.state.position[0])
        return f"loss {means['loss']:.3f}  accuracy {100 * means['top1']:.1f} %{mixed}"

    def _mixed(self, epoch: int) -> str:
        """Return the note behind the training accuracy of an epoch, from 0: whether its images are mixed."""
        mixes = self.mixing and epoch < self.config.engine.epochs - self.mixing.mix_off_epochs
        return " (mixed)" if mixes else ""

    def format_epoch(self, row: Mapping[str, float]) -> str:
        mixed = self._mixed(int(row["epoch"]) - 1)
        line = f"train {row['train_loss']:.3f} {100 * row['train_top1']:5.1f} %{mixed}"
        if "val_top1" in row:
            line += f"  val {row['val_loss']:.3f} {100 * row['val_top1']:5.2f} %"
        return line

    def format_validation(self, row: Mapping[str, float]) -> str:
        return f"{100 * row['val_top1']:.2f} % validation accuracy"

    def format_best(self) -> str:
        text, matrix = super().format_best(), self.state.best_confusion
        images = torch.zeros(1) if matrix is None else matrix.sum(1)
        if matrix is None or images.max() <= UNEVEN * images[images > 0].min():
            return text
        recall = (matrix.diagonal() / images)[images > 0]
        return f"{text}, {100 * float(recall.mean()):.2f} % balanced"

    def format_data(self, splits: Splits) -> str:
        train = f"{len(splits.train):,} training"
        if isinstance(splits.train, MixedSet):
            train = f"{len(splits.train.labelled):,} labelled, {len(splits.train.pseudo):,} pseudo-labelled"
        return f"{train} and {len(splits.val):,} validation images"

    def format_class_sizes(self, splits: Any) -> str:
        side = splits.train.labelled if isinstance(splits.train, MixedSet) else splits.train
        targets = getattr(side, "targets", None)
        if targets is None:  # a stream
            return ""
        counts = class_counts(targets, len(self.classes))
        least, most = int(counts.argmin()), int(counts.argmax())
        if counts[least] == counts[most]:
            return f" of {counts[least]:,} training {self.config.WORDING.samples}"
        return (
            f" of {counts[least]:,} ({self.classes[least]}) to {counts[most]:,} ({self.classes[most]}) "
            f"training {self.config.WORDING.samples}"
        )

    def data_advice(self) -> list[str]:
        data = self.config.data
        cache = [] if data.cache is True else ["data.cache=true where they fit into memory"]
        return [
            *cache,
            f"images stored at {data.image_size} pixels where they are larger",
            "tar: shards instead of single files",
        ]

    def draw_curves(self, path: Path, title: str = "") -> None:
        draw_curves(self.state.history, path, CURVES, title)

    def draw_best(self, files: RunFiles) -> None:
        if self.state.best_confusion is not None:
            note = f"epoch {self.state.best_epoch}"
            with replacing(files.confusion) as temporary:
                samples = f"validation {self.config.WORDING.samples}"
                draw_confusion(self.state.best_confusion, self.classes, temporary, note, samples)
