"""The Triton programs without a GPU: run by the interpreter, and compiled for devices that are not there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lambdanets.ops import Problem

pytestmark = pytest.mark.triton
SHARED = {80: 163 * 1024, 90: 227 * 1024}  # bytes of shared memory that a program may have, by capability


@pytest.mark.slow
def test_programs_equal_the_definition_by_the_interpreter() -> None:
    here = Path(__file__)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            str(here.with_name("triton_interpreted.py")),
        ],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=here.parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-5000:]
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_programs_compile_for_a_device_that_is_not_there(dtype: torch.dtype, capability: int) -> None:
    from lambdanets.ops.kernels.triton import programs

    problem = Problem(grid=(14, 14), scope=(23, 23), batch=128, dtype=dtype)
    for call in programs.every_call(problem):
        compiled = call.compile(capability)
        assert compiled.asm["cubin"]
        assert compiled.metadata.shared <= SHARED[capability], call.program.__name__
