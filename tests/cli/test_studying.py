"""`lambdanets bench study` as it is left running: killed in the middle, taken up again, refused, reported."""

import csv
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]

SETTINGS = ("--trunk", "digits", "--epochs", 2, "--set", "engine.max_batches=3")
STUDY = ("bench", "study", *SETTINGS, "--contenders", "conv,lambda", "--seeds", "0,1")


def rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def wait_for(what: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_study_goes_on_and_runs_nothing_twice(start: Start, inside: Command, tmp_path: Path) -> None:
    out = tmp_path / "study"
    first = start(*STUDY, "--out", out, "--jobs", 1)
    # The first cell has its row, and the second is in the middle.
    wait_for(
        lambda: (out / "runs" / "lambda-seed0" / "config.json").exists() or first.poll() is not None, 150
    )
    first.send_signal(signal.SIGKILL)
    first.wait()
    (before,) = rows(out / "cells.csv")
    result = out / "runs" / f"{before['contender']}-seed{before['seed']}" / "cell.json"
    written = result.stat().st_mtime_ns
    assert before["seed"] == "0"

    done = inside(*STUDY, "--out", out)
    assert done.returncode == 0, done.stderr
    after = rows(out / "cells.csv")
    # Rows stand as their runs end, two at a time.
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
def test_ctrl_c_saves_and_a_failed_cell_does_not_end_the_others(
    start: Start, inside: Command, tmp_path: Path
) -> None:
    out = tmp_path / "study"
    words = (*STUDY[:-1], "0", "--out", out)
    first = start(*words)
    wait_for(lambda: (out / "runs" / "conv-seed0" / "config.json").exists() or first.poll() is not None, 100)
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=100)
    assert first.returncode == 130
    assert "The same command goes on" in said
    # A run whose configuration cannot be read fails alone, with its reason.
    (out / "runs" / "conv-seed0" / "config.json").write_text("{")
    done = inside(*words)
    assert done.returncode == 1
    assert "conv seed 0 failed" in done.stderr
    assert [row["contender"] for row in rows(out / "cells.csv")] == ["lambda"]


def test_mistakes_are_told_before_anything_is_trained(inside: Command, tmp_path: Path) -> None:
    for words, sentence in (
        (("--contenders", "conv,lamda"), "there is no contender 'lamda'; did you mean lambda?"),
        (("--contenders", ","), "--contenders takes names with commas between them"),
        (("--seeds", "0,one"), "--seeds takes whole numbers with commas between"),
        (("--jobs", 0), "--jobs is 1 or more; got 0"),
        (("--subset", 0), "data.train_per_class must be 1 or more, or None, got 0"),
        (("--set", "optimizer.rl=1"), "there is no setting 'optimizer.rl'"),
        (("--report",), "holds no finished cells"),
        (("--trunk", "mini"), "--trunk mini needs photos: give --data folder:PATH"),
        (("--epoch", 3), "there is no option '--epoch'"),
    ):
        trunk = () if "--trunk" in words else ("--trunk", "digits")
        done = inside("bench", "study", *trunk, "--out", tmp_path / "study", *words)
        assert done.returncode == 2
        assert sentence in done.stderr
    assert not (tmp_path / "study").exists()


def test_the_help_is_of_the_study(inside: Command) -> None:
    done = inside("bench", "study", "--help")
    assert done.returncode == 0
    assert "lambdanets bench study" in done.stdout
    assert "--dry-run" in done.stdout
