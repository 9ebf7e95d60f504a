"""What every test gets: fixed seeds, repeatable hypothesis, an honest line about the tests left out."""

import atexit
import gc
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch.jit import _builtins

from lambdanets.ops.kernels import native

if (
    find_spec("hypothesis") is not None
):  # a machine with a GPU may not have it, nor do the tests of a GPU need it
    from hypothesis import settings

    settings.register_profile("repeatable", derandomize=True, deadline=None, database=None, max_examples=25)
    settings.register_profile("search", deadline=None, max_examples=500)  # pytest --hypothesis-profile search
    settings.load_profile("repeatable")

# Collecting the tests only adds objects: visits of the garbage collector would cost a quarter of the time.
gc.disable()

# nohup and a shell's background ignore signals, which the package respects; subprocesses inherit that.
for _number, _handler in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _handler)

_register, _registered = _builtins._register_builtin, []


def _register_and_keep(function: Any, operator: str) -> None:
    """Register an operator for TorchScript and keep it alive.

    PyTorch's table holds ids without references. Importing torch.ao.quantization frees some of its operators,
    and what then lies at their addresses, a module's list of paddings for one, is taken for an operator:
    torch.jit.script fails at random with "builtin cannot be used as a value".
    """
    _registered.append(function)
    _register(function, operator)


_builtins._register_builtin = _register_and_keep


def _what_is_missing(mark: str) -> str | None:
    if mark == "triton":  # its tests run by the interpreter, and compile for devices that are not there
        return "Triton is not installed" if find_spec("triton") is None else None
    return None if torch.cuda.is_available() else "there is no CUDA device"


NEEDS_HARDWARE = ("gpu", "triton")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for mark in NEEDS_HARDWARE:
        missing = _what_is_missing(mark)
        if missing is None:
            continue
        for item in items:
            if item.get_closest_marker(mark) is not None:
                item.add_marker(pytest.mark.skip(reason=missing))


def pytest_collection_finish() -> None:
    """Exclude modules and collected tests from garbage collection.

    They are 800,000 objects, which every collection would visit: the benchmarks collect garbage several times
    in each test.
    """
    gc.collect()
    gc.freeze()
    gc.enable()
    # Extension modules report what is still alive at the exit as leaks.
    atexit.register(gc.unfreeze)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which hardware tests did not run; a green run without a GPU must not read as more."""
    for mark in NEEDS_HARDWARE:
        # A whole module that is skipped has a report without keywords.
        reports = terminalreporter.stats.get("skipped", [])
        skipped = sum(mark in getattr(report, "keywords", ()) for report in reports)
        deselected = sum(mark in item.keywords for item in terminalreporter.stats.get("deselected", []))
        if skipped:
            reason = _what_is_missing(mark) or "each for its own reason"
            terminalreporter.write_line(f"left out: {skipped} tests marked {mark}, because {reason}")
        if deselected:
            terminalreporter.write_line(
                f"left out: {deselected} tests marked {mark}, because they were deselected"
            )


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fill memory from torch.empty and its like with NaN: an output never written cannot look right."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    torch.utils.deterministic.fill_uninitialized_memory = filled


BEST = "base" if native.library.unavailable() else native.isa()


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
