"""The source `wds/NAME:PATH`: WebDataset's tar files, each read from its beginning to its end."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np

from ..config import DataConfig
from ..errors import DataError
from ..images import NamedFile
from ..sources.protocol import StreamedSource, absolute
from ..sources.tar import NUMBER, declared_classes
from ..sources.tar_images import TarImages
from ..sources.tar_index import read_members
from ..transforms import Pipeline
from .stream_set import StreamSet
from .wds_remote import RemoteTars
from .wds_splits import find_split, is_remote, read_info


class WdsSource(StreamedSource):
    """Tar files of WebDataset's samples, in a folder, behind a URL or from a command (`pipe:`).

    A split is one that _info.json beside the tar files lists, or names of tar files, with braces.
    """

    form = "wds/NAME:PATH"
    help = "shards of WebDataset, read from end to end; from URLs, too (pip install webdataset)"
    package = ("webdataset", "webdataset")  # for remote files alone
    named_splits = True

    def resolved(self) -> str:
        if not self.root or is_remote(self.root):
            return self.text
        return f"wds/{self.name}:{absolute(self.root)}"

    def open(self, config: DataConfig, split: str, *, train: bool) -> StreamSet:
        root = os.path.expanduser(self.require_root())
        if is_remote(root):
            self.require_package()
            info = read_info(root)
            classes = self.classes(config)
            files = RemoteTars(root, find_split(root, split, info), info, len(classes))
        else:
            declared = declared_classes(root)
            names = find_split(root, split, read_info(root))
            classes = self.classes(config, declared)
            files = LocalTars(_open_images(config, root, names, len(classes)))
        skip = config.on_bad_image == "skip"
        return StreamSet(files, Pipeline(config, train=train), classes, train=train, skip_bad=skip)


class LocalTars:
    """Tar files on a disk, of which only the requested samples are read."""

    def __init__(self, images: TarImages):
        self.images = images
        self.names = images.members.shards
        self.lengths = np.bincount(images.members.shard, minlength=len(self.names))
        self._first = np.cumsum(self.lengths) - self.lengths

    def read(self, number: int, rows: np.ndarray) -> Iterator[tuple[NamedFile, int]]:
        """Yield the samples of one file at ascending rows, as `SampleFiles.read` does."""
        for index in self._first[number] + rows:
            yield self.images.open(index), int(self.images.targets[index])


def _open_images(config: DataConfig, root: str, names: Sequence[str], classes: int) -> TarImages:
    """Return the images of the tar files, after checking that their classes are numbers below `classes`."""
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
    return TarImages(root, members, targets, config.in_chans, config.max_pixels)
