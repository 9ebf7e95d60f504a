"""Every test in this folder runs on poisoned memory; a fixture for the ways to compute steps."""

from collections.abc import Iterator

import pytest
import torch

from lambdanets.ops import planner
from lambdanets.ops.kernels.native import library

_needs_library = pytest.mark.skipif(library.unavailable() is not None, reason=str(library.unavailable()))


@pytest.fixture(autouse=True)
def _poisoned(poisoned_memory: None) -> None:
    pass


@pytest.fixture(params=["autograd", pytest.param("native", marks=_needs_library), "operators"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run a test with gradients, without gradients and with the library, and with neither."""
    if request.param == "operators":
        monkeypatch.setenv(library.SWITCH, "0")

    def forget() -> None:
        library.refresh()
        planner._select_kernel.cache_clear()  # it may have selected the native kernel

    forget()
    with torch.set_grad_enabled(request.param == "autograd"):
        yield request.param
    monkeypatch.undo()
    forget()
