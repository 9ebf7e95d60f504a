"""Pseudo-labels, which a network gave to images: their CSV file, and the selection of those to train on."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np

from lambdanets.utils.text import join_some

from .errors import DataError
from .files import regular_opener

COLUMNS = ("image", "label", "probability")


@dataclass(frozen=True)
class Labels:
    """Images with a label each.

    Attributes:
        images: names relative to the root of their source; one may occur several times.
        targets: class indices, int64 of shape [n].
        probabilities: probabilities of the labels, float32 of shape [n].
        classes: names, in the order of the targets.
    """

    images: list[str]
    targets: np.ndarray
    probabilities: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: Sequence[int] | np.ndarray) -> Labels:
        """Return some rows, in the given order."""
        chosen = np.asarray(rows, dtype=np.intp)
        images = [self.images[row] for row in chosen]
        return Labels(images, self.targets[chosen], self.probabilities[chosen], self.classes)

    def counts(self) -> np.ndarray:
        """Return the number of images of each class, of shape [classes]."""
        return np.bincount(self.targets, minlength=len(self.classes))


def select(
    labels: Labels, *, threshold: float = 0.0, per_class: int | None = None, fill: bool = False
) -> Labels:
    """Select labels to train on, by their probability and in equal numbers for each class.

    Args:
        labels: the labels to select from.
        threshold: lowest probability.
        per_class: highest number of labels of a class, the most probable ones; labels of equal probability
            are taken in the order of the image names. None takes all.
        fill: repeat the images of a class with fewer than `per_class`, the most probable first, up to that
            number. A class without any stays empty.

    Returns:
        The selected labels in the order of their names, independent of the order of the rows.

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
    """Return labels as CSV; nine digits restore every float32 probability exactly."""
    names = (labels.classes[target] for target in labels.targets.tolist())
    numbers = (f"{probability:.9g}" for probability in labels.probabilities.tolist())
    return csv_text([COLUMNS, *zip(labels.images, names, numbers, strict=True)])


def csv_text(rows: Iterable[Sequence[str]]) -> str:
    """Return rows as the text of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def open_text(path: Path, mode: Literal["r", "a"] = "r") -> IO[str]:
    """Open a text file that lists file names; those that are not valid UTF-8 keep their bytes."""
    encoding = "utf-8-sig" if mode == "r" else "utf-8"  # spreadsheets write a byte order mark
    return open(path, mode, newline="", encoding=encoding, errors="surrogateescape", opener=regular_opener)


def read_labels(path: Path, classes: Sequence[str]) -> Labels:
    """Read a CSV of labels.

    Args:
        path: a file with the columns image, label and probability; the last may be missing.
        classes: names of the classes, the only ones that the file may contain.

    Raises:
        DataError: there is no such file, it has other columns, it is empty, or a row cannot be used.
    """
    if not path.is_file():
        raise DataError(f"there is no file of labels {path}; lambdanets pseudo-label writes one.")
    with open_text(path) as file:
        return parse_labels(file, path, classes)


def parse_labels(file: Iterable[str], path: Path, classes: Sequence[str]) -> Labels:
    """Read the lines of a CSV of labels.

    Args:
        file: the lines.
        path: names the file in error messages.
        classes: names of the classes, the only ones that the lines may contain.

    Raises:
        DataError: as in `read_labels`.
    """
    rows = numbered_rows(file, path)
    _, heading = next(rows, (0, []))
    if missing := [name for name in COLUMNS[:2] if name not in heading]:
        raise DataError(f"{path} lacks the column {missing[0]!r}; it needs image and label.")
    class_index = {name: index for index, name in enumerate(classes)}
    images: list[str] = []
    targets: list[int] = []
    probabilities: list[float] = []
    first: dict[str, tuple[int, int]] = {}  # class and line of each image
    for line, values in rows:
        row = dict(zip(heading, values, strict=False))
        image, label, probability = (row.get(name, "") for name in COLUMNS)
        target = class_index.get(label)
        if target is None:
            raise DataError(
                f"{path} (line {line}) labels {image!r} as {label!r}, which is none of the classes "
                f"{join_some(classes)}."
            )
        first_target, first_line = first.setdefault(image, (target, line))
        if first_target != target:
            raise DataError(
                f"{path} labels {image!r} as {classes[first_target]!r} (line {first_line}) and as {label!r} "
                f"(line {line}); remove one of the two rows."
            )
        probabilities.append(
            _parse_probability(probability or "1", f"{path} (line {line}) gives {image!r} the probability")
        )
        images.append(image)
        targets.append(target)
    if not images:
        raise DataError(f"{path} holds no labels.")
    return Labels(images, np.array(targets, np.int64), np.array(probabilities, np.float32), tuple(classes))


def _parse_probability(text: str, prefix: str) -> float:
    """Return a number from 0 to 1; raise DataError, whose message starts with `prefix`, for another text."""
    try:
        probability = float(text)
    except ValueError:
        raise DataError(f"{prefix} {text!r}, which is no number.") from None
    if not 0 <= probability <= 1:
        raise DataError(f"{prefix} {text}, which is not from 0 to 1.")
    return probability


def numbered_rows(file: Iterable[str], path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a CSV that are not empty, each with the number of its last line.

    Raises:
        DataError: a line cannot be read, such as one with a quote that is never closed.
    """
    reader = csv.reader(file)
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{path} cannot be read at line {reader.line_num}: {error}.") from error
        if row is None:
            return
        if row:
            yield reader.line_num, row


def folder_truths(labels: Labels) -> np.ndarray | None:
    """Return the true class of each image: the first folder of its path whose name is a class.

    Returns:
        Class indices of shape [n]; None if any image is in no such folder.
    """
    class_index = {name: index for index, name in enumerate(labels.classes)}
    truths = [
        next((class_index[part] for part in image.split("/")[:-1] if part in class_index), None)
        for image in labels.images
    ]
    return None if None in truths else np.array(truths, np.int64)
