"""The memory that the planner counts on: simulated systems, and a process under a real limit."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lambdanets.ops import hardware
from preloaded import run_preloaded

GIB = 2**30
SMALL_STATM = "100 50 20 1 0 60 0\n"


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine with 4 GiB available and no control groups, as files."""
    monkeypatch.setattr(hardware, "PROC", tmp_path / "proc")
    monkeypatch.setattr(hardware, "CGROUPS", tmp_path / "cgroups")
    monkeypatch.setattr(hardware, "_kept_memory", lambda: 0)
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 16 * GIB // 4096}.get)
    write(tmp_path / "proc" / "meminfo", f"MemTotal: {16 * 2**20} kB\nMemAvailable: {4 * 2**20} kB\n")
    write(tmp_path / "proc" / "self" / "statm", SMALL_STATM)
    yield tmp_path
    hardware._available_memory.cache_clear()


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def free() -> float:
    hardware._available_memory.cache_clear()
    return (hardware.available_memory("cpu") or 0) / GIB


def test_the_estimate_is_of_available_memory_not_of_the_total(system: Path) -> None:
    assert free() == pytest.approx(0.9 * 4)
    write(system / "proc" / "meminfo", "MemTotal: 1 kB\n")  # an old system
    assert free() == pytest.approx(0.9 * 16)


def test_freed_memory_that_the_process_keeps_is_available(
    system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "_kept_memory", lambda: 2 * GIB)
    assert free() == pytest.approx(0.9 * 6)
    monkeypatch.setattr(hardware, "_kept_memory", lambda: 20 * GIB)
    assert free() == pytest.approx(0.9 * 16)  # no more than the machine has


KEPT = """
import torch
from lambdanets.ops import hardware
from lambdanets.utils.allocator import keep_freed_memory
kept = keep_freed_memory()
before = hardware._kept_memory()
x = torch.ones(2**27, dtype=torch.uint8)
during = hardware._kept_memory()
del x
print(kept, (hardware._kept_memory() - before) // 2**20, (during - before) // 2**20)
"""


def test_the_kept_memory_of_a_process() -> None:
    done = run_preloaded("-c", KEPT, env=os.environ)
    assert done.returncode == 0, done.stderr
    kept, after, during = done.stdout.split()
    if kept == "False":
        pytest.skip("this C library returns freed memory")
    assert 120 < int(after) < 140
    assert int(during) < 10


@pytest.mark.parametrize("at", ["job/step", "job", ""])
@pytest.mark.parametrize("name", ["memory.max", "memory.high"])
def test_limits_of_cgroups_version_2_on_all_levels(system: Path, at: str, name: str) -> None:
    write(system / "proc" / "self" / "cgroup", "0::/job/step\n")
    for folder in ("job/step", "job", ""):
        for file in ("memory.max", "memory.high"):
            write(system / "cgroups" / folder / file, "max\n")
        write(system / "cgroups" / folder / "memory.current", f"{2 * GIB}\n")
        write(system / "cgroups" / folder / "memory.stat", f"anon 7\ninactive_file {GIB}\n")
    assert free() == pytest.approx(0.9 * 4)
    write(system / "cgroups" / at / name, f"{3 * GIB}\n")
    assert free() == pytest.approx(0.9 * 2)  # 3 less the 2 in use, of which 1 can be taken back


@pytest.mark.parametrize("path", ["/slurm/job_1", "/docker/of-the-host"])
def test_limits_of_cgroups_version_1(system: Path, path: str) -> None:
    """The limit is in the process's own group, or in a container's root if the path is the host's."""
    write(system / "proc" / "self" / "cgroup", f"3:cpu:/elsewhere\n4:memory:{path}\n0::/\n")
    folder = system / "cgroups" / "memory" / ("slurm/job_1" if "slurm" in path else "")
    write(folder / "memory.limit_in_bytes", f"{3 * GIB}\n")
    write(folder / "memory.usage_in_bytes", f"{2 * GIB}\n")
    write(folder / "memory.stat", f"inactive_file 1\ntotal_inactive_file {GIB // 2}\n")
    assert free() == pytest.approx(0.9 * 1.5)


def test_a_full_cgroup_leaves_no_memory(system: Path) -> None:
    write(system / "proc" / "self" / "cgroup", "0::/\n")
    write(system / "cgroups" / "memory.max", f"{GIB}\n")
    write(system / "cgroups" / "memory.current", f"{GIB + 1}\n")
    assert free() == 0


def test_resource_limits_less_the_memory_in_use(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    limits = {resource.RLIMIT_AS: 3 * GIB, resource.RLIMIT_DATA: resource.RLIM_INFINITY}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits[kind], resource.RLIM_INFINITY))
    write(system / "proc" / "self" / "statm", f"{GIB // 4096} 1 1 1 0 {GIB // 2 // 4096} 0\n")
    assert free() == pytest.approx(0.9 * 2)
    limits[resource.RLIMIT_DATA] = GIB
    assert free() == pytest.approx(0.9 * 0.5)
    (system / "proc" / "self" / "statm").unlink()  # as on macOS
    assert free() == pytest.approx(0.9 * 1)
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert free() == pytest.approx(0.9 * 4)


def test_other_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    hardware._available_memory.cache_clear()
    assert hardware.available_memory("mps") is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (5 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 3 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: GIB)
    assert hardware.available_memory("cuda") == int(0.9 * 7 * GIB)
    hardware._available_memory.cache_clear()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system has no /proc")
def test_under_ulimit_a_call_is_refused_before_it_allocates() -> None:
    """A call that takes about 4 GiB, of which the limit leaves 2."""
    script = """
import resource, torch
from lambdanets.ops import GlobalContext, lambda_layer
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**31,) * 2)
q, k, v = torch.empty(1, 1, 4, 1), torch.empty(1, 4, 1, 1), torch.empty(1, 4, 1, 1)
e = torch.empty(3, 3, 1, 1)
big = lambda x: x.expand(2**28 // 4, *x.shape[1:])
try:
    lambda_layer(big(q), big(k), big(v), e, context=GlobalContext((2, 2)))
except MemoryError as error:
    print(error)
"""
    done = run_preloaded("-c", script, env=os.environ)
    assert "would fit" in done.stdout, done.stdout + done.stderr
