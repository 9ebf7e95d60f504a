"""The tables on the pages are those of the committed rows."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", ["docs/training.md", "benchmarks/finetune/README.md"])
def test_the_table_on_the_page(page: str) -> None:
    names = runpy.run_path(str(ROOT / "benchmarks/finetune/finetune.py"))
    assert names["table"]() in (ROOT / page).read_text()
