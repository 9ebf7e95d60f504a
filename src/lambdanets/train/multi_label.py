"""The Lightning module of images with several labels each: average precision and F1 of every class."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric
from torchmetrics.classification import MultilabelAveragePrecision, MultilabelStatScores

from lambdanets.train.checkpoint import replacing, write_text
from lambdanets.train.classifier import Classifier
from lambdanets.train.losses import classification_loss
from lambdanets.train.run import RunFiles
from lambdanets.viz.figures import Panel, draw_average_precisions, draw_curves

CURVES = (
    Panel("loss", {"training": "train_loss", "validation": "val_loss"}),
    Panel("validation (%)", {"F1": "val_f1", "mean average precision": "val_map"}, scale=100, best="val_map"),
)
THRESHOLD = 0.5  # least probability of a label that counts as predicted
COLUMNS = ("class", "positives", "average_precision", "precision", "recall", "f1")


class MultiLabelClassifier(Classifier):
    """Trains a classifier whose images have any number of labels; arguments are those of `Classifier`.

    A batch is (images `[b, c, h, w]`, 0 and 1 for each class `[b, classes]`). `train_right` is the part of
    all answers, yes or no for each class, that are right.
    """

    train_metrics = ("loss", "right")
    columns = tuple(f"{side}_{name}" for side in ("val", "raw") for name in ("loss", "map", "f1", "macro_f1"))
    monitor = "val_map"

    def create_metrics(self, number: int) -> dict[str, Any]:
        return {"loss": MeanMetric(), **label_metrics(number)}

    def loss(
        self, logits: Tensor, targets: Tensor, *, smoothing: float = 0.0, weights: Tensor | None = None
    ) -> Tensor:
        return classification_loss(
            logits, targets, binary=True, multi_label=True, smoothing=smoothing, weights=weights
        )

    def count_right(self, logits: Tensor, targets: Tensor) -> Tensor:
        return ((logits > 0) == (targets > THRESHOLD)).double().mean(1).sum()

    def update_metric(self, metric: Any, logits: Tensor, targets: Tensor) -> None:
        metric.update(logits.sigmoid(), targets.long())

    def summarise(self, values: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor | None]:
        table = label_table(values["counts"], values["ap"])
        return {"loss": values["loss"], **label_figures(table)}, table

    def ranking_key(self, row: Mapping[str, float]) -> tuple[float, ...]:
        return row["val_map"], -row["val_loss"]

    def format_training(self, means: Mapping[str, float]) -> str:
        return f"loss {means['loss']:.3f}  right answers {100 * means['right']:.1f} %"

    def format_epoch(self, row: Mapping[str, float]) -> str:
        line = f"train {row['train_loss']:.3f}"
        if "val_map" in row:
            line += f"  val {row['val_loss']:.3f}  mAP {100 * row['val_map']:5.2f} %"
            line += f"  F1 {100 * row['val_f1']:5.2f} %"
        return line

    def format_validation(self, row: Mapping[str, float]) -> str:
        return (
            f"{100 * row['val_map']:.2f} % mean average precision, F1 {100 * row['val_f1']:.2f} % "
            f"({100 * row['val_macro_f1']:.2f} % over classes)"
        )

    def format_best(self) -> str:
        return self.format_validation(self.state.best)

    def weights_metadata(self) -> dict[str, str]:
        return super().weights_metadata() | {"activation": "sigmoid"}

    def draw_curves(self, path: Path, title: str = "") -> None:
        draw_curves(self.state.history, path, CURVES, title)

    def draw_best(self, files: RunFiles) -> None:
        """Write the table of the classes of the best epoch, and draw their average precisions."""
        table = self.state.best_confusion
        if table is None:
            return
        write_text(files.class_table, label_csv(table, self.classes))
        with replacing(files.class_figure) as temporary:
            counts = [int(row[0] + row[2]) for row in table]
            note = f"epoch {self.state.best_epoch}"
            draw_average_precisions(table[:, 4].tolist(), counts, self.classes, temporary, note)


def label_metrics(number: int) -> dict[str, Any]:
    """Return the metrics of probabilities `[b, number]` and labels 0 and 1 that `label_table` needs."""
    return {
        "ap": MultilabelAveragePrecision(number, average="none"),
        "counts": MultilabelStatScores(number, threshold=THRESHOLD, average="none"),
    }


def label_table(counts: Tensor, precisions: Tensor) -> Tensor:
    """Return a row per class: true and false positives, false and true negatives, AP; `[classes, 5]`.

    Args:
        counts: True positives, false positives, true negatives, false negatives and positives of each class,
            `[classes, 5]`, as torchmetrics has them.
        precisions: Average precision of each class, `[classes]`; 0 is stored for a class without positives.
    """
    table = torch.stack([counts[:, 0], counts[:, 1], counts[:, 3], counts[:, 2]], dim=1).double()
    precisions = torch.where(counts[:, 4] > 0, precisions, 0.0)
    return torch.cat([table, precisions.double()[:, None]], dim=1).cpu()


def label_figures(table: Tensor) -> dict[str, Tensor]:
    """Return `map`, `f1` (over all answers) and `macro_f1`, fractions, from a `label_table`.

    The means over the classes are over those that have positives.
    """
    found, wrong, missed = table[:, 0], table[:, 1], table[:, 2]
    present = found + missed > 0
    if not present.any():
        return {name: torch.tensor(0.0) for name in ("map", "f1", "macro_f1")}
    f1 = 2 * found / (2 * found + wrong + missed).clamp(min=1)
    total = 2 * found.sum() / (2 * found.sum() + wrong.sum() + missed.sum())
    return {"map": table[present, 4].mean(), "f1": total, "macro_f1": f1[present].mean()}


def label_csv(table: Tensor, classes: tuple[str, ...]) -> str:
    """Return a `label_table` as CSV: class, positives, average_precision, precision, recall, f1."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for name, row in zip(classes, table.tolist(), strict=True):
        found, wrong, missed, _, precision = row
        shares = (
            precision if found + missed else "",
            found / (found + wrong) if found + wrong else "",
            found / (found + missed) if found + missed else "",
            2 * found / (2 * found + wrong + missed) if found + wrong + missed else "",
        )
        cells = (f"{share:.6g}" if share != "" else "" for share in shares)
        writer.writerow((name, int(found + missed), *cells))
    return text.getvalue()
