"""Small image folders, written where a test runs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def noise(seed: int, size: tuple[int, int] = (12, 12)) -> Image.Image:
    """Noise that differs from seed to seed, of a size (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def picture() -> Callable[..., Image.Image]:
    """Make an image of noise, `picture(seed, (width, height))`."""
    return noise


@pytest.fixture
def write_folder(tmp_path: Path) -> Callable[..., Path]:
    """Write `{"train/cat": 3, ...}` as folders of that many PNG files, and return the root."""

    def write(counts: dict[str, int], *, size: tuple[int, int] = (12, 12)) -> Path:
        root = tmp_path / "images"
        for number, (name, count) in enumerate(counts.items()):
            (root / name).mkdir(parents=True)
            for index in range(count):
                noise(1000 * number + index, size).save(root / name / f"{index:03d}.png")
        return root

    return write


@pytest.fixture
def truncate() -> Callable[[Path], None]:
    """Cut a file in half."""

    def cut(path: Path) -> None:
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])

    return cut
