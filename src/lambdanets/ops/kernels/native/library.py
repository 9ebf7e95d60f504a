"""The compiled library of the native kernel: found, checked and loaded, or why there is none.

A platform wheel has it in this folder; `lambdanets native` builds it into the user's cache. Nothing is
compiled on import or in a forward pass.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch

from lambdanets.utils.files import user_cache

from . import compiler

ABI_VERSION = 1  # of the structs that the library's functions take
PACKAGE = Path(__file__).parent
SWITCH = "LAMBDANETS_NATIVE"


class _Found(NamedTuple):
    """A loaded library and its file, or the reason for which there is none."""

    library: ctypes.CDLL | None = None
    path: Path | None = None
    reason: str | None = None


def load() -> ctypes.CDLL | None:
    """Return the loaded library, None if there is none: see `unavailable`."""
    return _find().library


def require(device: str) -> ctypes.CDLL:
    """Return the loaded library for tensors on a device.

    Raises:
        RuntimeError: There is no library, or the device is not the CPU: a graph that was traced with the
            library runs without it, or was moved.
    """
    found = _find()
    if device != "cpu" or found.library is None:
        reason = f"it computes on the CPU, not on {device}" if device != "cpu" else found.reason
        raise RuntimeError(f"the graph was traced with the native kernel, which cannot serve here: {reason}")
    return found.library


@torch.compiler.assume_constant_result  # a compiled graph would break where files are read
def unavailable() -> str | None:
    """Return why there is no library, as a phrase; None if there is one."""
    return _find().reason


def path() -> Path | None:
    """Return the file of the loaded library."""
    return _find().path


def is_off() -> bool:
    """Return whether the user turned the library off."""
    return os.environ.get(SWITCH) == "0"


def is_packaged() -> bool:
    """Return whether the loaded library is a part of the installed package, as in a platform wheel."""
    found = _find().path
    return found is not None and found.parent == PACKAGE


def refresh() -> None:
    """Search again on the next call, after a build."""
    _find.cache_clear()


def cache_folder() -> Path | None:
    """Return the folder of built libraries in the user's cache; None if the user has no home."""
    cache = user_cache()
    return None if cache is None else cache / "native"


@lru_cache(maxsize=1)
def _find() -> _Found:
    if is_off():
        return _Found(reason=f"{SWITCH}=0 turns it off")
    reason = compiler.unsupported_platform()
    try:
        for candidate in _candidates():
            found = _open(candidate)
            if found.library is not None:
                return found
            reason = reason or found.reason
    except OSError as error:
        reason = reason or f"{error.filename} cannot be read ({error.strerror})"
    return _Found(reason=reason or "its library is not built, `lambdanets native` builds it")


def _candidates() -> Iterator[Path]:
    """Yield the libraries of this package's sources, those of the package first, then the newest."""
    pattern = f"lambdanets-{compiler.source_key()}-*.so"
    for folder in (PACKAGE, cache_folder()):
        if folder is not None:
            yield from sorted(folder.glob(pattern), key=_changed, reverse=True)


def _changed(file: Path) -> float:
    """Return the time of a file's last change, 0 if it was removed meanwhile."""
    try:
        return file.lstat().st_mtime
    except FileNotFoundError:
        return 0.0


def _is_trusted(file: Path) -> bool:
    """Return whether only this user or the administrator can have written a file and its folder."""
    for path in (file, file.parent):
        status = path.stat()
        if status.st_uid not in (os.getuid(), 0) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return False
    return True


def _open(candidate: Path) -> _Found:
    """Load a library, if it is intact and ours: the system may end a process that loads a truncated one."""
    try:
        if candidate.parent != PACKAGE and not _is_trusted(candidate):
            return _Found(reason=f"{candidate} or its folder may be written by other users")
        if not compiler.is_intact(candidate):
            return _Found(reason=f"{candidate} is damaged, `lambdanets native` builds it again")
        library = ctypes.CDLL(str(candidate))
        library.lambdanets_isa.restype = ctypes.c_char_p
        version = library.lambdanets_abi_version()
    except (OSError, AttributeError) as error:
        return _Found(reason=f"{candidate} cannot be loaded ({error})")
    if version != ABI_VERSION:
        return _Found(reason=f"{candidate} has version {version} of the interface, not {ABI_VERSION}")
    return _Found(library, candidate)
