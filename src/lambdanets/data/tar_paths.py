"""Which tar archives a path names, and on which side each of them is."""

from __future__ import annotations

import glob
import importlib.util
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lambdanets.utils.text import join_some

from .errors import DataError
from .files import identity, is_stray, suffix_of, warn_left_out
from .folder import TRAIN_NAMES, VAL_NAMES

SUFFIX = ".tar"
COMPRESSED_SUFFIXES = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz|tzst)$")


@dataclass(frozen=True)
class Shards:
    """Archives named from the folder that all of them are in.

    Args:
        root: that folder.
        train, val: those of each side.
        whole: those without sides; either these or the others are empty.
    """

    root: str
    train: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()


def find_shards(place: str) -> Shards:
    """Find the archives of `tar:PLACE`.

    Args:
        place: a folder with train/ and val/, or with archives whose names hold a side as a word
            (train-000012.tar) or none; a pattern of such names with `*` or braces; or one archive.

    Raises:
        DataError: there are none, or only some of them name their side.
    """
    root = os.path.expanduser(place)
    if os.path.isdir(root):
        sides = {
            name.lower(): found
            for name in sorted(os.listdir(root))
            if (found := _tars(root, os.path.join(root, name)))
        }
        train, val = _of_side(sides, TRAIN_NAMES), _of_side(sides, VAL_NAMES)
        if train or val:
            return Shards(root, train, val) if val else Shards(root, whole=train)
        paths = _tars(root, root)
        if not paths:
            raise _no_archives(root)
        return _by_words(root, paths)
    paths = expand(root)
    root = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    return _by_words(root, [os.path.relpath(path, root) for path in paths])


def all_shards(place: str) -> tuple[str, tuple[str, ...]]:
    """Return the folder of the archives that `place` names, with those in folders inside, and their names."""
    root = os.path.expanduser(place)
    if not os.path.isdir(root):
        found = find_shards(place)
        return found.root, (*found.train, *found.val, *found.whole)
    paths: list[str] = []
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if not is_stray(name)]
        paths += _archives(root, folder, names)
    if not paths:
        raise _no_archives(root)
    return root, tuple(sorted(paths))


def check_distinct(root: str, names: Iterable[str]) -> None:
    """Refuse archives that are one file: its images would count twice, or be on both sides."""
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
    """Return the word of an archive's name that says on which side it is, "" where none does."""
    words = re.split(r"[^a-z]+", os.path.basename(path).lower())
    return next((name for name in (*TRAIN_NAMES, *VAL_NAMES) if name in words), "")


def expand(pattern: str) -> list[str]:
    """Return the files that a path with `*` or braces names, each of the braces' names being there."""
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


def _tars(root: str, folder: str) -> list[str]:
    if not os.path.isdir(folder):
        return []
    return _archives(root, folder, os.listdir(folder))


def _archives(root: str, folder: str, names: Sequence[str]) -> list[str]:
    """The archives among the names in a folder, named from the root; compressed ones beside them are told."""
    kept = sorted(name for name in names if name.endswith(SUFFIX) and not is_stray(name))
    compressed = [name for name in names if COMPRESSED_SUFFIXES.search(name.lower()) and not is_stray(name)]
    if kept:
        warn_left_out(folder, Counter(map(suffix_of, compressed)))
    return [os.path.relpath(os.path.join(folder, name), root) for name in kept]


def _of_side(sides: dict[str, list[str]], names: Sequence[str]) -> tuple[str, ...]:
    return tuple(next((sides[name] for name in names if name in sides), ()))


def _by_words(root: str, paths: Sequence[str]) -> Shards:
    sides: dict[str, list[str]] = {}
    for path in paths:
        sides.setdefault(side_word(path), []).append(path)
    if len(sides) > 1 and "" in sides:
        raise DataError(
            f"some archives in {root} name their side and others do not ({join_some(sides[''])}): "
            "give all of them train or val as a word of their names, or none."
        )
    train, val = _of_side(sides, TRAIN_NAMES), _of_side(sides, VAL_NAMES)
    return Shards(root, train, val) if val else Shards(root, whole=train or tuple(sides[""]))


def _no_archives(root: str) -> DataError:
    instead = _instead(os.listdir(root))
    if not instead and any(entry.is_dir() for entry in os.scandir(root)):
        instead = f"; if its folders hold images, write folder:{root}"
    return DataError(f"{root} holds no tar archives{instead}.")


def _instead(names: Sequence[str]) -> str:
    if any(COMPRESSED_SUFFIXES.search(name.lower()) for name in names):
        return (
            "; compressed ones cannot be read at random places: unpack them to plain .tar, or to folders for "
            "`lambdanets shard`"
        )
    return ""
