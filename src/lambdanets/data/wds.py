"""Shards of WebDataset (`wds/NAME:PATH`), each read from one end to the other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np

from .config import DataConfig, is_remote
from .errors import DataError
from .sequential import SequentialSet
from .sources import require_package, unnamed
from .tar import Named, TarPictures
from .tar_index import read_members
from .tar_source import NUMBER, declared_classes
from .transforms import Pipeline
from .wds_remote import RemoteShards
from .wds_splits import find_split, read_info


class LocalShards:
    """Archives on a disk, of which nothing is read that is not asked for."""

    def __init__(self, pictures: TarPictures):
        self.pictures = pictures
        self.names = pictures.members.shards
        self.lengths = np.bincount(pictures.shards, minlength=len(self.names))
        self._first = np.cumsum(self.lengths) - self.lengths

    def read(self, shard: int, places: np.ndarray) -> Iterator[tuple[Named, int]]:
        for index in self._first[shard] + places:
            yield self.pictures.open(index), int(self.pictures.targets[index])


def open_wds(config: DataConfig, split: str, *, train: bool) -> SequentialSet:
    """Open a split of `wds/NAME:PATH`.

    Args:
        config: names the folder of the shards, or a URL or a `pipe:` to be followed by their names.
        split: listed in _info.json beside the shards, or names of shards, with braces.
        train: mix and vary the samples.

    Raises:
        DataError: there is no such split, a shard is damaged or has samples without an image or a class, or
            the classes have no names and no number.
    """
    root = os.path.expanduser(config.source.partition(":")[2])
    if not root:
        raise DataError(f"data.source {config.source!r} lacks a path: write wds/NAME:PATH.")
    numbered = tuple(str(number) for number in range(config.num_classes or 0))
    if is_remote(root):
        require_package(config.source)
        info = read_info(root)
        if not numbered:
            raise unnamed(config)
        names = find_split(root, split, info)
        shards, classes = RemoteShards(root, names, info, len(numbered)), numbered
    else:
        classes = declared_classes(root) or numbered
        names = find_split(root, split, read_info(root))
        if not classes:
            raise unnamed(config)
        shards = LocalShards(_pictures(config, root, names, len(classes)))
    skip = config.on_bad_image == "skip"
    return SequentialSet(shards, Pipeline(config, train=train), classes, train=train, skip_bad=skip)


def _pictures(config: DataConfig, root: str, names: Sequence[str], classes: int) -> TarPictures:
    members = read_members(root, names, skip=config.on_bad_image == "skip")
    words, inverse = np.unique(members.labels, return_inverse=True)
    decoded = [word.decode("utf-8", "replace") for word in words]
    for number, word in enumerate(decoded):
        if not NUMBER.fullmatch(word) or not 0 <= int(word) < classes:
            path = os.path.join(root, members.shards[members.shard[(inverse == number).argmax()]])
            said = f"the class {word!r} in a .cls file" if word else "no .cls files"
            raise DataError(
                f"{path} has {said}; wds/ takes the numbers of {classes} classes, from 0. "
                f"tar:{root} reads names and class folders too."
            )
    targets = np.array([int(word) for word in decoded], np.int64)[inverse]
    return TarPictures(root, members, targets, config.in_chans, config.max_pixels)
