"""Parquet files with an image in each row, read from beginning to end, a row group at a time."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..errors import DataError, SourceWarning
from ..images import NamedFile, reason

PARALLEL_FOOTERS = 16  # footers that are fetched in parallel: a remote data set may have hundreds of files


class ParquetFiles:
    """Parquet files on a disk or at a URL that fsspec opens; fetched data are not stored.

    Each lane (see `StreamShard`) holds one row group in memory while it reads.

    Args:
        names: names of the files.
        paths: paths of the files, or their URLs.
        lengths: number of rows in each.
        image: path of the column of encoded images, such as "image.bytes".
        label: path of the column of class numbers.
        classes: number of classes.
    """

    def __init__(
        self,
        names: Sequence[str],
        paths: Sequence[str],
        lengths: Sequence[int],
        *,
        image: str,
        label: str,
        classes: int,
    ):
        self.names, self.paths, self.lengths = tuple(names), tuple(paths), np.array(lengths, np.int64)
        self.image, self.label, self.classes = image, label, classes

    def read(self, number: int, rows: np.ndarray) -> Iterator[tuple[NamedFile, int]]:
        """Yield the image file and the class index of some rows of one file.

        Args:
            number: index of the file.
            rows: indices of the rows, ascending; row groups without any of them are not fetched.

        Raises:
            DataError: the file cannot be read or has another length, or a row has no class.
        """
        name, values = self.names[number], self._values(number, rows)
        for row in rows.tolist():
            with _naming(name):
                content, target = next(values)
            if target is None or not 0 <= target < self.classes:
                raise _wrong_class(f"{name}#{row}", target, self.classes)
            yield NamedFile(content or b"", f"{name}#{row}"), target

    def _values(self, number: int, rows: np.ndarray) -> Iterator[tuple[bytes | None, int | None]]:
        """Yield the encoded image and the class of ascending rows, one row group in memory at a time."""
        from pyarrow.parquet import ParquetFile

        with _opened(self.paths[number]) as file, ParquetFile(file) as parquet:
            footer = parquet.metadata
            if footer.num_rows != self.lengths[number]:
                raise ValueError(f"it has {footer.num_rows} rows now, and had {self.lengths[number]}")
            lengths = np.array([footer.row_group(group).num_rows for group in range(footer.num_row_groups)])
            ends = np.cumsum(lengths)
            groups = np.searchsorted(ends, rows, side="right")
            for group in np.unique(groups).tolist():
                columns = [self.image, self.label]
                table = parquet.read_row_group(group, columns=columns, use_threads=False).flatten()
                images, targets = (table.column(column) for column in columns)
                for row in (rows[groups == group] - (ends[group] - lengths[group])).tolist():
                    yield images[row].as_py(), targets[row].as_py()


def read_footers(names: Sequence[str], paths: Sequence[str], *, skip: bool) -> list[Any]:
    """Read the footers of parquet files, without fetching rows.

    Args:
        names: names of the files.
        paths: paths of the files, or their URLs.
        skip: leave out damaged files, with a warning.

    Returns:
        pyarrow's FileMetaData of each, None where a file is left out.

    Raises:
        DataError: a file cannot be read.
    """
    import pyarrow

    def found(name: str, path: str) -> Any:
        try:
            return _footer(name, path)
        except DataError as error:
            # A damaged file is damaged for every process; a network error may affect one of them only.
            if skip and isinstance(error.__cause__, pyarrow.ArrowInvalid):
                return error
            raise

    with ThreadPoolExecutor(PARALLEL_FOOTERS) as pool:
        footers = list(pool.map(found, names, paths))
    for footer in footers:
        if isinstance(footer, DataError):
            warnings.warn(f"{footer} It is left out.", SourceWarning, stacklevel=2)
    return [None if isinstance(footer, DataError) else footer for footer in footers]


def _footer(name: str, path: str) -> Any:
    """Return pyarrow's FileMetaData of a file."""
    from pyarrow.parquet import read_metadata

    with _naming(name), _opened(path) as file:
        return read_metadata(file)


def check_rows(name: str, footer: Any, *, image: str, label: str, classes: int) -> None:
    """Check, by its footer alone, that the rows of a file hold images and classes.

    Args:
        name: name of the file.
        footer: an element of the result of `read_footers`.
        image: path of the column of encoded images.
        label: path of the column of class numbers.
        classes: number of classes.

    Raises:
        DataError: a column is missing, images are stored as paths, or classes are not integers or, by the
            statistics of the footer, out of range.
    """
    leaves = [footer.schema.column(number).path for number in range(footer.num_columns)]
    for column in (image, label):
        if column not in leaves:
            raise DataError(f"{name} has no column {column!r}, which its data set lists.")
    stored = footer.schema.column(leaves.index(label))
    if stored.physical_type not in ("INT32", "INT64") or stored.logical_type.type not in ("INT", "NONE"):
        kind = footer.schema.to_arrow_schema().field(label).type
        raise DataError(
            f"{name} stores the classes in {label!r} as {kind}, and hfids/ takes whole numbers: store them "
            "as int64, or read the data set as hfds/, which converts those whose classes have names."
        )
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        images, targets = (group.column(leaves.index(column)).statistics for column in (image, label))
        if images and images.has_null_count and 0 < group.num_rows == images.null_count:
            raise DataError(f"{name} holds no images; paths of images, if it has any, are not followed.")
        if targets and targets.has_min_max:
            for target in (targets.min, targets.max):
                if not 0 <= target < classes:
                    raise _wrong_class(name, target, classes)


def _wrong_class(where: str, target: int | None, classes: int) -> DataError:
    content = "a row without a class" if target is None else f"the class {target}"
    return DataError(f"{where} has {content}; hfids/ takes the numbers of {classes} classes, from 0.")


def _opened(path: str) -> Any:
    """Open a file without a read-ahead cache: pyarrow reads whole columns, which it would fetch twice."""
    from fsspec import url_to_fs

    system, inside = url_to_fs(path)
    return system.open(inside, "rb", cache_type="none")


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Raise a DataError that names the file in place of any error."""
    try:
        yield
    except Exception as error:  # every file system raises its own kinds
        raise DataError(f"cannot read {name}: {reason(error)}.") from error
