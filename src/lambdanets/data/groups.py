"""Splits by group: all samples of a patient, plate or speaker are on one side."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np

from lambdanets.utils.text import join_some

from .config import HoldOut
from .errors import DataError

FOLDER = "folder"  # value of `data.group` for the folder of a file below its class
MAX_TOGGLES = 200  # groups that change sides, at most, to come nearer to the held-out fraction


def digests(names: Sequence[str], seed: int) -> list[bytes]:
    """Return a hash of seed and name for each name: a pseudo-random key to rank names by."""
    return [blake2b(f"{seed}/{name}".encode(errors="surrogateescape")).digest() for name in names]


def fractions(names: Sequence[str], seed: int) -> list[float]:
    """Return a pseudo-random number in [0, 1) for each name, from its digest."""
    return [int.from_bytes(digest[:8], "big") / 2**64 for digest in digests(names, seed)]


def name_groups(names: Sequence[str], group: str, where: str | Path) -> list[str]:
    """Return the group of each file.

    Args:
        names: paths of the files, with slashes, below the folders of their classes, if these exist.
        group: "folder" (the folder that holds the file), or a regular expression whose part in parentheses,
            found anywhere in the path, is the group.
        where: the source, for errors.

    Raises:
        DataError: a file is in no group.
    """
    if group == FOLDER:
        groups = [name.rpartition("/")[0] for name in names]
        fault = "lie directly in the folder of their class or source"
    else:
        pattern = re.compile(group)
        groups = [found[1] or "" if (found := pattern.search(name)) else "" for name in names]
        fault = "do not match it"
    if without := [name for name, each in zip(names, groups, strict=True) if not each]:
        raise DataError(
            f"data.group={group!r} gives {len(without)} of {len(names)} files of {where} no group: they "
            f"{fault}, such as {without[0]}."
        )
    return groups


def check_apart(train: Sequence[str], val: Sequence[str], where: str | Path) -> None:
    """Raise DataError if a group has samples on both sides of a source that is split already."""
    if both := sorted(set(train) & set(val)):
        number = "1 group" if len(both) == 1 else f"{len(both)} groups"
        raise DataError(
            f"{where} is split already, and {number} of data.group would stand on both sides, such as "
            f"{both[0]!r} with {list(train).count(both[0])} training and {list(val).count(both[0])} "
            "validation samples; move each group to one side."
        )


def held_out_groups(
    groups: Sequence[str],
    targets: np.ndarray,
    where: str | Path,
    *,
    val_fraction: float,
    seed: int,
    hold_out: HoldOut,
) -> np.ndarray:
    """Decide which samples are held out, all of a group or none.

    "exact" adds groups in a random order while no class has more than `val_fraction` of its samples held
    out, then moves the group that brings the classes nearest to it until none does. "stable" decides for
    each group by the hash of its name alone. Both hold out samples of every class where a group can be
    spared, and leave every class a training sample.

    Args:
        groups: group of each sample.
        targets: class indices of shape [n], or 0 and 1 for each class, of shape [n, classes].
        where: the source, for errors.
        val_fraction: fraction that is held out; 1.0 holds out everything.
        seed: seed of the split.
        hold_out: method, as in `DataConfig`.

    Returns:
        Whether each sample is held out, bool of shape [n].

    Raises:
        DataError: no group can be held out.
    """
    if val_fraction == 1:
        return np.ones(len(groups), bool)
    names = sorted(set(groups))
    values = np.array(fractions(names, seed))
    names = [names[row] for row in np.argsort(values, kind="stable")]
    values = np.sort(values, kind="stable")
    index = {name: row for row, name in enumerate(names)}
    rows = np.array([index[name] for name in groups], np.intp)
    counts = _counts(rows, targets, len(names))
    held = _near(counts, val_fraction) if hold_out == "exact" else _stable(counts, values < val_fraction)
    if not held.any():
        raise DataError(
            f"data.group divides {where} into {len(names)} group{'s' * (len(names) != 1)} "
            f"({join_some(names)}), and none can be held out: a class would have no training sample left."
        )
    return held[rows]


def _counts(rows: np.ndarray, targets: np.ndarray, number: int) -> np.ndarray:
    """Return the samples of each group: all of them, and those of each class that occurs; [groups, 1 + c]."""
    if targets.ndim == 1:
        _, targets = np.unique(targets, return_inverse=True)
        counts = np.zeros((number, 1 + targets.max()), np.int64)
        np.add.at(counts, (rows, targets), 1)
    else:
        counts = np.zeros((number, targets.shape[1]), np.int64)
        np.add.at(counts, rows, targets.astype(np.int64))
        counts = counts[:, counts.any(axis=0)]
    return np.column_stack([np.bincount(rows, minlength=number), counts])


def _near(counts: np.ndarray, val_fraction: float) -> np.ndarray:
    """Return which groups, in a random order, are held out so that each class is near the fraction."""
    totals = counts.sum(axis=0)
    goal = np.maximum(np.rint(val_fraction * totals), 1)
    held = np.zeros(len(counts), bool)
    now = np.zeros_like(totals)
    for row, own in enumerate(counts):
        if (now + own <= goal).all() and (now + own < totals).all():
            held[row] = True
            now += own

    def distance(numbers: np.ndarray) -> np.ndarray:
        """A class without a held-out sample counts as much as one that is wholly on the wrong side."""
        return (np.abs(numbers - goal) / totals + (numbers == 0)).sum(axis=-1)

    for _ in range(MAX_TOGGLES):
        moved = now + np.where(held, -1, 1)[:, None] * counts
        distances = np.where((moved < totals).all(axis=1), distance(moved), np.inf)
        best = int(distances.argmin())
        if not distances[best] < distance(now) - 1e-9:
            break
        held[best] ^= True
        now = moved[best]
    return held


def _stable(counts: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Return which groups are held out, starting from those that their hashes choose, lowest first."""
    held = held.copy()
    totals = counts.sum(axis=0)
    for column in range(counts.shape[1]):
        own = counts[:, column] > 0
        if held[own].all():
            held[np.flatnonzero(own)[-1]] = False
    for column in range(counts.shape[1]):
        now = counts[held].sum(axis=0)
        own = np.flatnonzero(counts[:, column])
        spared = [int(row) for row in own if (now + counts[row] < totals).all()]
        if spared and not now[column]:
            held[spared[0]] = True
    return held
