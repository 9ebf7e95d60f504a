"""The sources of images: the registry of their kinds, and the functions that look a value up in it.

`protocol.py` states what a source must define.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..audio.source import AudioSource
from ..coco.source import CocoSource
from ..config import DataConfig
from ..errors import DataError
from ..groups import digests
from ..streams.hfids import HfidsSource
from ..streams.wds import WdsSource
from ..text.source import TextSource
from .csv import CsvSource
from .digits import DigitsSource
from .folder import FolderSource, relative
from .protocol import ImageSplits, IndexedSource, Source
from .tar import TarSource
from .timm import HfdsSource, TorchSource

# Kind of a value of `data.source`, with the separator that follows it -> class of the source.
SOURCES: dict[str, type[Source]] = {
    "digits": DigitsSource,
    "folder:": FolderSource,
    "csv:": CsvSource,
    "tar:": TarSource,
    "coco:": CocoSource,
    "audio:": AudioSource,
    "text:": TextSource,
    "torch/": TorchSource,
    "hfds/": HfdsSource,
    "hfids/": HfidsSource,
    "wds/": WdsSource,
}
REMOVED = {  # kinds of earlier versions -> advice in the error message
    "tfds/": "TensorFlow Datasets are not read any more: use the same data set as torch/NAME:PATH, hfds/NAME "
    "or hfids/NAME, or save its images to class folders and use folder:PATH",
}


def find_source(text: str) -> Source | None:
    """Return the source that a value of `data.source` names, None for an unknown kind."""
    for kind, source in SOURCES.items():
        if text == kind.rstrip(":/") or (kind.endswith((":", "/")) and text.startswith(kind)):
            return source(text)
    return None


def get_source(text: str) -> Source:
    """Return the source that a value of `data.source` names.

    Raises:
        DataError: its kind is unknown, or was removed.

    Example:
        >>> get_source("torch/cifar10:/data").name
        'cifar10'
    """
    source = find_source(text)
    if source is not None:
        return source
    for kind, remedy in REMOVED.items():
        if text.startswith(kind):
            raise DataError(f"data.source is {text!r}, and {remedy}.")
    found = "folder" if os.path.isdir(text) else "tar" if text.endswith(".tar") else ""
    hint = f" Did you mean '{found}:{text}'?" if found else ""
    raise DataError(f"data.source must be {source_forms()}; got {text!r}.{hint}")


def source_forms() -> str:
    """Return the forms of all sources for classifiers, such as 'folder:PATH', joined for an error message."""
    *forms, last = (repr(source.form) for source in SOURCES.values() if source.labelled_images)
    return f"{', '.join(forms)} or {last}"


def open_source(config: DataConfig, *, seed: int, classes: Sequence[str] | None = None) -> ImageSplits:
    """Find the images that `config.source` names, without decoding them.

    Args:
        config: the source, which must not be streamed.
        seed: seed of the split, where the source is not split already.
        classes: number the classes in this order; None takes the order of the source.

    Raises:
        DataError: there is no such source, or it cannot be used.
    """
    source = get_source(config.source)
    source.require_package()
    if not isinstance(source, IndexedSource):
        raise DataError(f"{config.source!r} is streamed: its images cannot be read in any order.")
    found = source.open(config, seed=seed, classes=classes)
    if config.train_per_class is None:
        return found
    top = source.file_root() or Path()
    names = [relative(found.train.path(index), top) for index in range(len(found.train))]
    chosen = first_of_each(found.train.targets, names, config.train_per_class)
    return replace(found, train=found.train.subset(chosen))


def first_of_each(targets: np.ndarray, names: Sequence[str], number: int) -> np.ndarray:
    """Return the ascending indices of up to `number` samples of each class, chosen by a hash of their names.

    The samples of a smaller number are among those of a larger one.
    """
    chosen: list[int] = []
    for target in np.unique(targets):
        members = np.flatnonzero(targets == target)
        ranks = digests([names[int(index)] for index in members], seed=0)
        chosen += (int(members[row]) for row in sorted(range(len(ranks)), key=ranks.__getitem__)[:number])
    return np.array(sorted(chosen), dtype=np.intp)
