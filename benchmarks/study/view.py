"""The display of a running study: a table in a terminal, a line for each event elsewhere."""

import time
from datetime import datetime
from types import TracebackType

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .running import Progress
from .settings import Cell, Study

REFRESH = 1.0  # seconds between drawings of the table


class View:
    """Shows the progress of a study.

    Args:
        study: The study, with the titles of its contenders.
        console: Where to print; a terminal gets the table.
        timing: Whether only a few steps of each contender are timed, whose accuracy is not shown.
    """

    def __init__(self, study: Study, console: Console, *, timing: bool = False) -> None:
        self.study = study
        self.console = console
        self.timing = timing
        self._live: Live | None = None
        self._drawn = 0.0
        self._printed = False

    def __enter__(self) -> "View":
        if self.console.is_terminal:
            live = Live(console=self.console, auto_refresh=False, transient=self.timing)
            live.start()
            self._live = live
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop updating the table."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def show(self, progress: Progress) -> None:
        """Show the current state of the study."""
        if self._live is not None:
            if progress.event or time.monotonic() - self._drawn > REFRESH:
                self._drawn = time.monotonic()
                self._live.update(
                    Group(self._table(progress), Text(summary(progress), "grey62")), refresh=True
                )
            return
        if progress.event or not self._printed:
            self._printed = True
            event = "" if self.timing else progress.event
            words = [f"{datetime.now():%m-%d %H:%M:%S}", summary(progress), *([event] if event else [])]
            self.console.print("  ".join(words), soft_wrap=True)
            self.console.file.flush()

    def _table(self, progress: Progress) -> Table:
        seeds = list(dict.fromkeys(cell.seed for cell in progress.cells))
        names = list(dict.fromkeys(cell.contender for cell in progress.cells))
        made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        made.add_column("contender", header_style="bold")
        for seed in seeds:
            made.add_column(f"seed {seed}", header_style="bold", justify="right", min_width=16)
        for name in names:
            cells = [Cell(contender=name, seed=seed) for seed in seeds]
            made.add_row(self.study.contender(name).title, *(self._cell(progress, cell) for cell in cells))
        return made

    def _cell(self, progress: Progress, cell: Cell) -> Text:
        if cell in progress.done:
            accuracy = progress.done[cell].top1
            return Text("timed" if self.timing else f"{100 * accuracy:.2f} %", "bold")
        if cell in progress.running:
            history = progress.running[cell]
            so_far = f"{100 * history[-1]['val_top1']:.1f} %  " if history and not self.timing else ""
            epoch = "timing" if self.timing else f"{len(history)}/{progress.epochs}"
            return Text(f"{so_far}{epoch}", "yellow")
        if cell in progress.failed:
            return Text("failed", "red")
        return Text("·", "grey62")


def summary(progress: Progress) -> str:
    """Return the state of a study in a line."""
    total = len(progress.cells)
    parts = [f"{len(progress.done)} of {total} done", f"{len(progress.running)} running"]
    parts.append(f"{len(progress.waiting)} waiting")
    if progress.failed:
        parts.append(f"{len(progress.failed)} failed")
    seconds = progress.seconds_left()
    if seconds is not None and (progress.running or progress.waiting):
        parts.append(f"about {format_seconds(seconds)} left")
    return ", ".join(parts)


def format_seconds(seconds: float) -> str:
    """Return a time as text: 45 s, 12 min, 6 h 40 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"
