"""`lambdanets bench models` as a user types it."""

import csv
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lambdanets.bench import Machine, network_bench
from preloaded import Preloaded

TINY = ("--rounds", 1, "--threads", 1, "--batch", 2)
DIGITS = ("--models", "lambda_resnet_digits,resnet_digits_conv@8x16")


def rows_of(folder: Path, name: str = "models") -> list[dict[str, str]]:
    with (folder / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(run_here, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a bench of two tiny networks, in the place where it goes unasked."""
    home = tmp_path_factory.mktemp("home")
    done = run_here("bench", "models", *DIGITS, *TINY, cwd=home)
    assert done.returncode == 0, done.stderr
    folder = home / "runs" / "bench-models"
    (folder / "printed.txt").write_text(done.stdout)
    (folder / "said.txt").write_text(done.stderr)
    return folder


@pytest.fixture
def known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of known speed: measuring it takes longer than these networks."""
    machine = Machine(gflops=50.0, gflops_cpu=50.0, copy_gbs=10.0)
    monkeypatch.setattr(network_bench, "measure_machine", lambda dtype, device: machine)


def test_rows_have_provenance(finished: Path) -> None:
    rows = rows_of(finished)
    assert [(row["model"], row["size"], row["mode"]) for row in rows] == [
        ("lambda_resnet_digits", "8", "train"),
        ("lambda_resnet_digits", "8", "eval"),
        ("resnet_digits_conv", "8x16", "train"),
        ("resnet_digits_conv", "8x16", "eval"),
    ]
    for row in rows:
        assert row["torch"]
        assert row["processor"]
        assert row["date"]
        assert float(row["wall_ms"]) > 0
        assert int(row["parameters"]) > 1000
        assert int(row["macs"]) > 1000
        assert (row["batch"], row["samples"], row["threads"]) == ("2", "1", "1")


def test_steps_are_shown_and_a_report_and_figures_are_written(finished: Path) -> None:
    printed, said = (finished / "printed.txt").read_text(), (finished / "said.txt").read_text()
    assert "images/s" in printed
    assert "Inference" in printed
    assert "memory in its own process" in said
    assert "100 %  done" in said
    assert {path.name for path in finished.iterdir()} >= {
        "models.csv",
        "models.md",
        "models-bars.png",
        "models-bars.svg",
    }
    assert "| resnet_digits_conv | 8x16 |" in (finished / "models.md").read_text()


def test_all_is_drawn_again_from_the_rows(inside, finished: Path, tmp_path: Path) -> None:
    done = inside("bench", "models", "--from", finished / "models.csv", "--out", tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "models.md").read_text() == (finished / "models.md").read_text()
    assert not (tmp_path / "models.csv").exists()


@pytest.mark.usefixtures("known_machine")
def test_resume_measures_nothing_again_and_a_new_bench_keeps_the_earlier_rows(
    inside, finished: Path, tmp_path: Path
) -> None:
    text = (finished / "models.csv").read_text()
    lines = text.splitlines(keepends=True)
    (tmp_path / "models.csv").write_text("".join(lines[:-1]))
    words = ("bench", "models", *DIGITS, *TINY, "--no-memory", "--out", tmp_path)
    done = inside(*words, "--resume")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "models.csv").read_text().startswith("".join(lines[:-1]))
    assert len(rows_of(tmp_path)) == 4
    assert not (tmp_path / "models.previous.csv").exists()
    assert inside(*words, "--pass", "eval").returncode == 0
    assert len(rows_of(tmp_path)) == 2
    assert (tmp_path / "models.previous.csv").exists()


@pytest.mark.usefixtures("known_machine")
def test_resume_with_another_network_keeps_the_rows(inside, finished: Path, tmp_path: Path) -> None:
    rows = rows_of(finished)
    (tmp_path / "models.csv").write_text((finished / "models.csv").read_text())
    words = (
        "bench",
        "models",
        "--models",
        "resnet_digits_conv",
        "--no-memory",
        "--out",
        tmp_path,
        "--resume",
    )
    assert inside(*words, *TINY, "--pass", "eval").returncode == 0
    assert rows_of(tmp_path)[:-1] == rows
    assert "| lambda_resnet_digits | 8 |" in (tmp_path / "models.md").read_text()
    done = inside(*words, *TINY[:-1], 4)
    assert done.returncode == 1
    assert "measured with batch=2, this run has batch=4" in done.stderr
    assert len(rows_of(tmp_path)) == 5


def test_processor_time_of_rows_from_a_gpu(inside, finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "models.csv"
    path.write_text((finished / "models.csv").read_text().replace(",cpu,", ",cuda,"))
    done = inside("bench", "models", "--from", path, "--clock", "process", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "--clock process has no meaning on cuda" in done.stderr


@pytest.mark.usefixtures("known_machine")
def test_a_killed_bench_keeps_the_measured_rows(
    start: Callable[..., Preloaded], tmp_path: Path, inside
) -> None:
    """Killed while the second pass runs: the rows of the first are there, and are kept."""
    words = ("bench", "models", *DIGITS, "--threads", 1, "--batch", 2, "--no-memory", "--out", tmp_path)
    running = start(*words, "--rounds", 100000, "--pass", "both", "--max-seconds", 2)
    path = tmp_path / "models.csv"
    patience = time.monotonic() + 120
    while not path.exists() and time.monotonic() < patience:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    before = rows_of(tmp_path)
    assert 0 < len(before) < 4
    done = inside(*words, "--rounds", 1, "--resume")
    assert done.returncode == 0, done.stderr
    after = rows_of(tmp_path)
    assert len(after) == 4
    assert all(row in after for row in before)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("models", "--models is missing: name networks"),
        ("models --models lambda_resnet51", "there is no model named 'lambda_resnet51'; did you mean"),
        ("models --models vit_tiny_patch16_224@160", "cannot take images of 160"),
        ("models --models resnet18 --sizes 10by10", "an image size is 224 or 160x224"),
        ("models --models resnet18 --batch 0", "batch must be at least 1, got 0"),
        ("models --models resnet18 --rounds 0", "rounds must be at least 1, got 0"),
        ("models --models resnet18 --pass sideways", "sideways"),
        ("models --model resnet18", "there is no option '--model'; did you mean --models"),
        ("models --from absent.csv --models resnet18", "--models has no effect with --from"),
        ("modelz --models resnet18", "there is no bench 'modelz'; did you mean models"),
        ("models --from absent.csv", "absent.csv"),
        ("models --from absent.csv --pass eval", "--pass has no effect with --from, which measures nothing"),
        ("models --from absent.csv --no-memory", "--no-memory has no effect with --from"),
        ("models --models resnet18 --largest -1", "largest must be greater than 0, got -1.0"),
        ("models --models resnet18 --largest nan", "largest must be greater than 0, got nan"),
        ("models --models resnet18 --device foo", "--device takes cpu or cuda, not 'foo'"),
        ("models --models resnet18 --device meta", "there is no meta device here"),
        ("models --models resnet18 --max-seconds 0", "max_seconds must be greater than 0, got 0.0"),
        ("models --models resnet18 --max-seconds -1", "max_seconds must be greater than 0, got -1.0"),
    ],
)
def test_mistakes_are_sentences(inside, tmp_path: Path, words: str, sentence: str) -> None:
    done = inside("bench", *words.split(), "--out", tmp_path / "out")
    assert done.returncode in ((1, 2) if "absent" in words else (2,))
    assert sentence in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [("bench",), ("bench", "--help")])
def test_bench_names_what_it_can(inside, words: tuple[str, ...]) -> None:
    done = inside(*words)
    assert done.returncode == 0
    assert all(f"\n  {name} " in done.stdout for name in ("op", "models"))
    assert "race" not in done.stdout


@pytest.mark.parametrize("name", ["race", "table4", "table13", "table14", "study"])
def test_a_verb_that_left_the_package_names_its_command(inside, name: str) -> None:
    program = "benchmarks.study" if name == "study" else f"benchmarks.paper {name}"
    done = inside("bench", name, "--out", "anywhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"lambdanets: `lambdanets bench {name}` is no longer part of the package: run `python -m {program}` "
        "in a checkout of the repository.\n"
    )
