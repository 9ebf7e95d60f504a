"""Sources streamed by timm's readers say what they cannot promise."""

from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import IterableDataset

from lambdanets.data import (
    DataConfig,
    DataError,
    DataWarning,
    describe,
    eval_loader,
    train_loader,
)
from lambdanets.data.splits import Splits
from lambdanets.data.stream import TimmStream
from lambdanets.data.transforms import Pipeline

DATA = DataConfig(source="tfds/pictures", image_size=8, batch_size=4, workers=0)


class Pictures(IterableDataset):
    """What timm's IterableImageDataset offers, over grey levels."""

    def __init__(self, number: int):
        self.number = number
        self.epochs: list[int] = []
        self.workers: int | None = None

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
        for index in range(self.number):
            yield Image.new("RGB", (10, 12), (index, index, index)), index % 3

    def set_epoch(self, count: int) -> None:
        self.epochs.append(count)

    def set_loader_cfg(self, num_workers: int) -> None:
        self.workers = num_workers


def stream(number: int) -> TimmStream:
    return TimmStream(Pictures(number), Pipeline(DATA, train=False), ("a", "b", "c"))


def test_training_drops_the_last_part_and_evaluation_does_not() -> None:
    side = stream(10)
    batches = list(train_loader(side, DATA, seed=0, position=lambda: (3, 0)))
    assert [tuple(images.shape) for images, _ in batches] == [(4, 3, 8, 8)] * 2
    assert side.data_set.epochs == [3]
    assert side.data_set.workers == 0
    batches = list(eval_loader(side, DATA))
    assert [len(targets) for _, targets in batches] == [4, 4, 2]
    assert [int(target) for _, targets in batches for target in targets] == [index % 3 for index in range(10)]
    levels = [float(image[0, 0, 0]) * 0.229 + 0.485 for images, _ in batches for image in images]
    np.testing.assert_allclose(levels, np.arange(10) / 255, atol=1e-5)


def test_a_stream_says_that_it_cannot_resume_exactly() -> None:
    side = stream(10)
    assert not side.exact_resume
    with pytest.warns(DataWarning, match="epoch 1 starts again, 2 batches of it are seen twice"):
        list(train_loader(side, DATA, seed=0, position=lambda: (1, 2)))


def test_a_stream_is_refused_in_several_processes() -> None:
    says = "^'tfds/pictures' is streamed and cannot be divided among 2 processes without repeats; read"
    with pytest.raises(DataError, match=says):
        train_loader(stream(10), DATA, seed=0, position=lambda: (0, 0), world_size=2)
    with pytest.raises(DataError, match=says):
        eval_loader(stream(10), DATA, rank=1, world_size=2)


def test_describe_a_stream() -> None:
    facts = describe(Splits(stream(10), stream(5), ("a", "b", "c")))
    assert facts == {"classes": 3, "train": "10 images, streamed", "val": "5 images, streamed", "skipped": 0}
