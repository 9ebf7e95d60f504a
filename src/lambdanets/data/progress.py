"""A bar while something long is read or written, for somebody who is watching."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MANY = 2000  # images that take long enough for a bar
Progress = Callable[[int, int], None]  # called with (what is done, all there is to do)


@contextmanager
def progress_bar(what: str, total: int, *, least: int) -> Iterator[Progress]:
    """Show a bar in a terminal where at least so much is to be done; else nothing."""
    if total < least or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done, total: bar.update(task, completed=done)
