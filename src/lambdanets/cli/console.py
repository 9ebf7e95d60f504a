"""Consoles for results (stdout) and notes (stderr), the style of tables, and output that verbs share."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from lambdanets.cli.errors import FAILURE
from lambdanets.utils.text import printable_lines

UNLIMITED = 1_000_000  # columns of a pipe
EXTREMES = 5  # best and worst classes that are printed

Row = TypeVar("Row")


class _Console(Console):
    """A console that prints strings literally: no markup, no emoji codes, no control characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        shown = printable_lines(text).encode(self.encoding, "backslashreplace").decode(self.encoding)
        return super().render_str(shown, **options)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would exit with 1; `main` chooses the exit code


def stdout(*, wraps: bool = False) -> Console:
    """Return the console for results; in a pipe it does not wrap lines, unless it is for reading.

    Args:
        wraps: Wrap lines in a pipe too, at 80 columns or at those of the variable COLUMNS.
    """
    console = _Console()
    return console if console.is_terminal or wraps else _Console(width=UNLIMITED)


def stderr() -> Console:
    """Return the console for notes; it never wraps lines, so that they can be searched."""
    return _Console(stderr=True, soft_wrap=True)


def table(**columns: str) -> Table:
    """Return an empty table.

    Args:
        **columns: Heading (underscores become spaces) and alignment: "left", "right" or "wrap", which is left
            and may wrap.
    """
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading, side in columns.items():
        made.add_column(
            heading.replace("_", " "),
            justify="right" if side == "right" else "left",
            no_wrap=side != "wrap",
            overflow="fold",
            header_style="bold",
        )
    return made


def draw(console: Console, title: str, rows: Table) -> None:
    """Print a table below its title; only "wrap" columns are wrapped, and nothing is cut."""
    console.print(title, style="bold", soft_wrap=True)
    width = console.width
    console.width = max(width, _min_width(console, rows))  # the terminal wraps longer lines
    try:
        console.print(rows)
    finally:
        console.width = width


def _min_width(console: Console, rows: Table) -> int:
    """Return the width of a table whose "wrap" columns are as narrow as their longest words."""
    options = console.options.update(max_width=UNLIMITED)
    total = 0
    for column in rows.columns:
        sizes = [Measurement.get(console, options, cell) for cell in column.cells]
        total += 2 + max((size.maximum if column.no_wrap else size.minimum for size in sizes), default=0)
    return total


def milliseconds(seconds: float) -> str:
    """Return a time in milliseconds with two or three significant digits."""
    return f"{seconds * 1e3:,.{0 if seconds >= 0.1 else 2 if seconds >= 1e-3 else 3}f}"


def grid(sizes: tuple[int, ...]) -> str:
    """Return sizes in the form 14x14."""
    return "x".join(map(str, sizes))


def draw_classes(
    ranked: Sequence[Row], columns: dict[str, str], cells: Callable[[Row], Iterable[str]]
) -> None:
    """Print a table of all classes, or tables of the best and the worst five where there are more than ten.

    Args:
        ranked: The classes, best first.
        columns: Headings and alignments, as `table` takes them.
        cells: Returns the cells of a class.
    """
    parts = {"all classes": ranked}
    if len(ranked) > 2 * EXTREMES:
        parts = {"best classes": ranked[:EXTREMES], "worst classes": ranked[-EXTREMES:]}
    for title, chosen in parts.items():
        rows = table(**columns)
        for each in chosen:
            rows.add_row(*cells(each))
        draw(stdout(), title, rows)


def print_files(*files: tuple[str, Path | None], console: Console | None = None) -> None:
    """Print the paths of written files, each after its label; None is an output that was not requested.

    Args:
        *files: Labels and files.
        console: The console; that for results by default.
    """
    for label, file in files:
        if file is not None:
            (console or stdout()).print(f"{label}: {file}", soft_wrap=True)


def exit_code_of_samples(unreadable: int, total: int, *, strict: bool, samples: str = "images") -> int:
    """Return the exit code of a prediction, and print the number of samples that could not be read.

    Args:
        unreadable: Number of samples that could not be read.
        total: Number of all samples.
        strict: A single unreadable sample is a failure; else it takes all of them.
        samples: Noun of the samples.
    """
    if unreadable:
        stderr().print(f"lambdanets: {unreadable} of {total} {samples} could not be read.")
    return FAILURE if unreadable == total or (strict and unreadable) else 0
