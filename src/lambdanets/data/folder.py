"""Folders of images: train/ and val/ with a folder for each class, or one folder of classes that is split."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from lambdanets.utils.text import join_some

from .config import HoldOut
from .errors import DataError, SourceWarning
from .files import find_images, identity, is_folder, is_stray, warn_left_out
from .images import IMAGE_SUFFIXES

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
Sample = tuple[str, int]


@dataclass(frozen=True)
class Folder:
    """What a folder holds: (path, class) pairs and the classes' names."""

    train: list[Sample]
    val: list[Sample]
    classes: tuple[str, ...]


def read_folder(
    root: str,
    *,
    val_fraction: float,
    seed: int,
    classes: Sequence[str] | None = None,
    hold_out: HoldOut = "exact",
) -> Folder:
    """Find the images of a folder and their split.

    Symbolic links are followed. A file that has several names in a class is taken once. Files of other kinds
    and what is hidden are left out, with a warning.

    Args:
        root: holds train/ and val/ (or validation/, valid/, test/) with one folder per class, or the class
            folders themselves, which are then split.
        val_fraction: part of each class that is held out where the folder is not split; 1.0 takes all.
        seed: of the split. An image's side depends on the seed and on names alone.
        classes: number the classes in this order; None takes the sorted folder names.
        hold_out: how a folder that is not split is, as in `DataConfig`.

    Raises:
        DataError: there is no such folder, no class in it, the two sides do not agree, a link leads round in
            a circle, or a file belongs to two classes or to both sides.
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
            _check_classes(train, val)
        trained, linked = _samples(train, names) if train is not None else ([], False)
        measured, linked_too = _samples(val, names, measured=True)
        if classes is None and (linked or linked_too):
            _check_apart(trained, measured)
        if classes is None:
            held = {target for _, target in measured}
            warn_unmeasured(val, [name for number, name in enumerate(names) if number not in held])
        return Folder(trained, measured, names)
    top = train or path
    names = tuple(classes) if classes else _classes(top)
    samples, _ = _samples(top, names)
    held_out = which_held_out(
        [relative(name, top) for name, _ in samples],
        np.array([target for _, target in samples], np.int64),
        names,
        top,
        val_fraction=val_fraction,
        seed=seed,
        hold_out=hold_out,
    )
    sides: tuple[list[Sample], list[Sample]] = ([], [])
    for sample, out in zip(samples, held_out.tolist(), strict=True):
        sides[out].append(sample)
    return Folder(*sides, names)


def which_held_out(
    names: Sequence[str],
    targets: np.ndarray,
    classes: Sequence[str],
    place: str | Path,
    *,
    val_fraction: float,
    seed: int,
    hold_out: HoldOut,
) -> np.ndarray:
    """Return which images are held out, booleans of shape (n,), by their names class by class."""
    choose = stratum if hold_out == "exact" else below_threshold
    held_out = np.full(len(targets), val_fraction == 1)
    for target in np.unique(targets) if val_fraction < 1 else ():
        members = np.flatnonzero(targets == target)
        if len(members) < 2:
            raise DataError(
                f"class {classes[target]!r} in {place} holds one image; at least two are needed to train on "
                "one and validate on another. Add images, or make train/ and val/ folders, where val/ may "
                "lack the class."
            )
        chosen = choose([names[int(index)] for index in members], val_fraction, seed)
        held_out[members[sorted(chosen)]] = True
    return held_out


def below_threshold(names: Sequence[str], val_fraction: float, seed: int) -> set[int]:
    """Return which of the names of one class are held out, each by its own digest.

    A name stays on its side while others come and go; the part is met on average. At least one is held out,
    and never all.
    """
    places = [int.from_bytes(digest[:8], "big") / 2**64 for digest in digests(names, seed)]
    ranked = sorted(range(len(names)), key=places.__getitem__)
    number = sum(place < val_fraction for place in places)
    return set(ranked[: min(max(number, 1), len(names) - 1)])


def stratum(names: Sequence[str], val_fraction: float, seed: int) -> set[int]:
    """Return which of the names of one class are held out, exactly that part: those of the lowest digests.

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
    inside = join_some(_subfolders(parent)) or "no folders"
    raise DataError(f"there is no folder {path}. The nearest that exists is {parent}, which holds {inside}.")


def _subfolders(path: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(path) if is_folder(entry) and not is_stray(entry.name))


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
            # The images of a contest's test/ have no labels: there the classes are in train/ alone.
            instead = f"; or train on folder:{train}, of which data.val_fraction is held out" if train else ""
            raise DataError(f"{val} holds {images} images but no class folders: {CLASS_FOLDERS}{instead}.")
        if train is None:
            val = None
    return train, val


def _images(path: Path) -> int:
    return sum(entry.name.lower().endswith(IMAGE_SUFFIXES) for entry in os.scandir(path))


def _classes(path: Path) -> tuple[str, ...]:
    names = _subfolders(path)
    check_text(path, names)
    if not names:
        if archives := sorted(entry.name for entry in os.scandir(path) if entry.name.endswith(".tar")):
            raise DataError(f"{path} holds archives ({join_some(archives)}): {_unpacked(path, archives)}.")
        files = sum(entry.is_file() for entry in os.scandir(path))
        held = f"{files} files but no folders" if files else "nothing"
        raise DataError(f"{path} holds {held}; put the images of each class in a folder of its own in it.")
    return tuple(names)


def check_text(place: str | Path, names: Iterable[str]) -> None:
    """Refuse class folders whose names are bytes that are no UTF-8: a run stores its classes as text."""
    for name in names:
        if name.encode("utf-8", "replace").decode("utf-8") != name:
            raise DataError(f"the class folder {name!r} in {place} has a name that is not UTF-8; rename it.")


def _unpacked(path: Path, archives: Sequence[str]) -> str:
    if any(name.startswith("ILSVRC2012_img") for name in archives):
        return ORIGINAL_ARCHIVES
    return f"tar:{path} reads them as they are"


def _check_classes(train: Path, val: Path) -> None:
    """Refuse a class that cannot be learnt."""
    if unknown := set(_classes(val)) - set(_classes(train)):
        what = "class" if len(unknown) == 1 else "classes"
        raise DataError(
            f"{train} lacks the {what} {join_some(sorted(unknown))} of {val}; put images of it there, or "
            "remove it "
            f"from {val.name}/."
        )


def warn_unmeasured(val: str | Path, names: Iterable[str]) -> None:
    """Say which classes have no validation images."""
    if lacking := sorted(names):
        what = "class" if len(lacking) == 1 else "classes"
        warnings.warn(
            f"{val} holds no images of the {what} {join_some(lacking)}, for which nothing is measured.",
            SourceWarning,
            stacklevel=2,
        )


def _samples(path: Path, classes: Sequence[str], *, measured: bool = False) -> tuple[list[Sample], bool]:
    """The images of a side, class by class, and whether links lead to some; validation may lack a class."""
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
        elif entry.name.lower().endswith(IMAGE_SUFFIXES):
            others["in no class folder"] += 1
    linked, empty = path.is_symlink(), {}
    for name, number in sorted(index.items()):
        _check_class(path / name)
        found = find_images(str(path / name), IMAGE_SUFFIXES)
        if not found.images:
            empty[name] = found.others
        samples += [(image, number) for image in found.images]
        others += found.others
        stray += found.stray
        linked |= found.linked
    if empty and not (measured and samples):
        name, held = next(iter(empty.items()))
        raise DataError(f"class folder {path / name} holds no images; {_instead(held)}.")
    warn_left_out(str(path), others, stray)
    return (_once(samples, classes) if linked else samples), linked


def _check_apart(train: list[Sample], val: list[Sample]) -> None:
    """Refuse validation images that are training images, too, by a link."""
    seen = {}
    for name, _ in train:
        if (file := identity(name)) is not None:
            seen[file] = name
    for name, _ in val:
        if (file := identity(name)) in seen:
            raise DataError(
                f"{name} and {seen[file]} are one file, by a link: a run is validated on images that it is "
                "not trained on; remove one of them."
            )


def _once(samples: list[Sample], classes: Sequence[str]) -> list[Sample]:
    """Each file once, by the first of its names; a file has one class."""
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
            f"{len(samples) - len(kept)} of {len(samples)} names of images are links to others of the same "
            "class and are left out.",
            SourceWarning,
            stacklevel=2,
        )
    return kept


def _check_class(path: Path) -> None:
    """Refuse what looks like a level too high; folders beside files are taken as parts of the class."""
    inside = [entry for entry in os.scandir(path) if not is_stray(entry.name)]
    if inside and all(map(is_folder, inside)):
        names = join_some(sorted(entry.name for entry in inside))
        raise DataError(
            f"{path} is read as a class but holds only folders: {names}. If these are the "
            "classes, name the folders around them train/ and val/, or give the path of one of those."
        )


def _instead(suffixes: Counter[str]) -> str:
    known = "known are " + " ".join(IMAGE_SUFFIXES)
    if not suffixes:
        return f"it is empty ({known})"
    return f"it holds files of other kinds ({join_some(suffixes)}); {known}"
