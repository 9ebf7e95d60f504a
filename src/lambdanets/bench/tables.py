"""What a bench found, as tables of words: the terminal and the Markdown file draw the same ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from .records import Provenance, Record

Clock = Literal["wall", "process"]

PASSES = {
    "train": "Training step of the layer (forward and backward)",
    "eval": "Inference (forward, in inference mode)",
}
CLOCKS = {"wall": "milliseconds by the clock", "process": "processor milliseconds of all threads"}
LEGEND = (
    "Every layer takes the same input and gives as many channels. Ours, lucidrains' and timm's compute one "
    "function with one set of weights: projections, batch norms, content and positions. SDPA is softmax "
    "attention with as many heads through PyTorch's fused function, without batch norm, position embeddings "
    "and output projection; 3x3 conv (3 per axis) is the convolution that the layer replaces, without batch "
    "norm. Numbers are medians, all taking turns in one process; ± is half of what lies between the 20 % and "
    "80 % quantiles; 3.0x beside a time is what it takes over what ours takes. Peers are those of the same "
    "function. GEMM: operations per second over those of a matrix product in the same run. copy: bytes of "
    "input, output, weights and their gradients, each once, per second, over those of a copy in that run. "
    "Of the roofline a layer reaches the larger of the two."
)
SINGLE = "*"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with its title and, below it, sentences on what is missing in it."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def make_tables(records: Sequence[Record], clock: Clock = "wall") -> list[Table]:
    """Return the tables of a bench: times, memory and kernels for each pass.

    Args:
        records: Its rows.
        clock: Which of the two times is shown.
    """
    made = []
    for mode in PASSES:
        rows = [record for record in records if record.mode == mode]
        if not rows:
            continue
        made.append(_times(rows, mode, clock))
        if any(not math.isnan(row.peak_mib) for row in rows):
            made.append(_memory(rows, mode))
        if any(row.role == "kernel" for row in rows):
            made.append(_kernels(rows, mode, clock))
    return made


def markdown(records: Sequence[Record], where: Provenance, clock: Clock, figures: Iterable[str] = ()) -> str:
    """Return the report of a race: provenance, tables, figures."""
    return page("lambdanets bench op", (provenance_line(where), LEGEND), make_tables(records, clock), figures)


def page(command: str, words: Iterable[str], tables: Iterable[Table], figures: Iterable[str]) -> str:
    """Return a report in Markdown.

    Args:
        command: What was run, the title.
        words: Paragraphs below it.
        tables: Then these.
        figures: Then these files.
    """
    parts = [f"# `{command}`", *words]
    for made in tables:
        parts += [f"## {made.title}", written(made)]
    parts += [f"![{name}]({name})" for name in figures]
    return "\n\n".join(parts) + "\n"


def written(table: Table, left: int = 2) -> str:
    """Return a table in Markdown with its notes below it, so many of its columns aligned to the left."""
    lines = [line(table.headings), "|---" * left + "|" + "---:|" * (len(table.headings) - left)]
    lines += map(line, table.rows)
    if table.notes:
        lines += ["", *(f"- {note}" for note in table.notes)]
    return "\n".join(lines)


def provenance_line(where: Provenance) -> str:
    """Return one line on the machine and the versions."""
    facts = asdict(where)
    versions = ", ".join(f"{name.replace('_', '-')} {facts[name]}" for name in VERSIONS if facts[name])
    commit = f" ({where.commit})" if where.commit else ""
    return (
        f"{where.processor}, {where.device}, {threads(where.threads)}, {where.dtype}; matrix product "
        f"{where.gemm_gflops:,.0f} Gflop/s, copy {where.copy_gbs:,.0f} GB/s; load {where.load:.1f} at the "
        f"start; lambdanets {where.lambdanets}{commit}, {versions}; {where.system}; {where.date}"
    )


def threads(number: int) -> str:
    """Return the number of threads in words."""
    return f"{number} thread{'s' if number != 1 else ''}"


VERSIONS = ("torch", "timm", "lambda_networks", "triton", "python")


def _times(rows: list[Record], mode: str, clock: Clock) -> Table:
    layers, names = _layers(rows)
    body = []
    for case in _cases(rows):
        found = {row.contender: row for row in layers if row.case == case}
        ours = next(row for row in found.values() if row.role == "layer")
        peers = [row for row in found.values() if row.role == "peer" and row.samples]
        best = min(peers, key=lambda row: row.time(clock), default=None)
        part = ours.of_gemm if clock == "wall" else ours.of_gemm_cpu
        body.append(
            (
                case,
                ours.title,
                _with_range(ours, clock),
                times(best.over_ours(clock)) if best and ours.samples else "-",
                *(_beside(found.get(name), clock) for name in names),
                _percent(part),
                _percent(ours.of_copy),
            )
        )
    headings = ("case", "input", "ours", "fastest peer / ours", *names, "GEMM", "copy")
    title = f"{PASSES[mode]}: {CLOCKS[clock]}"
    return Table(title=title, headings=headings, rows=tuple(body), notes=_notes(layers))


def _memory(rows: list[Record], mode: str) -> Table:
    layers, names = _layers(rows)
    body = []
    for case in _cases(rows):
        found = {row.contender: row for row in layers if row.case == case}
        ours = next(row for row in found.values() if row.role == "layer")
        peers = [row for row in found.values() if row.role == "peer" and not math.isnan(row.peak_mib)]
        best = min(peers, key=lambda row: row.peak_mib, default=None)
        ratio = best.peak_mib / ours.peak_mib if best and ours.peak_mib > 0 else math.nan
        mib = [_mib(found[name]) if name in found else "-" for name in names]
        leanest = times(ratio) if best and not math.isnan(ratio) else "-"
        body.append((case, ours.title, _mib(ours), leanest, *mib))
    headings = ("case", "input", "ours", "leanest peer / ours", *names)
    return Table(title=f"{PASSES[mode]}: peak MiB above the input", headings=headings, rows=tuple(body))


def _kernels(rows: list[Record], mode: str, clock: Clock) -> Table:
    kernels = [row for row in rows if row.role == "kernel"]
    names = list(dict.fromkeys(row.contender for row in kernels))
    body = []
    for case in _cases(rows):
        ours = next(row for row in rows if row.case == case and row.role == "layer")
        found = {row.contender: row for row in kernels if row.case == case}
        cells = [_beside(found.get(name), clock) for name in names]
        body.append((case, ours.title, ours.kernel or "-", _with_range(ours, clock), *cells))
    title = f"{PASSES[mode]}, kernel by kernel: {CLOCKS[clock]}"
    headings = ("case", "input", "auto takes", "auto", *names)
    return Table(title=title, headings=headings, rows=tuple(body), notes=_notes(kernels))


def _layers(rows: list[Record]) -> tuple[list[Record], list[str]]:
    layers = [row for row in rows if row.role != "kernel"]
    return layers, list(dict.fromkeys(row.contender for row in layers if row.role != "layer"))


def _cases(rows: list[Record]) -> list[str]:
    return list(dict.fromkeys(row.case for row in rows))


def _notes(rows: list[Record]) -> tuple[str, ...]:
    """Each reason once, with the cases that it is for."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.note:
            mark = f"{SINGLE} " if row.samples == 1 else ""
            reasons.setdefault((f"{mark}{row.contender}", row.note), []).append(row.case)
    return tuple(f"{who}: {note} ({', '.join(cases)})" for (who, note), cases in reasons.items())


def _percent(part: float) -> str:
    return "-" if math.isnan(part) else f"{part:.0%}"


def number(value: float) -> str:
    """Return a number with three digits that mean something."""
    if math.isnan(value):
        return "-"
    decimals = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:,.{min(decimals, 3)}f}"


def times(ratio: float) -> str:
    """Return a ratio as people say it: 0.43x, 3.10x, 14.9x, 123x."""
    return f"{ratio:.{0 if ratio >= 100 else 1 if ratio >= 10 else 2}f}x"


def _with_range(row: Record, clock: Clock) -> str:
    if not row.samples:
        return "-"
    low, high = (row.wall_q20, row.wall_q80) if clock == "wall" else (row.cpu_q20, row.cpu_q80)
    spread = "" if row.samples == 1 else f" ±{(high - low) / 2 / row.time(clock):.0%}"
    return f"{number(row.time(clock))}{spread or SINGLE}"


def _beside(row: Record | None, clock: Clock) -> str:
    if row is None or not row.samples:
        return "-"
    mark = SINGLE if row.samples == 1 else ""
    ratio = row.over_ours(clock)
    return f"{number(row.time(clock))}{mark}" + ("" if math.isnan(ratio) else f" {times(ratio)}")


def _mib(row: Record) -> str:
    return "-" if math.isnan(row.peak_mib) else f"{row.peak_mib:,.1f}"


def line(cells: Iterable[str]) -> str:
    """Return a row of a table in markdown."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
