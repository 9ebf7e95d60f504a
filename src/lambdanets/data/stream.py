"""Sources that are read from one end to the other (webdataset, TFDS, Hugging Face streams), through timm."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import IterableDataset

from .config import DataConfig
from .errors import DataError, DataWarning
from .sources import class_names, create_timm
from .tar_scan import check_end
from .tar_source import declared_classes
from .transforms import Pipeline


class StreamSet(IterableDataset):
    """Images in the order in which their reader gives them.

    A stream has no random access: its samples depend on the number of workers, and a run that is resumed in
    the middle of an epoch starts that epoch again. Reading, shuffling and sharding are timm's.
    """

    exact_resume = False
    skipped: tuple[str, ...] = ()

    def __init__(self, data_set: Any, pipeline: Pipeline, classes: tuple[str, ...]):
        self.data_set = data_set
        self.pipeline = pipeline
        self.classes = classes

    def __len__(self) -> int:
        return len(self.data_set)

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        for image, target in self.data_set:
            key = np.array([random.getrandbits(64)], np.uint64)
            yield self.pipeline.finish(self.pipeline.prepare(image)[None], key)[0], int(target)


def open_stream(config: DataConfig, *, train: bool, seed: int, split: str = "") -> StreamSet:
    """Open one side of a streamed source."""
    split = split or ("train" if train else "val")
    name = config.train_split if split == "train" else config.val_split
    data_set = create_timm(
        config,
        name,
        is_training=train,
        batch_size=config.batch_size,
        seed=seed,
        input_img_mode="RGB" if config.in_chans == 3 else "L",
    )
    _check_shards(data_set, skip=config.on_bad_image == "skip")
    root = os.path.expanduser(config.source.partition(":")[2])
    declared = declared_classes(root) if config.source.startswith("wds/") and root else None
    classes = declared or class_names(data_set, config.num_classes or 0)
    if not classes:
        raise DataError(f"{config.source!r} does not name its classes; say how many with data.num_classes.")
    return StreamSet(data_set, Pipeline(config, train=train), classes)


def _check_shards(data_set: Any, *, skip: bool) -> None:
    """Refuse archives that were cut off: timm's reader ends such an archive early and says nothing."""
    reader = getattr(data_set, "reader", None)
    split = getattr(reader, "split_info", None)
    for name in getattr(split, "filenames", ()):
        path = os.path.join(getattr(reader, "root", ""), name)
        complaint = check_end(path) if path.endswith(".tar") and os.path.isfile(path) else ""
        if complaint and not skip:
            raise DataError(
                f"{complaint}; copy or make the shard again, or read what is whole with "
                "--set data.on_bad_image=skip."
            )
        if complaint:
            warnings.warn(f"{complaint}; only what is whole is read.", DataWarning, stacklevel=2)
