"""A plugin of pytest that counts results by kernel and dtype."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from lambdanets.bench.memory import is_lost
from lambdanets.ops import KERNELS

LATE = "the time was up"
SECONDS = 5.0  # between two saves


@dataclass(frozen=True, kw_only=True)
class KernelTests:
    """The tests of one kernel in one dtype.

    Attributes:
        kernel: Its name; "" for tests that name none.
        dtype: The dtype in their parameters; "" for those with a dtype of their own, mostly float64.
        passed: Number of passed tests.
        failed: Number of failed tests, errors in fixtures included.
        left_out: Number of skipped tests.
        seconds: Total time, compilation included.
        why: Reasons for skipping, each with its number.
    """

    kernel: str
    dtype: str
    passed: int
    failed: int
    left_out: int
    seconds: float
    why: str


@dataclass(eq=False)
class Recorder:
    """A plugin of pytest that counts results by kernel and dtype.

    It skips tests after the end of the time, and ends the session where the GPU no longer answers: every
    later test would fail.

    Attributes:
        ends: The end of the time, of `time.monotonic`.
        device: Where the tests run.
        save: Called with the recorder every few seconds.
    """

    ends: float
    device: str
    save: Callable[[Recorder], None]
    results: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)
    seconds: Counter[tuple[str, str]] = field(default_factory=Counter)
    why: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    late: Counter[tuple[str, str]] = field(default_factory=Counter)
    left: set[str] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)
    lost: bool = False
    saved: float = field(default_factory=time.monotonic)
    session: Any = None
    keys: dict[str, tuple[str, str]] = field(default_factory=dict)

    def state(self) -> str:
        """Return the state for another process; tests skipped for lack of time are not in it."""
        results = [
            [*key, dict(found), self.seconds[key], self.why.get(key, {})]
            for key, found in self.results.items()
        ]
        return json.dumps({"results": results, "failures": self.failures, "seen": sorted(self.seen)})

    def go_on(self, state: str) -> None:
        """Load the state of another process; its tests are not run again."""
        found = json.loads(state)
        self.failures, self.seen = found["failures"], set(found["seen"])
        for kernel, dtype, results, seconds, why in found["results"]:
            key = kernel, dtype
            self.results[key], self.seconds[key], self.why[key] = Counter(results), seconds, Counter(why)

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self.session = session

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self.keys = {item.nodeid: _key(item) for item in items}
        items[:] = [item for item in items if item.nodeid not in self.seen]

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if time.monotonic() > self.ends:
            pytest.skip(LATE)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        if time.monotonic() > self.saved + SECONDS:
            self.save(self)
            self.saved = time.monotonic()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        key = self.keys[report.nodeid]
        if report.skipped and isinstance(report.longrepr, tuple) and report.longrepr[2].endswith(LATE):
            self.late[key] += 1
            self.left.add(report.nodeid)
        if report.nodeid in self.left:  # its teardown is reported as well
            return
        self.seen.add(report.nodeid)
        if report.failed and is_lost(self.device):
            self.lost, self.session.shouldstop = True, "the GPU was lost"
        self.seconds[key] += report.duration
        if report.failed:
            self.failures.append(f"{report.nodeid} ({report.when})\n{report.longreprtext}\n")
        if report.skipped and isinstance(report.longrepr, tuple):
            reason = report.longrepr[2].removeprefix("Skipped: ")
            self.why.setdefault(key, Counter())[reason] += 1
        if report.failed or report.skipped or report.when == "call":
            self.results.setdefault(key, Counter())[report.outcome] += 1

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failures.append(f"{report.nodeid} (collection)\n{report.longreprtext}\n")

    def rows(self) -> list[KernelTests]:
        everything = {key: self.results.get(key, Counter()) for key in sorted({*self.results, *self.late})}
        return [
            KernelTests(
                kernel=key[0],
                dtype=key[1],
                passed=found["passed"],
                failed=found["failed"],
                left_out=found["skipped"] + self.late[key],
                seconds=round(self.seconds[key], 2),
                why="; ".join(f"{n} {reason}" for reason, n in self._reasons(key).items()),
            )
            for key, found in everything.items()
        ]

    def _reasons(self, key: tuple[str, str]) -> dict[str, int]:
        late = {LATE: self.late[key]} if key in self.late else {}
        return {**self.why.get(key, {}), **late}


def _key(item: pytest.Item) -> tuple[str, str]:
    """Return the kernel and the dtype of a test, from its parameters, or from its file for Triton's tests."""
    spec: Any = getattr(item, "callspec", None)
    values = list(spec.params.values()) if spec is not None else []
    kernel = next((value for value in values if isinstance(value, str) and value in KERNELS), "")
    if not kernel and "triton" in item.nodeid:
        kernel = "triton"
    kind = next((value for value in values if isinstance(value, torch.dtype)), "")
    return kernel, str(kind).removeprefix("torch.")
