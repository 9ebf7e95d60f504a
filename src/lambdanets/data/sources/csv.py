"""The source `csv:FILE.csv`: a table of image files with a label each, or several."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from lambdanets.utils.text import join_some

from ..balance import check_positives, lacking_classes
from ..config import DataConfig, HoldOut
from ..errors import DataError, SourceWarning
from ..files import FileKind
from ..groups import check_apart, held_out_groups, name_groups
from ..image_source import FileImages, FolderImages
from ..labels import numbered_rows, open_text
from .folder import IMAGES, Folder, held_out_mask, warn_without_validation
from .protocol import ImageSplits, IndexedSource, absolute

# Usual names of the columns, in the order in which they are looked for.
IMAGE_COLUMNS = ("path", "file", "filename", "image")
LABEL_COLUMNS = ("label", "class")
SIDES = {"train": 0, "training": 0, "val": 1, "valid": 1, "validation": 1}
NOT_USED = "test"
SEPARATOR = ";"  # between the labels of an image
BITS = {"0": False, "0.0": False, "1": True, "1.0": True}


@dataclass
class Listing:
    """The rows of a CSV file of images.

    Attributes:
        path: the file.
        names: paths of the images as they are written.
        lines: number of the line of each.
        labels: labels of each image.
        sides: 0 (training) or 1 (validation) of each image; empty without a column `split`.
        groups: group of each image; empty without a column of groups.
        columns: names of the classes, if each has a column.
    """

    path: Path
    names: list[str] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    labels: list[tuple[str, ...]] = field(default_factory=list)
    sides: list[int] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    columns: tuple[str, ...] = ()

    def file(self, row: int) -> str:
        """Return the path of an image; it is written relative to the folder of the CSV."""
        return os.path.join(self.path.parent, os.path.expanduser(self.names[row]))


class CsvSource(IndexedSource):
    """Image files that a CSV file lists, with a label each, or several with `data.multi_label`."""

    form = "csv:FILE.csv"
    layout = "a table with the columns path and label, of files relative to its folder"
    help = "a table of image files: columns path and label, or several labels, and perhaps split and group"
    named_columns = True
    unlabelled = True
    grouped = True
    multi_label = True

    def resolved(self) -> str:
        return f"csv:{absolute(self.root)}"

    def file_root(self) -> Path | None:
        return Path(self.root).expanduser().parent

    def directory(self) -> str | None:
        return os.path.realpath(os.path.dirname(absolute(self.root)))

    def open(self, config: DataConfig, *, seed: int, classes: Sequence[str] | None = None) -> ImageSplits:
        rows = read_listing(
            self.require_root(),
            image_column=config.image_column,
            label_column=config.label_column,
            group_column=config.group_column,
            multi_label=config.multi_label,
        )
        names, targets = _targets(rows, classes, multi_label=config.multi_label)
        how: Any = {"val_fraction": config.val_fraction, "seed": seed, "hold_out": config.hold_out}
        sides = _sides(rows, targets, names, config.group, **how, train=classes is None)
        if config.multi_label and classes is None and config.val_fraction < 1:
            check_positives(targets[sides == 0], targets[sides == 1], names, str(rows.path))
        train, val = (
            FileImages(
                [rows.file(int(row)) for row in chosen], targets[chosen], config.in_chans, config.max_pixels
            )
            for chosen in (np.flatnonzero(sides == 0), np.flatnonzero(sides == 1))
        )
        return ImageSplits(train, val, names)

    def open_unlabelled(self, in_chans: int, max_pixels: int) -> FolderImages:
        rows = read_listing(self.require_root(), labelled=False)
        names = sorted(rows.names)
        return FolderImages(str(rows.path.parent), names, [0] * len(names), in_chans, max_pixels)


def read_table(
    root: str,
    *,
    val_fraction: float,
    seed: int,
    classes: Sequence[str] | None = None,
    hold_out: HoldOut = "exact",
    group: str | None = None,
    kind: FileKind = IMAGES,
) -> Folder:
    """Read a CSV file of files with one label each; arguments and result are those of `read_folder`."""
    rows = read_listing(root)
    names, targets = _targets(rows, classes, multi_label=False)
    how: Any = {"val_fraction": val_fraction, "seed": seed, "hold_out": hold_out}
    sides = _sides(rows, targets, names, group, **how, train=classes is None, kind=kind)
    pairs = [(rows.file(row), int(target)) for row, target in enumerate(targets)]
    train, val = ([pairs[int(row)] for row in np.flatnonzero(sides == side)] for side in (0, 1))
    return Folder(train, val, names)


def read_listing(
    root: str,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
    multi_label: bool | None = None,
    labelled: bool = True,
) -> Listing:
    """Read a CSV file of images; the rows of the split `test` are left out with a warning.

    Args:
        root: the file.
        image_column: column of the paths; None takes path, file, filename or image.
        label_column: column of the labels, or several columns of 0 and 1, separated by commas; None takes
            label or class.
        group_column: column of the groups; None takes group, if there is such a column.
        multi_label: the labels of an image are separated by semicolons; None where several labels are not
            possible, as of recordings.
        labelled: read labels; else only the paths.

    Raises:
        DataError: there is no such file, it lacks a column, or rows cannot be used.
    """
    path = Path(root).expanduser()
    if not path.is_file():
        held = "a folder" if path.is_dir() else "no file"
        raise DataError(f"{path} is {held}; csv:FILE.csv names a table of image files and labels.")
    with open_text(path) as file:
        table = list(numbered_rows(file, path))
    heading = [name.strip() for name in table[0][1]] if table else []
    image = _column(path, heading, image_column, IMAGE_COLUMNS, "the paths of the images", "image_column")
    found = Listing(path)
    label: list[int] = []
    if labelled and multi_label and label_column and "," in label_column:
        found.columns = tuple(name.strip() for name in label_column.split(","))
        label = [_column(path, heading, name, (), "", "") for name in found.columns]
    elif labelled:
        content = "the labels"
        if multi_label is not None and (bits := _columns_of_bits(table, heading)):
            several = "" if multi_label else "--set data.multi_label=true "
            words = quote(f"data.label_column={','.join(bits)}")
            content += f", or several columns of 0 and 1 ({several}--set {words}),"
        label = [_column(path, heading, label_column, LABEL_COLUMNS, content, "label_column")]
    split = heading.index("split") if "split" in heading and labelled else None
    if group_column is None and "group" in heading:
        group_column = "group"
    group = None if group_column is None else _column(path, heading, group_column, (), "", "")
    tested = 0
    for line, cells in table[1:]:
        cell = [each.strip() for each in cells] + [""] * (len(heading) - len(cells))
        if split is not None and cell[split].lower() == NOT_USED:
            tested += 1
            continue
        found.lines.append(line)
        found.names.append(cell[image])
        found.labels.append(
            _labels(found, [cell[each] for each in label], line, multi_label=bool(multi_label))
        )
        if split is not None:
            found.sides.append(_side(path, line, cell[split]))
        if group is not None:
            found.groups.append(cell[group])
    _check(found, labelled=labelled and not multi_label, grouped=group is not None)
    if tested:
        warnings.warn(
            f"{tested} rows of {path} are of the split 'test', which is neither trained nor validated on.",
            SourceWarning,
            stacklevel=3,
        )
    return _without_duplicates(found)


def _column(
    path: Path, heading: Sequence[str], name: str | None, usual: Sequence[str], content: str, option: str
) -> int:
    """Return the index of a column by its name, or of the first with a usual name."""
    known = {each.lower(): index for index, each in reversed(list(enumerate(heading)))}
    if name is not None:
        if name in heading:
            return heading.index(name)
        raise DataError(f"{path} has no column {name!r}; its columns are {join_some(heading)}.")
    if index := [known[each] for each in usual if each in known]:
        return index[0]
    wanted = " or ".join(map(repr, usual))
    raise DataError(
        f"{path} has no column {wanted}: name that of {content} with data.{option}; its columns are "
        f"{join_some(heading) or 'none'}."
    )


def _columns_of_bits(table: Sequence[tuple[int, list[str]]], heading: Sequence[str]) -> list[str]:
    """Return the names of the columns with 0 and 1 alone, if there are several."""
    columns = zip(*(cells for _, cells in table[1:] if len(cells) == len(heading)), strict=True)
    bits = [
        name
        for name, cells in zip(heading, columns, strict=False)
        if {cell.strip() for cell in cells} <= set(BITS)
    ]
    return bits if len(bits) > 1 else []


def _labels(found: Listing, cells: Sequence[str], line: int, *, multi_label: bool) -> tuple[str, ...]:
    """Return the labels of a row."""
    if not found.columns:
        parts = cells[0].split(SEPARATOR) if multi_label and cells else cells
        return tuple(part.strip() for part in parts if part.strip())
    for name, cell in zip(found.columns, cells, strict=True):
        if cell not in BITS:
            raise DataError(f"{found.path} (line {line}) has {cell!r} in the column {name!r}; write 0 or 1.")
    return tuple(name for name, cell in zip(found.columns, cells, strict=True) if BITS[cell])


def _side(path: Path, line: int, word: str) -> int:
    if word.lower() not in SIDES:
        raise DataError(f"{path} (line {line}) has the split {word!r}; write train, val or test.")
    return SIDES[word.lower()]


def _check(found: Listing, *, labelled: bool, grouped: bool) -> None:
    """Refuse a table without rows, and rows without a path, a file, a label or a group."""
    rows = range(len(found.names))
    if not rows:
        raise DataError(f"{found.path} lists no images.")
    faults: list[tuple[str, Iterable[int]]] = [
        ("no path", (row for row in rows if not found.names[row])),
        ("a file that does not exist", (row for row in rows if not os.path.isfile(found.file(row)))),
        ("no label", (row for row in rows if labelled and not found.labels[row])),
        ("no group", (row for row in rows if grouped and not found.groups[row])),
    ]
    for fault, each in faults:
        if bad := list(each):
            lines = _lines(found, bad)
            example = f": {found.names[bad[0]]!r}" if found.names[bad[0]] else ""
            raise DataError(
                f"{len(bad)} of {len(rows)} rows of {found.path} have {fault} ({lines}){example}; paths "
                f"are relative to {found.path.parent}/."
            )


def _lines(found: Listing, rows: Sequence[int]) -> str:
    """Return the numbers of the lines of some rows, such as "lines 3, 7"."""
    return f"line{'s' * (len(rows) > 1)} {join_some((str(found.lines[row]) for row in rows), form=str)}"


def _without_duplicates(found: Listing) -> Listing:
    """Keep each image once; refuse one with different labels, sides or groups."""
    first: dict[str, int] = {}
    repeated = []
    for row, name in enumerate(found.names):
        before = first.setdefault(os.path.normpath(name), row)
        if before == row:
            continue
        for part, values in (("labels", found.labels), ("splits", found.sides), ("groups", found.groups)):
            if values and values[before] != values[row]:
                raise DataError(
                    f"{found.path} lists {name!r} with different {part} (lines {found.lines[before]} and "
                    f"{found.lines[row]}); remove one of the two rows."
                )
        repeated.append(row)
    if not repeated:
        return found
    warnings.warn(
        f"{len(repeated)} rows of {found.path} repeat others ({_lines(found, repeated)}) and are left out.",
        SourceWarning,
        stacklevel=4,
    )
    rows = sorted(first.values())
    kept: dict[str, Any] = {
        name: [values[row] for row in rows] if (values := getattr(found, name)) else []
        for name in ("names", "lines", "labels", "sides", "groups")
    }
    return Listing(found.path, **kept, columns=found.columns)


def _targets(
    rows: Listing, classes: Sequence[str] | None, *, multi_label: bool
) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the names of the classes, and class indices [n], or 0 and 1 for each class [n, classes]."""
    found = rows.columns or sorted({label for each in rows.labels for label in each})
    names = tuple(classes) if classes else tuple(found)
    index = {name: number for number, name in enumerate(names)}
    if unknown := sorted(set(found) - set(names)):
        raise DataError(
            f"{rows.path} has labels that are not known: {join_some(unknown)}. Known are {join_some(names)}."
        )
    if not multi_label:
        return names, np.array([index[label] for (label,) in rows.labels], np.int64)
    targets = np.zeros((len(rows.labels), len(names)), np.int64)
    for row, labels in enumerate(rows.labels):
        targets[row, [index[label] for label in labels]] = 1
    return names, targets


def _sides(
    rows: Listing,
    targets: np.ndarray,
    classes: Sequence[str],
    group: str | None,
    *,
    val_fraction: float,
    seed: int,
    hold_out: HoldOut,
    train: bool,
    kind: FileKind = IMAGES,
) -> np.ndarray:
    """Return the side of each file: that of the list, or else 1 if it is held out.

    With `train`, the files are trained on, so that the classes and groups of both sides must agree.
    """
    how: Any = {"val_fraction": val_fraction, "seed": seed, "hold_out": hold_out}
    sides, groups = np.array(rows.sides), rows.groups
    if group is not None and (train or not sides.any()) and val_fraction < 1:
        groups = name_groups(rows.names, group, rows.path)
    if sides.any():
        if train:
            _check_sides(rows, targets, classes, sides)
            if groups:
                one, other = ([groups[int(row)] for row in np.flatnonzero(sides == side)] for side in (0, 1))
                check_apart(one, other, rows.path)
        return sides
    if targets.ndim == 1:
        return held_out_mask(
            rows.names, targets, classes, rows.path, **how, groups=groups or None, kind=kind
        ).astype(int)
    # Images with several labels are divided as groups of one, so that each class is near the fraction.
    return held_out_groups(groups or rows.names, targets, rows.path, **how).astype(int)


def _check_sides(rows: Listing, targets: np.ndarray, classes: Sequence[str], sides: np.ndarray) -> None:
    """Refuse a list without training images, and a class that only validation images have."""
    if sides.all():
        raise DataError(f"{rows.path} lists validation images but none of the split 'train'.")
    if targets.ndim == 1:
        if unknown := lacking_classes(targets, sides == 0, classes):
            raise DataError(
                f"{rows.path} has no training image of {join_some(unknown)}, which validation images have."
            )
        lacking = lacking_classes(targets, sides == 1, classes)
        warn_without_validation(f"the validation side of {rows.path}", lacking)
