"""A plugin of pytest that counts results by kernel and type."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from lambdanets.ops import KERNELS


@dataclass(frozen=True, kw_only=True)
class Row:
    """The tests of one kernel in one type.

    Attributes:
        kernel: Its name; "" for tests that name none.
        dtype: The type that the tests name; "" for those with a type of their own, mostly float64.
        passed: How many.
        failed: How many, errors in their preparation included.
        left_out: How many were skipped.
        seconds: Of all of them together, programs compiled on the way included.
        why: Reasons of those left out, each with its number.
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
    """A plugin of pytest that counts results by kernel and type, and leaves out what the time is up for."""

    ends: float
    results: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)
    seconds: Counter[tuple[str, str]] = field(default_factory=Counter)
    why: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    late: int = 0
    keys: dict[str, tuple[str, str]] = field(default_factory=dict)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self.keys = {item.nodeid: _key(item) for item in items}

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if time.monotonic() > self.ends:
            self.late += 1
            pytest.skip("the time was up")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        key = self.keys[report.nodeid]
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

    def rows(self) -> list[Row]:
        return [
            Row(
                kernel=key[0],
                dtype=key[1],
                passed=found["passed"],
                failed=found["failed"],
                left_out=found["skipped"],
                seconds=round(self.seconds[key], 2),
                why="; ".join(f"{n} {reason}" for reason, n in self.why.get(key, Counter()).items()),
            )
            for key, found in sorted(self.results.items())
        ]


def _key(item: pytest.Item) -> tuple[str, str]:
    """The kernel and the type of a test, from its parameters; Triton's own files name no kernel in them."""
    spec: Any = getattr(item, "callspec", None)
    values = list(spec.params.values()) if spec is not None else []
    kernel = next((value for value in values if isinstance(value, str) and value in KERNELS), "")
    if not kernel and "triton" in item.nodeid:
        kernel = "triton"
    kind = next((value for value in values if isinstance(value, torch.dtype)), "")
    return kernel, str(kind).removeprefix("torch.")
