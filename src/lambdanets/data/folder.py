"""Folders of images: train/ and val/ with a folder for each class, or one folder of classes that is split."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from ..wording import few
from .errors import DataError

TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "validation", "valid", "test")
IMAGE_SUFFIXES = (*IMG_EXTENSIONS, ".gif", ".jfif")
ORIGINAL_ARCHIVES = (
    "ImageNet's original archives are unpacked into class folders by torchvision: "
    "torchvision.datasets.ImageNet(PATH, split='train'), and again with split='val'"
)
CLASS_FOLDERS = (
    "put those of each class in a folder of its own (valprep.sh of soumith/imagenetloader.torch does it for "
    "ImageNet's val/)"
)
Sample = tuple[str, int]


@dataclass(frozen=True)
class Folder:
    """What a folder holds: (path, class) pairs and the classes' names."""

    train: list[Sample]
    val: list[Sample]
    classes: tuple[str, ...]


def read_folder(root: str, *, val_fraction: float, seed: int, classes: Sequence[str] | None = None) -> Folder:
    """Find the images of a folder and their split.

    Args:
        root: holds train/ and val/ (or validation/, valid/, test/) with one folder per class, or the class
            folders themselves, which are then split.
        val_fraction: part of each class that is held out where the folder is not split; 1.0 takes all.
        seed: of the split. An image's side depends on the seed and on names alone.
        classes: number the classes in this order; None takes the sorted folder names.

    Raises:
        DataError: there is no such folder, no class in it, or the two sides do not agree.
    """
    path = existing(root)
    train, val = _sides(path)
    if train is None and val is not None and classes is None:
        raise DataError(
            f"{path} holds {val.name}/ but no train/ with class folders: there is nothing to train on."
        )
    if val is not None:
        names = tuple(classes) if classes else _classes(train or val)
        if train is not None and classes is None:
            _same_classes(train, val)
        return Folder(_samples(train, names) if train else [], _samples(val, names), names)
    top = train or path
    names = tuple(classes) if classes else _classes(top)
    held_out = split(_samples(top, names), names, top, val_fraction=val_fraction, seed=seed)
    return Folder(*held_out, names)


def split(
    samples: list[Sample], classes: Sequence[str], top: Path, *, val_fraction: float, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """Divide samples class by class; a file stays on its side while others come and go around it.

    The part that is held out is met on average. Only where a class would have an empty side does the nearest
    file change over to it.
    """
    names = [relative(name, top) for name, _ in samples]
    targets = np.array([target for _, target in samples], np.int64)
    held_out = which_held_out(names, targets, classes, top, val_fraction=val_fraction, seed=seed)
    sides: tuple[list[Sample], list[Sample]] = ([], [])
    for sample, out in zip(samples, held_out.tolist(), strict=True):
        sides[out].append(sample)
    return sides


def which_held_out(
    names: Sequence[str],
    targets: np.ndarray,
    classes: Sequence[str],
    place: str | Path,
    *,
    val_fraction: float,
    seed: int,
) -> np.ndarray:
    """Return which images are held out, booleans of shape (n,), by their names class by class."""
    held_out = np.full(len(targets), val_fraction == 1)
    for target in np.unique(targets) if val_fraction < 1 else ():
        members = np.flatnonzero(targets == target)
        if len(members) < 2:
            raise DataError(
                f"class {classes[target]!r} in {place} holds one image; at least two are needed to train on "
                "one and validate on another. Add images, or make train/ and val/ folders."
            )
        chosen = below_threshold([names[int(index)] for index in members], val_fraction, seed)
        held_out[members[sorted(chosen)]] = True
    return held_out


def below_threshold(names: Sequence[str], val_fraction: float, seed: int) -> set[int]:
    """Return which of the names of one class are held out, each by its own digest: for files that may change.

    At least one is held out, and never all.
    """
    places = [int.from_bytes(digest[:8], "big") / 2**64 for digest in digests(names, seed)]
    ranked = sorted(range(len(names)), key=places.__getitem__)
    number = sum(place < val_fraction for place in places)
    return set(ranked[: min(max(number, 1), len(names) - 1)])


def stratum(names: Sequence[str], val_fraction: float, seed: int) -> set[int]:
    """Return which of the names of one class are held out, exactly that part: for a set that is fixed.

    At least one is held out, and never all.
    """
    number = min(max(round(val_fraction * len(names)), 1), len(names) - 1)
    return set(sorted(range(len(names)), key=digests(names, seed).__getitem__)[:number])


def digests(names: Sequence[str], seed: int) -> list[bytes]:
    """Return a digest of each name, by which names are ranked as if at random."""
    return [blake2b(f"{seed}/{name}".encode(errors="surrogateescape")).digest() for name in names]


def fingerprint(root: Path, sides: Sequence[Sequence[Sample]], classes: Sequence[str]) -> str:
    """Return a hash of which file, named from the root, is of which class on which side."""
    lines = sorted(
        f"{number}\0{relative(name, root)}\0{classes[target]}"
        for number, side in enumerate(sides)
        for name, target in side
    )
    return blake2b("\n".join(lines).encode(errors="surrogateescape"), digest_size=16).hexdigest()


def relative(name: str, root: Path) -> str:
    """Return the name, from its root, of a file found there: by its letters, as there may be millions."""
    return name.removeprefix(str(root)).lstrip(os.sep).replace(os.sep, "/")


def existing(root: str) -> Path:
    path = Path(root).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise DataError(
            f"{path} is a file; folder:PATH wants the folder that holds train/ and val/ or the classes."
        )
    parent = next(parent for parent in path.absolute().parents if parent.is_dir())
    inside = few(_subfolders(parent)) or "no folders"
    raise DataError(f"there is no folder {path}. The nearest that exists is {parent}, which holds {inside}.")


def _subfolders(path: Path) -> list[str]:
    return sorted(
        entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith(".")
    )


def _sides(path: Path) -> tuple[Path | None, Path | None]:
    """The sides of a folder that is split, in any case; without class folders `train` is a class itself."""
    held = {name.lower(): path / name for name in reversed(_subfolders(path))}
    train, val = (
        next((held[name] for name in names if name in held), None) for names in (TRAIN_NAMES, VAL_NAMES)
    )
    if train is not None and not _subfolders(train):
        train = None
    if val is not None and not _subfolders(val):
        if (train is not None or len(held) == 1) and (images := _images(val)):
            raise DataError(f"{val} holds {images} images but no class folders: {CLASS_FOLDERS}.")
        if train is None:
            val = None
    return train, val


def _images(path: Path) -> int:
    return sum(entry.name.lower().endswith(IMAGE_SUFFIXES) for entry in os.scandir(path))


def _classes(path: Path) -> tuple[str, ...]:
    names = _subfolders(path)
    if not names:
        if archives := sorted(entry.name for entry in os.scandir(path) if entry.name.endswith(".tar")):
            raise DataError(f"{path} holds archives ({few(archives)}): {_unpacked(path, archives)}.")
        files = sum(entry.is_file() for entry in os.scandir(path))
        held = f"{files} files but no folders" if files else "nothing"
        raise DataError(f"{path} holds {held}; put the images of each class in a folder of its own in it.")
    return tuple(names)


def _unpacked(path: Path, archives: Sequence[str]) -> str:
    if any(name.startswith("ILSVRC2012_img") for name in archives):
        return ORIGINAL_ARCHIVES
    return f"tar:{path} reads them as they are"


def _same_classes(train: Path, val: Path) -> None:
    of_train, of_val = _classes(train), _classes(val)
    for there, path, names in (
        (train, val, set(of_train) - set(of_val)),
        (val, train, set(of_val) - set(of_train)),
    ):
        if names:
            what = "class" if len(names) == 1 else "classes"
            raise DataError(
                f"{path} lacks the {what} {few(sorted(names))} of {there}; "
                "both must hold the same class folders."
            )


def _samples(path: Path, classes: Sequence[str]) -> list[Sample]:
    present = set(_subfolders(path))
    if unknown := sorted(present - set(classes)):
        raise DataError(f"{path} holds classes that are not known: {few(unknown)}. Known are {few(classes)}.")
    index = {name: number for number, name in enumerate(classes) if name in present}
    if not index:
        raise DataError(f"{path} holds none of the class folders {few(classes)}.")
    for name in index:
        _check_class(path / name)
    found = make_dataset(str(path), index, extensions=IMAGE_SUFFIXES, allow_empty=True)
    samples = [(name, number) for name, number in found if not os.path.basename(name).startswith(".")]
    filled = {number for _, number in samples}
    for name, number in index.items():
        if number not in filled:
            raise DataError(f"class folder {path / name} holds no images; {_instead(path / name)}.")
    return samples


def _check_class(path: Path) -> None:
    """Refuse what looks like a level too high; folders beside files are taken as parts of the class."""
    inside = [entry for entry in os.scandir(path) if not entry.name.startswith(".")]
    if inside and all(entry.is_dir() for entry in inside):
        names = few(sorted(entry.name for entry in inside))
        raise DataError(
            f"{path} is read as a class but holds only folders: {names}. If these are the "
            "classes, name the folders around them train/ and val/, or give the path of one of those."
        )


def _instead(path: Path) -> str:
    suffixes = Counter(
        Path(name).suffix.lower() or "no suffix" for _, _, files in os.walk(path) for name in files
    )
    known = "known are " + " ".join(IMAGE_SUFFIXES)
    if not suffixes:
        return f"it is empty ({known})"
    return f"it holds files of other kinds ({few(suffixes)}); {known}"
