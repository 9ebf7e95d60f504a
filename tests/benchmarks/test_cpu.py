"""Networks on a CPU in several forms: the script, the page's section and the advice of `show`."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.models import cpu
from lambdanets.bench.records import read_rows
from lambdanets.cli import fastest, main
from preloaded import run_preloaded

SCRIPT = Path(cpu.__file__)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> list[cpu.Measured]:
    """Rows that the script measured, one network in five forms."""
    file = tmp_path_factory.mktemp("rows") / "cpu.csv"
    forms = ("before", "contiguous", "channels-last", "kept memory", "bfloat16")
    words = [
        *("--models", "lambda_resnet_mini", "--size", "32", "--batches", "1", "2", "--rounds", "3"),
        *("--seconds", "1", "--threads", "1", "--forms", *forms, "--out", str(file)),
    ]
    done = run_preloaded(SCRIPT, *words, env=os.environ)
    assert done.returncode == 0, done.stderr
    return read_rows(file, cpu.Row, "cpu")


def test_every_form_has_a_row_with_its_provenance(measured: list[cpu.Measured]) -> None:
    keys = {(row.mode, row.batch) for row, _ in measured}
    assert keys == {("eval", 1), ("eval", 2), ("train", 2)}
    assert len(measured) == 15
    for row, where in measured:
        form = cpu.FORMS[row.form]
        assert row.wall_ms > 0
        assert row.cpu_ms > 0
        assert row.samples == 3
        assert where.threads == 1
        assert where.dtype == ("bfloat16" if row.form == "bfloat16" else "float32")
        assert where.freed_memory == ("kept" if form.kept else "")
        assert row.difference < cpu.TOLERANCE[form.dtype]


def test_the_advice_is_the_fastest_form(
    measured: list[cpu.Measured],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    times = {"before": 9.0, "contiguous": 8.0, "channels-last": 5.0, "kept memory": 4.0, "bfloat16": 2.0}
    rows = [(replace(row, wall_ms=row.batch * times[row.form]), where) for row, where in measured]
    page = tmp_path / "page.md"
    page.write_text(f"above\n{cpu.BEGIN}old\n{cpu.END}below\n")
    for module, name, path in ((cpu, "PAGE", page), (cpu, "ADVICE", tmp_path / "fastest.csv")):
        monkeypatch.setattr(module, name, path)
    cpu.draw(rows)
    text = page.read_text()
    assert text.startswith("above\n")
    assert text.endswith("below\n")
    assert "| and bfloat16 autocast | 500 | 500 |" in text
    assert "old" not in text
    assert "Channels-last memory alone multiplies these speeds by 1.60 to 1.60." in text
    assert "Keeping freed memory alone multiplies these speeds by 1.25 to 1.25." in text
    monkeypatch.setattr(fastest, "FILE", tmp_path / "fastest.csv")
    slow, fast = (fastest.advice("lambda_resnet_mini", bfloat16=half) for half in (False, True))
    assert slow[0].startswith("Inference on a CPU is fastest in channels-last format with freed memory kept")
    assert "at batch 1 (250 images/s, 2 times PyTorch's defaults) and " in slow[0]
    assert fast[1].startswith("Training on a CPU is fastest in channels-last format with bfloat16 autocast")
    assert "at batch 2 (500 images/s, 4 times PyTorch's defaults)." in fast[1]
    assert fast[2].startswith("Measured at 32 pixels, threads=1, on: ")
    assert fastest.advice("lambda_resnet50", bfloat16=True) == []
    assert main(["show", "lambda_resnet_mini"]) == 0
    assert "Training on a CPU is fastest" in capsys.readouterr().out
    assert main(["show", "lambda_resnet_digits"]) == 0  # was not measured
    assert "is fastest" not in capsys.readouterr().out


def test_page_and_advice_are_those_of_the_committed_rows() -> None:
    rows = read_rows(cpu.ROWS, cpu.Row, "cpu") if cpu.ROWS.exists() else []
    section = cpu.PAGE.read_text().partition(cpu.BEGIN)[2].partition(cpu.END)[0]
    assert section == cpu.section(rows)
    advice = read_rows(fastest.FILE, fastest.Fastest, "cpu") if fastest.FILE.exists() else []
    assert [each for each, _ in advice] == [each for each, _ in cpu.fastest(rows)]


def test_every_form_has_its_words() -> None:
    assert set(cpu.OFFERED) == set(fastest.FORMS) == set(cpu.FORMS) - {"before"}
