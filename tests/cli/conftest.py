"""The command as a user runs it, in another process or in this one, and a run that tests share."""

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from lambdanets.cli import main
from preloaded import Preloaded

SCRIPT = Path(sys.executable).with_name("lambdanets")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "140"}

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def command() -> Command:
    """Run `lambdanets WORDS...` and return its output, which has no traceback in any case.

    The process is a fork of one that has imported the libraries.
    """

    def run(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        process = Preloaded(SCRIPT, *words, cwd=cwd, env=ENVIRONMENT)
        try:
            out, errors = process.communicate(timeout=300)
        finally:
            process.kill()
        assert "Traceback" not in out + errors, errors
        assert process.returncode is not None
        return subprocess.CompletedProcess(words, process.returncode, out, errors)

    return run


@pytest.fixture(scope="session")
def run_here() -> Command:
    """Do the same inside this process, which has one fork server for all measurements of memory."""

    def run(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
        out, errors = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(errors):
            patch.chdir(cwd)
            patch.setenv("COLUMNS", ENVIRONMENT["COLUMNS"])
            code = main(list(map(str, words)))
        for stream in (out, errors):
            stream.seek(0)
        return subprocess.CompletedProcess(words, code, out.read(), errors.read())

    return run


@pytest.fixture
def inside(capsys: pytest.CaptureFixture[str]) -> Command:
    """Do the same inside this process, without the seconds of importing everything anew."""

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        code = main(list(map(str, words)))
        shown = capsys.readouterr()
        return subprocess.CompletedProcess(words, code, shown.out, shown.err)

    return run


@pytest.fixture
def start() -> Iterator[Callable[..., Preloaded]]:
    """Start `lambdanets WORDS...` in the background; it is killed at the end of the test."""
    started: list[Preloaded] = []

    def begin(*words: object, stdout: int | None = None) -> Preloaded:
        started.append(Preloaded(SCRIPT, *words, env=ENVIRONMENT, stdout=stdout))
        return started[-1]

    yield begin
    for process in started:
        process.kill()


@pytest.fixture(scope="session")
def trained(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a miniature run, with the name that `train` gives it by default."""
    home = tmp_path_factory.mktemp("home")
    settings = [
        "data.val_fraction=0.05",
        "engine.max_batches=12",
        "engine.threads=1",
        "schedule.warmup_epochs=0",
    ]
    changes = [word for setting in settings for word in ("--set", setting)]
    done = command("train", "digits", "--epochs", 2, "--batch-size", 32, "--seed", 3, *changes, cwd=home)
    assert done.returncode == 0, done.stderr
    (folder,) = (home / "runs").iterdir()
    (folder / "printed.txt").write_text(done.stdout)
    return folder


@pytest.fixture
def two_minds(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run, whose best weights predict 3 for every image; its last weights are unchanged."""
    folder = tmp_path / "two_minds"
    shutil.copytree(trained, folder)
    weights = load_file(folder / "weights.safetensors")
    weights["fc.weight"].zero_()
    weights["fc.bias"].zero_()[3] = 10.0
    save_file(weights, folder / "weights.safetensors")
    return folder
