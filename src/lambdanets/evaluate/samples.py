"""The predictions for single samples of an evaluation: their files, the worst ones, the confusion matrix."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lambdanets.evaluate.scoring import SampleResults, concatenate
from lambdanets.utils.files import replacing
from lambdanets.viz.contact_sheet import Prediction

COLUMNS = ("file", "truth", "guess", "probability", "truth_probability", "loss")


class Samples:
    """Predictions for the samples of one or several sets, one after the other.

    Args:
        sets: The sets.
        results: The predictions for all their samples, in order.
        allowed: Indices of the classes that the predictions were chosen from, ascending.
    """

    def __init__(self, sets: Sequence[Any], results: SampleResults, allowed: np.ndarray) -> None:
        self.sets, self.results, self.allowed = sets, results, allowed
        self._ends = np.cumsum([len(each) for each in sets])

    def __len__(self) -> int:
        return len(self.results)

    def find(self, row: int) -> tuple[Any, int]:
        """Return the set that a sample is from, and its index there."""
        number = int(np.searchsorted(self._ends, row, side="right"))
        return self.sets[number], int(row) - int(self._ends[number] - len(self.sets[number]))

    def path(self, row: int) -> str:
        """Return the file, or another name, of a sample; the sets are no streams."""
        named, index = self.find(row)
        return named.path(index)

    def errors(self) -> np.ndarray:
        """Return the rows of the wrong predictions, the largest loss first."""
        wrong = np.flatnonzero(self.results.guesses != self.results.truths)
        return wrong[np.argsort(-self.results.losses[wrong], kind="stable")]

    def as_prediction(self, row: int, classes: Sequence[str]) -> Prediction:
        """Return the prediction for an image, with its predicted and its true class, for a contact sheet."""
        images, index = self.find(row)
        results = self.results
        guess, truth = (classes[int(each[row])] for each in (results.guesses, results.truths))
        return Prediction(
            path=self.path(row),
            labels=(guess, truth),
            probabilities=(float(results.confidences[row]), float(results.truth_probabilities[row])),
            truth=truth,
            image=images.images.read(index),
        )

    def confusion(self) -> np.ndarray:
        """Return the counts `[k, k]`, truth by prediction, of the k allowed classes."""
        k = len(self.allowed)
        truths, guesses = (
            np.searchsorted(self.allowed, each) for each in (self.results.truths, self.results.guesses)
        )
        return np.bincount(truths * k + guesses, minlength=k * k).reshape(k, k)

    def write(self, file: Path, classes: Sequence[str], rows: Iterable[int] | None = None) -> None:
        """Write a CSV file with one line per sample.

        Its columns are `COLUMNS`: the file, the names of the true and of the predicted class, the
        probabilities of the prediction and of the true class, and the loss. With few classes a column for
        the probability of each follows, `p(NAME)`.

        Args:
            file: The file; its folder is created.
            classes: Class names, in the order of the logits.
            rows: The samples, in this order; None writes all.
        """
        results = self.results
        few = results.probabilities is not None
        extra = [f"p({classes[index]})" for index in self.allowed] if few else []
        with (
            replacing(file) as unfinished,
            unfinished.open("w", newline="", encoding="utf-8", errors="surrogateescape") as text,
        ):
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow([*COLUMNS, *extra])
            for row in range(len(self)) if rows is None else rows:
                numbers = [results.confidences[row], results.truth_probabilities[row], results.losses[row]]
                numbers += [] if results.probabilities is None else list(results.probabilities[row])
                names = (self.path(row), classes[results.truths[row]], classes[results.guesses[row]])
                writer.writerow([*names, *(f"{number:.6g}" for number in numbers)])


class Recorder:
    """Collects the predictions for the samples of one set after the other."""

    def __init__(self) -> None:
        self._sets: list[Any] = []
        self._parts: list[SampleResults] = []

    def begin(self, samples: Any) -> None:
        """Take the set whose predictions follow."""
        self._sets.append(samples)

    def add(self, results: SampleResults) -> None:
        """Take the predictions for the next batch."""
        self._parts.append(results)

    def samples(self, allowed: np.ndarray) -> Samples:
        """Return all predictions; `allowed` are the indices of the classes that they were chosen from."""
        return Samples(self._sets, concatenate(self._parts), allowed)


def write_confusion(file: Path, matrix: np.ndarray, classes: Sequence[str]) -> None:
    """Write a confusion matrix as CSV: a line for each true class, a column for each predicted one."""
    with (
        replacing(file) as unfinished,
        unfinished.open("w", newline="", encoding="utf-8", errors="surrogateescape") as text,
    ):
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["truth", *classes])
        writer.writerows([name, *row] for name, row in zip(classes, matrix.tolist(), strict=True))
