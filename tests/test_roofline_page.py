"""The tables of docs/roofline.md are what its script prints."""

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
