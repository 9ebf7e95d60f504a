"""Peaks in a process of their own: what is known in advance comes out."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lambdanets.bench import Case
from lambdanets.bench.checking import LayerJob
from lambdanets.bench.memory import CLEAR, is_lost, is_out_of_memory, peak_mib

pytestmark = pytest.mark.skipif(not CLEAR.exists(), reason="this system does not report peaks")


def request(case: Case, **changes: Any) -> LayerJob:
    settings: dict[str, Any] = {
        "name": "SDPA",
        "role": "other",
        "which": "eval",
        "dtype": torch.float32,
        "device": "cpu",
        "threads": 1,
    }
    return LayerJob(case=case, **(settings | changes))


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
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (RuntimeError("out of resource: shared memory, required: 300000"), False),
        (RuntimeError("shapes differ"), False),
    ],
)
def test_memory_that_is_short_by_its_error(error: Exception, short: bool) -> None:
    assert is_out_of_memory(error) == short


class OfAGpu:
    """What PyTorch counts, in MiB, with a job whose first call holds more than the next ones."""

    device, threads = "cuda", 1

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, whole: bool, short: bool = False) -> None:
        self.whole, self.short = whole, short
        self.held = self.most = 100
        self.calls = 0
        for name, function in {
            "synchronize": lambda device: None,
            "reset_peak_memory_stats": lambda device: setattr(self, "most", self.held),
            "memory_allocated": lambda device: self.held * 2**20,
            "max_memory_allocated": lambda device: self.most * 2**20,
        }.items():
            monkeypatch.setattr(f"torch.cuda.{name}", function)

    def warm_up(self) -> None:
        self.held += 32  # a library's

    def prepare(self) -> Callable[[], None]:
        self.held += 10
        return self._run

    def _run(self) -> None:
        self.calls += 1
        if self.short and self.calls > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.most = max(self.most, self.held + (256 if self.calls == 1 else 5))


def test_on_a_gpu_the_peak_is_of_a_second_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first tries programs, for which it holds what no later call does."""
    assert peak_mib(OfAGpu(monkeypatch, whole=False)) == 5
    assert peak_mib(OfAGpu(monkeypatch, whole=True)) == 15, "weights and inputs as well, and no library"
    assert peak_mib(OfAGpu(monkeypatch, whole=True, short=True)) == "out of memory"


def test_a_gpu_is_lost_where_it_fails_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter((RuntimeError("of a call before"), None))

    def synchronize(device: torch.device) -> None:
        if (answer := next(answers, RuntimeError("for ever"))) is not None:
            raise answer

    monkeypatch.setattr("torch.cuda.synchronize", synchronize)
    assert not is_lost("cuda")
    assert is_lost("cuda")
    assert not is_lost("cpu")


def test_a_process_that_fails_is_told() -> None:
    found = peak_mib(request(Case(name="x", grid=(4, 4), dim=16), name="nobody"))
    assert found == "its process ended early"
