"""Sheets of what is there and what was found, judged by their pixels."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from lambdanets.detection import Pair, draw_pairs
from lambdanets.detection.comparison_sheet import PICTURE
from lambdanets.detection.drawing import COLOURS
from lambdanets.viz.pages import MARGIN, PAD, SCALE

NAMES = ["cat", "dog"]


def pair(size: tuple[int, int] = (300, 200), name: str = "photo.png", **found: Any) -> Pair:
    """A magenta photo with a cat, and a crowd of dogs; a dog and, less surely, a cat were found."""
    box = torch.tensor([[50.0, 60.0, 250.0, 160.0]])
    return Pair(
        name=name,
        image=Image.new("RGB", size, "magenta"),
        truth={
            "boxes": torch.cat([box, box]),
            "labels": torch.tensor([1, 2]),
            "iscrowd": torch.tensor([0, 1]),
            "masks": torch.zeros(2, size[1], size[0], dtype=torch.uint8),
        },
        found={
            "boxes": torch.cat([box, box]),
            "labels": torch.tensor([2, 1]),
            "scores": torch.tensor([0.9, 0.4]),
        }
        | found,
    )


def halves(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Both pictures of the first card."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    left = (MARGIN + PAD) * SCALE
    middle = left + PICTURE * SCALE
    return pixels[:, left:middle], pixels[:, middle : middle + left + PICTURE * SCALE]


def has(pixels: np.ndarray, colour: str) -> bool:
    return bool((pixels == ImageColor.getrgb(colour)).all(-1).any())


def test_annotated_objects_stand_left_and_found_ones_right(tmp_path: Path) -> None:
    [path] = draw_pairs([pair()], tmp_path / "new" / "pairs.png", "Validation", names=NAMES)
    left, right = halves(path)
    cat, dog = COLOURS[:2]
    assert (has(left, cat), has(left, dog)) == (True, False)
    assert (has(right, cat), has(right, dog)) == (False, True)


def test_the_threshold_decides_what_is_drawn(tmp_path: Path) -> None:
    [path] = draw_pairs([pair()], tmp_path / "pairs.png", "", names=NAMES, threshold=0.4)
    assert has(halves(path)[1], COLOURS[0])
    [path] = draw_pairs([pair()], tmp_path / "pairs.png", "", names=NAMES, threshold=0.95)
    assert not has(halves(path)[1], COLOURS[1])


def test_pictures_keep_their_shape(tmp_path: Path) -> None:
    rows = [pair((300, 200)), pair((100, 300)), pair((4000, 40)), pair((1, 1))]
    for row, shape in zip(rows, ((373, 560), (560, 187), (6, 560), (560, 560)), strict=True):
        nothing = {name: value[:0] for name, value in row.found.items()}
        bare = Pair(name=row.name, image=row.image, truth=row.truth, found=nothing)
        [path] = draw_pairs([bare], tmp_path / "pairs.png", "", names=NAMES)
        rows_of, columns = np.nonzero((halves(path)[1] == ImageColor.getrgb("magenta")).all(-1))
        assert (np.ptp(rows_of) + 1, np.ptp(columns) + 1) == shape


def test_pages_are_numbered_and_old_ones_removed(tmp_path: Path) -> None:
    taken = []

    def rows() -> Iterator[Pair]:
        for number in range(6):
            taken.append(number)
            yield pair(name=f"{number}.png")

    path = tmp_path / "pairs.png"
    pages = draw_pairs(rows(), path, "Validation", names=NAMES, per_page=2)
    assert [page.name for page in pages] == ["pairs.png", "pairs-2.png", "pairs-3.png"]
    assert taken == list(range(6))
    assert draw_pairs([pair()] * 3, path, "Validation", names=NAMES, per_page=2) == pages[:2]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["pairs-2.png", "pairs.png"]
    assert draw_pairs([], path, "Validation", names=NAMES) == []
    with pytest.raises(ValueError, match=r"must end in \.png"):
        draw_pairs([], tmp_path / "pairs.jpg", "Validation", names=NAMES)
