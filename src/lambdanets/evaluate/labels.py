"""Evaluation of classifiers of several labels: average precision and F1 of every class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from lambdanets.data import eval_loader, open_split
from lambdanets.evaluate.scoring import Scorer, validate
from lambdanets.evaluate.target import EvalTarget
from lambdanets.train.multi_label import label_figures, label_metrics, label_table


@dataclass(frozen=True, kw_only=True)
class LabelScores:
    """Figures of a classifier of several labels.

    Attributes:
        table: A row per class, see `label_table`.
        loss: Binary cross entropy, the mean over images and classes.
        images: Number of images.
        seconds: Wall time of the pass over them.
    """

    table: Tensor
    loss: float
    images: int
    seconds: float

    def figures(self) -> dict[str, float]:
        """Return `loss`, `map`, `f1`, `macro_f1` (fractions), `images` and `images_per_second`."""
        found = {name: float(value) for name, value in label_figures(self.table).items()}
        speed = {"images": self.images, "images_per_second": self.images / self.seconds}
        return {"loss": self.loss, **found, **speed}


class _LabelScorer(Scorer):
    """The pass of `measure_labels`."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.metrics = label_metrics(self.num_classes)
        self.done = 0

    def validation_step(self, batch: tuple[Any, Tensor], batch_idx: int) -> None:
        images, targets = batch
        logits = self._logits(images).float()
        losses = binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
        self.loss_sum += losses.sum().item()
        for metric in self.metrics.values():
            metric.update(logits.sigmoid().cpu(), targets.long().cpu())
        self.done += len(targets)
        self.report(self.done)


def measure_labels(target: EvalTarget) -> LabelScores:
    """Evaluate a classifier of several labels on its images.

    Raises:
        DataError: The images cannot be used, or have other classes.
        RunError: The network cannot take images of this size.
    """
    images, _ = open_split(target.data, "val", seed=target.seed, classes=target.classes)
    loader = eval_loader(images, target.data)

    def create(report: Any) -> _LabelScorer:
        number = len(target.classes)
        return _LabelScorer(target.network, number, target.engine, target.name, None, None, None, report)

    scorer, seconds = validate(create, loader, target.engine, target.device)
    table = label_table(scorer.metrics["counts"].compute(), scorer.metrics["ap"].compute())
    return LabelScores(table=table, loss=scorer.loss_sum / scorer.done, images=scorer.done, seconds=seconds)
