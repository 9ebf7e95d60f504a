"""CSV rows with their provenance, from which alone tables and figures are drawn."""

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
from lambdanets.utils.allocator import keeps_freed_memory
from lambdanets.utils.files import replacing

NONE = math.nan  # stands for a number that was not measured; written as an empty cell


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The highest speeds of the hardware in this run; rows state their speed as fractions of them.

    Attributes:
        gflops: 10^9 operations per second of a large matrix product, by wall time.
        gflops_cpu: The same by CPU time of all threads; equal to `gflops` on a GPU.
        copy_gbs: Gigabytes per second that a copy reads and writes.
    """

    gflops: float
    gflops_cpu: float
    copy_gbs: float


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The machine, the versions and the time of a measurement.

    Attributes:
        device: Device of PyTorch, such as "cpu" or "cuda:0".
        processor: Name of the CPU or the GPU.
        threads: Number of threads of PyTorch.
        load: Load average of the last minute at the start.
        gemm_gflops: `Machine.gflops`.
        gemm_gflops_cpu: `Machine.gflops_cpu`.
        copy_gbs: `Machine.copy_gbs`.
        dtype: Dtype of inputs and weights.
        lambdanets: Version of this package.
        commit: Its commit; see `commit`.
        torch: Version of PyTorch.
        timm: Version of timm.
        lambda_networks: Version of lucidrains' package, or "".
        python: Version of Python.
        system: Operating system and architecture.
        date: Local time of the measurement, to the minute.
        triton: Version of Triton, or "".
        freed_memory: "kept" where the process keeps freed memory, as that of `lambdanets train` does; ""
            where the C library's default applies.
    """

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
    freed_memory: str = ""


def write_rows(path: Path, kind: type, rows: Iterable[tuple[Any, Provenance]]) -> None:
    """Write rows to a CSV file atomically.

    Args:
        path: The file.
        kind: The dataclass of the rows, with `str`, `int` and `float` fields.
        rows: Each row with its provenance.
    """
    names = [field.name for field in fields(kind)]
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([*names, *(field.name for field in fields(Provenance))])
        for row, where in rows:
            values = (getattr(row, name) for name in names)
            table.writerow([*map(cell, values), *map(cell, asdict(where).values())])


def read_rows(path: Path, kind: type, bench: str) -> list[tuple[Any, Provenance]]:
    """Read a file of `write_rows`.

    Args:
        path: The file.
        kind: The dataclass of the rows.
        bench: The benchmark that writes such files, for the error.

    Raises:
        ValueError: The file is no such table, or has no rows.
    """
    with path.open(newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        try:
            rows = [(parse(kind, row), parse(Provenance, row)) for row in table]
        except KeyError as error:
            raise ValueError(
                f"{path} is not a table of the benchmark {bench}: it has no column {error}"
            ) from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not a table of the benchmark {bench}: {error}") from error
        except ValueError as error:
            raise ValueError(
                f"{path}, line {table.line_num}: {error}; remove this line to use the others"
            ) from error
    if not rows:
        raise ValueError(f"{path} holds no measurements")
    return rows


def provenance(dtype: torch.dtype, device: str, threads: int, machine: Machine) -> Provenance:
    """Return the provenance of a benchmark that starts now.

    Args:
        dtype: Dtype of inputs and weights.
        device: Device of the benchmark.
        threads: Number of threads of PyTorch.
        machine: The speed of the hardware.
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
        freed_memory="kept" if keeps_freed_memory() else "",
    )


def cell(value: object) -> object:
    """Return the cell of the file for the value of a field; an empty one for NaN."""
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.9g}"


def parse(kind: type, row: Mapping[str, str | None]) -> Any:
    """Return a dataclass with `str`, `int` and `float` fields from the cells of a row.

    A column that an older file does not have leaves its field at the default.

    Raises:
        KeyError: A field without a default is missing.
        ValueError: A cell is no number, or the row ends before it.
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
    """Return the commit of the checkout that this package runs from, followed by + if files were changed.

    Without a checkout it is the value of the environment variable LAMBDANETS_COMMIT, or "".
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
