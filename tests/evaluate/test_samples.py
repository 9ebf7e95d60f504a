"""The predictions for single samples of an evaluation, written by hand."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lambdanets.evaluate.samples import Samples, write_confusion
from lambdanets.evaluate.scoring import SampleResults

CLASSES = ("cat", "dog", "eel", "fox")


class Named:
    """A set whose samples have names and images."""

    def __init__(self, *names: str) -> None:
        self.names, self.images = names, self

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> str:
        return self.names[index]

    def read(self, index: int) -> Image.Image:
        return Image.new("L", (len(self.names[index]), 1))


@pytest.fixture
def samples() -> Samples:
    """Five samples of three of the classes in two sets, three of them wrong."""
    results = SampleResults(
        truths=np.array([0, 1, 3, 0, 3]),
        guesses=np.array([0, 3, 0, 1, 3]),
        confidences=np.array([0.9, 0.6, 0.5, 0.75, 0.4], np.float32),
        truth_probabilities=np.array([0.9, 0.3, 0.4, 0.05, 0.4], np.float32),
        losses=np.array([0.1, 1.2, 0.9, 3.0, 0.92], np.float32),
        probabilities=None,
    )
    return Samples([Named("a", "bb"), Named("ccc", "dddd", "e")], results, np.array([0, 1, 3]))


def test_the_largest_losses_of_the_wrong_come_first(samples: Samples) -> None:
    assert samples.errors().tolist() == [3, 1, 2]
    assert [samples.path(row) for row in samples.errors()] == ["dddd", "bb", "ccc"]


def test_the_confusion_matrix_has_the_allowed_classes(samples: Samples, tmp_path: Path) -> None:
    assert samples.confusion().tolist() == [[1, 1, 0], [0, 0, 1], [1, 0, 1]]
    write_confusion(tmp_path / "new" / "c.csv", samples.confusion(), ["cat", "dog", "fox"])
    lines = (tmp_path / "new" / "c.csv").read_text().splitlines()
    assert lines == ["truth,cat,dog,fox", "cat,1,1,0", "dog,0,0,1", "fox,1,0,1"]


def test_files_of_chosen_and_of_all_samples(samples: Samples, tmp_path: Path) -> None:
    samples.write(tmp_path / "new" / "errors.csv", CLASSES, samples.errors())
    with (tmp_path / "new" / "errors.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["file", "truth", "guess", "probability", "truth_probability", "loss"],
            ["dddd", "cat", "dog", "0.75", "0.05", "3"],
            ["bb", "dog", "fox", "0.6", "0.3", "1.2"],
            ["ccc", "fox", "cat", "0.5", "0.4", "0.9"],
        ]
    samples.results = SampleResults(
        **vars(samples.results) | {"probabilities": np.full((5, 3), 0.25, np.float32)}
    )
    samples.write(tmp_path / "all.csv", CLASSES)
    with (tmp_path / "all.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == ["a", "bb", "ccc", "dddd", "e"]
    assert {row["p(fox)"] for row in rows} == {"0.25"}
    assert "p(eel)" not in rows[0]


def test_a_prediction_for_a_sheet(samples: Samples) -> None:
    each = samples.as_prediction(3, CLASSES)
    assert (each.path, each.labels, each.truth, each.right) == ("dddd", ("dog", "cat"), "cat", False)
    assert each.probabilities == pytest.approx((0.75, 0.05))
    assert each.image is not None
    assert each.image.size == (4, 1)
