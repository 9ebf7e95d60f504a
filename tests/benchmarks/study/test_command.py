"""`python -m benchmarks.study`: killed, continued, refused, reported."""

import csv
import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.study import Cell, Estimate, Progress, Study, StudyFiles, read, settle
from benchmarks.study.records import to_cells
from lambdanets.utils.processes import locked
from preloaded import Preloaded
from study_cells import run_cells_here

Command = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., Preloaded]

COMMITTED = Path(__file__).parents[3] / "benchmarks/study/cells.csv"
SETTINGS = ("--trunk", "digits", "--epochs", 2, "--set", "engine.max_batches=3")
STUDY = (*SETTINGS, "--contenders", "conv,lambda", "--seeds", "0,1")


def rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def wait_until_begun(process: Preloaded, run: Path) -> None:
    """Wait for the configuration of a run, or for the end of the study."""
    until = time.monotonic() + 150
    while not (run / "config.json").exists() and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_study_continues_without_repeating_a_cell(
    start: Start, inside: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "study"
    first = start("-m", "benchmarks.study", *STUDY, "--out", out, "--jobs", 1)
    # The first cell has its row, and the second is in the middle.
    wait_until_begun(first, out / "runs" / "lambda-seed0")
    first.send_signal(signal.SIGKILL)
    first.wait()
    (before,) = rows(out / "cells.csv")
    result = out / "runs" / f"{before['contender']}-seed{before['seed']}" / "cell.json"
    written = result.stat().st_mtime_ns
    assert before["seed"] == "0"

    run_cells_here(monkeypatch)
    # A run whose configuration cannot be read fails alone, with its reason.
    broken = out / "runs" / "conv-seed1" / "config.json"
    broken.parent.mkdir()
    broken.write_text("{")
    done = inside(*STUDY, "--out", out)
    assert done.returncode == 1
    assert "conv seed 1 failed" in done.stderr
    assert {(row["contender"], row["seed"]) for row in rows(out / "cells.csv")} == {
        ("conv", "0"), ("lambda", "0"), ("lambda", "1"),
    }  # fmt: skip

    broken.unlink()
    done = inside(*STUDY, "--out", out)
    assert done.returncode == 0, done.stderr
    after = rows(out / "cells.csv")
    # Rows are in the order in which their runs have ended.
    assert sorted((row["contender"], row["seed"]) for row in after) == [
        ("conv", "0"), ("conv", "1"), ("lambda", "0"), ("lambda", "1"),
    ]  # fmt: skip
    assert after[0] == before
    assert result.stat().st_mtime_ns == written
    for row in after:
        assert 0 <= float(row["top1"]) <= float(row["best_top1"]) <= 1
        assert float(row["images_per_second"]) > 0
        assert float(row["images_per_cpu_second"]) > 0
        assert float(row["peak_mib"] or 1) > 0
        log = (out / "runs" / f"{row['contender']}-seed{row['seed']}.log").read_text()
        assert log.count("epoch 2/2") == 1
        epochs = [
            epoch["epoch"]
            for epoch in rows(out / "curves.csv")
            if (epoch["contender"], epoch["seed"]) == (row["contender"], row["seed"])
        ]
        assert epochs == ["1", "2"]
    assert "4 of 4 done" in done.stdout
    assert "±" in (out / "study.md").read_text()
    assert (out / "study.svg").exists()

    again = inside(*STUDY, "--out", out)
    assert again.returncode == 0
    assert rows(out / "cells.csv") == after
    other = inside(*STUDY, "--out", out, "--set", "optimizer.lr=0.3")
    assert other.returncode == 2
    assert "optimizer.lr was 0.1 and is now 0.3" in other.stderr


@pytest.mark.slow
def test_ctrl_c_stops_all_cells(start: Start, tmp_path: Path) -> None:
    out = tmp_path / "study"
    cells = [out / "runs" / name for name in ("conv-seed0", "lambda-seed0")]
    words = ("--trunk", "digits", "--epochs", 1000, "--contenders", "conv,lambda", "--seeds", "0")
    program = "import sys; sys.path.append('tests'); import study_cells; sys.exit(study_cells.main())"
    study = start("-c", program, *words, "--out", out, "--jobs", 2)
    for cell in cells:
        wait_until_begun(study, cell)
    study.send_signal(signal.SIGINT)
    _, shown = study.communicate(timeout=100)
    assert study.returncode == 130
    assert "The same command goes on" in shown
    for cell in cells:
        with locked(cell / ".cell.lock", f"the run in {cell}"):  # raises while its process runs
            assert not (cell / "cell.json").exists()


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends the test where a cell would be started."""

    def start(*_: object, **__: object) -> None:
        pytest.fail("a cell was started")

    monkeypatch.setattr("benchmarks.study.running._start", start)


@pytest.mark.usefixtures("untrained")
def test_mistakes_are_reported_before_anything_is_trained(inside: Command, tmp_path: Path) -> None:
    for words, sentence in (
        (("--contenders", "conv,lamda"), "there is no contender 'lamda'; did you mean lambda?"),
        (("--contenders", ","), "--contenders takes names with commas between them"),
        (("--seeds", "0,one"), "--seeds takes whole numbers with commas between"),
        (("--seeds", ""), "--seeds takes whole numbers with commas between"),
        (("--seeds", f"0,{2**63}"), "--seeds takes numbers below 2**63, not 9223372036854775808"),
        (("--epochs", 0), "engine.epochs is 1 or more; got 0"),
        (("--precision", "fp8"), "engine.precision is one of '32', 'bf16-mixed'"),
        (("--jobs", 0), "--jobs is 1 or more; got 0"),
        (("--minutes", 0), "--minutes is above 0; got 0"),
        (("--subset", 0), "data.train_per_class must be 1 or more, or None, got 0"),
        (("--set", "optimizer.rl=1"), "there is no setting 'optimizer.rl'"),
        (("--report",), "holds no finished cells"),
        (("--trunk", "mini"), "--trunk mini needs photos: give --data folder:PATH"),
        (("--epoch", 3), "there is no option '--epoch'"),
    ):
        trunk = () if "--trunk" in words else ("--trunk", "digits")
        done = inside(*trunk, "--out", tmp_path / "study", *words)
        assert done.returncode == 2
        assert sentence in done.stderr
    assert not (tmp_path / "study").exists()


def test_a_study_with_minutes_has_the_epochs_that_fit(
    inside: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two cells of 15 epochs at 100 s and 5 s to begin: 13.3 s an epoch, 110 s are left of two minutes."""
    one = Estimate(images_per_second=1.0, images_per_cpu_second=1.0, seconds=100.0, start=5.0)
    kept: list[Study] = []

    def estimate(study: Study, names: list[str], **how: object) -> tuple[dict[str, Estimate], dict]:
        return dict.fromkeys(names, one), {}

    def run(study: Study, *rest: object) -> int:
        kept.append(study)
        return 0

    monkeypatch.setattr("benchmarks.study.estimate", estimate)
    monkeypatch.setattr("benchmarks.study.__main__._run", run)
    words = ("--trunk", "digits", "--contenders", "conv", "--seeds", "0,1", "--jobs", 1)
    done = inside(*words, "--minutes", 2, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "8 epochs of 15 fit into 2 minutes, this trial included" in done.stdout
    (study,) = kept
    assert study.config.engine.epochs == 8
    assert study.config.schedule.warmup_epochs <= 2
    assert inside(*words, "--minutes", 60, "--out", tmp_path).returncode == 0
    assert kept[-1].config.engine.epochs == 15, "the trunk's own, and no more"
    too_few = inside(*words, "--minutes", 0.3, "--out", tmp_path)
    assert too_few.returncode == 2
    assert "not one epoch of each of 2 cells fits into 0.3 minutes" in too_few.stderr
    settle(kept[0], StudyFiles(tmp_path))
    begun = tmp_path / "runs/conv-0/config.json"
    begun.parent.mkdir(parents=True)
    begun.touch()
    wrong = inside(*words, "--minutes", -1, "--out", tmp_path)
    assert (wrong.returncode, "--minutes is above 0; got -1" in wrong.stderr) == (2, True), "goes on or not"
    assert inside(*words, "--minutes", 0.3, "--out", tmp_path).returncode == 0
    assert kept[-1].config.engine.epochs == 8, "a study that goes on keeps its own number"


@pytest.mark.skipif(
    torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is a GPU here"
)
@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_missing_gpu_is_reported_before_anything_is_written(
    inside: Command, tmp_path: Path, more: tuple[str, ...]
) -> None:
    done = inside(*STUDY, "--device", "gpu", "--out", tmp_path / "study", *more)
    assert done.returncode == 2
    assert "the engine settings cannot be used here: No supported gpu backend" in done.stderr
    assert not (tmp_path / "study").exists()


@pytest.mark.usefixtures("untrained")
def test_a_study_keeps_its_precision(
    inside: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[str] = []

    def run(study: Study, files: StudyFiles, cells: list[Cell], **_: object) -> Progress:
        began.append(study.config.engine.precision)
        (files.run(cells[0])).mkdir(parents=True, exist_ok=True)
        (files.run(cells[0]) / "config.json").touch()
        return Progress(cells=cells, epochs=2, jobs=1)

    monkeypatch.setattr("benchmarks.study.run", run)
    words = (*STUDY, "--out", tmp_path)
    assert inside(*words, "--precision", "64").returncode == 0
    assert inside(*words).returncode == 0
    assert began == ["64", "64"]
    for more in ((), ("--dry-run",)):
        other = inside(*words, "--precision", "32", *more)
        assert other.returncode == 2
        assert "engine.precision was '64' and is now '32'" in other.stderr


@pytest.fixture
def reported(tmp_path: Path) -> StudyFiles:
    """The results of three runs whose tables are not there."""
    files = StudyFiles(tmp_path)
    for record in read(COMMITTED):
        if str(record.cell) in ("conv seed 0", "lambda seed 0", "conv seed 1"):
            path = files.result(record.cell)
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps({"row": to_cells(record), "epochs": [{"epoch": 1}]}))
    return files


def test_a_report_restores_the_tables(inside: Command, reported: StudyFiles) -> None:
    words = ("--report", "--out", reported.directory)
    assert inside(*words).returncode == 0
    whole, report = reported.cells.read_text(), reported.report.read_text()
    assert len(rows(reported.cells)) == len(rows(reported.curves)) == 3
    reported.cells.write_text(whole[:-60])
    with locked(reported.lock, "the study"):
        done = inside(*words)
        assert done.returncode == 2
        assert f"{reported.cells}, line 4, is damaged" in done.stderr
    assert inside(*words).returncode == 0
    assert sorted(reported.cells.read_text().splitlines()) == sorted(whole.splitlines())
    assert reported.report.read_text() == report


def test_a_report_has_the_chosen_contenders_and_seeds(inside: Command, reported: StudyFiles) -> None:
    words = ("--report", "--out", reported.directory)
    done = inside(*words, "--contenders", "conv", "--seeds", "1")
    assert done.returncode == 0
    (line,) = (line for line in reported.report.read_text().splitlines() if "(one seed)" in line)
    assert line.startswith("| 3x3 convolution | 199,594 | 1 |")
    assert len(rows(reported.cells)) == 3
    for more, sentence in (
        (("--contenders", "axial"), "there is no contender 'axial'; there are conv, lambda"),
        (("--seeds", "x"), "--seeds takes whole numbers"),
        (("--contenders", "lambda", "--seeds", "0,1"), "no finished cell has seed 1; there are 0"),
    ):
        done = inside(*words, *more)
        assert done.returncode == 2
        assert sentence in done.stderr


def test_the_help_is_of_the_study(inside: Command) -> None:
    done = inside("--help")
    assert done.returncode == 0
    assert "python -m benchmarks.study" in done.stdout
    assert "--dry-run" in done.stdout
