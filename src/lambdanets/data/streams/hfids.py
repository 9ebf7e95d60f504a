"""The source `hfids/NAME`: a data set of the Hugging Face hub, streamed from its parquet files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from lambdanets.utils.text import join_some

from ..config import DataConfig
from ..errors import DataError
from ..sources.protocol import StreamedSource, absolute
from ..transforms import Pipeline
from .parquet import ParquetFiles, check_rows, read_footers
from .stream_set import StreamSet


class HfidsSource(StreamedSource):
    """Parquet files of the hub or of a folder, which are streamed and not stored.

    The name is that of a data set of the hub, or a folder. The text behind the colon is the cache folder of
    the package `datasets`, for its metadata of the data set (no images).

    The column of images is `config.image_column`, or "image", or the only one of that kind; that of classes
    is `config.label_column`, or "label", or the only one whose classes have names.
    """

    form = "hfids/NAME"
    help = "the same, streamed from parquet files, nothing stored (pip install datasets)"
    package = ("datasets", "datasets")
    named_splits = True
    named_columns = True

    def resolved(self) -> str:
        name = os.path.expanduser(self.name)
        name = os.path.abspath(name) if os.path.isdir(name) else name  # else one of the hub
        return f"hfids/{name}" + (f":{absolute(self.root)}" if self.root else "")

    def one_split_remedy(self) -> str:
        return f"{super().one_split_remedy()}; {self._divide_remedy()}"

    def open(self, config: DataConfig, split: str, *, train: bool) -> StreamSet:
        self.require_package()
        self.require_name()
        builder = self._builder()
        names, paths = self._files(split, builder)
        footers = read_footers(names, paths, skip=config.on_bad_image == "skip")
        whole = [(*file, footer) for *file, footer in zip(names, paths, footers, strict=True) if footer]
        if not sum(footer.num_rows for *_, footer in whole):
            raise DataError(f"the split {split!r} of {config.source!r} holds no images.")
        features = builder.info.features or _stored_features(whole[0][2])
        image, label = _columns(config, features)
        classes = self.classes(config, getattr(features[label], "names", None))
        columns: dict[str, Any] = {"image": f"{image}.bytes", "label": label, "classes": len(classes)}
        for name, _, footer in whole:
            check_rows(name, footer, **columns)
        lengths = [footer.num_rows for *_, footer in whole]
        files = ParquetFiles([name for name, *_ in whole], [path for _, path, _ in whole], lengths, **columns)
        skip = config.on_bad_image == "skip"
        return StreamSet(files, Pipeline(config, train=train), classes, train=train, skip_bad=skip)

    def _divide_remedy(self) -> str:
        other = self.text.replace("hfids/", "hfds/", 1)
        return f"{other!r} with an empty data.val_split downloads it and divides its training images"

    def _builder(self) -> Any:
        from datasets import load_dataset_builder

        name, cache = os.path.expanduser(self.name), os.path.expanduser(self.root)
        try:
            return load_dataset_builder(name, cache_dir=cache or None)
        except Exception as error:  # the client of the hub raises kinds of its own
            why = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise DataError(f"cannot open {self.text!r}: {why}.") from error

    def _files(self, split: str, builder: Any) -> tuple[list[str], list[str]]:
        """Return the names of a split's files, which do not depend on where it is stored, and their paths."""
        files = {str(side): list(paths) for side, paths in (builder.config.data_files or {}).items()}
        if not files or not all(path.endswith(".parquet") for paths in files.values() for path in paths):
            name = os.path.expanduser(self.name)
            other = f"{self.text.replace('hfids/', 'hfds/', 1)!r} downloads it, for any number of processes"
            if os.path.isdir(name):
                other = f"'folder:{name}' reads images in class folders"
            raise DataError(
                f"{self.text!r} is not stored in parquet files, the only ones that can be streamed; {other}."
            )
        if split not in files and len(files) == 1:
            raise DataError(
                f"{self.text!r} has no split {split!r} but only {join_some(files)}, and streams cannot be "
                f"divided; {self._divide_remedy()}."
            )
        if split not in files:
            raise DataError(
                f"{self.text!r} has no split {split!r}; name one that it has, {join_some(files)}, with "
                "data.train_split or data.val_split."
            )
        base = builder.base_path if "://" in builder.base_path else os.path.realpath(builder.base_path)
        return [path.removeprefix(f"{base}/") for path in files[split]], files[split]


def _stored_features(footer: Any) -> Mapping[str, Any]:
    """Return the features that a parquet file lists, or those of its column types."""
    from datasets import Features

    return Features.from_arrow_schema(footer.schema.to_arrow_schema())


def _columns(config: DataConfig, features: Mapping[str, Any]) -> tuple[str, str]:
    """Return the names of the columns of images and of classes."""
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
