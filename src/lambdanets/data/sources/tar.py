"""The source `tar:PATH`: images in tar archives, with sides and classes by names, folders or .cls files."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lambdanets.utils.files import parse_json
from lambdanets.utils.text import join_some

from ..config import DataConfig
from ..errors import DataError
from ..files import open_regular
from ..groups import check_apart, name_groups
from .folder import (
    CLASS_FOLDERS,
    TRAIN_NAMES,
    VAL_NAMES,
    check_text,
    containing_directory,
    held_out_mask,
    warn_without_validation,
)
from .protocol import ImageSplits, IndexedSource, absolute
from .tar_images import TarImages, unlabelled_tar
from .tar_index import read_members
from .tar_paths import NEITHER, TRAIN, UNDECIDED, VAL, find_archives
from .tar_scan import Members

CLASSES = "classes.json"
NUMBER = re.compile(r"-?\d+")  # the content of a .cls file that is a class number
MAX_CLASS_NUMBER = 10**6  # highest class number that is accepted without a list of the classes


@dataclass(frozen=True)
class ClassWords:
    """The classes of images, as words: contents of .cls files or names of folders.

    Args:
        words: the distinct words.
        inverse: index of the word of each image, of shape [n].
        numbers: whether all words are class numbers, as usual in WebDataset's .cls files.
    """

    words: list[str]
    inverse: np.ndarray
    numbers: bool


class TarSource(IndexedSource):
    """Images inside tar archives, read without unpacking.

    Classes are folders inside the archives, or .cls files beside the images. A side is given by the archives'
    names, or by train/ and val/ inside them; else the images are split by `val_fraction`.
    """

    form = "tar:PATH"
    help = "the same in tar archives, read without unpacking: shards of WebDataset or class folders"
    sharded = True
    unlabelled = True
    grouped = True

    def resolved(self) -> str:
        return f"tar:{absolute(self.root)}"

    def file_root(self) -> Path | None:
        return Path()  # the paths of images are relative already: ARCHIVE#NAME

    def directory(self) -> str | None:
        return containing_directory(self.root)

    def open_unlabelled(self, in_chans: int, max_pixels: int) -> TarImages:
        return unlabelled_tar(self.root, in_chans, max_pixels)

    def open(self, config: DataConfig, *, seed: int, classes: Sequence[str] | None = None) -> ImageSplits:
        path = self.require_root()
        found = find_archives(path)
        members = read_members(found.root, found.names, skip=config.on_bad_image == "skip")
        archive_sides = np.repeat(list(found.sides), [len(names) for names in found.sides.values()])
        sides, labels, depths = _sides_and_labels(found.root, members, archive_sides[members.shard], classes)
        declared = declared_classes(found.root, os.path.dirname(found.names[0]))
        names, targets = _class_indices(path, labels, sides, classes, declared)

        def groups(chosen: np.ndarray) -> list[str]:
            inside = zip(members.names[chosen], depths[chosen], strict=True)
            below = [os.fsdecode(name).split("/")[depth:] for name, depth in inside]
            return name_groups(["/".join(parts) for parts in below], config.group or "", path)

        if (sides == UNDECIDED).any():
            undecided = np.flatnonzero(sides == UNDECIDED)
            held_out = held_out_mask(
                [os.fsdecode(members.names[index]) for index in undecided],
                targets[undecided],
                names,
                path,
                val_fraction=config.val_fraction,
                seed=seed,
                hold_out=config.hold_out,
                groups=None if config.group is None or config.val_fraction == 1 else groups(undecided),
            )
            sides[undecided] = np.where(held_out, VAL, TRAIN)
        elif config.group is not None and classes is None:
            check_apart(groups(np.flatnonzero(sides == TRAIN)), groups(np.flatnonzero(sides == VAL)), path)
        train, val = (np.flatnonzero(sides == side) for side in (TRAIN, VAL))
        images = TarImages(found.root, members, targets, config.in_chans, config.max_pixels)
        return ImageSplits(images.subset(train), images.subset(val), names)


def _sides_and_labels(
    root: str, members: Members, sides: np.ndarray, classes: Sequence[str] | None
) -> tuple[np.ndarray, ClassWords, np.ndarray]:
    """Return side, class word and depth of every image, from .cls files or from folders.

    The sides and depths have the shape [n]. The depth is the number of folders in the name of an image down
    to that of its class, which is included; 0 with .cls files.
    """
    words, inverse = np.unique(members.labels, return_inverse=True)
    has_label = words != b""  # `words.all()` is an error for bytes in NumPy 1
    if has_label.all():
        decoded = [word.decode("utf-8", "replace") for word in words]
        words = ClassWords(decoded, inverse, all(NUMBER.fullmatch(word) for word in decoded))
        return sides, words, np.zeros(len(sides), np.intp)
    if has_label.any():
        raise DataError(f"some archives in {root} have .cls files and others do not; make them alike.")
    # Folders are distinguished by side, as archives of train and of val may be packed from different levels.
    folders, inverse = np.unique(
        [
            b"%d/%s" % (side, name.rpartition(b"/")[0])
            for side, name in zip(sides, members.names, strict=True)
        ],
        return_inverse=True,
    )
    paths = [os.fsdecode(folder).split("/") for folder in folders]
    _check_flat(root, members, np.array([path[1:] == [""] for path in paths])[inverse])
    side_of = np.array([int(path[0]) for path in paths])
    label_of, depth_of = [""] * len(paths), np.zeros(len(paths), np.intp)
    for side in np.unique(side_of):
        own = np.flatnonzero(side_of == side)
        inside = _without_outer_folders([paths[number][1:] for number in own], side == UNDECIDED, classes)
        split = _split_inside(root, inside) if side == UNDECIDED else {}
        for number, path in zip(own, inside, strict=True):
            if split:
                side_of[number] = split.get(path[0], NEITHER) if len(path) > 1 else NEITHER
                path = path[1:] or path
            label_of[number] = path[0]
            depth_of[number] = len(paths[number]) - len(path)
    labels, of_folder = np.unique(np.array(label_of, np.str_), return_inverse=True)
    return side_of[inverse], ClassWords(labels.tolist(), of_folder[inverse], False), depth_of[inverse]


def _check_flat(root: str, members: Members, flat: np.ndarray) -> None:
    """Raise DataError if any image [n] is flat: in no folder of its archive, so that it has no class."""
    if flat.any():
        shard = members.shard[flat.argmax()]
        path = os.path.join(root, members.shards[shard])
        raise DataError(
            f"{path} holds {int((flat & (members.shard == shard)).sum())} images without class folders or "
            f".cls files: unpack it, {CLASS_FOLDERS}, then read folder:PATH or make shards of it with "
            "`lambdanets shard`."
        )


def _without_outer_folders(
    paths: list[list[str]], undecided: bool, classes: Sequence[str] | None
) -> list[list[str]]:
    """Remove the outer folders that all paths share, except val/, which is the side of undecided images."""
    while len({path[0] for path in paths}) == 1 and min(map(len, paths)) > 1:
        head = paths[0][0]
        if head in (classes or ()) or (undecided and head.lower() in VAL_NAMES):
            break
        paths = [path[1:] for path in paths]
    return paths


def _split_inside(root: str, paths: list[list[str]]) -> dict[str, int]:
    """Return the sides of the folders inside the archives, by name; empty if these are classes."""
    deep = {path[0].lower(): path[0] for path in paths if len(path) > 1}
    train, val = (
        next((deep[name] for name in names if name in deep), "") for names in (TRAIN_NAMES, VAL_NAMES)
    )
    if train and not val:
        if any(path[0].lower() in VAL_NAMES for path in paths):
            raise DataError(f"val/ in the archives of {root} holds no class folders: {CLASS_FOLDERS}.")
        return {train: UNDECIDED}
    return {train: TRAIN, val: VAL} if train else {val: VAL} if val else {}


def declared_classes(root: str, *folders: str) -> tuple[str, ...] | None:
    """Return the classes of classes.json, if the root or one of its `folders` holds one."""
    for folder in ("", *folders):
        path = os.path.join(root, folder, CLASSES)
        if not os.path.isfile(path):
            continue
        try:
            with open_regular(path) as file:
                names = parse_json(file.read())
        except ValueError:
            names = None
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise DataError(f'{path} must be a list of the classes\' names, such as ["cat", "dog"].')
        if len(set(names)) < len(names):
            raise DataError(f"{path} lists the class {Counter(names).most_common(1)[0][0]!r} twice.")
        return tuple(names)
    return None


def _class_indices(
    path: str,
    labels: ClassWords,
    sides: np.ndarray,
    classes: Sequence[str] | None,
    declared: Sequence[str] | None,
) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the class names in order, and the class index of every image [n], -1 if it is not used."""
    number = len(labels.words)
    held = np.array([np.bincount(labels.inverse[sides == side], minlength=number) > 0 for side in range(4)])
    used = np.flatnonzero(held[:NEITHER].any(axis=0))
    words = dict(zip(used.tolist(), (labels.words[index] for index in used), strict=True))
    if labels.numbers:
        names_by_number = declared or classes
        if names_by_number is None:
            highest = min(max(map(int, words.values())), MAX_CLASS_NUMBER)
            names_by_number = [str(index) for index in range(1 + highest)]
        if beyond := [word for word in words.values() if not 0 <= int(word) < len(names_by_number)]:
            raise DataError(
                f"{path} has the class number {beyond[-1]}, but there are {len(names_by_number)} classes "
                f"({join_some(names_by_number)}), numbered from 0."
            )
        words = {index: names_by_number[int(word)] for index, word in words.items()}
        order = tuple(classes or names_by_number)
    else:
        order = tuple(classes or declared or sorted(set(words.values())))
    check_text(path, order)
    class_index = {name: index for index, name in enumerate(order)}
    if unknown := sorted(set(words.values()) - set(class_index)):
        raise DataError(
            f"{path} holds classes that are not known: {join_some(unknown)}. Known are {join_some(order)}."
        )
    if classes is None:
        _check_sides(path, words, held, declared)
    targets = np.full(number, -1, np.int64)
    for index, word in words.items():
        targets[index] = class_index[word]
    return order, targets[labels.inverse]


def _check_sides(path: str, words: dict[int, str], held: np.ndarray, declared: Sequence[str] | None) -> None:
    """Check that the training side has every class of the validation side.

    Args:
        path: the path of the source, for messages.
        words: class name by index of the word.
        held: whether each side has images of each word, bool of shape [4, words].
        declared: classes of classes.json, of which the validation side may lack some; None warns.
    """
    if held[UNDECIDED].any():
        return
    if not held[TRAIN].any():
        raise DataError(
            f"{path} holds archives or folders of val but none of train: there is nothing to train on."
        )
    of_train, of_val = (
        {words[index] for index in np.flatnonzero(held[side]).tolist()} for side in (TRAIN, VAL)
    )
    if names := of_val - of_train:
        noun = "class" if len(names) == 1 else "classes"
        raise DataError(
            f"the training images of {path} lack the {noun} {join_some(sorted(names))} of the validation "
            "images."
        )
    if not declared:
        warn_without_validation(f"the validation side of {path}", of_train - of_val)
