"""Freed memory is kept by the processes of the verbs that run networks, unless the user chose otherwise."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from lambdanets.cli import app
from lambdanets.utils import allocator
from preloaded import run_preloaded

LINUX = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
# Page faults of 20 tensors of 64 MiB, one after the other, each freed before the next.
FAULTS = """
import resource, sys
import torch
import lambdanets.nn
from lambdanets.utils.allocator import keep_freed_memory, keeps_freed_memory

assert not keeps_freed_memory()  # the import of the library sets nothing
print(keep_freed_memory() if sys.argv[1] == "keep" else keeps_freed_memory())
for _ in range(5):  # the heap grows until it holds one beside the place of the last
    torch.zeros(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.zeros(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 20 * 2**26 // 4096  # of these tensors


def measure(what: str, **environment: str) -> tuple[str, int]:
    """Return what `keep_freed_memory` returned in a new process, and the page faults of the tensors."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC")}
    words = ["-c", FAULTS, what]
    if environment:  # the C library reads it when a program starts
        command = [sys.executable, *words]
        done = subprocess.run(command, env=env | environment, capture_output=True, text=True, check=False)
    else:
        done = run_preloaded(*words, env=env)
    assert done.returncode == 0, done.stderr
    in_force, faults = done.stdout.split()
    return in_force, int(faults)


@LINUX
def test_tensors_reuse_kept_memory_without_page_faults() -> None:
    in_force, faults = measure("keep")
    assert in_force == "True"
    assert faults < PAGES / 20


@LINUX
def test_importing_the_library_changes_nothing() -> None:
    in_force, faults = measure("leave")
    assert in_force == "False"
    # Huge pages, where the system uses them for all programs, take one fault for 512 pages.
    assert faults >= PAGES / 600


@LINUX
@pytest.mark.parametrize(
    "setting",
    [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"}],
    ids=["variable", "tunable"],
)
def test_the_users_own_setting_stays(setting: dict[str, str]) -> None:
    in_force, faults = measure("keep", **setting)
    assert in_force == "False"
    assert faults >= PAGES / 600


def test_other_c_libraries_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*allocator.VARIABLES, "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: SimpleNamespace())
    assert not allocator.keep_freed_memory()


def test_glibc_before_2_35_gets_the_largest_size_that_it_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*allocator.VARIABLES, "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    calls: list[tuple[int, int]] = []

    def mallopt(parameter: int, value: int) -> int:
        calls.append((parameter, value))
        return int(parameter == allocator.M_TRIM_THRESHOLD or value <= 2**25)

    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    monkeypatch.setattr(allocator, "_keeps_freed_memory", False)
    assert allocator.keep_freed_memory()
    assert calls == [
        (allocator.M_MMAP_THRESHOLD, 2**30),
        (allocator.M_MMAP_THRESHOLD, 2**25),
        (allocator.M_TRIM_THRESHOLD, -1),
    ]


@pytest.mark.parametrize(
    ("words", "keeps"),
    [
        ("train digits --epochs 0", True),
        ("eval nowhere", True),
        ("predict nowhere photo.png", True),
        ("pseudo-label nowhere --data folder:x --out y.csv", True),
        ("plan --grid 4", False),
        ("list nothing", False),
    ],
)
def test_verbs_that_run_networks_keep_freed_memory(
    words: str, keeps: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[str] = []
    record: Callable[[], None] = lambda: calls.append("kept")  # noqa: E731
    monkeypatch.setattr(app, "keep_freed_memory", record)
    monkeypatch.chdir(tmp_path)
    app.main(words.split())
    assert calls == ["kept"] * keeps
