"""Rows of a study that nobody ran."""

import csv
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path

import pytest

from lambdanets.study import Record
from lambdanets.study.records import words

Make = Callable[..., Record]


@pytest.fixture(scope="session")
def record() -> Make:
    """Make a row, `record("conv", seed, top1, ...)`; what is not given is made up."""

    def make(contender: str, seed: int, top1: float, **given: object) -> Record:
        made_up = {"int": 3, "float": 2.5, "str": "x"}
        values = {field.name: made_up[str(field.type)] for field in fields(Record)}
        values |= {
            "peak_gpu_mib": float("nan"),
            "title": f"the {contender}",
            "device": "cpu",
            "options": "{}",
        }
        values |= {"contender": contender, "seed": seed, "top1": top1, "best_top1": top1 + 0.01}
        return Record(**{**values, **given})  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def write_cells() -> Callable[[Path, list[Record]], None]:
    """Write rows as a `cells.csv`, by the csv module alone."""

    def write(path: Path, records: list[Record]) -> None:
        rows: list[Mapping[str, str]] = [words(record) for record in records]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    return write
