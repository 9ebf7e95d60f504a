"""The Triton kernels without a GPU: run by the interpreter, and compiled for absent devices.

And the tuner, with given times.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lambdanets.ops import Problem, plan
from lambdanets.ops.kernels import triton
from lambdanets.ops.kernels.triton.tiling import Tile, candidate_tiles

tuning = pytest.importorskip("lambdanets.ops.kernels.triton.tuning", exc_type=ImportError)
OutOfResources = tuning.OutOfResources
pytestmark = pytest.mark.triton
HERE = Path(__file__).parent
SHARED = {80: 163 * 1024, 90: 227 * 1024}  # bytes of shared memory that a program may have, by capability
LEAST_SHARED = 99 * 1024  # of a device of capability 8.6 or 8.9


@pytest.mark.slow
def test_kernels_equal_the_definition_in_the_interpreter() -> None:
    """Run `triton_interpreted.py`, and `test_kernels.py` for Triton's kernels, with TRITON_INTERPRET set."""
    files = ["triton_interpreted.py", "test_kernels.py"]
    # The long causal cases are about blocks of the content.
    chosen = "triton_interpreted or (triton and cpu and not causal-6 and not causal-131)"
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-p", "triton_interpreted"]
    path = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [*command, *(str(HERE / file) for file in files), "-k", chosen],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(path)},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-5000:]
    passed = [line for line in done.stdout.splitlines() if " PASSED " in line]
    assert [any(f"{file}::" in line for line in passed) for file in files] == [True, True]
    assert "skipped" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_every_tile_compiles_for_a_device_that_is_not_there(dtype: torch.dtype, capability: int) -> None:
    from lambdanets.ops.kernels.triton import launch

    problem = Problem(grid=(14, 14), scope=(23, 23), batch=128, dtype=dtype)
    for name, tile, call in launch.calls_without_memory(problem):
        compiled = call.compile(capability)
        assert compiled.asm["cubin"]
        assert compiled.metadata.shared <= SHARED[capability], (name, tile)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(1, 16, 256), (3, 64, 7), (32, 256, 16), (16, 5, 100)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_some_tile_fits_into_the_smallest_device(dtype: torch.dtype, sizes: tuple[int, int, int]) -> None:
    from lambdanets.ops.kernels.triton import launch

    heads, dim_k, dim_v = sizes
    problem = Problem(grid=(7, 9), batch=32, num_heads=heads, dim_k=dim_k, dim_v=dim_v, dtype=dtype)
    fits: dict[str, bool] = {}
    for name, _, call in launch.calls_without_memory(problem):
        if not fits.get(name):
            fits[name] = call.compile(80).metadata.shared <= LEAST_SHARED
    assert fits == dict.fromkeys(("output", "dq", "dv", "de"), True)


class Launches:
    """Fake launches of a kernel: some tiles do not fit the device, and each tile has a given time."""

    def __init__(self, times: dict[Tile, float], not_fitting: Sequence[Tile] = ()) -> None:
        self.times, self.not_fitting = times, not_fitting
        self.launched: list[Tile] = []

    def calls(self, tile: Tile) -> Any:
        return [self.Launch(self, tile)]

    def milliseconds(self, call: Callable[[], None]) -> float:
        call()
        return self.times[self.launched[-1]]

    @dataclass
    class Launch:
        launches: Launches
        tile: Tile

        def launch(self) -> None:
            if self.tile in self.launches.not_fitting:
                raise OutOfResources(200_000, 100_000, "shared memory")
            self.launches.launched.append(self.tile)


A, B, C = (Tile(examples, 4, 16, 16, 64) for examples in (1, 2, 4))


@pytest.mark.parametrize(
    ("times", "not_fitting", "taken"),
    [
        ((3.0, 2.0, 1.0), (), C),
        ((1.02, 1.01, 1.0), (), A),  # a tie
        ((2.0, 1.02, 1.0), (), B),
        ((1.0, 2.0, 3.0), (A,), B),
        ((1.0, 2.0, 3.0), (A, B), C),
    ],
)
def test_the_first_of_the_fastest_tiles_is_taken(
    times: tuple[float, ...], not_fitting: Sequence[Tile], taken: Tile, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches = Launches(dict(zip((A, B, C), times, strict=True)), not_fitting)
    monkeypatch.setattr(tuning, "_milliseconds", launches.milliseconds)
    assert tuning.fastest_tile([A, B, C], launches.calls) == taken


def test_a_device_that_fits_no_tile_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = Launches({}, [A, B])
    monkeypatch.setattr(tuning, "_milliseconds", launches.milliseconds)
    for take in (tuning.fastest_tile, tuning.launch_first_fitting):
        with pytest.raises(OutOfResources, match="100000"):
            take([A, B], launches.calls)


def test_without_trials_the_first_fitting_tile_is_launched_once() -> None:
    launches = Launches({}, [A])
    tuning.launch_first_fitting([A, B, C], launches.calls)
    assert launches.launched == [B]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """A fake CUDA device; `capturing` is True while a graph is recorded on it."""
    it = SimpleNamespace(capturing=False)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: it.capturing)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a device")
    monkeypatch.setattr(tuning, "_tuned", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    torch.use_deterministic_algorithms(False)  # which the fixture of these tests has set
    return it


def on_device(*strides: int) -> SimpleNamespace:
    return SimpleNamespace(device=torch.device("cuda", 0), ndim=len(strides), stride=strides.__getitem__)


def test_a_program_is_tuned_once_for_each_order_in_memory(
    device: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    problem = Problem(grid=(9, 9), batch=64, dtype=torch.bfloat16, device="cuda")
    tried = candidate_tiles(problem, "output")
    launches = Launches({tile: 9.0 - i for i, tile in enumerate(tried)})
    monkeypatch.setattr(tuning, "_milliseconds", launches.milliseconds)
    for _ in range(2):
        tuning.run("output", problem, [on_device(8, 1)], launches.calls)
    assert launches.launched == [*tried, tried[-1], tried[-1]]
    tuning.run("output", problem, [on_device(1, 8)], launches.calls)
    assert launches.launched[len(tried) + 2 :] == [*tried, tried[-1]]
    assert len(list((tmp_path / "lambdanets" / "tiles").iterdir())) == 2
    monkeypatch.setattr(tuning, "_tuned", {})  # as in another process
    before = len(launches.launched)
    tuning.run("output", problem, [on_device(8, 1)], launches.calls)
    assert launches.launched[before:] == [tried[-1]]


def test_problems_of_about_the_same_sizes_share_a_tile(
    device: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Problem(grid=(50, 67), scope=(7, 7), batch=6, dtype=torch.bfloat16, device="cuda")
    tried = candidate_tiles(problem, "dv")
    launches = Launches(dict.fromkeys(tried, 1.0))
    monkeypatch.setattr(tuning, "_milliseconds", launches.milliseconds)
    for like in ({}, {"grid": (61, 110)}, {"batch": 8}, {"content": False}):
        tuning.run("dv", replace(problem, **like), [on_device(8, 1)], launches.calls)
    assert len(launches.launched) == len(tried) + 4
    for unlike in ({"grid": (50, 129)}, {"batch": 9}, {"scope": (9, 9)}, {"dtype": torch.float16}):
        before = len(launches.launched)
        tuning.run("dv", replace(problem, **unlike), [on_device(8, 1)], launches.calls)
        assert len(launches.launched) > before + 1


@pytest.mark.parametrize("program", ["output", "dq", "dv", "de"])
def test_tiles_of_like_problems_are_tried_for_both(program: str) -> None:
    for batch in range(1, 40):
        problem = Problem(grid=(9, batch), batch=batch, num_heads=3, dtype=torch.bfloat16, device="cuda")
        assert candidate_tiles(problem, program) == candidate_tiles(
            tuning.representative(program, problem), program
        )


def test_times_decide_nothing_while_a_graph_is_recorded_or_results_must_repeat(
    device: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    problem = Problem(grid=(9, 9), batch=64, dtype=torch.bfloat16, device="cuda")
    tried = candidate_tiles(problem, "dv")
    launches = Launches({tile: 9.0 - i for i, tile in enumerate(tried)})
    monkeypatch.setattr(tuning, "_milliseconds", launches.milliseconds)
    device.capturing = True
    tuning.run("dv", problem, [on_device(1)], launches.calls)
    assert launches.launched == [tried[0]]
    assert not list(tmp_path.iterdir())
    device.capturing = False
    tuning.run("dv", problem, [on_device(1)], launches.calls)
    device.capturing = True
    tuning.run("dv", problem, [on_device(1)], launches.calls)
    assert launches.launched[-1] == tried[-1]  # what was found before is taken
    device.capturing = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    tuning.run("dv", problem, [on_device(1)], launches.calls)
    assert launches.launched[-1] == tried[0]


def test_a_device_with_no_memory_left_for_trials_takes_the_first_tile_and_tries_later(
    device: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    problem = Problem(grid=(9, 9), batch=64, dtype=torch.bfloat16, device="cuda")
    tried = candidate_tiles(problem, "dq")
    launches = Launches({tile: 9.0 - i for i, tile in enumerate(tried)})

    def without_memory(call: Callable[[], None]) -> float:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(tuning, "_milliseconds", without_memory)
    tuning.run("dq", problem, [on_device(1)], launches.calls)
    assert launches.launched == [tried[0]]
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(tuning, "_milliseconds", launches.milliseconds)
    tuning.run("dq", problem, [on_device(1)], launches.calls)
    assert launches.launched[-1] == tried[-1]


def test_a_tile_is_found_once_and_cached_in_a_file(tmp_path: Path) -> None:
    found: list[Tile] = []

    def find() -> Tile:
        found.append(B)
        return B

    file = tmp_path / "folder" / "tile.json"
    assert [tuning.load_or_find(file, [A, B], find) for _ in range(3)] == [B, B, B]
    assert len(found) == 1
    assert json.loads(file.read_text()) == asdict(B)
    assert [path.name for path in file.parent.iterdir()] == ["tile.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"examples": 1}', json.dumps(asdict(C)), "\0"])
def test_an_invalid_cache_file_is_replaced(text: str, tmp_path: Path) -> None:
    file = tmp_path / "tile.json"
    file.write_text(text)
    assert tuning.load_or_find(file, [A, B], lambda: B) == B
    assert json.loads(file.read_text()) == asdict(B)


def test_a_read_only_folder_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert tuning.load_or_find(tmp_path / "file" / "tile.json", [A, B], lambda: B) == B
    assert tuning.load_or_find(None, [A, B], lambda: A) == A


@pytest.mark.parametrize("program", ["output", "dq", "dv", "de"])
def test_few_tiles_are_tried_always_the_same(program: str) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        for batch, heads, depth in ((1, 1, 8), (128, 4, 16), (3, 24, 256)):
            problem = Problem(grid=(9, 9), batch=batch, num_heads=heads, dim_k=depth, dtype=dtype)
            tried = candidate_tiles(problem, program)
            assert 1 <= len(tried) <= 6
            assert len(set(tried)) == len(tried)
            assert tried == candidate_tiles.__wrapped__(replace(problem), program)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "cpu"}, "runs on CUDA devices"),
        ({"device": "xpu"}, "runs on CUDA devices"),
        ({"dense": True}, "dense embeddings"),
        ({"masked": True}, "dense embeddings"),
        ({"grid": (2, 2, 2, 2)}, "three axes"),
        ({"scope": (3, 3), "dilation": (1, 2)}, "dilated"),
        ({"dim_k": 257}, "at most 256"),
        ({"grid": (2**16, 2**16)}, "536,870,912 positions"),
        ({"grid": (1,), "context_grid": (2**29 + 1,)}, "536,870,912 positions"),
    ],
    ids=str,
)
def test_unsupported_problems_are_refused_with_a_reason(options: dict[str, Any], words: str) -> None:
    problem = Problem(**{"grid": (8, 8), "device": "cuda"} | options)
    reasons = triton.unsupported(problem)
    assert [words in reason for reason in reasons] == [True], reasons
    row = next(row for row in plan(replace(problem, batch=0)).rows if row.kernel == "triton")
    assert row.verdict == "cannot serve"
    assert words in row.reason


def test_an_old_device_or_one_of_another_maker_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(grid=(8, 8), device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: ((9, 0), (7, 5))[i])
    triton._missing.cache_clear()
    assert "compute capability 8.0, here is one of 7.5" in triton.unsupported(problem)[0]
    triton._missing.cache_clear()
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "NVIDIA" in triton.unsupported(problem)[0]
    triton._missing.cache_clear()


@pytest.mark.parametrize(
    ("missing", "words"), [("which", "finds no C compiler"), ("Path", "no nowhere; install Python's headers")]
)
def test_a_machine_on_which_triton_cannot_compile_is_refused(
    missing: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: (9, 0))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(triton, "which", lambda name: None if missing == "which" else "/a/compiler")
    if missing == "Path":
        monkeypatch.setattr(triton, "Path", lambda *parts: Path("nowhere"))
    triton._missing.cache_clear()
    reasons = triton.unsupported(Problem(grid=(8, 8), device="cuda"))
    triton._missing.cache_clear()
    assert [words in reason for reason in reasons] == [True]


def test_missing_requirements_are_constants_of_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph cannot read files, and the layer must be one graph."""
    cuda = SimpleNamespace(
        is_available=lambda: True, device_count=lambda: 1, get_device_capability=lambda i: (7, 5)
    )
    monkeypatch.setattr(triton, "torch", SimpleNamespace(cuda=cuda, version=SimpleNamespace(hip=None)))
    problem = Problem(grid=(8, 8), device="cuda")

    def count(x: torch.Tensor) -> torch.Tensor:
        return x + len(triton.unsupported(problem))

    for capability, reasons in (((9, 0), 0), ((7, 5), 1)):
        monkeypatch.setattr(cuda, "get_device_capability", lambda i, found=capability: found)
        monkeypatch.setenv("CC", "a compiler")
        triton._missing.cache_clear()
        torch.compiler.reset()
        found = torch.compile(count, fullgraph=True, backend="eager")(torch.zeros(1))
        assert found == reasons == len(triton.unsupported(problem))
    triton._missing.cache_clear()


def test_without_triton_the_kernel_is_refused_and_nothing_else_changes() -> None:
    program = """
import sys
sys.modules["triton"] = None
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "triton" else found(name, *rest)
import torch
from lambdanets.ops import GlobalContext, Problem, lambda_layer, plan
print(plan(Problem(grid=(8, 8), device="cuda")))
q, k, v, e = torch.ones(1, 1, 4, 2), torch.ones(1, 4, 2, 1), torch.ones(1, 4, 3, 1), torch.ones(7, 2, 1)
print(lambda_layer(q, k, v, e, context=GlobalContext((4,))).shape)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "cannot serve: Triton is not installed" in done.stdout
    assert "torch.Size([1, 1, 4, 3])" in done.stdout


def test_on_a_gpu_it_is_planned_and_costs_no_memory_forwards() -> None:
    made = plan(Problem(grid=(14, 14), batch=128, dtype=torch.bfloat16, device="cuda", train=True))
    row = next(row for row in made.rows if row.kernel == "triton")
    assert row.cost is not None
    assert row.cost.peak_bytes == 0
    assert made.kernel == "triton"


def test_its_memory_backwards_is_small_beside_lambdas() -> None:
    problem = Problem(grid=(64, 64), batch=16, dtype=torch.bfloat16, device="cuda")
    lambdas = problem.batch * problem.num_queries * problem.dim_k * problem.dim_v * problem.itemsize
    assert 4 * triton.cost(problem, backward=True).peak_bytes < lambdas
