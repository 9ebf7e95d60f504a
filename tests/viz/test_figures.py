from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from lambdanets.train.classifier import CURVES
from lambdanets.viz.figures import TRAIN, draw_calibration, draw_confusion, draw_curves

VAL = (200, 71, 47)  # the colour of the validation curve


def rows(count: int) -> list[dict[str, float]]:
    names = ("train_loss", "val_loss", "train_top1", "val_top1", "lr")
    return [{"epoch": e + 1, **dict.fromkeys(names, (e + 1) / (count + 1))} for e in range(count)]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.mark.parametrize("epochs", [1, 2, 40])
def test_curves_show_the_validation(tmp_path: Path, epochs: int) -> None:
    path = tmp_path / "curves.png"
    draw_curves(rows(epochs), path, CURVES, "a run")
    drawn = pixels(path)
    assert (np.abs(drawn - VAL).sum(-1) < 30).sum() > 50
    assert [file.name for file in tmp_path.iterdir()] == ["curves.png"]


@pytest.mark.parametrize("classes", [2, 10, 120])
def test_a_perfect_confusion_matrix_is_dark_on_its_diagonal_alone(tmp_path: Path, classes: int) -> None:
    path = tmp_path / "confusion.png"
    names = [f"a rather long name of class {number}" for number in range(classes)]
    draw_confusion(5 * torch.eye(classes, dtype=torch.int64), names, path, "epoch 3")
    drawn = pixels(path)
    dark = (drawn.sum(-1) < 200).any()
    assert dark
    assert (drawn.sum(-1) == 765).mean() > 0.5


def test_a_class_without_images_divides_nothing_by_zero(tmp_path: Path) -> None:
    matrix = torch.zeros(3, 3, dtype=torch.int64)
    draw_confusion(matrix, ["a", "b", "c"], tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").exists()


def test_bars_of_the_reliability_diagram_are_as_high_as_the_accuracy(tmp_path: Path) -> None:
    heights = []
    for correct in (5, 10):
        counts = [[0.0, 10.0], [0.0, float(correct)], [0.0, 8.0]]
        draw_calibration(counts, tmp_path / "new.png", error=0.3)
        drawn = pixels(tmp_path / "new.png")
        bars = (np.abs(drawn - ImageColor.getrgb(TRAIN)).sum(-1) < 10)[: len(drawn) * 6 // 10]
        heights.append(bars.any(1).sum())
    assert heights[0] == pytest.approx(heights[1] / 2, rel=0.1)


NAMES = ("a$\\q$", "$x^2$", "price_$1_$5", "cat\x1b[2J", "caf\udce9", "\uf8f3")


@pytest.mark.filterwarnings("error")
def test_names_are_drawn_whatever_they_are(tmp_path: Path) -> None:
    draw_confusion(torch.eye(len(NAMES), dtype=torch.int64), NAMES, tmp_path / "confusion.png")
    for number, name in enumerate(NAMES):
        draw_curves(rows(2), tmp_path / f"{number}.png", CURVES, f"a model on folder:{name}")
