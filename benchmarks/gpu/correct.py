"""Every kernel against the definition on a GPU: what `pytest -m gpu` passes, fails and leaves out.

    python benchmarks/gpu/correct.py [--minutes 8] [-k EXPRESSION]

Collects the files that name the marker alone: others may need packages that are not here. Leaves
correct.csv, a row for each kernel and type, and failures.txt. The exit status is pytest's, or 1 where the
time was up. With --device cpu the same tests run on the processor.
"""

from __future__ import annotations

import csv
import re
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import FAILURE, MINUTES, ROOT, Parser, begin, stop

if TYPE_CHECKING:
    import pytest

    from lambdanets.bench import Provenance

WANTED = {
    "triton": "no kernel of Triton is tested",
    "hypothesis": "tests that draw their cases at random are not collected; none of them is for a GPU",
}
QUICK = "low_precision and global-2d-row"


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
        import pytest

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
    import torch

    from lambdanets.ops import KERNELS

    spec: Any = getattr(item, "callspec", None)
    values = list(spec.params.values()) if spec is not None else []
    kernel = next((value for value in values if isinstance(value, str) and value in KERNELS), "")
    if not kernel and "triton" in item.nodeid:
        kernel = "triton"
    kind = next((value for value in values if isinstance(value, torch.dtype)), "")
    return kernel, str(kind).removeprefix("torch.")


def show(path: Path) -> None:
    """Print a correct.csv as a table."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        return
    where = rows[0]
    print(f"{where['processor']}, torch {where['torch']}, triton {where['triton'] or '-'}, {where['date']}")
    print(f"{'kernel':<12}{'type':<12}{'passed':>8}{'failed':>8}{'left out':>10}{'seconds':>10}  why")
    for row in rows:
        numbers = f"{row['passed']:>8}{row['failed']:>8}{row['left_out']:>10}{row['seconds']:>10}"
        print(f"{row['kernel'] or '-':<12}{row['dtype'] or '-':<12}{numbers}  {row['why']}")


def main() -> int:
    parser = Parser(__doc__, "correct.csv")
    parser.add_argument("-k", dest="chosen", default="", help="tests whose names fit, as pytest has it")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="tests that begin later are left out")
    words = parser.parse_args()
    begin(words, needed=("torch", "timm", "pytest"), wanted=WANTED)
    if words.draw:
        show(words.draw)
        return 0

    import pytest
    import torch

    from lambdanets import bench

    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if _for_gpu(path)]
    if not files:
        stop("no test is marked gpu")
    marker = "gpu" if words.device == "cuda" else "not gpu and not slow"
    chosen = words.chosen or (QUICK if words.quick else "")
    options = ["-q", "-p", "no:cacheprovider", "-m", marker, "--rootdir", str(ROOT)]
    options += ["-k", chosen] if chosen else []
    recorder = Recorder(ends=time.monotonic() + 60 * words.minutes)
    code = int(pytest.main([*options, *map(str, files)], plugins=[recorder]))

    out = words.out or Path("runs/gpu-correct")
    out.mkdir(parents=True, exist_ok=True)
    nan = bench.Machine(gflops=float("nan"), gflops_cpu=float("nan"), copy_gbs=float("nan"))
    where = bench.provenance(torch.float32, words.device, torch.get_num_threads(), nan)
    write(out / "correct.csv", recorder.rows(), where)
    (out / "failures.txt").write_text("\n".join(recorder.failures))
    print(*recorder.failures, sep="\n")
    show(out / "correct.csv")
    if recorder.late:
        print(f"{recorder.late} tests were left out: {words.minutes:g} minutes were over", file=sys.stderr)
    return code or (FAILURE if recorder.late else 0)


def _for_gpu(path: Path) -> bool:
    return re.search(r"mark\.gpu\b", path.read_text()) is not None


UNSAID = {"dtype", "gemm_gflops", "gemm_gflops_cpu", "copy_gbs"}  # of a race


def write(path: Path, rows: list[Row], where: Provenance) -> None:
    """Write the rows, each with where they are from."""
    places = {name: value for name, value in asdict(where).items() if name not in UNSAID}
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, [*(each.name for each in fields(Row)), *places], lineterminator="\n")
        table.writeheader()
        table.writerows(asdict(row) | places for row in rows)


if __name__ == "__main__":
    sys.exit(main())
