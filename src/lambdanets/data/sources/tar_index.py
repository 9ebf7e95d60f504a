"""The index of shards: read from their headers, and cached in a small file beside them."""

from __future__ import annotations

import os
import tarfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np

from lambdanets.utils.files import replacing
from lambdanets.utils.progress import progress_bar

from ..errors import DataError, SourceWarning
from ..files import open_regular, warn_left_out
from ..images import reason
from .tar_paths import check_distinct
from .tar_scan import BLOCK, Members, Scanned, scan

INDEX = "_index.npz"
SCANNERS = 8  # shards read at a time: networked storage has a high latency
PROGRESS_BYTES = 2**30  # bytes of shards from which on a progress bar is shown
CHECKED_MEMBERS = 3  # members of a shard whose headers are compared with the index
ARRAYS = ("shard", "offsets", "sizes", "names", "labels")  # fields of `Members` that the index stores


def read_members(
    root: str, shards: Sequence[str], *, labelled: bool = True, skip: bool = False, indexed: bool = True
) -> Members:
    """Find the images of shards, from the index beside them if it is valid, else from their headers.

    Args:
        root: the folder from which shards are named.
        shards: names of tar archives.
        labelled: every image must have a .cls file, if its shard has any.
        skip: leave out the damaged part of a shard, with a warning, instead of raising.
        indexed: use the index; False reads the headers of all shards.

    Raises:
        DataError: a shard allows no random access, is damaged, holds no images, or is listed twice.
    """
    check_distinct(root, shards)
    sizes = {shard: _size(os.path.join(root, shard)) for shard in shards}
    known, damaged = _load(root, sizes) if indexed else ({}, [])
    missing = [shard for shard in shards if shard not in known]
    total = sum(sizes[shard] for shard in missing)
    bytes_done = dict.fromkeys(missing, 0)
    with (
        progress_bar("Reading headers", total, least=PROGRESS_BYTES) as report,
        ThreadPoolExecutor(SCANNERS) as pool,
    ):

        def scan_shard(shard: str) -> Scanned:
            def on_progress(offset: int) -> None:
                bytes_done[shard] = offset
                report(sum(bytes_done.values()), total)

            result = scan(root, shard, labelled=labelled, on_progress=on_progress)
            on_progress(sizes[shard])
            if result.fault and not skip:
                raise DataError(
                    f"{result.fault}. Copy or make the shard again, or use only its intact part with "
                    "--set data.on_bad_image=skip."
                )
            return result

        scanned = dict(zip(missing, pool.map(scan_shard, missing), strict=True))
    for shard, result in scanned.items():
        if result.fault:
            warnings.warn(f"{result.fault}. The rest is left out.", SourceWarning, stacklevel=2)
        known[shard] = result.members
    others = sum((result.others for result in scanned.values()), Counter())
    warn_left_out(root, others, {name for result in scanned.values() for name in result.stray})
    for folder in damaged:
        own = [shard for shard in shards if os.path.dirname(shard) == folder]
        whole = labelled and not any(scanned[shard].fault for shard in own if shard in scanned)
        _rewrite_index(root, folder, _joined([known[shard] for shard in own]), sizes, whole=whole)
    return _joined([known[shard] for shard in shards])


def _size(path: str) -> int:
    try:
        with open_regular(path) as file:
            return os.fstat(file.fileno()).st_size
    except OSError as error:
        raise DataError(f"cannot read {path}: {reason(error)}.") from error


def write_index(root: str, shards: Sequence[str]) -> Members:
    """Read the headers of shards of one folder, and write their index beside them."""
    members = read_members(root, shards, indexed=False)
    sizes = [os.path.getsize(os.path.join(root, shard)) for shard in shards]
    _write(os.path.join(root, INDEX), members, shards, sizes)
    return members


def _write(path: str, members: Members, names: Sequence[str], sizes: Sequence[int]) -> None:
    with replacing(Path(path)) as unfinished, unfinished.open("wb") as file:
        np.savez_compressed(
            file,
            shards=np.array(names, np.str_),
            shard_sizes=np.array(sizes, np.int64),
            **{name: getattr(members, name) for name in ARRAYS},
        )


def _rewrite_index(root: str, folder: str, members: Members, sizes: dict[str, int], *, whole: bool) -> None:
    """Replace a damaged index, if the folder is writable; else the headers are read each time."""
    index = os.path.join(root, folder, INDEX)
    outcome = "The headers of its shards were read instead"
    if whole:
        try:
            names = [os.path.basename(shard) for shard in members.shards]
            _write(index, members, names, [sizes[shard] for shard in members.shards])
            outcome += ", and it was written anew"
        except OSError:
            pass  # the folder is read-only
    warnings.warn(f"the index {index} is damaged. {outcome}.", SourceWarning, stacklevel=3)


def _load(root: str, sizes: dict[str, int]) -> tuple[dict[str, Members], list[str]]:
    """Return the members of the shards with a valid index, and the folders whose index is damaged."""
    known: dict[str, Members] = {}
    damaged = []
    for folder in sorted({os.path.dirname(shard) for shard in sizes}):
        index = os.path.join(root, folder, INDEX)
        try:
            with open_regular(index) as file:
                written = os.fstat(file.fileno()).st_mtime
                parts, indexed_sizes = _parts(file, folder)
        except FileNotFoundError:
            continue
        except Exception:  # the libraries raise many kinds for a damaged file; an index only saves time
            damaged.append(folder)
            continue
        valid = {
            name: part
            for name, part in parts.items()
            if sizes.get(name) == indexed_sizes[name]
            and os.path.getmtime(os.path.join(root, name)) <= written
        }
        if all(_agrees(root, part) for part in valid.values()):
            known |= valid
        else:
            damaged.append(folder)
    return known, damaged


def _parts(file: IO[bytes], folder: str) -> tuple[dict[str, Members], dict[str, int]]:
    """Return the members and the size in bytes of each shard, from an index.

    Raises:
        ValueError: the index contradicts itself. Reading a damaged file raises other exceptions, too.
    """
    with zipfile.ZipFile(file) as archive:
        if archive.testzip() is not None:  # NumPy does not check every checksum
            raise ValueError("a checksum is wrong")
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        names, sizes = (
            [os.path.join(folder, name) for name in arrays["shards"].tolist()],
            arrays["shard_sizes"],
        )
        members = Members(tuple(names), *(arrays[name] for name in ARRAYS))
    shard, columns = members.shard, [members.shard, *_rows(members)]
    kinds = [(column.dtype.kind, column.shape) for column in columns]
    if kinds != [(kind, shard.shape) for kind in "iiiSS"] or sizes.shape != (len(names),):
        raise ValueError("its columns do not belong together")
    if (np.diff(shard) < 0).any() or (shard < 0).any():
        raise ValueError("its images are not in the order of their shards")
    capacity = sizes[shard] - members.offsets
    if (members.offsets < BLOCK).any() or (members.sizes < 0).any() or (members.sizes > capacity).any():
        raise ValueError("its images lie outside their shards")
    bounds = np.searchsorted(shard, np.arange(len(names) + 1))
    parts = {}
    for number, name in enumerate(names):
        part = members.take(slice(bounds[number], bounds[number + 1]))
        parts[name] = Members((name,), np.zeros(len(part), np.int32), *_rows(part))
    return parts, dict(zip(names, sizes.tolist(), strict=True))


def _agrees(root: str, members: Members) -> bool:
    """Return whether the headers of a few images of a shard agree with its index."""
    with open_regular(os.path.join(root, members.shards[0])) as file:
        for row in (
            np.unique(np.linspace(0, len(members) - 1, CHECKED_MEMBERS).astype(int)) if len(members) else ()
        ):
            file.seek(int(members.offsets[row]) - BLOCK)
            try:
                header = tarfile.TarInfo.frombuf(file.read(BLOCK), "utf-8", "surrogateescape")
            except tarfile.TarError:
                return False
            # A long name is truncated in this header, and Python writes only ASCII there.
            name, start = bytes(members.names[row]), os.fsencode(header.name.removeprefix("./"))
            forms = name, os.fsdecode(name).encode("ascii", "replace")
            if header.size != members.sizes[row] or not any(form.startswith(start) for form in forms):
                return False
    return True


def _rows(members: Members) -> list[np.ndarray]:
    return [getattr(members, name) for name in ARRAYS[1:]]


def _joined(parts: Sequence[Members]) -> Members:
    shard = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])
    columns = zip(*(_rows(part) for part in parts), strict=True)
    return Members(tuple(part.shards[0] for part in parts), shard, *map(np.concatenate, columns))
