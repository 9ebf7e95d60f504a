"""Files of an evaluation: a row of timm's result tables, a table of classes, JSON."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch

import lambdanets
from lambdanets.evaluate.measurement import Evaluation
from lambdanets.evaluate.scoring import BINS, Scores
from lambdanets.evaluate.target import EvalTarget
from lambdanets.evaluate.test_sets import describe_classes
from lambdanets.train.checkpoint import write_text
from lambdanets.train.errors import RunError

COLUMNS: tuple[str, ...] = (
    "model",
    "img_size",
    "top1",
    "top1_err",
    "top5",
    "top5_err",
    "param_count",
    "crop_pct",
    "interpolation",
)


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """One class of an evaluation; its figures are fractions, and `top1` is its recall."""

    name: str
    description: str
    images: int
    top1: float
    top5: float
    precision: float
    f1: float


def class_rows(scores: Scores, classes: tuple[str, ...]) -> list[ClassRow]:
    """Return the classes that had images, in the order of the logits."""
    words, precision, f1 = describe_classes(classes), scores.precision(), scores.f1()
    return [
        ClassRow(
            name=classes[index],
            description=words[index],
            images=int(images),
            top1=int(scores.top1[index]) / int(images),
            top5=int(scores.top5[index]) / int(images),
            precision=float(precision[index]),
            f1=float(f1[index]),
        )
        for index, images in enumerate(scores.images)
        if images
    ]


def write_classes(path: Path, rows: list[ClassRow], *, samples: str = "images") -> None:
    """Write a CSV file of classes: class, name, images, top1, top5, precision, recall, f1.

    Args:
        path: The file.
        rows: The classes.
        samples: Name of the third column, in place of "images".
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("class", "name", samples, "top1", "top5", "precision", "recall", "f1"))
    for row in rows:
        figures = (row.top1, row.top5, row.precision, row.top1, row.f1)
        writer.writerow((row.name, row.description, row.images, *(f"{value:.6g}" for value in figures)))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text.getvalue())


def detailed_figures(scores: Scores, classes: tuple[str, ...], *, samples: str = "images") -> dict[str, Any]:
    """Return the figures of all samples, of each class and of each interval of the confidence for JSON.

    Args:
        scores: The scores.
        classes: Class names, in the order of the logits.
        samples: Noun of the samples in the names of the figures.
    """

    def renamed(figures: dict[str, Any]) -> dict[str, Any]:
        return {name.replace("images", samples): value for name, value in figures.items()}

    edges = [index / BINS for index in range(BINS + 1)]
    return renamed(scores.figures()) | {
        "classes": [renamed(asdict(row)) for row in class_rows(scores, classes)],
        "calibration": [
            {
                "above": low,
                "up_to": high,
                samples: int(images),
                "accuracy": correct / images if images else None,
                "confidence": confidence / images if images else None,
            }
            for low, high, images, correct, confidence in zip(
                edges[:-1], edges[1:], *scores.calibration.tolist(), strict=True
            )
        ],
    }


def timm_row(target: EvalTarget, evaluation: Evaluation, *, label: str) -> dict[str, str]:
    """Return a row in the format of timm's results-imagenet*.csv, in percent.

    Args:
        target: The evaluated target.
        evaluation: The result; its ReaL accuracies are used if there are any.
        label: Entry of the column "model".
    """
    top1, top5 = (100 * (evaluation.real or evaluation.scores.figures())[name] for name in ("top1", "top5"))
    parameters = sum(parameter.numel() for parameter in target.network.parameters())
    values = (
        label,
        str(evaluation.data.image_size),
        *(f"{value:.3f}" for value in (top1, 100 - top1, top5, 100 - top5)),
        f"{parameters / 1e6:,.2f}",
        f"{evaluation.data.crop_pct:.3f}",
        evaluation.data.interpolation,
    )
    return dict(zip(COLUMNS, values, strict=True))


def check_table(path: Path) -> tuple[str, ...]:
    """Check, before hours of evaluation, that a row can be added to a table.

    Returns:
        The columns of the table in its order: timm's tables have had several.

    Raises:
        RunError: The file is another table.
    """
    if not path.exists() or not path.stat().st_size:
        return COLUMNS
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        header = tuple(next(csv.reader(file), ()))
    if missing := [name for name in COLUMNS if name not in header]:
        raise RunError(f"{path} is no table of timm's results: it lacks the columns {', '.join(missing)}")
    return header


def append_row(path: Path, row: dict[str, str]) -> None:
    """Append a row to a table of timm's results, which is created if missing.

    Columns of the table beyond timm's stay empty.

    Raises:
        RunError: The file is another table.
    """
    columns = check_table(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    old = path.read_text(encoding="utf-8", errors="surrogateescape") if path.exists() else ""
    if old and not old.endswith("\n"):
        old += "\n"
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    if not old:
        writer.writeheader()
    writer.writerow(row)
    write_text(path, old + text.getvalue())


def to_plain(target: EvalTarget, evaluation: Evaluation, *, label: str) -> dict[str, Any]:
    """Return all figures and their settings as plain values for JSON; `label` names the model."""
    data, test_set = evaluation.data, evaluation.test_set
    return {
        "model": label,
        "weights": target.weights,
        "data": data.source,
        "test_set": test_set and test_set.name,
        "reference": test_set and test_set.reference,
        "classes_to_choose_from": evaluation.choices,
        "image_size": data.image_size,
        "crop_pct": data.crop_pct,
        "interpolation": data.interpolation,
        "precision": target.engine.precision,
        **detailed_figures(evaluation.scores, target.classes),
        "real": evaluation.real,
        "mce": evaluation.mce,
        "corruptions": [asdict(each) | {"normalised": each.normalised} for each in evaluation.corruptions],
        "versions": {
            "lambdanets": lambdanets.__version__,
            "torch": torch.__version__,
            "timm": timm.__version__,
        },
    }
