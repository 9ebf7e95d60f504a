"""Sources that are read from one end to the other: shards, parquet files, and what timm streams."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from torch import Tensor
from torch.utils.data import IterableDataset

from .config import DataConfig
from .hfids import open_hfids
from .sequential import SequentialSet
from .sources import class_names, create_timm, require_package, unnamed
from .transforms import Pipeline
from .wds import open_wds


class TimmStream(IterableDataset):
    """Images in the order in which timm's reader gives them.

    Its samples depend on the number of workers, and a run that is resumed in the middle of an epoch starts
    that epoch again.
    """

    exact_resume = False
    skipped: tuple[str, ...] = ()

    def __init__(self, data_set: Any, pipeline: Pipeline, classes: tuple[str, ...]):
        self.data_set, self.pipeline, self.classes = data_set, pipeline, classes

    def __len__(self) -> int:
        return len(self.data_set)

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        for image, target in self.data_set:
            key = np.array([random.getrandbits(64)], np.uint64)
            yield self.pipeline.finish(self.pipeline.prepare(image)[None], key)[0], int(target)


StreamSet = TimmStream | SequentialSet  # sets without random access


def open_stream(config: DataConfig, side: Literal["train", "val"], *, train: bool, seed: int) -> StreamSet:
    """Open one side of a streamed source; `train` mixes and varies its images."""
    split = config.train_split if side == "train" else config.val_split
    if config.source.startswith("wds/"):
        return open_wds(config, split, train=train)
    if config.source.startswith("hfids/"):
        return open_hfids(config, split, train=train)
    require_package(config.source)
    data_set = create_timm(
        config,
        split,
        is_training=train,
        batch_size=config.batch_size,
        seed=seed,
        input_img_mode="RGB" if config.in_chans == 3 else "L",
    )
    classes = class_names(data_set, config.num_classes or 0)
    if not classes:
        raise unnamed(config)
    return TimmStream(data_set, Pipeline(config, train=train), classes)
