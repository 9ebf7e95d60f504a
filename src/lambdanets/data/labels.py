"""Labels that a network gave to images: the file they are kept in, and the choice of those to train on."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np

from ..wording import few
from .errors import DataError

COLUMNS = ("image", "label", "probability")


@dataclass(frozen=True)
class Labels:
    """Images with a label each.

    Attributes:
        images: names from the root of their source; one may come several times.
        targets: classes of shape (n,).
        probabilities: of the labels, float32 of shape (n,).
        classes: names, in the order of the targets.
    """

    images: list[str]
    targets: np.ndarray
    probabilities: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: Sequence[int] | np.ndarray) -> Labels:
        """Return some of the rows, in that order."""
        chosen = np.asarray(rows, dtype=np.intp)
        images = [self.images[row] for row in chosen]
        return Labels(images, self.targets[chosen], self.probabilities[chosen], self.classes)

    def counts(self) -> np.ndarray:
        """Return the images of each class, of shape (classes,)."""
        return np.bincount(self.targets, minlength=len(self.classes))


def select(
    labels: Labels, *, threshold: float = 0.0, per_class: int | None = None, fill: bool = False
) -> Labels:
    """Choose the labels to train on: the confident ones, and as many of each class.

    Args:
        labels: all of them.
        threshold: least probability.
        per_class: keep so many of each class at most, the most confident ones; among equals the name decides.
        fill: where a class has fewer than `per_class`, repeat its images in turn, the most confident first,
            until there are so many. A class without any stays empty.

    Returns:
        The chosen ones in the order of their names: a function of the rows alone, not of their order.

    Example:
        >>> select(labels, threshold=0.9, per_class=1000, fill=True)
    """
    order = sorted(range(len(labels)), key=lambda row: (-labels.probabilities[row], labels.images[row]))
    ranked = np.array(order, dtype=np.intp)
    ranked = ranked[labels.probabilities[ranked] >= threshold]
    if per_class is not None:
        members = [ranked[labels.targets[ranked] == target] for target in range(len(labels.classes))]
        ranked = np.concatenate(
            [np.resize(rows, per_class) if fill and len(rows) else rows[:per_class] for rows in members]
        )
    return labels.take(sorted(ranked, key=lambda row: labels.images[row]))


def to_csv(labels: Labels) -> str:
    """Return labels as the text of a CSV; nine digits give every probability back to the bit."""
    names = (labels.classes[target] for target in labels.targets.tolist())
    numbers = (f"{probability:.9g}" for probability in labels.probabilities.tolist())
    return csv_lines([COLUMNS, *zip(labels.images, names, numbers, strict=True)])


def csv_lines(rows: Iterable[Sequence[str]]) -> str:
    """Return rows as CSV, a line each."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def open_text(path: Path, mode: Literal["r", "a"] = "r") -> IO[str]:
    """Open a file that names files: their names are bytes, and not always text."""
    return path.open(mode, newline="", encoding="utf-8", errors="surrogateescape")


def read_labels(path: Path, classes: Sequence[str]) -> Labels:
    """Read a CSV of labels.

    Args:
        path: a file with the columns image, label and probability; the last may be missing.
        classes: names of the classes; the file may name some of them but no others.

    Raises:
        DataError: there is no such file, it has other columns, it is empty, or a row cannot be used.
    """
    if not path.is_file():
        raise DataError(f"there is no file of labels {path}; lambdanets pseudo-label writes one.")
    with open_text(path) as file:
        return parse_labels(file, path, classes)


def parse_labels(file: Iterable[str], path: Path, classes: Sequence[str]) -> Labels:
    """Read the lines of a CSV of labels; `path` is for what has to be said about them."""
    reader = csv.DictReader(file)
    if missing := [name for name in COLUMNS[:2] if name not in (reader.fieldnames or ())]:
        raise DataError(f"{path} lacks the column {missing[0]!r}; it needs image and label.")
    numbers = {name: number for number, name in enumerate(classes)}
    images: list[str] = []
    targets: list[int] = []
    probabilities: list[float] = []
    for row in reader:
        target = numbers.get(row["label"])
        if target is None:
            raise DataError(
                f"{path} labels {row['image']!r} as {row['label']!r}, no class here; "
                f"known are {few(classes)}."
            )
        try:
            probabilities.append(float(row.get("probability") or 1.0))
        except ValueError:
            raise DataError(
                f"{path} gives {row['image']!r} the probability {row['probability']!r}, which is no number."
            ) from None
        images.append(row["image"])
        targets.append(target)
    if not images:
        raise DataError(f"{path} holds no labels.")
    return Labels(images, np.array(targets, np.int64), np.array(probabilities, np.float32), tuple(classes))


def folder_truths(labels: Labels) -> np.ndarray | None:
    """Return the class of each image by the first of its folders that has the name of one.

    Returns:
        Classes of shape (n,); None where an image is in no such folder.
    """
    numbers = {name: number for number, name in enumerate(labels.classes)}
    truths = [
        next((numbers[part] for part in image.split("/")[:-1] if part in numbers), None)
        for image in labels.images
    ]
    return None if None in truths else np.array(truths, np.int64)
