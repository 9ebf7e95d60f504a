"""What is written is read again, and nothing else is taken for it."""

import math
from pathlib import Path

import pytest
import torch

from lambdanets.bench import Machine, Provenance, Record, provenance, read, write


def test_rows_survive_the_file(tmp_path: Path, records: list[Record], where: Provenance) -> None:
    path = tmp_path / "op.csv"
    write(path, records, where)
    again, place = read(path)
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


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "case\n", ""])
def test_another_table_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"other\.csv"):
        read(path)


def test_provenance_names_machine_and_versions(machine: Machine) -> None:
    found = provenance(torch.bfloat16, "cpu", 3, machine)
    assert (found.threads, found.dtype, found.device) == (3, "bfloat16", "cpu")
    assert found.torch == torch.__version__
    assert found.processor
    assert found.gemm_gflops == machine.gflops
    assert found.date[:2] == "20"
