"""The scripts of benchmarks/gpu on a CPU, as a user runs them, with tiny sizes."""

import csv
import importlib
import json
import math
import os
import runpy
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lambdanets.utils import allocator
from object_sets import write_objects
from photo_sets import draw
from preloaded import run_preloaded
from study_cells import run_cells_here

FOLDER = Path(__file__).parents[2] / "benchmarks/gpu"
TINY = ("--device", "cpu", "--quick")
Script = Callable[..., subprocess.CompletedProcess[str]]
Imported = Callable[[str], Any]
Inside = Callable[..., int]


def run_script(folder: Path, name: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a script in a process and a folder of its own; it never shows a traceback."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "LAMBDANETS_COMMIT": ""}
    done = run_preloaded(FOLDER / f"{name}.py", *words, cwd=folder, env=environment)
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return done


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return partial(run_script, tmp_path)


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of rows of `layers.py`, which has run in processes of its own."""
    folder = tmp_path_factory.mktemp("layers")
    done = run_script(folder, "layers", *TINY, "--out", "out", "--commit", "abc1234")
    assert done.returncode == 0, done.stderr
    return folder / "out"


@pytest.fixture
def imported(monkeypatch: pytest.MonkeyPatch) -> Iterator[Imported]:
    """Imports scripts into this process, which forgets them afterwards."""
    before = set(sys.modules)
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.setattr("sys.path", [str(FOLDER), *sys.path])
    yield importlib.import_module
    for name in ("common", "counting", "layers", "networks", "training", "nuclei", "collect"):
        if name not in before:
            sys.modules.pop(name, None)


@pytest.fixture
def inside(imported: Imported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Inside:
    """Run a script and the Python programs that it starts in this process: nothing is imported again."""
    in_own_process: Any = subprocess.run
    # Rows record whether the process keeps freed memory; a verb that another test ran here may have set it.
    monkeypatch.setattr(allocator, "_keeps_freed_memory", False)

    def run_here(command: list[Any], check: bool = False, **how: Any) -> subprocess.CompletedProcess[str]:
        if how or command[0] != sys.executable:
            return in_own_process(command, check=check, **how)
        words = list(map(str, command[1:]))
        monkeypatch.setattr("sys.argv", words[1:] if words[0] == "-m" else words)
        code: Any = 0
        try:
            if words[0] == "-m":
                runpy.run_module(words[1], run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(words[0], run_name="__main__")
        except SystemExit as stopped:
            code = stopped.code or 0
        assert code == 0 or not check
        return subprocess.CompletedProcess(command, code)

    def run(name: str, *words: object) -> int:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("LAMBDANETS_COMMIT", "")
        monkeypatch.setattr("sys.argv", [name, *map(str, words)])
        monkeypatch.setattr(subprocess, "run", run_here)
        return imported(name).main()

    return run


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_kernel_has_a_row_for_each_type(script: Script, tmp_path: Path) -> None:
    done = script("correct", *TINY, "--out", "out")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {(row["kernel"], row["dtype"]): row for row in rows(tmp_path / "out/correct.csv")}
    assert {("attention", "bfloat16"), ("fft", "float16"), ("conv", "float32")} <= set(found)
    for row in found.values():
        assert (int(row["passed"]) > 0, row["failed"], row["left_out"]) == (True, "0", "0")
        assert all(row[name] for name in ("processor", "torch", "date", "device"))
    assert (tmp_path / "out/failures.txt").read_text() == ""
    again = script("correct", "--draw", "out/correct.csv")
    assert again.returncode == 0
    assert all(line in done.stdout for line in again.stdout.splitlines())


@pytest.mark.slow
def test_layers_leaves_rows_of_two_dtypes_and_draws_them_again(
    layers: Path, inside: Inside, tmp_path: Path
) -> None:
    for dtype in ("bfloat16", "float32"):
        folder = layers / dtype
        found = rows(folder / "op.csv")
        assert {row["contender"] for row in found} >= {"lambdanets", "SDPA", "3x3 conv", "fft", "attention"}
        assert {(row["case"], row["mode"]) for row in found} == {
            (case, mode) for case in ("tiny", "tiny local") for mode in ("train", "eval")
        }
        assert {(row["dtype"], row["layout"]) for row in found} == {(dtype, "channels_last")}
        for row in found:
            assert row["wall_ms"] or row["note"]
            assert all(float(row[name]) > 0 for name in ("gemm_gflops", "copy_gbs"))
            assert not row["wall_ms"] or float(row["of_copy"]) > 0
        assert (folder / "op-bars-train.png").exists()
    moved = tmp_path / "op.csv"
    moved.write_text((folder / "op.csv").read_text())
    assert inside("layers", "--draw", moved) == 0
    assert (tmp_path / "op.md").read_text() == (folder / "op.md").read_text()
    assert (tmp_path / "op-bars-eval.png").exists()


def test_a_benchmark_whose_time_was_up_is_no_success(
    inside: Inside, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inside("layers", *TINY, "--dtypes", "float32", "--minutes", 0, "--out", "out") == 1
    missing = "tiny train, tiny eval, tiny local train, tiny local eval"
    shown = capsys.readouterr().err
    assert f"float32: not run: {missing}; the same command with --resume goes on" in shown
    assert not (tmp_path / "out/float32/op.csv").exists()


def test_layers_resumes_with_the_passes_without_rows(
    layers: Path, inside: Inside, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(layers / "float32", tmp_path / "out/float32")
    words = ("layers", *TINY, "--dtypes", "float32", "--out", "out", "--resume")
    path = tmp_path / "out/float32/op.csv"
    complete = rows(path)
    kept = [row for row in complete if (row["case"], row["mode"]) != ("tiny local", "eval")]
    failed = complete[-1] | {"wall_ms": "", "samples": 0, "note": "failed: RuntimeError: lost"}
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(complete[0]))
        table.writeheader()
        # A contender that has lost the GPU in the missing pass is not run again.
        table.writerows([*kept, failed])
    assert inside(*words) == 1
    assert f"float32: tiny local, eval, {failed['contender']}: {failed['note']}" in capsys.readouterr().err
    again = rows(path)
    assert again[: len(kept)] == kept
    assert [(row["case"], row["mode"], row["contender"]) for row in again] == [
        (row["case"], row["mode"], row["contender"]) for row in complete
    ]
    assert again[-1]["note"] == failed["note"]
    path.write_text(path.read_text().replace(f",{torch.__version__},", ",1.0,"))
    inside(*words)
    assert f"op.csv has torch 1.0, this is {torch.__version__}" in capsys.readouterr().err


def test_a_worker_that_loses_the_gpu_is_followed_by_another(
    imported: Imported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    common = imported("common")
    told = tmp_path / "told.txt"
    work = tmp_path / "work.py"
    work.write_text(
        "import sys\n"
        f"with open({str(told)!r}, 'a') as file:\n"
        "    print('--worker' in sys.argv, '--resume' in sys.argv, '--some' in sys.argv, file=file)\n"
        f"sys.exit(0 if '--resume' in sys.argv else {common.LOST})\n"
    )
    monkeypatch.setattr("sys.argv", ["work.py", "--some"])
    assert common.in_workers(str(work), 1.0, resume=False) == 0
    assert told.read_text().splitlines() == ["True False True", "True True True"]
    assert common.in_workers(str(work), -1.0, resume=False) == common.LOST, "not after the time was up"


def test_tests_go_on_after_the_one_that_loses_the_gpu(
    imported: Imported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    counting = imported("counting")
    file = tmp_path / "test_three.py"
    file.write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('kernel', ['conv', 'fft', 'triton'])\n"
        "def test_it(kernel):\n"
        "    assert kernel != 'fft'\n"
    )

    def run(recorder: Any) -> int:
        options = [
            "-q",
            "-p",
            "no:cacheprovider",
            "--import-mode=importlib",
            f"--rootdir={tmp_path}",
            str(file),
        ]
        return int(pytest.main(options, plugins=[recorder]))

    def recorder(ends: float = math.inf) -> Any:
        return counting.Recorder(ends=ends, device="cuda", save=lambda recorder: None)

    first = recorder()
    monkeypatch.setattr(counting, "is_lost", lambda device: True)
    run(first)
    assert first.lost
    assert [(row.kernel, row.passed, row.failed) for row in first.rows()] == [("conv", 1, 0), ("fft", 0, 1)]
    monkeypatch.setattr(counting, "is_lost", lambda device: False)
    late = recorder(ends=0.0)
    late.go_on(first.state())
    run(late)
    assert (late.rows()[-1].kernel, late.rows()[-1].why) == ("triton", "1 the time was up")
    last = recorder()
    last.go_on(late.state())
    assert run(last) == 0
    assert not last.lost
    found = [(row.kernel, row.passed, row.failed, row.left_out) for row in last.rows()]
    assert found == [("conv", 1, 0, 0), ("fft", 0, 1, 0), ("triton", 1, 0, 0)]
    assert len(last.failures) == 1


@pytest.mark.slow
def test_networks_has_a_row_of_each_family_and_draws_them_again(
    inside: Inside, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inside("networks", *TINY, "--out", "out") == 0
    found = rows(tmp_path / "out/race.csv")
    assert {row["family"]: row["published_top1"] for row in found} == {
        "LambdaResNet": "77.4",
        "EfficientNet": "77.1",
        "ResNet-RS with SE": "78.8",
        "ResNet-RS without SE": "",
    }
    assert {row["mode"] for row in found} == {"train", "eval"}
    assert all(float(row["wall_ms"]) > 0 and row["dtype"] == "bfloat16" for row in found)
    assert (tmp_path / "out/race-pareto.png").exists()
    assert "Speed at matched accuracy" in capsys.readouterr().out
    (tmp_path / "out/race-pareto.png").unlink()
    assert inside("networks", "--draw", tmp_path / "out/race.csv") == 0
    assert (tmp_path / "out/race-pareto.png").exists()


@pytest.mark.slow
def test_study_unpacks_an_archive_and_trains(
    inside: Inside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_cells_here(monkeypatch)
    for side, count in (("train", 20), ("val", 4)):
        for kind, name in enumerate(("one", "two")):
            for number in range(count):
                draw(tmp_path / "photos" / side / name / f"{number}.jpg", 1000 * kind + number)
    with tarfile.open(tmp_path / "photos.tar.xz", "w:xz") as archive:
        archive.add(tmp_path / "photos", "photos")
    assert inside("training", "study", "photos.tar.xz", *TINY, "--unpack", "here", "--out", "out") == 0
    assert (tmp_path / "here/photos/photos/train/one/0.jpg").exists()
    found = rows(tmp_path / "out/cells.csv")
    assert sorted(row["contender"] for row in found) == ["conv", "lambda"]
    assert all(row["processor"] and row["epochs"] == "1" for row in found)
    assert (tmp_path / "out/study.png").exists()


@pytest.mark.slow
def test_nuclei_trains_a_detector_and_draws_its_rows_again(inside: Inside, tmp_path: Path) -> None:
    pytest.importorskip("pycocotools", reason="detectors are evaluated by it")
    root = write_objects(tmp_path / "cells")
    for path in root.glob("annotations/*.json"):
        content = json.loads(path.read_text())
        side = path.stem.removeprefix("instances_")
        for image in content["images"]:
            image["file_name"] = f"{side}/{image['file_name']}"
        path.write_text(json.dumps(content))
    assert inside("training", "nuclei", "cells", *TINY, "--out", "out", "--commit", "abc1234") == 0
    (row,) = rows(tmp_path / "out/results/nuclei.csv")
    assert row["model"] == "lambda_resnet_mini"
    assert json.loads((tmp_path / "out/results/nuclei.json").read_text())["processor"]
    (tmp_path / "out/results/curves.png").unlink()
    assert inside("training", "nuclei", "--draw", tmp_path / "out/results") == 0
    assert (tmp_path / "out/results/curves.png").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_nothing_begins(script: Script, tmp_path: Path) -> None:
    done = script("networks")
    assert done.returncode == 2
    assert "there is no CUDA device here; --device cpu --quick" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_is_said_before_anything_begins(
    imported: Imported, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    common = imported("common")
    monkeypatch.setattr(common, "find_spec", lambda name: None if name in ("rich", "matplotlib") else name)
    words = common.Parser("", "CSV").parse_args(TINY)
    common.begin(words, needed=("torch",), wanted={"matplotlib": "no figures now", "triton": "no kernel"})
    assert capsys.readouterr().out == "without matplotlib: no figures now\n"
    assert common.figures(lambda: pytest.fail("was drawn")) == []
    with pytest.raises(SystemExit) as stopped:
        common.begin(words, needed=("torch", "rich"), wanted={})
    assert stopped.value.code == 2
    assert "this needs rich; benchmarks/gpu/README.md" in capsys.readouterr().err


def test_epochs_of_the_detectors_fit_into_the_minutes(
    imported: Imported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The trial takes 30 s, 20 of them its epoch: 300 - 30 - 2 * 10 are left for two detectors."""
    training = imported("training")
    clock = iter((100.0, 130.0))
    monkeypatch.setattr(training.time, "monotonic", lambda: next(clock))

    def trained(*words: object) -> int:
        run = Path(str(words[words.index("--out") + 1]))
        run.mkdir()
        (run / "metrics.csv").write_text("epoch,seconds\n1,20\n")
        return 0

    monkeypatch.setattr(training, "run_module", trained)
    assert training.epochs_within(5, tmp_path, [], tmp_path / "out") == 6
    begun = tmp_path / "out/lambda_resnet_mini/config.json"
    begun.parent.mkdir(parents=True)
    begun.write_text(json.dumps({"engine": {"epochs": 9}}))
    assert training.epochs_within(5, tmp_path, [], tmp_path / "out") == 9


def test_a_folder_without_images_is_reported(script: Script) -> None:
    done = script("training", "study", ".", *TINY)
    assert done.returncode == 2
    assert "is no archive, holds 0 of them, and has no train and val" in done.stderr
