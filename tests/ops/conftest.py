"""Every test in this folder runs on poisoned memory; fixtures of the tests of the native library."""

from collections.abc import Iterator

import pytest
import torch

from lambdanets.ops.kernels import native

BEST = "base" if native.library.unavailable() else native.isa()


@pytest.fixture(autouse=True)
def _poisoned(poisoned_memory: None) -> None:
    pass


@pytest.fixture(params=[name for name, number in native.ISAS.items() if number <= native.ISAS[BEST]])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each instruction set that this CPU has."""
    monkeypatch.setenv(native.ISA_VARIABLE, request.param)
    assert native.isa() == request.param
    return request.param


@pytest.fixture
def threads() -> Iterator[None]:
    """Give the number of threads back after the test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
