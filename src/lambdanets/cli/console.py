"""Two consoles, results on stdout and everything said about them on stderr, and the look of a table."""

from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from lambdanets.wording import printable_lines

ENDLESS = 1_000_000  # columns; a pipe has no width of its own


class _Console(Console):
    """A console that prints strings as they are: no markup, no emoji codes, no control characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        shown = printable_lines(text).encode(self.encoding, "backslashreplace").decode(self.encoding)
        return super().render_str(shown, **options)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would exit with 1; the command decides what that means


def stdout() -> Console:
    """Return the console for results; nothing is folded in a pipe."""
    console = _Console()
    return console if console.is_terminal else _Console(width=ENDLESS)


def stderr() -> Console:
    """Return the console for notes; its lines are never folded, so that they can be searched."""
    return _Console(stderr=True, soft_wrap=True)


def table(**columns: str) -> Table:
    """Return an empty table.

    Args:
        **columns: Heading (underscores become spaces) and alignment: "left", "right" or "wrap".
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
    """Print a table under its title, neither of them cut or folded where only "wrap" columns may be."""
    console.print(title, style="bold", soft_wrap=True)
    width = console.width
    console.width = max(width, _least_width(console, rows))  # the terminal folds what is wider than itself
    try:
        console.print(rows)
    finally:
        console.width = width


def _least_width(console: Console, rows: Table) -> int:
    """The width of a table whose "wrap" columns are as narrow as their longest words."""
    options = console.options.update(max_width=ENDLESS)
    total = 0
    for column in rows.columns:
        sizes = [Measurement.get(console, options, cell) for cell in column.cells]
        total += 2 + max((size.maximum if column.no_wrap else size.minimum for size in sizes), default=0)
    return total


def milliseconds(seconds: float) -> str:
    """Return a time with as many decimals as an estimate deserves."""
    return f"{seconds * 1e3:,.{0 if seconds >= 0.1 else 2 if seconds >= 1e-3 else 3}f}"


def grid(sizes: tuple[int, ...]) -> str:
    """Return sizes as people write them: 14x14."""
    return "x".join(map(str, sizes))
