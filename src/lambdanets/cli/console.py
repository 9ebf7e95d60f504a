"""Two consoles, results on stdout and everything said about them on stderr, and the look of a table."""

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

# A pipe has no width of its own; 80 columns would fold the tables that people grep and paste.
PIPE_WIDTH = 140


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would exit with 1; the command decides what that means


def stdout() -> Console:
    """Return the console for results."""
    console = _Console(highlight=False)
    return console if console.is_terminal else _Console(highlight=False, width=PIPE_WIDTH)


def stderr() -> Console:
    """Return the console for notes; its lines are never folded, so that they can be searched."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


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
    """Print a table under its title; rich would fold a title at the width of the table."""
    console.print(escape(title), style="bold", soft_wrap=True)
    console.print(rows)


def milliseconds(seconds: float) -> str:
    """Return a time with as many decimals as an estimate deserves."""
    return f"{seconds * 1e3:,.{0 if seconds >= 0.1 else 2 if seconds >= 1e-3 else 3}f}"


def grid(sizes: tuple[int, ...]) -> str:
    """Return sizes as people write them: 14x14."""
    return "x".join(map(str, sizes))
