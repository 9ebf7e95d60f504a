"""The Triton programs without a GPU: run by the interpreter, and compiled for devices that are not there.

And what the tuner does, with times that are given.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lambdanets.ops import Problem
from lambdanets.ops.kernels import triton

pytestmark = pytest.mark.triton
HERE = Path(__file__).parent
SHARED = {80: 163 * 1024, 90: 227 * 1024}  # bytes of shared memory that a program may have, by capability
LEAST_SHARED = 99 * 1024  # of a device of capability 8.6 or 8.9


def interpreted(*arguments: str) -> None:
    """Tests run by the interpreter, in a process of their own."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "triton_interpreted"]
    done = subprocess.run(
        [*command, *arguments],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(HERE)},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-5000:]
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout


@pytest.mark.slow
def test_programs_equal_the_definition_by_the_interpreter() -> None:
    interpreted(str(HERE / "triton_interpreted.py"))


@pytest.mark.slow
def test_the_kernel_passes_the_tests_of_all_kernels_by_the_interpreter() -> None:
    interpreted(str(HERE / "test_kernels.py"), "-k", "triton and not cuda")


@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_every_tile_compiles_for_a_device_that_is_not_there(dtype: torch.dtype, capability: int) -> None:
    from lambdanets.ops.kernels.triton import programs

    problem = Problem(grid=(14, 14), scope=(23, 23), batch=128, dtype=dtype)
    for name, tile, call in programs.without_memory(problem):
        compiled = call.compile(capability)
        assert compiled.asm["cubin"]
        assert compiled.metadata.shared <= SHARED[capability], (name, tile)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(1, 16, 256), (3, 64, 7), (32, 256, 16), (16, 5, 100)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_some_tile_fits_into_the_smallest_device(dtype: torch.dtype, sizes: tuple[int, int, int]) -> None:
    from lambdanets.ops.kernels.triton import programs

    heads, dim_k, dim_v = sizes
    problem = Problem(grid=(7, 9), batch=32, num_heads=heads, dim_k=dim_k, dim_v=dim_v, dtype=dtype)
    fits: dict[str, bool] = {}
    for name, _, call in programs.without_memory(problem):
        if not fits.get(name):
            fits[name] = call.compile(80).metadata.shared <= LEAST_SHARED
    assert fits == dict.fromkeys(("output", "dq", "dv", "de"), True)
