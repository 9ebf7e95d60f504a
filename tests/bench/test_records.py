"""What is written is read again, and nothing else is taken for it."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lambdanets.bench import LayerRecord, Machine, Provenance, provenance, read_layers, write_layers


def test_rows_survive_the_file(tmp_path: Path, records: list[LayerRecord], where: Provenance) -> None:
    path = tmp_path / "op.csv"
    write_layers(path, records, where)
    again, place = read_layers(path)
    assert place == where
    assert len(again) == len(records)
    for row, other in zip(records, again, strict=True):
        assert (row.case, row.mode, row.contender, row.role) == (
            other.case,
            other.mode,
            other.contender,
            other.role,
        )
        assert other.wall_ms == pytest.approx(row.wall_ms, rel=1e-4, nan_ok=True)
        assert math.isnan(other.error64)
        assert type(other.batch) is int
    assert [each.name for each in tmp_path.iterdir()] == ["op.csv"]


def test_a_file_without_the_newer_columns_is_read(
    tmp_path: Path, records: list[LayerRecord], where: Provenance
) -> None:
    path = tmp_path / "op.csv"
    write_layers(path, records, where)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    newer = {"layout", "gbytes", "of_copy", "triton"}
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, [name for name in rows[0] if name not in newer], extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
    again, place = read_layers(path)
    assert place == where
    assert again[0].layout == "contiguous"
    assert math.isnan(again[0].of_copy)


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "case\n", ""])
def test_another_table_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"other\.csv"):
        read_layers(path)


@pytest.mark.parametrize(
    ("end", "sentence"),
    [
        (",wide", "line 4: the row is cut short before its column 'lambdanets'"),
        ("\n", "line 4: could not convert string to float: 'x'"),
    ],
)
def test_a_row_that_is_cut_short_is_told_by_its_line(
    tmp_path: Path, records: list[LayerRecord], where: Provenance, end: str, sentence: str
) -> None:
    path = tmp_path / "op.csv"
    write_layers(path, records[:3], replace(where, dtype="wide"))
    lines = path.read_text().splitlines(keepends=True)
    lines[3] = lines[3].partition(end)[0] + end if end != "\n" else lines[3].replace("0.5", "x", 1)
    path.write_text("".join(lines))
    with pytest.raises(ValueError, match=rf"op\.csv, {sentence}; remove this line to use the others"):
        read_layers(path)


def test_provenance_names_machine_and_versions(machine: Machine) -> None:
    found = provenance(torch.bfloat16, "cpu", 3, machine)
    assert (found.threads, found.dtype, found.device) == (3, "bfloat16", "cpu")
    assert found.torch == torch.__version__
    assert found.processor
    assert found.gemm_gflops == machine.gflops
    assert found.date[:2] == "20"


def test_a_copy_of_a_checkout_is_told_its_commit(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")  # without git there is no history to ask
    monkeypatch.setenv("LAMBDANETS_COMMIT", "abc1234")
    assert provenance(torch.float32, "cpu", 1, machine).commit == "abc1234"
