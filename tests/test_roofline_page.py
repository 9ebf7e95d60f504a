"""The tables of docs/roofline.md equal the output of its script, its sentences the committed rows."""

import csv
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_page_has_the_tables_that_the_script_prints(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "benchmarks/gpu/roofline.py"), run_name="__main__")
    tables = [part for part in capsys.readouterr().out.split("\n\n") if part.strip()]
    page = (ROOT / "docs/roofline.md").read_text()
    assert len(tables) == 6
    for table in tables:
        assert table.partition("\n")[2] in page


def test_the_page_agrees_with_the_rows_of_the_compiled_programs() -> None:
    with (ROOT / "benchmarks/gpu/compiled.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    page = " ".join((ROOT / "docs/roofline.md").read_text().split())
    half = [row for row in rows if "bfloat16" in row["problem"]]
    full = [row for row in rows if "float32" in row["problem"]]
    assert len(half) + len(full) == len(rows)
    assert {row["capability"] for row in half} == {row["capability"] for row in full} == {"80", "90"}
    shared = max(int(row["shared_bytes"]) for row in half)
    assert f"at most {shared // 1024} KiB of shared memory" in page
    forward = [row for row in half if row["program"].endswith(".output")]
    assert {row["spilled_bytes"] for row in forward} == {"0"}
    assert f"spill up to {max(int(row['spilled_bytes']) for row in half)} bytes" in page
    assert {row["products"] for row in full} == {"none"}
    spilling = {row["program"] for row in full if row["spilled_bytes"] != "0"}
    assert spilling == {"by_position.query_gradient"}
    assert f"spills up to {max(int(row['spilled_bytes']) for row in full)} bytes" in page
    hopper = {row["program"] for row in half if row["capability"] == "90" and "wgmma" in row["products"]}
    assert hopper == {"lambda_first.output"}
