"""Rows with their provenance: what a bench writes, and all that its tables and figures are drawn from."""

from __future__ import annotations

import csv
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import lambdanets

from .measuring import Machine

NONE = math.nan  # a number that was not measured; an empty cell in the file


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where and with what the rows of one bench were measured."""

    device: str
    processor: str
    threads: int
    load: float
    gemm_gflops: float
    gemm_gflops_cpu: float
    copy_gbs: float
    dtype: str
    lambdanets: str
    commit: str
    torch: str
    timm: str
    lambda_networks: str
    python: str
    system: str
    date: str
    triton: str = ""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One contender in one pass of one case.

    Attributes:
        case: Name of the case.
        title: Its sizes in words.
        series: The curve it belongs to, or "".
        grid: Sizes of the grid, 14x14.
        scope: Of the position table, or "global".
        batch: b; smaller than the title's where memory did not suffice, and then the note says so.
        dim: Channels.
        num_heads: h.
        dim_k: k.
        dim_u: u.
        mode: "train" or "eval".
        contender: Who.
        role: "layer", "kernel", "peer" or "other".
        layout: Of the input in memory: "contiguous" (channels before positions) or "channels_last".
        kernel: The kernel that ours took, forward and backward where they differ.
        note: Why it took no part, or how its numbers differ from the others'; "" is the rule.
        wall_ms: Median by the clock; with its quantiles `wall_q20` and `wall_q80`.
        cpu_ms: The same by processor time, of all threads.
        samples: How many.
        peak_mib: Rise of memory, on a CPU in a process of its own, on a GPU of what PyTorch has allocated.
        ratio: Its time for one example over that of our layer, by the clock.
        ratio_cpu: The same by processor time.
        error64: Difference from the definition on a crop in float64, of a kernel that refuses float64 in the
            type of the bench; nan where that is another function.
        error: Difference from our layer in this case itself, by another kernel where it takes Triton's.
        gflop: Operations of our rows, projections included; nan for others.
        of_gemm: Operations per second, as a fraction of those of a matrix product in the same run.
        of_gemm_cpu: The same by processor time.
        gbytes: Gigabytes that the pass cannot but move: input, output, weights and, in training, their
            gradients, each once.
        of_copy: These per second, as a fraction of what a copy moves in the same run. Of the roofline, a row
            reaches the larger of `of_gemm` and `of_copy`.
    """

    case: str
    title: str
    series: str
    grid: str
    scope: str
    batch: int
    dim: int
    num_heads: int
    dim_k: int
    dim_u: int
    mode: str
    contender: str
    role: str
    layout: str = "contiguous"
    kernel: str = ""
    note: str = ""
    wall_ms: float = NONE
    wall_q20: float = NONE
    wall_q80: float = NONE
    cpu_ms: float = NONE
    cpu_q20: float = NONE
    cpu_q80: float = NONE
    samples: int = 0
    peak_mib: float = NONE
    ratio: float = NONE
    ratio_cpu: float = NONE
    error64: float = NONE
    error: float = NONE
    gflop: float = NONE
    of_gemm: float = NONE
    of_gemm_cpu: float = NONE
    gbytes: float = NONE
    of_copy: float = NONE

    @property
    def positions(self) -> int:
        return math.prod(map(int, self.grid.split("x")))

    def time(self, clock: str) -> float:
        """Median milliseconds by "wall" or "process"."""
        return self.wall_ms if clock == "wall" else self.cpu_ms

    def over_ours(self, clock: str) -> float:
        """Its time over our layer's by "wall" or "process"."""
        return self.ratio if clock == "wall" else self.ratio_cpu


def write(path: Path, records: Iterable[Record], provenance: Provenance) -> None:
    """Write the rows of one race, all measured in one place and one run."""
    write_rows(path, Record, ((record, provenance) for record in records))


def write_rows(path: Path, kind: type, rows: Iterable[tuple[Any, Provenance]]) -> None:
    """Write rows beside their place and rename them into it: a reader never finds half a file.

    Args:
        path: The file.
        kind: The dataclass of the rows: `str`, `int` and `float` fields.
        rows: Each row with its provenance.
    """
    names = [field.name for field in fields(kind)]
    temporary = path.with_name(f"{path.name}.part")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([*names, *(field.name for field in fields(Provenance))])
        for row, where in rows:
            values = (getattr(row, name) for name in names)
            table.writerow([*map(cell, values), *map(cell, asdict(where).values())])
    temporary.replace(path)


def read(path: Path) -> tuple[list[Record], Provenance]:
    """Read what `write` wrote.

    Raises:
        ValueError: The file is no such table, or has no rows.
    """
    rows = read_rows(path, Record, "lambdanets bench op")
    return [record for record, _ in rows], rows[0][1]


def read_rows(path: Path, kind: type, command: str) -> list[tuple[Any, Provenance]]:
    """Read what `write_rows` wrote.

    Args:
        path: The file.
        kind: The dataclass of the rows.
        command: What writes such files, for the error.

    Raises:
        ValueError: The file is no such table, or has no rows.
    """
    with path.open(newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        try:
            rows = [(parse(kind, row), parse(Provenance, row)) for row in table]
        except KeyError as error:
            raise ValueError(f"{path} is not a table of `{command}`: it has no column {error}") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not a table of `{command}`: {error}") from error
        except ValueError as error:
            raise ValueError(
                f"{path}, line {table.line_num}: {error}; remove this line to use the others"
            ) from error
    if not rows:
        raise ValueError(f"{path} holds no measurements")
    return rows


def provenance(dtype: torch.dtype, device: str, threads: int, machine: Machine) -> Provenance:
    """Return the provenance of a bench that starts now.

    Args:
        dtype: Element type.
        device: Where it runs.
        threads: How many.
        machine: What the hardware reaches at best.
    """
    cuda = torch.device(device).type == "cuda"
    return Provenance(
        device=device,
        processor=torch.cuda.get_device_name(device) if cuda else _processor(),
        threads=threads,
        load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else NONE,
        gemm_gflops=machine.gflops,
        gemm_gflops_cpu=machine.gflops_cpu,
        copy_gbs=machine.copy_gbs,
        dtype=str(dtype).removeprefix("torch."),
        lambdanets=lambdanets.__version__,
        commit=commit(),
        torch=torch.__version__,
        timm=_version("timm"),
        lambda_networks=_version("lambda-networks"),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        date=f"{datetime.now():%Y-%m-%d %H:%M}",
        triton=_version("triton"),
    )


def cell(value: object) -> object:
    """Return what stands in a file for a field's value; nothing for what was not measured."""
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.9g}"


def parse(kind: type, row: Mapping[str, str | None]) -> Any:
    """Return the dataclass of `str`, `int` and `float` fields that a row's words give.

    A column that the file is too old to have leaves its field as it is by default.

    Raises:
        KeyError: A field is missing.
        ValueError: A word is no number, or the row ends before it.
    """
    values: dict[str, object] = {}
    for field in fields(kind):
        if field.name not in row and field.default is not MISSING:
            continue
        text = row[field.name]
        if text is None:
            raise ValueError(f"the row is cut short before its column {field.name!r}")
        if field.type == "float":
            values[field.name] = float(text) if text else NONE
        else:
            values[field.name] = int(text) if field.type == "int" else text
    return kind(**values)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def commit() -> str:
    """Return the commit of the checkout that this package runs from, with + if files differ, or "".

    A copy of a checkout without its history is told the commit by LAMBDANETS_COMMIT.
    """
    here = Path(__file__).parent

    def git(*words: str) -> str:
        try:
            done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    # An installed package may lie inside some other project's checkout.
    if git("ls-files", "--error-unmatch", Path(__file__).name) == "":
        return os.environ.get("LAMBDANETS_COMMIT", "")
    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", ".") else "")
