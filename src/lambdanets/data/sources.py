"""Names of sources turned into pictures with classes, split in two."""

from __future__ import annotations

import importlib.util
import io
import os
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lambdanets.utils.text import join_some

from .config import SOURCES, DataConfig
from .errors import DataError, SourceWarning
from .folder import digests, read_folder, relative, stratum
from .pictures import ArrayPictures, DatasetPictures, FilePictures, Pictures
from .tar_source import open_tar

STREAMED = ("hfids/", "tfds/", "wds/")
PACKAGES = {
    "digits": ("sklearn", "'lambdanets[train]'"),
    "hfds/": ("datasets", "datasets"),
    "hfids/": ("datasets", "datasets"),
    "tfds/": ("tensorflow_datasets", "tensorflow-datasets tensorflow"),
    "wds/": ("webdataset", "webdataset"),
}


@dataclass(frozen=True)
class Source:
    """Pictures of the two sides, and the names of their classes."""

    train: Pictures
    val: Pictures
    classes: tuple[str, ...]


def open_source(config: DataConfig, *, seed: int, classes: Sequence[str] | None = None) -> Source:
    """Find what `config.source` names, without decoding anything yet."""
    source = _found(config, seed, classes)
    if config.train_per_class is None:
        return source
    root = config.source.partition(":")[2]
    top = Path(root).expanduser() if config.source.startswith("folder:") else Path()
    names = [relative(source.train.path(index), top) for index in range(len(source.train))]
    chosen = first_of_each(source.train.targets, names, config.train_per_class)
    return replace(source, train=source.train.subset(chosen))


def first_of_each(targets: np.ndarray, names: Sequence[str], number: int) -> np.ndarray:
    """Return the places of so many samples of each class, in order, chosen by the digests of their names.

    With a larger number the same samples come again, and others with them.
    """
    chosen: list[int] = []
    for target in np.unique(targets):
        members = np.flatnonzero(targets == target)
        ranks = digests([names[int(index)] for index in members], seed=0)
        chosen += (int(members[place]) for place in sorted(range(len(ranks)), key=ranks.__getitem__)[:number])
    return np.array(sorted(chosen), dtype=np.intp)


def _found(config: DataConfig, seed: int, classes: Sequence[str] | None) -> Source:
    require_package(config.source)
    if config.source == "digits":
        return _digits(config, seed)
    kind, _, root = config.source.partition(":")
    if kind == "folder":
        if not root:
            raise DataError(f"data.source {config.source!r} lacks a path: write folder:PATH.")
        found = read_folder(
            root,
            val_fraction=config.val_fraction,
            seed=seed,
            classes=classes,
            hold_out=config.hold_out,
        )
        train, val = (
            FilePictures(
                [path for path, _ in side], [target for _, target in side], config.in_chans, config.max_pixels
            )
            for side in (found.train, found.val)
        )
        return Source(train, val, found.classes)
    if kind == "tar":
        return Source(*open_tar(config, seed=seed, classes=classes))
    if config.source.startswith(("torch/", "hfds/")):
        return _named(config, seed)
    if kind == "coco":
        raise DataError(
            f"{config.source!r} holds annotated objects, for a detector: train the recipe coco or nuclei."
        )
    found = "folder" if os.path.isdir(config.source) else "tar" if config.source.endswith(".tar") else ""
    hint = f" Did you mean '{found}:{config.source}'?" if found else ""
    raise DataError(f"data.source must be {SOURCES}; got {config.source!r}.{hint}")


def require_package(source: str) -> None:
    """Say in one sentence what to install for a source, where it is missing."""
    for start, (module, package) in PACKAGES.items():
        if source.startswith(start) and importlib.util.find_spec(module) is None:
            raise DataError(f"the source {source!r} needs the package {module}: pip install {package}")


def check_named(config: DataConfig) -> None:
    """Raise DataError where a source of timm's form has nothing behind its slash."""
    kind, _, name = config.source.partition(":")[0].partition("/")
    if not name:
        raise DataError(f"data.source {config.source!r} lacks a name: write {kind}/NAME.")


def create_timm(config: DataConfig, split: str, **options: Any) -> Any:
    """Open a split with timm's `create_dataset`, and say in one sentence what went wrong if it does."""
    from timm.data.dataset_factory import create_dataset

    check_named(config)
    name, _, root = config.source.partition(":")
    if name.startswith("hfds/"):
        options["input_key"] = config.image_column or "image"
        options["target_key"] = config.label_column or "label"
    if name.startswith("torch/"):
        options["download"] = config.download
        root = root or os.path.join(_cache(), "lambdanets", name)
    root = os.path.expanduser(root) or None
    try:
        with redirect_stdout(io.StringIO()):  # torchvision and timm print on the way
            return create_dataset(name, root=root, split=split, **options)
    except (AssertionError, ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        why = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        place = f" in {root}" if root else ""
        raise DataError(f"timm cannot open the split {split!r} of {name!r}{place}: {why}.") from error


def _cache() -> str:
    """The user's folder for what can be fetched again, by the XDG convention: a relative path is not one."""
    folder = os.environ.get("XDG_CACHE_HOME", "")
    return folder if os.path.isabs(folder) else os.path.join(os.path.expanduser("~"), ".cache")


def class_names(data_set: Any, number: int) -> tuple[str, ...]:
    """Return the names a data set gives its classes, or their numbers."""
    by_name = getattr(getattr(data_set, "reader", data_set), "class_to_idx", None) or {}
    names = {index: name for name, index in reversed(by_name.items())}
    return tuple(str(names.get(index, index)) for index in range(max(number, len(names))))


def unnamed(config: DataConfig) -> DataError:
    """Return the complaint about a stream of which nothing says how many classes it has."""
    return DataError(f"{config.source!r} does not name its classes; say how many with data.num_classes.")


def _digits(config: DataConfig, seed: int) -> Source:
    from sklearn.datasets import load_digits

    pixels, targets = (np.asarray(array) for array in load_digits(return_X_y=True))
    arrays = np.round(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    names = [f"digits#{index:04d}" for index in range(len(arrays))]
    train, val = (
        ArrayPictures(arrays[side], targets[side], [names[index] for index in side], config.in_chans)
        for side in _split(targets, names, config.val_fraction, seed)
    )
    return Source(train, val, tuple("0123456789"))


def _named(config: DataConfig, seed: int) -> Source:
    data_set = create_timm(config, config.train_split)
    targets = _targets(config, data_set)
    rows = _labelled_rows(config, config.train_split, targets)
    if config.val_split:
        other = create_timm(config, config.val_split)
        other_targets = _targets(config, other)
        parts = rows, _labelled_rows(config, config.val_split, other_targets)
    else:
        other, other_targets = data_set, targets
        names = [f"{config.source}#{index}" for index in rows]
        parts = tuple(rows[side] for side in _split(targets[rows], names, config.val_fraction, seed))
    train, val = (
        DatasetPictures(
            held, rows, numbers[rows], config.in_chans, config.source, max_pixels=config.max_pixels
        )
        for held, rows, numbers in ((data_set, parts[0], targets), (other, parts[1], other_targets))
    )
    number = 1 + max(targets.max(initial=-1), other_targets.max(initial=-1))
    return Source(train, val, class_names(data_set, int(number)))


def _targets(config: DataConfig, data_set: Any) -> np.ndarray:
    if config.source.startswith("hfds/"):
        reader = data_set.reader
        table = reader.dataset.data
        # Where there is no column of images, timm's cast has added one that is empty.
        held = [name for name in table.column_names if table.column(name).null_count < len(table)]
        for column, what in ((reader.image_key, "image"), (reader.label_key, "label")):
            if column not in held:
                raise DataError(
                    f"{config.source!r} has no {what}s in a column {column!r}; name theirs with "
                    f"data.{what}_column, of {join_some(held)}."
                )
        found = reader.dataset[reader.label_key]
    else:
        found = getattr(data_set, "targets", None)
    targets = np.asarray([] if found is None else list(found))
    if targets.ndim != 1 or targets.dtype.kind not in "iu" or targets.size != len(data_set):
        raise DataError(f"{config.source!r} does not give one class number for each image.")
    return targets.astype(np.int64)


def _labelled_rows(config: DataConfig, split: str, targets: np.ndarray) -> np.ndarray:
    """The rows of a split that have a class; a negative number stands for one that is kept back."""
    rows = np.flatnonzero(targets >= 0)
    if lacking := len(targets) - len(rows):
        held = f"the {len(targets)} images of the split {split!r} of {config.source!r}"
        what = f"{lacking} of {held} have no class"
        if config.on_bad_image == "refuse" or not len(rows):
            leave_out = ", or leave them out with --set data.on_bad_image=skip" if len(rows) else ""
            raise DataError(
                f"{what} (number {targets.min()}); name another split with data.train_split and "
                f"data.val_split, or divide the training images with an empty data.val_split{leave_out}."
            )
        warnings.warn(f"{what} and are left out.", SourceWarning, stacklevel=2)
    return rows


def _split(
    targets: np.ndarray, names: Sequence[str], val_fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    held_out = np.full(len(targets), val_fraction == 1)
    for target in np.unique(targets) if val_fraction < 1 else ():
        members = np.flatnonzero(targets == target)
        chosen = stratum([names[int(index)] for index in members], val_fraction, seed)
        held_out[members[sorted(chosen)]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
