"""The splits of `wds/NAME:PATH`, as listed in a file beside its tar files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from lambdanets.utils.files import parse_json

from ..errors import DataError
from ..files import open_regular
from ..images import reason
from ..sources.tar_paths import expand

INFO = ("_info.json", "info.json")  # the first of these that exists lists the splits


@dataclass(frozen=True)
class SplitInfo:
    """The entry of a split in _info.json.

    Args:
        names: names of its tar files.
        lengths: number of samples in each, by name.
        alt_label: the field of JSON files that holds the classes, "" if they are in .cls files.
    """

    names: tuple[str, ...]
    lengths: dict[str, int]
    alt_label: str


def is_remote(root: str) -> bool:
    """Return whether files are fetched from a URL or by a command (`pipe:`)."""
    return root.startswith("pipe:") or "://" in root


def open_url(url: str) -> Any:
    """Open a URL that webdataset supports, as a binary file: http, https, pipe:, gs and others."""
    from webdataset.gopen import gopen

    return gopen(url)


def read_info(root: str) -> dict[str, SplitInfo]:
    """Return the splits that _info.json (or info.json) lists, by name; empty if there is no such file.

    Raises:
        DataError: the file has another form, or it is missing and the tar files are remote.
    """
    why = ""
    for name in INFO:
        path = os.path.join(root, name)
        try:
            with open_url(path) if is_remote(root) else open_regular(path) as file:
                content = file.read()
        except (OSError, ValueError) as error:  # from webdataset, for an unknown scheme
            why = why or reason(error)
            continue
        try:
            splits = parse_json(content)["splits"].items()
            return {split: _listed(listed) for split, listed in splits}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f'{path} must be JSON with the splits by name in "splits", and of each the "filenames" of '
                'its shards and their "shard_lengths".'
            ) from error
    if is_remote(root):
        raise DataError(
            f"cannot read {os.path.join(root, INFO[0])}: {why}. Remote shards are divided by the lengths "
            "that it lists; copy them to a disk, where they are counted, or write it."
        )
    return {}


def _listed(split: dict[str, Any]) -> SplitInfo:
    names = tuple(split["filenames"])
    lengths = {name: int(length) for name, length in zip(names, split["shard_lengths"], strict=True)}
    return SplitInfo(names, lengths, split.get("alt_label") or "")


def find_split(root: str, split: str, info: dict[str, SplitInfo]) -> tuple[str, ...]:
    """Return the names of the tar files of a split.

    Args:
        root: prefix of the names.
        split: listed in `info`, or names with braces, separated by `::`; a number of samples behind `|`, as
            in timm, is ignored.
        info: the result of `read_info`.

    Raises:
        DataError: there is no such split, or a file of it is missing.
    """
    where = os.path.join(root, INFO[0])
    if split in info:
        if info[split].alt_label:
            raise DataError(
                f"{where} says that the classes of {split!r} are in JSON files; only .cls files are read."
            )
        for name in info[split].names:
            if not is_remote(root) and not os.path.isfile(os.path.join(root, name)):
                raise DataError(f"{where} lists {name}, and there is no such file.")
        return info[split].names
    if ".tar" not in split:
        known = f"which lists {', '.join(map(repr, info))}" if info else "as there is no such file"
        raise DataError(
            f"the split {split!r} is not found in {where}, {known}; name it, or the shards, with "
            '--set data.train_split="train-{000000..000009}.tar" and data.val_split.'
        )
    patterns = split.partition("|")[0].split("::")
    if is_remote(root):
        from braceexpand import braceexpand

        return tuple(name for pattern in patterns for name in braceexpand(pattern))
    paths = [path for pattern in patterns for path in expand(os.path.join(root, pattern))]
    return tuple(os.path.relpath(path, root) for path in paths)
