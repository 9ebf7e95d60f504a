"""Settings of glibc's allocator; another C library has none of them and is left as it is."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

# Parameters of glibc's mallopt.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
NEVER = -1
# Sizes in bytes from which a tensor gets pages of its own: glibc before 2.35 refuses more than 32 MiB.
OWN_PAGES = (2**30, 2**25)
# The user's own settings of the same things, as environment variables and as names in GLIBC_TUNABLES.
VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")
TUNABLES = tuple(f"glibc.malloc.{name[7:-1].lower()}=" for name in VARIABLES)

_keeps_freed_memory = False


def call_glibc(function: str, *arguments: int) -> int:
    """Call a function of glibc by name and return its result; 0 with another C library."""
    # Windows raises TypeError, as it has no library of the process itself.
    with suppress(OSError, AttributeError, TypeError):
        return getattr(ctypes.CDLL(None), function)(*arguments)
    return 0


def keep_freed_memory() -> bool:
    """Keep the memory of freed tensors in this process, for the next tensors, instead of returning it.

    By default glibc returns the activations of a training step to the system, which clears each page again
    for the next step. Forked children, such as data-loading workers, inherit the setting. Nothing is changed
    where the user has set the same parameters (`MALLOC_TRIM_THRESHOLD_`, ...; `GLIBC_TUNABLES`).

    Returns:
        Whether the setting is in force.
    """
    global _keeps_freed_memory
    given = os.environ.get("GLIBC_TUNABLES", "")
    if any(name in os.environ for name in VARIABLES) or any(name in given for name in TUNABLES):
        return False
    if not any(call_glibc("mallopt", M_MMAP_THRESHOLD, size) for size in OWN_PAGES):
        return False
    _keeps_freed_memory = bool(call_glibc("mallopt", M_TRIM_THRESHOLD, NEVER))
    return _keeps_freed_memory


def keeps_freed_memory() -> bool:
    """Return whether `keep_freed_memory` is in force in this process."""
    return _keeps_freed_memory
