"""Shards of WebDataset (`wds/NAME:PATH`), each read from one end to the other."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .config import DataConfig, is_remote
from .errors import DataError, DataWarning
from .images import read_image
from .lanes import REACH, Part
from .randomness import beginning, jittered, keys, shard_order
from .sources import require_package, unnamed
from .tar import Named, TarPictures
from .tar_index import read_members
from .tar_source import NUMBER, declared_classes
from .transforms import Pipeline
from .wds_remote import RemoteShards
from .wds_splits import find_split, read_info

Sample = tuple[Named, int, int]  # an image's file, its class, and its number in the set


class Shards(Protocol):
    """Archives of samples.

    `names` are theirs, `lengths` the samples in each, of shape (shards,). `read` yields the image's file and
    the class of the samples at ascending places in one of them.
    """

    names: tuple[str, ...]
    lengths: np.ndarray

    def read(self, shard: int, places: np.ndarray) -> Iterator[tuple[Named, int]]: ...


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


class WdsSet:
    """The samples of shards in sequence: one shard after the other, each from its beginning to its end.

    In training an epoch visits the shards in an order of its own, beginning at a place of its own and going
    round, and each lane of a part mixes its samples. What is in a batch is a function of (seed, epoch,
    number of the batch, rank), and what becomes of a sample one of (seed, epoch, sample).

    Args:
        shards: where the samples are.
        pipeline: from picture to tensor.
        classes: names, in the order of the targets.
        train: mix the samples.
        skip_bad: put its neighbour in the batch in the place of an image that cannot be decoded, with a
            warning, instead of raising.
    """

    exact_resume = True
    skipped: tuple[str, ...] = ()

    def __init__(
        self,
        shards: Shards,
        pipeline: Pipeline,
        classes: tuple[str, ...],
        *,
        train: bool,
        skip_bad: bool = False,
    ):
        self.pipeline, self.classes = pipeline, classes
        self.shards, self.train, self.skip_bad = shards, train, skip_bad
        self._first = np.cumsum(shards.lengths) - shards.lengths

    def __len__(self) -> int:
        return int(self.shards.lengths.sum())

    def batches(
        self, part: Part, number: int, *, step: int, epoch: int = 0, seed: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batch `number` of a part, and every further one of its lane that is a multiple of `step` on.

        Returns:
            Images of shape (b, channels, image_size, image_size), int64 targets of shape (b,).
        """
        places = part.lane(number % part.lanes)
        if self.train:
            places = jittered(seed, epoch, places, REACH)
        size = part.batch_size
        starts = range(number // part.lanes * size, len(places), step // part.lanes * size)
        due = [places[start : start + size] for start in starts]
        ahead = np.sort(np.concatenate(due))
        reading = zip(ahead.tolist(), self._read(ahead, epoch, seed), strict=True)
        waiting: dict[int, Sample] = {}
        for batch in due:
            for place in batch.tolist():
                while place not in waiting:
                    waiting.update([next(reading)])
            yield self._made([waiting.pop(place) for place in batch.tolist()], epoch, seed)

    def _read(self, places: np.ndarray, epoch: int, seed: int) -> Iterator[Sample]:
        """The samples at ascending places of an epoch's sequence."""
        shards = np.arange(len(self.shards.lengths))
        if self.train:
            places = (places + beginning(seed, epoch, len(self))) % len(self)
            shards = shard_order(seed, epoch, shards)
        ends = np.cumsum(self.shards.lengths[shards])
        visit = np.searchsorted(ends, places, side="right")
        new = (np.diff(visit) != 0) | (np.diff(places) < 0)  # going round may lead into the same shard again
        for some in np.split(np.arange(len(places)), 1 + np.flatnonzero(new)):
            shard = int(shards[visit[some[0]]])
            inside = places[some] - (ends[visit[some[0]]] - self.shards.lengths[shard])
            indices = (self._first[shard] + inside).tolist()
            for index, (file, target) in zip(indices, self.shards.read(shard, inside), strict=True):
                yield file, target, index

    def _made(self, samples: Sequence[Sample], epoch: int, seed: int) -> tuple[Tensor, Tensor]:
        found = [self._prepared(file) for file, _, _ in samples]
        good = [place for place, picture in enumerate(found) if not isinstance(picture, DataError)]
        pictures, targets = [], []
        for place, picture in enumerate(found):
            used = place
            if isinstance(picture, DataError):
                if not good:
                    raise DataError(
                        f"not one of the {len(found)} images of a batch can be read; the first: {found[0]}"
                    )
                used = next((other for other in good if other > place), good[0])
                told = f"{picture} {samples[used][0].name} stands in for it."
                warnings.warn(told, DataWarning, stacklevel=2)
            pictures.append(found[used])
            targets.append(samples[used][1])
        indices = np.array([index for _, _, index in samples])
        return self.pipeline.finish(pictures, keys(seed, epoch, indices)), torch.tensor(targets)

    def _prepared(self, file: Named) -> np.ndarray | DataError:
        try:
            return self.pipeline.prepare(read_image(file, in_chans=self.pipeline.in_chans))
        except DataError as error:
            if not self.skip_bad:
                raise
            return error


def open_wds(config: DataConfig, split: str, *, train: bool) -> WdsSet:
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
    return WdsSet(shards, Pipeline(config, train=train), classes, train=train, skip_bad=skip)


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
    return TarPictures(root, members, targets, config.in_chans)


def digest(sides: Sequence[WdsSet]) -> str:
    """Return a hash of the names and lengths of the shards on each side."""
    lines = [
        f"{number}\0{name}\0{length}"
        for number, side in enumerate(sides)
        for name, length in zip(side.shards.names, side.shards.lengths.tolist(), strict=True)
    ]
    return blake2b("\n".join(lines).encode(errors="surrogateescape"), digest_size=16).hexdigest()
