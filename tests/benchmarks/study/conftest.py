"""Made-up rows of a study, and its command, in this process and in one of its own."""

import csv
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path

import pytest

from benchmarks.study import CellRecord
from benchmarks.study.__main__ import run
from benchmarks.study.records import to_cells
from lambdanets.cli import main
from preloaded import Preloaded

ROOT = Path(__file__).parents[3]
Command = Callable[..., subprocess.CompletedProcess[str]]
Make = Callable[..., CellRecord]


@pytest.fixture(scope="session")
def record() -> Make:
    """Make a row, `record("conv", seed, top1, ...)`; what is not given is made up."""

    def make(contender: str, seed: int, top1: float, **given: object) -> CellRecord:
        made_up = {"int": 3, "float": 2.5, "str": "x"}
        values = {field.name: made_up[str(field.type)] for field in fields(CellRecord)}
        values |= {
            "peak_gpu_mib": float("nan"),
            "title": f"the {contender}",
            "device": "cpu",
            "options": "{}",
        }
        values |= {"contender": contender, "seed": seed, "top1": top1, "best_top1": top1 + 0.01}
        return CellRecord(**{**values, **given})  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def write_cells() -> Callable[[Path, list[CellRecord]], None]:
    """Write rows as a `cells.csv`, by the csv module alone."""

    def write(path: Path, records: list[CellRecord]) -> None:
        rows: list[Mapping[str, str]] = [to_cells(record) for record in records]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    return write


@pytest.fixture
def inside(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `python -m benchmarks.study WORDS...` in this process."""

    def call(*words: object) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        code = main(list(map(str, words)), run=run)
        shown = capsys.readouterr()
        return subprocess.CompletedProcess(words, code, shown.out, shown.err)

    return call


@pytest.fixture
def start() -> Iterator[Callable[..., Preloaded]]:
    """Start `python WORDS...` in the background; it is killed at the end of the test."""
    started: list[Preloaded] = []

    def begin(*words: object) -> Preloaded:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "140"}
        started.append(Preloaded(*words, cwd=ROOT, env=environment))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
