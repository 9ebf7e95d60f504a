"""The sources `torch/` and `hfds/`: data sets of torchvision and of the Hugging Face hub, opened by timm."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

import numpy as np

from lambdanets.utils.files import user_cache
from lambdanets.utils.text import join_some

from ..config import DataConfig
from ..errors import DataError, SourceWarning
from ..image_source import DatasetImages
from .folder import split_rows
from .protocol import ImageSplits, IndexedSource, absolute


class _TimmSource(IndexedSource):
    """A data set that timm's `create_dataset` opens."""

    named_splits = True

    def dataset_options(self, config: DataConfig) -> dict[str, Any]:
        """Return options of `create_dataset`, among them `root`, "" where the data set has no folder."""
        raise NotImplementedError

    def stored_targets(self, data_set: Any) -> Any:
        """Return the class numbers of a data set, None where it has none."""
        raise NotImplementedError

    def open(self, config: DataConfig, *, seed: int, classes: Sequence[str] | None = None) -> ImageSplits:
        data_set = self._create(config, config.train_split)
        targets = self._targets(data_set)
        rows = _labelled_rows(config, config.train_split, targets)
        if config.val_split:
            other = self._create(config, config.val_split)
            other_targets = self._targets(other)
            sides = rows, _labelled_rows(config, config.val_split, other_targets)
        else:
            other, other_targets = data_set, targets
            names = [f"{config.source}#{row}" for row in rows]
            sides = tuple(rows[side] for side in split_rows(targets[rows], names, config.val_fraction, seed))
        train, val = (
            DatasetImages(
                held, rows, numbers[rows], config.in_chans, config.source, max_pixels=config.max_pixels
            )
            for held, rows, numbers in ((data_set, sides[0], targets), (other, sides[1], other_targets))
        )
        number = 1 + max(targets.max(initial=-1), other_targets.max(initial=-1))
        return ImageSplits(train, val, _class_names(data_set, int(number)))

    def _create(self, config: DataConfig, split: str) -> Any:
        """Open a split.

        Raises:
            DataError: timm cannot; the message has its reason.
        """
        from timm.data.dataset_factory import create_dataset

        self.require_name()
        name = self.text.partition(":")[0]
        options = self.dataset_options(config)
        root = os.path.expanduser(options.pop("root")) or None
        try:
            # torchvision and timm print messages while they open a data set.
            with redirect_stdout(io.StringIO()):
                return create_dataset(name, root=root, split=split, **options)
        except (AssertionError, ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
            why = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            where = f" in {root}" if root else ""
            raise DataError(f"timm cannot open the split {split!r} of {name!r}{where}: {why}.") from error

    def _targets(self, data_set: Any) -> np.ndarray:
        found = self.stored_targets(data_set)
        targets = np.asarray([] if found is None else list(found))
        if targets.ndim != 1 or targets.dtype.kind not in "iu" or targets.size != len(data_set):
            raise DataError(f"{self.text!r} does not give one class number for each image.")
        return targets.astype(np.int64)


class TorchSource(_TimmSource):
    """A data set of torchvision, downloaded to the user's cache or to a folder."""

    form = "torch/NAME:PATH"
    help = "a data set of torchvision, downloaded when absent: torch/cifar10, ..."

    def resolved(self) -> str:
        return f"torch/{self.name}:{absolute(self.root)}" if self.root else self.text

    def dataset_options(self, config: DataConfig) -> dict[str, Any]:
        root = self.root
        if not root:
            if (cache := user_cache()) is None:
                raise DataError(f"the user has no home folder; name one for the data: torch/{self.name}:PATH")
            root = str(cache / "torch" / self.name)
        return {"root": root, "download": config.download}

    def stored_targets(self, data_set: Any) -> Any:
        return getattr(data_set, "targets", None)


class HfdsSource(_TimmSource):
    """A data set of the Hugging Face hub, downloaded."""

    form = "hfds/NAME"
    help = "an image data set of the Hugging Face hub (pip install datasets)"
    package = ("datasets", "datasets")
    named_columns = True

    def dataset_options(self, config: DataConfig) -> dict[str, Any]:
        columns = {"input_key": config.image_column or "image", "target_key": config.label_column or "label"}
        return {"root": self.root, **columns}

    def stored_targets(self, data_set: Any) -> Any:
        reader = data_set.reader
        table = reader.dataset.data
        # If the image column is missing, timm adds an empty one when it casts the table.
        held = [name for name in table.column_names if table.column(name).null_count < len(table)]
        for column, what in ((reader.image_key, "image"), (reader.label_key, "label")):
            if column not in held:
                raise DataError(
                    f"{self.text!r} has no {what}s in a column {column!r}; set data.{what}_column to one of "
                    f"{join_some(held)}."
                )
        return reader.dataset[reader.label_key]


def _class_names(data_set: Any, number: int) -> tuple[str, ...]:
    """Return the names that a data set gives its classes, or their numbers; at least `number` of them."""
    by_name = getattr(getattr(data_set, "reader", data_set), "class_to_idx", None) or {}
    names = {index: name for name, index in reversed(by_name.items())}
    return tuple(str(names.get(index, index)) for index in range(max(number, len(names))))


def _labelled_rows(config: DataConfig, split: str, targets: np.ndarray) -> np.ndarray:
    """Return the rows of a split that have a class: a negative class number marks a withheld label."""
    rows = np.flatnonzero(targets >= 0)
    if lacking := len(targets) - len(rows):
        held = f"the {len(targets)} images of the split {split!r} of {config.source!r}"
        fault = f"{lacking} of {held} have no class"
        if config.on_bad_image == "refuse" or not len(rows):
            leave_out = ", or leave them out with --set data.on_bad_image=skip" if len(rows) else ""
            raise DataError(
                f"{fault} (number {targets.min()}); name another split with data.train_split and "
                f"data.val_split, or divide the training images with an empty data.val_split{leave_out}."
            )
        warnings.warn(f"{fault} and are left out.", SourceWarning, stacklevel=2)
    return rows
