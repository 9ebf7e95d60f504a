"""The predictions of a classifier of images or recordings: lines in the terminal, CSV, JSON and a sheet."""

import csv
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from lambdanets.cli.console import exit_code_of_samples, print_files, stderr, stdout
from lambdanets.utils.files import replacing
from lambdanets.utils.text import json_text

if TYPE_CHECKING:
    from lambdanets.viz.contact_sheet import Prediction

STDOUT = ("-", "/dev/stdout")
GAP = "   "  # between two columns
# Draws predictions: the predictions, and the line below the title.
Draw = Callable[[Sequence[Any], str], list[Path]]


def to_stdout(file: Path | None) -> bool:
    """Return whether a file is the standard output."""
    return file is not None and str(file) in STDOUT


def write_predictions(
    found: "Iterable[Prediction]",
    *,
    title: str,
    ranks: int,
    truths: bool,
    csv: Path | None,
    json: Path | None,
    draw: Draw,
    most: int,
    strict: bool,
    sample: str = "image",
    part: int = 32,
) -> int:
    """Print and write predictions while they are made, draw the first ones, and return the exit code.

    Args:
        found: The predictions; only the first `most` and those with an error are kept in memory.
        title: Line above the table.
        ranks: Classes per prediction.
        truths: Whether the true classes are known.
        csv: File for a row per prediction; "-" writes them to the standard output, in place of the table.
        json: File for a list of all predictions.
        draw: Draws the sheet and returns its files.
        most: Predictions that are drawn at most.
        strict: A single unreadable sample is a failure.
        sample: Noun of a sample.
        part: Predictions that are printed at once.
    """
    piped = to_stdout(csv)
    lines = None if piped else Lines(stdout(), title, [sample, *(["true"] if truths else [])], ranks)
    drawn: list[Prediction] = []
    unread: list[Prediction] = []
    read = right = 0
    found = iter(found)
    with _csv_rows(csv) as add_row, _json_entries(json) as add_entry:
        add_row(_columns(ranks, truths))
        while chosen := list(islice(found, part)):
            readable = [each for each in chosen if each.error is None]
            unread += [each for each in chosen if each.error is not None]
            read, right = read + len(readable), right + sum(bool(each.right) for each in readable)
            drawn += readable[: most - len(drawn)]
            for each in chosen:
                add_row(_row(each, ranks, truths))
                add_entry(to_plain(each))
            if lines is not None:
                lines.print(readable)
    counts = [
        f"{read:,} {sample}{'s' * (read != 1)}",
        *([f"{right:,} of {read:,} correct"] if truths else []),
    ]
    if read > len(drawn):
        counts.append(f"the first {len(drawn):,} drawn")
    pages = draw(drawn, "  ·  ".join(counts))
    if read and (truths or read > len(drawn)):
        (stderr() if piped else stdout()).print(", ".join(counts[1:] if truths else counts), soft_wrap=True)
    files = [*(("contact sheet", page) for page in pages), ("predictions", json)]
    print_files(*files, ("table", None if piped else csv), console=stderr() if piped else None)
    for each in unread:
        stderr().print(f"skipped {each.path}: {each.error or ''}.")
    return exit_code_of_samples(len(unread), read + len(unread), strict=strict, samples=f"{sample}s")


def to_plain(each: "Prediction") -> dict[str, object]:
    """Return a prediction as it is written to JSON: path, and labels with probabilities or an error."""
    entry: dict[str, object] = {"path": each.path}
    if each.error is not None:
        entry["error"] = each.error
    else:
        entry |= {"labels": each.labels, "probabilities": [round(value, 6) for value in each.probabilities]}
    if each.truth is not None:
        entry["truth"] = each.truth if each.truths is None else each.truths
    return entry


class Lines:
    """A table whose rows are printed while more are made; a path is never wrapped or cut.

    The first rows set the widths of the columns; a longer cell moves the rest of its line. In a terminal only
    the most probable classes that fit its width are shown.

    Args:
        console: The console.
        title: Line above the table.
        headings: Headings before those of the classes.
        ranks: Classes per row.
    """

    def __init__(self, console: Console, title: str, headings: Sequence[str], ranks: int) -> None:
        self.console, self.title = console, title
        classes = [f"{rank}. guess" if rank == 1 else f"{rank}." for rank in range(1, ranks + 1)]
        self.headings = [*headings, *classes]
        self.fixed = len(headings)
        self.widths: list[int] = []

    def print(self, predictions: "Sequence[Prediction]") -> None:
        """Print a line for each prediction, all without errors, and the headings before the first one."""
        rows = [self._cells(each) for each in predictions]
        if not self.widths and rows:
            self._start(rows)
        for row in rows:
            self._line(row)

    def _start(self, rows: Sequence[Sequence[Text]]) -> None:
        """Set the widths by the first rows, and print the headings."""
        headings = [self.console.render_str(text, style="bold") for text in self.headings]
        widths = [max(cell.cell_len for cell in column) for column in zip(headings, *rows, strict=True)]
        ranks = len(widths) - self.fixed
        if self.console.is_terminal:
            room = self.console.width - 1
            while len(widths) > self.fixed + 1 and _total(widths) > room:
                widths.pop()
            widths[0] = max(1, min(widths[0], widths[0] + room - _total(widths)))
        self.widths = widths
        shown = len(widths) - self.fixed
        note = "" if shown == ranks else f" ({shown} of {ranks} guesses fit this terminal)"
        self.console.print(self.title + note, style="bold", soft_wrap=True)
        self.console.print()
        self._line(headings)
        self.console.print(f" {'─' * _total(widths)}", soft_wrap=True)

    def _cells(self, each: "Prediction") -> list[Text]:
        best = {None: "bold", True: "bold green", False: "bold red"}[each.right]
        first = [each.path, *([each.truth or ""] if self.fixed > 1 else [])]
        guesses = [
            self.console.render_str(label, style="" if rank else best).append(f" {probability:.1%}", "dim")
            for rank, (label, probability) in enumerate(zip(each.labels, each.probabilities, strict=True))
        ]
        cells = [*map(self.console.render_str, first), *guesses]
        return cells + [Text()] * (len(self.headings) - len(cells))

    def _line(self, cells: Sequence[Text]) -> None:
        line = Text(" ")
        shown = cells[: len(self.widths)]
        for number, (cell, width) in enumerate(zip(shown, self.widths, strict=True), start=1):
            line.append_text(cell)
            if number < len(shown):
                line.append(" " * max(0, width - cell.cell_len) + GAP)
        self.console.print(line, soft_wrap=True)


def _total(widths: Sequence[int]) -> int:
    """Return the width of a line."""
    return sum(widths) + len(GAP) * (len(widths) - 1)


def _columns(ranks: int, truths: bool) -> list[str]:
    further = [name for rank in range(2, ranks + 1) for name in (f"label_{rank}", f"probability_{rank}")]
    return ["file", *(["truth"] if truths else []), "label", "probability", *further, "error"]


def _row(each: "Prediction", ranks: int, truths: bool) -> list[str]:
    pairs = zip(each.labels, each.probabilities, strict=True)
    cells = [cell for label, value in pairs for cell in (label, f"{value:.6g}")]
    cells += [""] * (2 * ranks - len(cells))
    return [each.path, *([each.truth or ""] if truths else []), *cells, each.error or ""]


@contextmanager
def _csv_rows(file: Path | None) -> Iterator[Callable[[Sequence[str]], object]]:
    """Yield a function that writes a row to a CSV file, or to none."""
    if file is None:
        yield lambda row: None
    elif to_stdout(file):
        yield csv.writer(sys.stdout, lineterminator="\n").writerow
        sys.stdout.flush()
    else:
        with _text_file(file) as text:
            yield csv.writer(text, lineterminator="\n").writerow


@contextmanager
def _json_entries(file: Path | None) -> Iterator[Callable[[dict[str, object]], None]]:
    """Yield a function that writes an entry to a JSON file with a list, or to none."""
    if file is None:
        yield lambda entry: None
        return
    with _text_file(file) as text:
        before = "[\n"

        def add(entry: dict[str, object]) -> None:
            nonlocal before
            lines = json_text(entry, indent=1).split("\n")
            text.write(before + "\n".join(f" {line}" for line in lines))
            before = ",\n"

        yield add
        text.write("[]\n" if before == "[\n" else "\n]\n")


@contextmanager
def _text_file(file: Path) -> Iterator[IO[str]]:
    """Open a file for writing; a regular one is written whole or not at all."""
    if file.exists() and not file.is_file():  # such as a pipe
        with file.open("w", newline="", encoding="utf-8", errors="surrogateescape") as text:
            yield text
        return
    with (
        replacing(file) as unfinished,
        unfinished.open("w", newline="", encoding="utf-8", errors="surrogateescape") as text,
    ):
        yield text
