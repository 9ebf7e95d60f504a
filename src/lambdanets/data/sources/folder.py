"""The source `folder:PATH`: train/ and val/ with a folder for each class, or class folders to be split."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from lambdanets.utils.text import join_some

from ..balance import lacking_classes
from ..config import DataConfig, HoldOut
from ..errors import DataError, SourceWarning
from ..files import FileKind, find_images, identity, is_folder, is_stray, warn_left_out
from ..groups import check_apart, digests, fractions, held_out_groups, name_groups
from ..image_source import FileImages, FolderImages
from ..images import IMAGE_SUFFIXES
from .protocol import ImageSplits, IndexedSource, absolute

TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "validation", "valid", "test")
ORIGINAL_ARCHIVES = (
    "ImageNet's original archives are unpacked into class folders by torchvision: "
    "torchvision.datasets.ImageNet(PATH, split='train'), and again with split='val'"
)
CLASS_FOLDERS = (
    "put those of each class in a folder of its own (valprep.sh of soumith/imagenetloader.torch does it for "
    "ImageNet's val/)"
)
IMAGES = FileKind("image", IMAGE_SUFFIXES)
Sample = tuple[str, int]  # path and class index


@dataclass(frozen=True)
class Folder:
    """The images of a folder: pairs (path, class index) of each side, and the names of the classes."""

    train: list[Sample]
    val: list[Sample]
    classes: tuple[str, ...]


class FolderSource(IndexedSource):
    """Image files in class folders."""

    form = "folder:PATH"
    layout = (
        "a folder with train/ and val/ that each hold one folder of images per class, or a folder with one "
        "folder per class, which is split"
    )
    help = "your photos: train/ and val/ with a folder per class, or class folders, to be split"
    unlabelled = True
    grouped = True

    def resolved(self) -> str:
        return f"folder:{absolute(self.root)}"

    def file_root(self) -> Path | None:
        return Path(self.root).expanduser()

    def directory(self) -> str | None:
        return containing_directory(self.root)

    def open(self, config: DataConfig, *, seed: int, classes: Sequence[str] | None = None) -> ImageSplits:
        found = read_folder(
            self.require_root(),
            val_fraction=config.val_fraction,
            seed=seed,
            classes=classes,
            hold_out=config.hold_out,
            group=config.group,
        )
        train, val = (
            FileImages(
                [path for path, _ in side], [target for _, target in side], config.in_chans, config.max_pixels
            )
            for side in (found.train, found.val)
        )
        return ImageSplits(train, val, found.classes)

    def open_unlabelled(self, in_chans: int, max_pixels: int) -> FolderImages:
        path = existing_folder(self.root)
        found = find_images(str(path), IMAGE_SUFFIXES)
        if not found.images:
            raise DataError(f"{path} holds no images.")
        warn_left_out(str(path), found.others, found.stray)
        names = sorted(relative(name, path) for name in found.images)
        return FolderImages(str(path), names, [0] * len(names), in_chans, max_pixels)


def containing_directory(path: str) -> str:
    """Return the real path of the folder that holds all files of a path, which may be a pattern."""
    real = os.path.realpath(os.path.expanduser(re.split(r"[*?\[{]", path)[0]))
    return real if os.path.isdir(real) else os.path.dirname(real)


def read_folder(
    root: str,
    *,
    val_fraction: float,
    seed: int,
    classes: Sequence[str] | None = None,
    hold_out: HoldOut = "exact",
    group: str | None = None,
    kind: FileKind = IMAGES,
) -> Folder:
    """Find the images of a folder, or its files of another kind, and their split.

    Symbolic links are followed. A file that has several names in a class is taken once. Files of other kinds
    and hidden ones are left out, with a warning.

    Args:
        root: holds train/ and val/ (or validation/, valid/, test/) with one folder per class, or the class
            folders themselves, which are then split.
        val_fraction: fraction of each class that is held out if the folder is not split; 1.0 holds out
            everything.
        seed: seed of the split. The side of an image depends on the seed and on names alone.
        classes: class names in the order of the class indices; None takes the sorted folder names.
        hold_out: method of splitting, as in `DataConfig`.
        group: as in `DataConfig`: all files of a group are on one side.
        kind: kind of the files.

    Raises:
        DataError: there is no such folder, it has no classes, the sides have different classes, links form a
            cycle, or a file belongs to two classes, or a file or a group to both sides.
    """
    path = existing_folder(root)
    train, val = _sides(path, kind)
    if train is None and val is not None and classes is None:
        raise DataError(
            f"{path} holds {val.name}/ but no train/ with class folders: there is nothing to train on."
        )
    if val is not None:
        names = tuple(classes) if classes else _classes(train or val, kind)
        if train is not None and classes is None:
            _check_classes(train, val, kind)
        nested = group is not None
        train_samples, linked = _samples(train, names, kind, nested=nested) if train else ([], False)
        val_samples, val_linked = _samples(val, names, kind, validated=True, nested=nested)
        if classes is None and (linked or val_linked):
            _check_disjoint(train_samples, val_samples, kind)
        if classes is None:
            held = {target for _, target in val_samples}
            lacking = [name for number, name in enumerate(names) if number not in held]
            warn_without_validation(val, lacking, kind)
        if classes is None and group is not None and train is not None:
            check_apart(
                name_groups(_below(train_samples, train), group, train),
                name_groups(_below(val_samples, val), group, val),
                path,
            )
        return Folder(train_samples, val_samples, names)
    top = train or path
    names = tuple(classes) if classes else _classes(top, kind)
    samples, _ = _samples(top, names, kind, nested=group is not None)
    targets = np.array([target for _, target in samples], np.int64)
    groups = None if group is None or val_fraction == 1 else name_groups(_below(samples, top), group, top)
    held_out = held_out_mask(
        [relative(name, top) for name, _ in samples],
        targets,
        names,
        top,
        val_fraction=val_fraction,
        seed=seed,
        hold_out=hold_out,
        groups=groups,
        kind=kind,
    )
    sides: tuple[list[Sample], list[Sample]] = ([], [])
    for sample, out in zip(samples, held_out.tolist(), strict=True):
        sides[out].append(sample)
    return Folder(*sides, names)


def held_out_mask(
    names: Sequence[str],
    targets: np.ndarray,
    classes: Sequence[str],
    where: str | Path,
    *,
    val_fraction: float,
    seed: int,
    hold_out: HoldOut,
    groups: Sequence[str] | None = None,
    kind: FileKind = IMAGES,
) -> np.ndarray:
    """Decide which images are held out, class by class or group by group.

    Args:
        names: names of the images, which decide the split together with the seed.
        targets: class indices of shape [n].
        classes: class names, for errors.
        where: the source, for errors.
        val_fraction: fraction that is held out; 1.0 holds out everything.
        seed: seed of the split.
        hold_out: method, as in `DataConfig`.
        groups: group of each image, all of which are on one side; None splits the images of each class.
        kind: kind of the files, for errors.

    Returns:
        Whether each image is held out, bool of shape [n].

    Raises:
        DataError: a class has one image only, or no group can be held out.
    """
    if groups is not None:
        how: Any = {"val_fraction": val_fraction, "seed": seed, "hold_out": hold_out}
        held_out = held_out_groups(groups, targets, where, **how)
        if val_fraction < 1:
            lacking = lacking_classes(targets, held_out, classes)
            warn_without_validation(f"the held-out part of {where}", lacking, kind)
        return held_out
    choose = stratified_hold_out if hold_out == "exact" else stable_hold_out
    held_out = np.full(len(targets), val_fraction == 1)
    for target in np.unique(targets) if val_fraction < 1 else ():
        members = np.flatnonzero(targets == target)
        if len(members) < 2:
            raise DataError(
                f"class {classes[target]!r} in {where} holds one {kind.noun}; at least two are needed to "
                f"train on one and validate on another. Add {kind.noun}s, or make train/ and val/ folders, "
                "where val/ may lack the class."
            )
        chosen = choose([names[int(index)] for index in members], val_fraction, seed)
        held_out[members[sorted(chosen)]] = True
    return held_out


def _below(samples: Sequence[Sample], top: Path) -> list[str]:
    """Return the paths of samples below the folders of their classes, which are in `top`."""
    return [relative(name, top).partition("/")[2] for name, _ in samples]


def split_rows(
    targets: np.ndarray, names: Sequence[str], val_fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of training and of held-out samples: `val_fraction` of each class, rounded."""
    held_out = np.full(len(targets), val_fraction == 1)
    for target in np.unique(targets) if val_fraction < 1 else ():
        members = np.flatnonzero(targets == target)
        chosen = stratified_hold_out([names[int(index)] for index in members], val_fraction, seed)
        held_out[members[sorted(chosen)]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def stable_hold_out(names: Sequence[str], val_fraction: float, seed: int) -> set[int]:
    """Return the indices of the held-out names of one class, decided for each name by its own digest.

    A name stays on its side when others are added or removed; `val_fraction` is held out on average. At least
    one name is held out, and never all.
    """
    values = fractions(names, seed)
    ranked = sorted(range(len(names)), key=values.__getitem__)
    number = sum(value < val_fraction for value in values)
    return set(ranked[: min(max(number, 1), len(names) - 1)])


def stratified_hold_out(names: Sequence[str], val_fraction: float, seed: int) -> set[int]:
    """Return the indices of the held-out names of one class: those with the lowest digests.

    `val_fraction` of them, rounded, but at least one name is held out, and never all.
    """
    number = min(max(round(val_fraction * len(names)), 1), len(names) - 1)
    return set(sorted(range(len(names)), key=digests(names, seed).__getitem__)[:number])


def folder_fingerprint(root: Path, sides: Sequence[Sequence[Sample]], classes: Sequence[str]) -> str:
    """Return a hash of the side, name (from the root) and class of every file."""
    lines = sorted(
        f"{number}\0{relative(name, root)}\0{classes[target]}"
        for number, side in enumerate(sides)
        for name, target in side
    )
    return blake2b("\n".join(lines).encode(errors="surrogateescape"), digest_size=16).hexdigest()


def relative(name: str, root: Path) -> str:
    """Return the path of a file relative to its root, with slashes.

    String operations are used, as `Path` is slow for millions of files.
    """
    return name.removeprefix(str(root)).lstrip(os.sep).replace(os.sep, "/")


def existing_folder(root: str) -> Path:
    """Return the path of a folder, or raise DataError if there is none."""
    path = Path(root).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise DataError(
            f"{path} is a file; folder:PATH must name the folder that holds train/ and val/ or the classes."
        )
    parent = next(parent for parent in path.absolute().parents if parent.is_dir())
    inside = join_some(_subfolders(parent)) or "no folders"
    raise DataError(f"there is no folder {path}. The nearest that exists is {parent}, which holds {inside}.")


def _subfolders(path: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(path) if is_folder(entry) and not is_stray(entry.name))


def _sides(path: Path, kind: FileKind) -> tuple[Path | None, Path | None]:
    """Return the folders train/ and val/, in upper or lower case; None for one without class folders."""
    held = {name.lower(): path / name for name in reversed(_subfolders(path))}
    train, val = (
        next((held[name] for name in names if name in held), None) for names in (TRAIN_NAMES, VAL_NAMES)
    )
    if train is not None and not _subfolders(train):
        train = None
    if val is not None and not _subfolders(val):
        if (train is not None or len(held) == 1) and (number := _count(val, kind)):
            # The test images of a competition have no labels: only train/ has class folders.
            instead = f"; or train on folder:{train}, of which data.val_fraction is held out" if train else ""
            raise DataError(
                f"{val} holds {number} {kind.noun}s but no class folders: {CLASS_FOLDERS}{instead}."
            )
        if train is None:
            val = None
    return train, val


def _count(path: Path, kind: FileKind) -> int:
    return sum(entry.name.lower().endswith(kind.suffixes) for entry in os.scandir(path))


def _classes(path: Path, kind: FileKind) -> tuple[str, ...]:
    names = _subfolders(path)
    check_text(path, names)
    if not names:
        if archives := sorted(entry.name for entry in os.scandir(path) if entry.name.endswith(".tar")):
            raise DataError(
                f"{path} holds archives ({join_some(archives)}): {_archive_advice(path, archives)}."
            )
        files = sum(entry.is_file() for entry in os.scandir(path))
        held = f"{files} files but no folders" if files else "nothing"
        raise DataError(
            f"{path} holds {held}; put the {kind.noun}s of each class in a folder of its own in it."
        )
    return tuple(names)


def check_text(where: str | Path, names: Iterable[str]) -> None:
    """Refuse class folders whose names are not UTF-8: a run stores its classes as text."""
    for name in names:
        if name.encode("utf-8", "replace").decode("utf-8") != name:
            raise DataError(f"the class folder {name!r} in {where} has a name that is not UTF-8; rename it.")


def _archive_advice(path: Path, archives: Sequence[str]) -> str:
    if any(name.startswith("ILSVRC2012_img") for name in archives):
        return ORIGINAL_ARCHIVES
    return f"tar:{path} reads them as they are"


def _check_classes(train: Path, val: Path, kind: FileKind) -> None:
    """Refuse a class without training images."""
    if unknown := set(_classes(val, kind)) - set(_classes(train, kind)):
        noun = "class" if len(unknown) == 1 else "classes"
        raise DataError(
            f"{train} lacks the {noun} {join_some(sorted(unknown))} of {val}; put {kind.noun}s of it "
            f"there, or remove it from {val.name}/."
        )


def warn_without_validation(val: str | Path, names: Iterable[str], kind: FileKind = IMAGES) -> None:
    """Warn about the classes that have no validation images."""
    if lacking := sorted(names):
        noun = "class" if len(lacking) == 1 else "classes"
        warnings.warn(
            f"{val} holds no {kind.noun}s of the {noun} {join_some(lacking)}, for which nothing is measured.",
            SourceWarning,
            stacklevel=2,
        )


def _samples(
    path: Path, classes: Sequence[str], kind: FileKind, *, validated: bool = False, nested: bool = False
) -> tuple[list[Sample], bool]:
    """Return the images of a side in the order of the class folders, and whether links lead to some.

    Args:
        path: holds a folder for each class.
        classes: names, in the order of the class indices; a class may lack its folder.
        kind: kind of the files.
        validated: this is the validation side, in which some class folders may be empty.
        nested: class folders may hold folders only, such as those of groups.
    """
    present = set(_subfolders(path))
    if unknown := sorted(present - set(classes)):
        raise DataError(
            f"{path} holds classes that are not known: {join_some(unknown)}. Known are {join_some(classes)}."
        )
    index = {name: number for number, name in enumerate(classes) if name in present}
    if not index:
        raise DataError(f"{path} holds none of the class folders {join_some(classes)}.")
    samples: list[Sample] = []
    others: Counter[str] = Counter()
    stray = []
    for entry in os.scandir(path):
        if is_stray(entry.name):
            stray += [entry.name] * is_folder(entry)
        elif entry.name.lower().endswith(kind.suffixes):
            others["in no class folder"] += 1
    linked, empty = path.is_symlink(), {}
    for name, number in sorted(index.items()):
        if not nested:
            _check_class(path / name)
        found = find_images(str(path / name), kind.suffixes)
        if not found.images:
            empty[name] = found.others
        samples += [(image, number) for image in found.images]
        others += found.others
        stray += found.stray
        linked |= found.linked
    if empty and not (validated and samples):
        name, held = next(iter(empty.items()))
        raise DataError(f"class folder {path / name} holds no {kind.noun}s; {_other_content(held, kind)}.")
    warn_left_out(str(path), others, stray)
    return (_without_duplicates(samples, classes, kind) if linked else samples), linked


def _check_disjoint(train: list[Sample], val: list[Sample], kind: FileKind) -> None:
    """Refuse validation images that are also training images, by a link."""
    seen = {}
    for name, _ in train:
        if (file := identity(name)) is not None:
            seen[file] = name
    for name, _ in val:
        if (file := identity(name)) in seen:
            raise DataError(
                f"{name} and {seen[file]} are one file, by a link: a validation {kind.noun} must not be a "
                f"training {kind.noun}; remove one of them."
            )


def _without_duplicates(samples: list[Sample], classes: Sequence[str], kind: FileKind) -> list[Sample]:
    """Keep each file once, under the first of its names; refuse a file in two classes."""
    seen: dict[tuple[int, int], Sample] = {}
    kept = []
    for name, target in samples:
        file = identity(name)
        if file is None or file not in seen:
            kept.append((name, target))
        if file is not None:
            first, its = seen.setdefault(file, (name, target))
            if its != target:
                raise DataError(
                    f"{first} and {name} are one file, by a link, in the classes {classes[its]!r} and "
                    f"{classes[target]!r}; remove one of them."
                )
    if len(kept) < len(samples):
        warnings.warn(
            f"{len(samples) - len(kept)} of {len(samples)} names of {kind.noun}s are links to others of the "
            "same class and are left out.",
            SourceWarning,
            stacklevel=2,
        )
    return kept


def _check_class(path: Path) -> None:
    """Raise DataError if a class folder holds only folders; beside files, folders are parts of the class."""
    inside = [entry for entry in os.scandir(path) if not is_stray(entry.name)]
    if inside and all(map(is_folder, inside)):
        names = join_some(sorted(entry.name for entry in inside))
        raise DataError(
            f"{path} is read as a class but holds only folders: {names}. If these are the "
            "classes, name the folders around them train/ and val/, or give the path of one of those."
        )


def _other_content(suffixes: Counter[str], kind: FileKind) -> str:
    known = "known are " + " ".join(kind.suffixes)
    if not suffixes:
        return f"it is empty ({known})"
    return f"it holds files of other kinds ({join_some(suffixes)}); {known}"
