"""The index of shards: found from their headers, and kept in a small file beside them."""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from .errors import DataError, DataWarning
from .progress import progress_bar
from .tar_scan import Members, scan

INDEX = "_index.npz"
SCANNERS = 8  # shards read at a time: on networked storage most of it is waiting
LONG = 2**30  # bytes of shards whose headers take long enough for a bar
ARRAYS = ("shard", "offsets", "sizes", "names", "labels")


def read_members(
    root: str, shards: Sequence[str], *, labelled: bool = True, skip: bool = False, indexed: bool = True
) -> Members:
    """Find the images of shards, from the index beside them where it fits, else from their headers.

    Args:
        root: the folder from which shards are named.
        shards: names of tar archives.
        labelled: where a shard has .cls files, every image must have one.
        skip: leave out what a damaged shard lacks, with a warning, instead of raising.
        indexed: False reads the headers of all.

    Raises:
        DataError: a shard cannot be read at random places, is damaged, or holds no images.
    """
    sizes = {shard: os.path.getsize(os.path.join(root, shard)) for shard in shards}
    known = _load(root, sizes) if indexed else {}
    missing = [shard for shard in shards if shard not in known]
    total = sum(sizes[shard] for shard in missing)
    passed = dict.fromkeys(missing, 0)
    with (
        progress_bar("Reading headers", total, least=LONG) as report,
        ThreadPoolExecutor(SCANNERS) as pool,
    ):

        def found(shard: str) -> tuple[Members, str]:
            def moved(place: int) -> None:
                passed[shard] = place
                report(sum(passed.values()), total)

            result = scan(root, shard, labelled=labelled, moved=moved)
            moved(sizes[shard])
            if result[1] and not skip:
                raise DataError(
                    f"{result[1]}. Copy or make the shard again, or leave out what it lacks with "
                    "--set data.on_bad_image=skip."
                )
            return result

        for shard, (members, complaint) in zip(missing, pool.map(found, missing), strict=True):
            if complaint:
                warnings.warn(f"{complaint}. The rest is left out.", DataWarning, stacklevel=2)
            known[shard] = members
    return _joined([known[shard] for shard in shards])


def write_index(root: str, shards: Sequence[str]) -> Members:
    """Read the headers of shards that lie in one folder, and write what they say beside them."""
    members = read_members(root, shards, indexed=False)
    arrays = {name: getattr(members, name) for name in ARRAYS}
    sizes = [os.path.getsize(os.path.join(root, shard)) for shard in shards]
    np.savez_compressed(
        os.path.join(root, INDEX),
        shards=np.array(shards, np.str_),
        shard_sizes=np.array(sizes, np.int64),
        **arrays,
    )
    return members


def _load(root: str, sizes: dict[str, int]) -> dict[str, Members]:
    """What indices say of those shards that are no younger, and of the size that they had then."""
    known: dict[str, Members] = {}
    for folder in sorted({os.path.dirname(shard) for shard in sizes}):
        index = os.path.join(root, folder, INDEX)
        try:
            written = os.path.getmtime(index)
            with np.load(index, allow_pickle=False) as file:
                names, then = [os.path.join(folder, name) for name in file["shards"]], file["shard_sizes"]
                members = Members(tuple(names), *(file[name] for name in ARRAYS))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            continue  # an index only saves time
        ends = np.searchsorted(members.shard, np.arange(len(names) + 1))
        for number, name in enumerate(names):
            if sizes.get(name) == then[number] and os.path.getmtime(os.path.join(root, name)) <= written:
                part = members.take(slice(ends[number], ends[number + 1]))
                known[name] = Members((name,), np.zeros(len(part), np.int32), *_rows(part))
    return known


def _rows(members: Members) -> list[np.ndarray]:
    return [getattr(members, name) for name in ARRAYS[1:]]


def _joined(parts: Sequence[Members]) -> Members:
    shard = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])
    columns = zip(*(_rows(part) for part in parts), strict=True)
    return Members(tuple(part.shards[0] for part in parts), shard, *map(np.concatenate, columns))
