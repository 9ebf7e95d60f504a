"""`python -m benchmarks.paper` as a user types it."""

import csv
import os
from pathlib import Path

import pytest

from benchmarks.paper.__main__ import run
from benchmarks.paper.published import TABLES
from lambdanets.cli import main
from preloaded import run_preloaded

ROOT = Path(__file__).parents[3]


def test_a_table_whose_networks_are_left_out(tmp_path: Path) -> None:
    """All networks are too large: every row has the reason, and the computed memory."""
    words = ["table4", "--largest", "0.001", "--pass", "eval", "--threads", "1", "--out", str(tmp_path)]
    assert main(words, run=run) == 0
    with (tmp_path / "table4.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(TABLES["table4"])
    assert all(row["note"].startswith("not run") for row in rows)
    assert [row["published_memory"] for row in rows][:3] == ["120", "4.8", ""]
    assert float(rows[0]["maps_gib"]) == pytest.approx(122.8, abs=0.1)
    assert "not run" in (tmp_path / "table4.md").read_text()


@pytest.mark.parametrize("name", ["race", "table4", "table13", "table14"])
def test_committed_reports_are_those_of_their_rows(name: str, tmp_path: Path) -> None:
    committed = ROOT / "benchmarks/models"
    assert main([name, "--from", str(committed / f"{name}.csv"), "--out", str(tmp_path)], run=run) == 0
    assert (tmp_path / f"{name}.md").read_text() == (committed / f"{name}.md").read_text()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("table4 --size big", "an image size is 224 or 160x224"),
        ("table5", "there is no table 'table5'; did you mean table"),
        ("race --from absent.csv", "absent.csv"),
        ("race --from absent.csv --pass eval", "--pass has no effect with --from, which measures nothing"),
        ("race --largest nan", "largest must be greater than 0, got nan"),
        ("race --device foo", "--device takes cpu or cuda, not 'foo'"),
    ],
)
def test_mistakes_are_sentences(
    words: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main([*words.split(), "--out", str(tmp_path / "out")], run=run)
    assert code in ((1, 2) if "absent" in words else (2,))
    shown = capsys.readouterr()
    assert sentence in shown.err
    assert shown.out == ""
    assert not (tmp_path / "out").exists()


def test_help_names_all_programs() -> None:
    done = run_preloaded("-m", "benchmarks.paper", "--help", cwd=ROOT, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert all(f"\n  {name} " in done.stdout for name in ("race", "table4", "table13", "table14"))
