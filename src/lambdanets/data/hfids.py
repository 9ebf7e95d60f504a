"""Hugging Face's data sets (`hfids/NAME`), read from their parquet files without being stored."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from lambdanets.utils.text import join_some

from .config import DataConfig
from .errors import DataError
from .parquet import ParquetShards, check_rows, read_footers
from .sequential import SequentialSet
from .sources import check_named, require_package, unnamed
from .transforms import Pipeline


def open_hfids(config: DataConfig, split: str, *, train: bool) -> SequentialSet:
    """Open a split of `hfids/NAME`.

    The column of images is `config.image_column`, or "image", or the only one of that kind; that of classes
    is `config.label_column`, or "label", or the only one whose classes have names.

    Args:
        config: names a data set of the hub or a folder, and behind a colon, if anything, a folder for what
            the package `datasets` keeps of it (no images).
        split: as the data set names it.
        train: mix and vary the samples.

    Raises:
        DataError: there is no such data set or split, it does not lie in parquet files, or has no images or
            no classes, or a file of it cannot be read.
    """
    require_package(config.source)
    check_named(config)
    builder = _builder(config)
    names, paths = _files(config, split, builder)
    footers = read_footers(names, paths, skip=config.on_bad_image == "skip")
    whole = [(*file, footer) for *file, footer in zip(names, paths, footers, strict=True) if footer]
    if not sum(footer.num_rows for *_, footer in whole):
        raise DataError(f"the split {split!r} of {config.source!r} holds no images.")
    features = builder.info.features or _stored(whole[0][2])
    image, label = _columns(config, features)
    numbered = tuple(str(number) for number in range(config.num_classes or 0))
    classes = tuple(getattr(features[label], "names", None) or numbered)
    if not classes:
        raise unnamed(config)
    columns: dict[str, Any] = {"image": f"{image}.bytes", "label": label, "classes": len(classes)}
    for name, _, footer in whole:
        check_rows(name, footer, **columns)
    lengths = [footer.num_rows for *_, footer in whole]
    shards = ParquetShards([name for name, *_ in whole], [path for _, path, _ in whole], lengths, **columns)
    skip = config.on_bad_image == "skip"
    return SequentialSet(shards, Pipeline(config, train=train), classes, train=train, skip_bad=skip)


def undivided(config: DataConfig) -> str:
    """What to do about a data set of one split."""
    other = config.source.replace("hfids/", "hfds/", 1)
    return f"{other!r} with an empty data.val_split downloads it and divides its training images"


def _builder(config: DataConfig) -> Any:
    from datasets import load_dataset_builder

    kind, _, cache = config.source.partition(":")
    name = os.path.expanduser(kind.partition("/")[2])
    try:
        return load_dataset_builder(name, cache_dir=os.path.expanduser(cache) or None)
    except Exception as error:  # the client of the hub raises kinds of its own
        why = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise DataError(f"cannot open {config.source!r}: {why}.") from error


def _files(config: DataConfig, split: str, builder: Any) -> tuple[list[str], list[str]]:
    """Names of a split's files that are the same wherever the data set lies, and where they are."""
    files = {str(side): list(paths) for side, paths in (builder.config.data_files or {}).items()}
    if not files or not all(path.endswith(".parquet") for paths in files.values() for path in paths):
        name = os.path.expanduser(config.source.partition(":")[0].removeprefix("hfids/"))
        other = f"{config.source.replace('hfids/', 'hfds/', 1)!r} downloads it, for any number of processes"
        if os.path.isdir(name):
            other = f"'folder:{name}' reads images in class folders"
        raise DataError(
            f"{config.source!r} does not lie in parquet files, which alone are streamed; {other}."
        )
    if split not in files and len(files) == 1:
        raise DataError(
            f"{config.source!r} has no split {split!r}, but {join_some(files)} alone, and streams cannot be "
            f"divided; {undivided(config)}."
        )
    if split not in files:
        raise DataError(
            f"{config.source!r} has no split {split!r}; name one that it has, {join_some(files)}, with "
            "data.train_split or data.val_split."
        )
    base = builder.base_path if "://" in builder.base_path else os.path.realpath(builder.base_path)
    return [path.removeprefix(f"{base}/") for path in files[split]], files[split]


def _stored(footer: Any) -> Mapping[str, Any]:
    """The features that a parquet file tells, or that its types come to."""
    from datasets import Features

    return Features.from_arrow_schema(footer.schema.to_arrow_schema())


def _columns(config: DataConfig, features: Mapping[str, Any]) -> tuple[str, str]:
    """Names of the columns of images and of classes."""
    from datasets import ClassLabel, Image

    def is_image(_: str, feature: Any) -> bool:
        return isinstance(feature, Image) or (isinstance(feature, dict) and "bytes" in feature)

    def is_label(column: str, feature: Any) -> bool:
        numbers = str(getattr(feature, "dtype", "")).startswith(("int", "uint"))
        return isinstance(feature, ClassLabel) or (column == "label" and numbers)

    found = []
    for name, chosen, what, fits in (
        ("image", config.image_column, "images", is_image),
        ("label", config.label_column, "class numbers", is_label),
    ):
        columns = [column for column, feature in features.items() if fits(column, feature)]
        known = columns if name == "image" else list(features)
        if chosen is not None and chosen not in known:
            raise DataError(
                f"{config.source!r} has no column of {what} {chosen!r}; data.{name}_column is one of "
                f"{join_some(known)}."
            )
        if chosen is None and name not in columns and len(columns) != 1:
            held = f"several columns of {what}: {join_some(columns)}" if columns else f"no column of {what}"
            raise DataError(
                f"{config.source!r} has {held}; name the one to read with data.{name}_column, of "
                f"{join_some(features)}."
            )
        found.append(chosen or (name if name in columns else columns[0]))
    return found[0], found[1]
