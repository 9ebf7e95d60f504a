"""A progress bar for long reading and writing, shown in a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import BarColumn

MANY = 2000  # number of images from which on a bar is shown
Progress = Callable[[int, int], None]  # called with (done, total)


@contextmanager
def progress_bar(description: str, total: int, *, least: int) -> Iterator[Progress]:
    """Show a bar if stderr is a terminal and `total` is at least `least`.

    Args:
        description: The text before the bar.
        total: Number of images or bytes at the end.
        least: The smallest total for which a bar is shown.

    Yields:
        A function to call with (done, total).
    """
    if total < least or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda done, total: bar.update(task, completed=done)


def progress_bar_column() -> BarColumn:
    """Return the bar of a progress display, in the colours of this package."""
    from rich.progress import BarColumn

    return BarColumn(bar_width=24, style="grey30", complete_style="red", finished_style="red")
