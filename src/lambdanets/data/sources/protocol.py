"""The protocol of a source: the members that a class must define to be a value of `data.source`.

A source has two sides: the images to train on ("train") and those to validate on ("val"). It either has them
already, as splits of its own, or its images are divided between them.

To add a source, write a module with a subclass of `IndexedSource` (any image can be read at any time) or of
`StreamedSource` (files of samples, each read from its beginning to its end), and add it to the registry
`SOURCES` in `sources/__init__.py`. `lambdanets list`, error texts, training and evaluation follow from it.
"""

from __future__ import annotations

import importlib.util
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ..config import DataConfig
from ..errors import DataError
from ..image_source import ImageSource

if TYPE_CHECKING:
    from ..streams.stream_set import StreamSet

# Mean and standard deviation of each channel, on a scale from 0 to 1.
Statistics = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class ImageSplits:
    """The images of both sides of a source.

    Attributes:
        train: training images.
        val: validation images.
        classes: class names, in the order of the targets of both.
    """

    train: ImageSource
    val: ImageSource
    classes: tuple[str, ...]


class Source(ABC):
    """A value of `data.source`, split at its separators: KIND, KIND:PATH, KIND/NAME or KIND/NAME:PATH.

    Args:
        text: the whole value; KIND is the one that the class is registered under in `SOURCES`.

    Attributes:
        form: how the value is written, such as "folder:PATH".
        help: one line for `lambdanets list`.
        layout: what PATH is, to explain which data a recipe needs; "" for a source that needs none.
        package: the module that the source needs, and the arguments of `pip install` for it; None where the
            package's own requirements suffice.
        named_splits: whether `data.train_split` and `data.val_split` name its splits.
        named_columns: whether `data.image_column` and `data.label_column` name its columns.
        grouped: whether `data.group` names groups of its images, which are then split as a whole.
        multi_label: whether its images may have several labels each, with `data.multi_label`.
        sharded: whether its images are in archives, so that `data.order` may be "shards".
        labelled_images: whether it has images with a class each, for a `DataConfig`; other sources are
            listed, and have a configuration of their own.
        unlabelled: whether `open_unlabelled` finds images without labels in it.
        statistics: mean and standard deviation of its images in grey, from 0 to 1; None takes those of
            ImageNet.
        name: the text between the first slash and the first colon, "" without a slash.
        root: the text behind the first colon, "" without a colon.
    """

    form: ClassVar[str]
    help: ClassVar[str]
    layout: ClassVar[str] = ""
    package: ClassVar[tuple[str, str] | None] = None
    named_splits: ClassVar[bool] = False
    named_columns: ClassVar[bool] = False
    grouped: ClassVar[bool] = False
    multi_label: ClassVar[bool] = False
    sharded: ClassVar[bool] = False
    labelled_images: ClassVar[bool] = True
    unlabelled: ClassVar[bool] = False
    statistics: ClassVar[Statistics | None] = None

    def __init__(self, text: str):
        self.text = text
        head, _, self.root = text.partition(":")
        _, _, self.name = head.partition("/")

    def resolved(self) -> str:
        """Return the whole value with its folder as an absolute path, valid in any working directory."""
        return self.text

    def file_root(self) -> Path | None:
        """Return the folder that is removed from image paths before they are hashed into a fingerprint.

        An empty path leaves them as they are. None means that the images are not files: the source has no
        fingerprint.
        """
        return None

    def directory(self) -> str | None:
        """Return the real path of a folder that holds all files of the source; None if there is none."""
        return None

    def open_unlabelled(self, in_chans: int, max_pixels: int) -> ImageSource:
        """Find all images of the source, without their classes; only called if `unlabelled` is set.

        Args:
            in_chans: 3 for RGB, 1 for grey.
            max_pixels: larger images are refused when they are read.

        Returns:
            The images, all with target 0; `path` gives names relative to the root of the source.

        Raises:
            DataError: there are no images.
        """
        raise NotImplementedError

    def one_split_remedy(self) -> str:
        """Return how to validate on a source with a single split, as the end of an error message."""
        return "leave data.val_split empty, which holds out data.val_fraction of them"

    def require_package(self) -> None:
        """Check that the optional package is installed.

        Raises:
            DataError: it is not; the message has the command that installs it.
        """
        if self.package is None:
            return
        module, requirement = self.package
        if importlib.util.find_spec(module) is None:
            raise DataError(f"the source {self.text!r} needs the package {module}: pip install {requirement}")

    def require_root(self) -> str:
        """Return `root`.

        Raises:
            DataError: it is empty.
        """
        if not self.root:
            raise DataError(f"data.source {self.text!r} lacks a path: write {self.form}.")
        return self.root

    def require_name(self) -> str:
        """Return `name`.

        Raises:
            DataError: it is empty.
        """
        if not self.name:
            raise DataError(f"data.source {self.text!r} lacks a name: write {self.form}.")
        return self.name


class IndexedSource(Source):
    """A source whose images can be read in any order."""

    @abstractmethod
    def open(self, config: DataConfig, *, seed: int, classes: Sequence[str] | None = None) -> ImageSplits:
        """Find the images of both sides, without decoding them.

        Args:
            config: the configuration; its `source` is the text of this object.
            seed: decides the split if the source is not split already.
            classes: class names in the order of the targets; None takes the order of the source.

        Raises:
            DataError: the source cannot be used; the message says why.
        """


class StreamedSource(Source):
    """A source of files with many samples, each file read from its beginning to its end."""

    @abstractmethod
    def open(self, config: DataConfig, split: str, *, train: bool) -> StreamSet:
        """Open one split.

        Args:
            config: the configuration; its `source` is the text of this object.
            split: the name of the split.
            train: shuffle and augment the samples.

        Raises:
            DataError: the source cannot be used; the message says why.
        """

    def one_split_remedy(self) -> str:
        return "name another split, as streams cannot be divided"

    def classes(self, config: DataConfig, names: Sequence[str] | None = None) -> tuple[str, ...]:
        """Return the names of the classes, or else "0", "1" and so on, `config.num_classes` of them.

        Args:
            config: the configuration, in which `num_classes` may be None.
            names: the names that the source gives its classes, if any.

        Raises:
            DataError: there are neither names nor their number.
        """
        found = tuple(names or ()) or tuple(str(number) for number in range(config.num_classes or 0))
        if not found:
            raise DataError(f"{self.text!r} does not name its classes; say how many with data.num_classes.")
        return found


def absolute(path: str) -> str:
    """Return a path, in which ~ is the home folder, as an absolute path; "" for ""."""
    return os.path.abspath(os.path.expanduser(path)) if path else ""
