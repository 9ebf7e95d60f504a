"""Peaks in a process of their own: what is known in advance comes out."""

from typing import Any

import pytest
import torch

from lambdanets.bench import Case
from lambdanets.bench.memory import CLEAR, Request, is_out_of_memory, peak_mib

pytestmark = pytest.mark.skipif(not CLEAR.exists(), reason="this system does not tell peaks")


def request(case: Case, **changes: Any) -> Request:
    settings: dict[str, Any] = {
        "name": "SDPA",
        "role": "other",
        "which": "eval",
        "dtype": torch.float32,
        "device": "cpu",
        "threads": 1,
    }
    return Request(case=case, **(settings | changes))


def test_attention_without_a_map_holds_projections_their_copy_and_the_output() -> None:
    """Three times the input, twice, and then the output: 96 MiB; a map would be 1 GiB."""
    found = peak_mib(request(Case(name="x", grid=(64, 32), batch=8, dim=256)))
    assert isinstance(found, float)
    assert 90 < found < 140


def test_training_holds_more_than_inference() -> None:
    case = Case(name="x", grid=(16, 16), batch=32, dim=128)  # 4 MiB a tensor, beside a block of 2
    peaks = [
        peak_mib(request(case, name="lambdanets", role="layer", which=which)) for which in ("eval", "train")
    ]
    assert all(isinstance(peak, float) for peak in peaks)
    assert 0 < peaks[0] < peaks[1]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (RuntimeError("out of resource: shared memory, required: 300000"), False),
        (RuntimeError("shapes differ"), False),
    ],
)
def test_memory_that_is_short_by_its_error(error: Exception, short: bool) -> None:
    assert is_out_of_memory(error) == short


def test_a_process_that_fails_is_told() -> None:
    found = peak_mib(request(Case(name="x", grid=(4, 4), dim=16), name="nobody"))
    assert found == "its process ended early"
