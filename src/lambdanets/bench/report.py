"""Parts that all reports share: tables and their Markdown, numbers as text, colours, files of figures."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lambdanets.utils.files import replacing

from .records import Provenance

Clock = Literal["wall", "process"]

CLOCKS = {"wall": "milliseconds of wall time", "process": "CPU milliseconds of all threads"}
SINGLE = "*"  # marks a time that is a single sample
# Colours: of our layer and networks, of text, of secondary text, of lines.
OURS, INK, SOFT, QUIET = "#c8472f", "#2b2f36", "#6b7380", "#d9dde3"
VERSIONS = ("torch", "timm", "lambda_networks", "triton", "python")


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of text, for the terminal and for Markdown.

    Attributes:
        title: Title above the table.
        headings: Headings of the columns.
        rows: Cells, row by row.
        notes: Sentences below the table, such as the reasons why rows lack numbers.
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def page(command: str, paragraphs: Iterable[str], tables: Iterable[Table], figures: Iterable[str]) -> str:
    """Return a report in Markdown.

    Args:
        command: The command that was run, the title.
        paragraphs: Text below the title.
        tables: The tables after them.
        figures: Names of image files after the tables.
    """
    parts = [f"# `{command}`", *paragraphs]
    for table in tables:
        parts += [f"## {table.title}", to_markdown(table)]
    parts += [f"![{name}]({name})" for name in figures]
    return "\n\n".join(parts) + "\n"


def to_markdown(table: Table, left: int = 2) -> str:
    """Return a table in Markdown and its notes; its first `left` columns are aligned to the left."""
    alignment = "|---" * left + "|" + "---:|" * (len(table.headings) - left)
    lines = [_markdown_row(table.headings), alignment, *map(_markdown_row, table.rows)]
    if table.notes:
        lines += ["", *(f"- {note}" for note in table.notes)]
    return "\n".join(lines)


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def provenance_line(where: Provenance) -> str:
    """Return one line on the machine and the versions."""
    values = asdict(where)
    versions = ", ".join(f"{name.replace('_', '-')} {values[name]}" for name in VERSIONS if values[name])
    commit = f" ({where.commit})" if where.commit else ""
    return (
        f"{where.processor}, {where.device}, {threads(where.threads)}, {where.dtype}; matrix product "
        f"{where.gemm_gflops:,.0f} Gflop/s, copy {where.copy_gbs:,.0f} GB/s; load {where.load:.1f} at the "
        f"start; lambdanets {where.lambdanets}{commit}, {versions}; {where.system}; {where.date}"
    )


def threads(count: int) -> str:
    """Return a number of threads with its noun."""
    return f"{count} thread{'s' if count != 1 else ''}"


def number(value: float) -> str:
    """Return a number with three significant digits, at most three of them decimals; "-" for NaN."""
    if math.isnan(value):
        return "-"
    decimals = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:,.{min(decimals, 3)}f}"


def times(ratio: float) -> str:
    """Return a ratio such as 0.43x, 3.10x, 14.9x or 123x; "-" for NaN."""
    if math.isnan(ratio):
        return "-"
    return f"{ratio:.{0 if ratio >= 100 else 1 if ratio >= 10 else 2}f}x"


def duration(milliseconds: float) -> str:
    """Return a time with its unit."""
    return f"{number(milliseconds)} ms" if milliseconds < 1e3 else f"{number(milliseconds / 1e3)} s"


def mebibytes(mib: float) -> str:
    """Return an amount of memory with its unit."""
    return f"{number(mib)} MiB" if mib < 1e4 else f"{number(mib / 1024)} GiB"


def add_frame(figure: Any, title: str, where: Provenance, sources: str = "") -> None:
    """Write the title above a figure, and below it the machine, the versions and other sources."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK)
    commit = f" ({where.commit})" if where.commit else ""
    figure.supxlabel(
        f"{where.processor}, {threads(where.threads)}, {where.dtype}, torch {where.torch}, lambdanets "
        f"{where.lambdanets}{commit}, {where.date.split()[0]}" + (f"\n{sources}" if sources else ""),
        x=0.01, ha="left", fontsize=7, color=SOFT,
    )  # fmt: skip


def save(figure: Any, path: Path) -> Path:
    """Write a figure to a temporary file and rename it; the suffix of the path decides the format."""
    from matplotlib import rc_context

    kind = path.suffix[1:]
    metadata = {"Date": None} if kind == "svg" else {}
    # With a fixed salt and no date, the same rows give the same file.
    with replacing(path) as temporary, rc_context({"svg.hashsalt": "lambdanets"}):
        figure.savefig(temporary, format=kind, facecolor="white", metadata=metadata)
    return path
