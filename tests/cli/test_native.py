"""`lambdanets native`, and the sentence of other verbs on the native kernel."""

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lambdanets.cli import native as native_verb
from lambdanets.cli import native_checks
from lambdanets.ops.kernels import native
from lambdanets.ops.kernels.native import compiler, library
from preloaded import run_preloaded

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def nothing_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty cache of the user, and no library that this process has loaded before."""
    with monkeypatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        library.refresh()
        yield
    library.refresh()


@pytest.mark.usefixtures("nothing_built")
@pytest.mark.parametrize(
    ("words", "variables", "message"),
    [
        (
            "",
            {"PATH": "", "CXX": ""},
            f"there is no C++ compiler: install {compiler.NEEDED}, or set CXX.",
        ),
        ("", {"CXX": "no-such-compiler"}, "the compiler no-such-compiler that CXX names is not installed."),
        ("", {"LAMBDANETS_NATIVE": "0"}, "No native kernel: LAMBDANETS_NATIVE=0 turns it off."),
        ("--check", {}, "No native kernel: its library is not built, `lambdanets native` builds it."),
    ],
)
def test_without_a_library_there_is_one_sentence(
    inside: Command, monkeypatch: pytest.MonkeyPatch, words: str, variables: dict[str, str], message: str
) -> None:
    with monkeypatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        done = inside("native", *words.split())
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"lambdanets: {message}\n")


def test_the_module_is_the_same_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    done = run_preloaded("-m", "lambdanets", "native", env=os.environ)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no-such-compiler that CXX names" in done.stderr


@pytest.mark.parametrize("verb", ["plan --grid 6x5", "show lambda_resnet_digits"])
def test_plan_and_show_report_the_native_kernel(inside: Command, verb: str) -> None:
    assert native.describe() in inside(*verb.split()).stdout
    assert "ative kernel" not in inside(*verb.split(), "--device", "cuda").stdout


built = pytest.mark.skipif(
    library.load() is None, reason="the native kernel is not built: `lambdanets native`"
)


@built
@pytest.mark.parametrize("words", [("--check",), ()])
def test_the_library_is_checked(
    inside: Command, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")  # what is built needs none
    done = inside("native", *words)
    assert done.returncode == 0, done.stderr
    first, second, *lines, last = done.stdout.splitlines()
    assert first == f"{native.describe()} Library: {library.path()}"
    assert (second, last) == ("Relative errors against the definition:", "It agrees with the definition.")
    assert [line.split(":")[0].strip() for line in lines] == [check.name for check in native_checks.CHECKS]
    named = [name.rsplit(" ", 1)[0] for name in lines[0].split(": ")[1].split(", ")]
    assert named == ["y", "dq", "dk", "dv", "de"]


def doubled(name: str) -> native_checks.Check:
    """A check whose function returns twice the result of its definition."""
    return native_checks.Check(name, lambda x: 2 * x, lambda x: x, {"x": (3,)})


@built
def test_a_built_library_with_wrong_results_is_removed(
    inside: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "library.so"
    file.touch()
    monkeypatch.setattr(native_checks, "CHECKS", [doubled("wrong")])
    monkeypatch.setattr(native_verb, "_build", lambda: None)
    monkeypatch.setattr(library, "path", lambda: file)
    monkeypatch.setattr(library, "is_packaged", lambda: False)
    assert inside("native").returncode == 1
    assert not file.exists()


@built
def test_wrong_results_are_a_failure(inside: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    undefined = native_checks.Check("undefined", lambda x: x / 0, lambda x: x, {"x": (3,)})
    right = native_checks.Check("right", lambda x: x, lambda x: x, {"x": (3,)})
    monkeypatch.setattr(native_checks, "CHECKS", [doubled("wrong"), right, undefined])
    done = inside("native", "--check")
    assert done.returncode == 1
    message = (
        "its results differ from the definition, relative errors: wrong: y 1, dx 1; undefined: y inf, dx inf."
    )
    assert done.stderr == f"lambdanets: {message}\n"


@built
@pytest.mark.parametrize("check", native_checks.CHECKS, ids=lambda check: check.name)
def test_a_check_runs_the_library_alone_and_finds_wrong_results(
    check: native_checks.Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert all(error <= check.largest_error for error in check.errors().values())
    errors = replace(check, function=lambda **inputs: 1.05 * check.function(**inputs)).errors()
    assert all(error > check.largest_error for error in errors.values())
    monkeypatch.setattr(library, "_find", lambda: library._Found(reason="it is not there"))
    with pytest.raises((ValueError, RuntimeError), match="it is not there"):
        check.errors()
