"""A round of noisy student as a person types it; labelling is killed on the way."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from photo_sets import write_scans
from preloaded import Preloaded

Command = Callable[..., subprocess.CompletedProcess[str]]
TRAIN = ["--batch-size", 16, "--set", "data.train_per_class=4", "--set", "engine.threads=1"]


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 300 digits as files, a fifth of them for validation."""
    return write_scans(tmp_path_factory.mktemp("scans"))


@pytest.mark.slow
def test_teacher_labels_student(
    scans: Path, tmp_path: Path, inside: Command, start: Callable[..., Preloaded]
) -> None:
    teacher, labels = tmp_path / "teacher", tmp_path / "labels.csv"
    done = inside(
        "train", "digits", "--data", f"folder:{scans}", "--epochs", 6, "--out", teacher, *TRAIN,
        "--set", "optimizer.lr=0.02", "--set", "schedule.warmup_epochs=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

    # The words of the command, killed once some labels are written.
    words = ["pseudo-label", teacher, "--data", f"folder:{scans}/train", "--threshold", 0.1]
    process = start(*words, "--out", labels, "--batch-size", 1, "--workers", 0)
    growing = tmp_path / "labels.all.csv.part"
    until = time.monotonic() + 120
    while not (growing.exists() and growing.read_text().count("\n") > 20) and time.monotonic() < until:
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert growing.exists(), process.communicate()
    done = inside(*words, "--out", labels, "--batch-size", 1)
    assert done.returncode == 0, done.stderr
    assert "of 200 images are labelled already" in done.stdout
    assert "40 images that the teacher was trained on are left out" in done.stdout
    assert "of all labels are correct" in done.stdout
    assert f"--set data.pseudo_labels={labels}" in done.stdout
    whole = tmp_path / "whole.csv"
    assert inside(*words, "--out", whole, "--batch-size", 1).returncode == 0
    assert labels.read_bytes() == whole.read_bytes()

    done = inside(*words, "--out", labels, "--per-class", 5, "--fill")
    assert "200 of 200 images are labelled already" in done.stdout
    rows = [line.split(",") for line in labels.read_text().splitlines()[1:]]
    assert all(sum(row[1] == digit for row in rows) in (0, 5) for digit in "0123456789")

    student = tmp_path / "student"
    done = inside(
        "train", "digits", "--data", f"folder:{scans}", "--epochs", 1, "--out", student, *TRAIN,
        "--set", f"data.pseudo_labels={labels}", "--set", "data.pseudo_ratio=3",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"40 labelled, {len(rows)} pseudo-labelled and 60 validation images" in done.stdout
    done = inside("pseudo-label", student, "--data", f"folder:{scans}/train", "--out", tmp_path / "next.csv",
                  "--threshold", 0)  # fmt: skip
    assert "40 images that the teacher" in done.stdout


def images_and_labels(path: Path) -> dict[str, str]:
    return dict(line.split(",")[:2] for line in path.read_text().splitlines()[1:])


def test_images_that_the_teacher_learned_from_are_kept_where_asked(
    scans: Path, tmp_path: Path, inside: Command
) -> None:
    teacher, found = tmp_path / "teacher", []
    done = inside("train", "digits", "--data", f"folder:{scans}", "--epochs", 1, "--out", teacher, *TRAIN)
    assert done.returncode == 0, done.stderr
    source = ("--data", f"folder:{scans}/train", "--threshold", 0)
    for words, printed in (((), True), (("--keep-labelled",), False)):
        out = tmp_path / f"labels{len(found)}.csv"
        done = inside("pseudo-label", teacher, *source, "--out", out, *words)
        assert done.returncode == 0, done.stderr
        assert ("40 images that the teacher was trained on are left out" in done.stdout) == printed
        found.append(images_and_labels(out))
    assert (len(found[0]), len(found[1])) == (200, 240)
    learned = set(found[1]) - set(found[0])
    assert [sum(image.startswith(f"{digit}/") for image in learned) for digit in range(10)] == [4] * 10


def test_labels_of_the_best_and_of_the_last_weights(
    two_minds: Path, scans: Path, tmp_path: Path, inside: Command
) -> None:
    labelled = {}
    for weights, words in (("best", ()), ("last", ("--weights", "last"))):
        out = tmp_path / f"{weights}.csv"
        done = inside("pseudo-label", two_minds, "--data", f"folder:{scans}/val", "--out", out,
                      "--threshold", 0, *words)  # fmt: skip
        assert done.returncode == 0, done.stderr
        labelled[weights] = images_and_labels(out)
    assert set(labelled["best"].values()) == {"3"}
    assert labelled["best"].keys() == labelled["last"].keys()
    assert set(labelled["last"].values()) != {"3"}


def test_the_process_that_finishes_last_chooses(
    trained: Path, scans: Path, tmp_path: Path, inside: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "labels.csv"
    words = ["pseudo-label", trained, "--data", f"folder:{scans}/val", "--out", out, "--threshold", 0]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, message in ((1, "the shard of this process is labelled"), (0, "60 of 60 labels")):
        monkeypatch.setenv("RANK", str(rank))
        done = inside(*words)
        assert done.returncode == 0, done.stderr
        assert message in done.stdout
        assert out.exists() == (rank == 0)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere", "--data", "folder:x", "--out", "y.csv"], "nowhere is no run: there is no such folder"),
        (["nowhere", "--out", "y.csv"], "--data is missing"),
        (["nowhere", "--data", "x", "--ot", "y.csv"], "there is no option '--ot'; did you mean --out"),
    ],
)
def test_a_command_that_is_wrong(words: list[str], sentence: str, inside: Command) -> None:
    done = inside("pseudo-label", *words)
    assert done.returncode != 0
    assert sentence in done.stderr


def test_a_threshold_that_no_label_reaches(
    trained: Path, scans: Path, tmp_path: Path, inside: Command
) -> None:
    out = tmp_path / "labels.csv"
    done = inside("pseudo-label", trained, "--data", f"folder:{scans}/val", "--out", out, "--threshold", 1)
    assert done.returncode == 2
    assert "no label reaches --threshold 1" in done.stderr
    assert "0 of 60 labels" in done.stdout
    assert not out.exists()  # nor is there anything that training would take for labels
