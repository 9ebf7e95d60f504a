"""The tar archives that a path names, and the side of each of them."""

from __future__ import annotations

import glob
import importlib.util
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lambdanets.utils.text import join_some

from ..errors import DataError
from ..files import identity, is_stray, suffix_of, warn_left_out
from .folder import TRAIN_NAMES, VAL_NAMES

SUFFIX = ".tar"
COMPRESSED_SUFFIXES = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz|tzst)$")
# Sides of an archive or an image: UNDECIDED ones are split by a fraction, NEITHER ones are not used.
TRAIN, VAL, UNDECIDED, NEITHER = range(4)


@dataclass(frozen=True)
class Archives:
    """Archives named from a folder that holds all of them.

    Args:
        root: the folder.
        sides: names of the archives by side: TRAIN, VAL or UNDECIDED.
    """

    root: str
    sides: dict[int, list[str]]

    @property
    def names(self) -> list[str]:
        """All names, one side after the other."""
        return [name for names in self.sides.values() for name in names]


def find_archives(path: str) -> Archives:
    """Find the archives of `tar:PATH`.

    Args:
        path: a folder with train/ and val/, or with archives whose names contain a side as a word
            (train-000012.tar) or none; a pattern of such names with `*` or braces; or one archive.

    Raises:
        DataError: there are none, or only some of them name their side.
    """
    root = os.path.expanduser(path)
    if os.path.isdir(root):
        entries = sorted(os.listdir(root))
        folders = {
            name.lower(): found
            for name in entries
            if os.path.isdir(folder := os.path.join(root, name))
            and (found := _archives(root, folder, os.listdir(folder)))
        }
        if sides := _sides(folders):
            return Archives(root, sides)
        names = _archives(root, root, entries)
        if not names:
            raise _no_archives(root)
    else:
        paths = expand(root)
        root = os.path.commonpath([os.path.dirname(os.path.abspath(each)) for each in paths])
        names = [os.path.relpath(each, root) for each in paths]
    words: dict[str, list[str]] = {}
    for name in names:
        words.setdefault(side_word(name), []).append(name)
    if len(words) > 1 and "" in words:
        raise DataError(
            f"some archives in {root} name their side and others do not ({join_some(words[''])}): "
            "give all of them train or val as a word of their names, or none."
        )
    return Archives(root, _sides(words) or {UNDECIDED: words[""]})


def find_all_archives(path: str) -> tuple[str, list[str]]:
    """Return a folder, and all archives in it and in folders inside it, as paths relative to it."""
    root = os.path.expanduser(path)
    if not os.path.isdir(root):
        found = find_archives(path)
        return found.root, found.names
    names: list[str] = []
    for folder, inner, files in os.walk(root):
        inner[:] = [name for name in inner if not is_stray(name)]
        names += _archives(root, folder, files)
    if not names:
        raise _no_archives(root)
    return root, sorted(names)


def _sides(found: Mapping[str, list[str]]) -> dict[int, list[str]]:
    """Return archives by side, from lists by folder or word; training ones alone are to be split."""
    train, val = (
        next((found[name] for name in names if name in found), []) for names in (TRAIN_NAMES, VAL_NAMES)
    )
    if val:
        return {TRAIN: train, VAL: val}
    return {UNDECIDED: train} if train else {}


def check_distinct(root: str, names: Iterable[str]) -> None:
    """Refuse different names of one archive: its images would count twice, or be on both sides."""
    seen: dict[tuple[int, int], str] = {}
    for name in names:
        if (file := identity(os.path.join(root, name))) is None:
            continue
        if file in seen:
            raise DataError(
                f"{seen[file]} and {name} in {root} are one file: its images would count twice, or be both "
                "trained on and validated on; keep one."
            )
        seen[file] = name


def side_word(path: str) -> str:
    """Return the word of an archive's name that is the name of a side, "" if there is none."""
    words = re.split(r"[^a-z]+", os.path.basename(path).lower())
    return next((name for name in (*TRAIN_NAMES, *VAL_NAMES) if name in words), "")


def expand(pattern: str) -> list[str]:
    """Return the archives of a path with `*` or braces; every name in braces must exist."""
    names = [pattern]
    if "{" in pattern and not os.path.isfile(pattern):
        if importlib.util.find_spec("braceexpand") is None:
            raise DataError(
                f"the braces of {pattern!r} need the package braceexpand: pip install braceexpand"
            )
        from braceexpand import braceexpand

        names = list(braceexpand(pattern))
    paths: list[str] = []
    for name in names:
        found = [name] if os.path.isfile(name) else sorted(glob.glob(name))
        if not found:
            raise DataError(f"there is no tar archive {name}.")
        paths += found
    if not all(path.endswith(SUFFIX) for path in paths):
        wrong = next(path for path in paths if not path.endswith(SUFFIX))
        raise DataError(f"{wrong} is no .tar archive{_instead([wrong])}.")
    return list(dict.fromkeys(paths))


def _archives(root: str, folder: str, names: Sequence[str]) -> list[str]:
    """Return the archives among the files of a folder, relative to the root; warn about compressed ones."""
    kept = sorted(name for name in names if name.endswith(SUFFIX) and not is_stray(name))
    compressed = [name for name in names if COMPRESSED_SUFFIXES.search(name.lower()) and not is_stray(name)]
    if kept:
        warn_left_out(folder, Counter(map(suffix_of, compressed)))
    return [os.path.relpath(os.path.join(folder, name), root) for name in kept]


def _no_archives(root: str) -> DataError:
    instead = _instead(os.listdir(root))
    if not instead and any(entry.is_dir() for entry in os.scandir(root)):
        instead = f"; if its folders hold images, write folder:{root}"
    return DataError(f"{root} holds no tar archives{instead}.")


def _instead(names: Sequence[str]) -> str:
    if any(COMPRESSED_SUFFIXES.search(name.lower()) for name in names):
        return (
            "; compressed ones cannot be read at random offsets: unpack them to plain .tar, or to folders "
            "for `lambdanets shard`"
        )
    return ""
