"""`lambdanets bench op` as a user types it."""

import csv
from pathlib import Path

import pytest

from lambdanets import bench
from lambdanets.ops.kernels import native

TINY = ("--grid", "12x11", "--batch", 2, "--dim", 16, "--rounds", 2, "--threads", 1)


@pytest.fixture(scope="module")
def finished(run_here, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a bench of one tiny case, in the place where it goes unasked."""
    home = tmp_path_factory.mktemp("home")
    done = run_here("bench", "op", *TINY, cwd=home)
    assert done.returncode == 0, done.stderr
    assert native.describe() in done.stderr
    folder = home / "runs" / "bench-op"
    (folder / "printed.txt").write_text(done.stdout)
    return folder


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "op.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of known speed: measuring it takes longer than these layers."""
    machine = bench.Machine(gflops=50.0, gflops_cpu=50.0, copy_gbs=10.0)
    monkeypatch.setattr(bench, "measure_machine", lambda dtype, device: machine)


def test_rows_have_provenance(finished: Path) -> None:
    rows = rows_of(finished)
    assert {row["mode"] for row in rows} == {"train", "eval"}
    assert {"lambdanets", "timm", "SDPA", "3x3 conv", "reference", "conv"} <= {
        row["contender"] for row in rows
    }
    for row in rows:
        assert row["torch"]
        assert row["processor"]
        assert row["date"]
        assert (row["grid"], row["batch"], row["dim"], row["threads"]) == ("12x11", "2", "16", "1")
        assert float(row["wall_ms"] or 1) > 0
        assert row["wall_ms"] or row["note"]
    (layer,) = (row for row in rows if row["role"] == "layer" and row["mode"] == "train")
    assert float(layer["peak_mib"]) >= 0  # a pass this small fits into pages that are in use already
    assert float(layer["of_gemm"]) > 0
    assert float(layer["cpu_ms"]) > 0


def test_tables_are_shown_and_a_report_and_figures_are_written(finished: Path) -> None:
    printed = (finished / "printed.txt").read_text()
    assert "fastest peer / ours" in printed
    assert "kernel by kernel" in printed
    assert "its global positions are for square grids" in printed or "not installed" in printed
    names = {path.name for path in finished.iterdir()}
    assert names >= {"op.csv", "op.md", "op-bars-train.png", "op-bars-eval.png"}
    assert "| 12x11 | 2x16, 12x11 global |" in (finished / "op.md").read_text()


def test_tables_and_figures_are_drawn_again_from_the_rows(inside, finished: Path, tmp_path: Path) -> None:
    done = inside("bench", "op", "--from", finished / "op.csv", "--out", tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "op.md").read_text() == (finished / "op.md").read_text()
    assert (tmp_path / "op-bars-eval.png").exists()
    assert not (tmp_path / "op.csv").exists()


@pytest.mark.usefixtures("known_machine")
def test_an_earlier_bench_is_kept(inside, tmp_path: Path) -> None:
    (tmp_path / "op.csv").write_text("earlier")
    words = ("--pass", "eval", "--no-memory", "--out", tmp_path)
    assert inside("bench", "op", *TINY, *words).returncode == 0
    assert (tmp_path / "op.previous.csv").read_text() == "earlier"
    assert {row["mode"] for row in rows_of(tmp_path)} == {"eval"}
    assert {row["peak_mib"] for row in rows_of(tmp_path)} == {""}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("op --cases g14,g15", "there is no case 'g15'; did you mean"),
        ("op --cases g7 --grid 4x4", "--cases and --grid are two ways"),
        ("op --cases g7 --batch 3", "--batch describes a custom case"),
        ("op --grid 4x4 --dim 30", "dim must be a multiple of num_heads=4, got 30"),
        ("op --grid 4by4", "--grid takes sizes such as"),
        ("op --pass both --device cuda --clock process", "--clock process has no meaning on cuda"),
        ("op --from absent.csv", "absent.csv"),
        ("op --pass sideways", "sideways"),
        ("op --grid 4x4 --rounds 0", "rounds must be at least 1, got 0"),
        ("op --grid 4x4 --threads 0", "threads must be at least 1, got 0"),
        ("op --grid 4x4 --max-seconds -1", "max_seconds must be greater than 0, got -1.0"),
        ("op --grid 4x4 --heads 0", "num_heads must be at least 1, got 0"),
        ("op --grid 1x1", "1x1 has one position"),
        ("op --cases ,", "--cases names none; there are layers"),
        ("op --grid 4x4 --device abacus", "--device takes cpu or cuda, not 'abacus'"),
        ("model", "model"),
    ],
)
def test_mistakes_are_sentences(inside, tmp_path: Path, words: str, sentence: str) -> None:
    done = inside("bench", *words.split(), "--out", tmp_path / "out")
    assert done.returncode in ((1, 2) if "absent" in words else (2,))
    assert sentence in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("known_machine")
def test_no_speed_is_shown_for_a_wrong_result(
    inside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lambdanets.bench.checking.EXACT", -1.0)
    done = inside("bench", "op", *TINY, "--out", tmp_path)
    assert done.returncode == 1
    assert "No speed is shown" in done.stderr
    assert "ours" not in done.stdout
    assert not (tmp_path / "op.csv").exists()
