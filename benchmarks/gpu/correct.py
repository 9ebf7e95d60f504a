"""Every kernel against the definition on a GPU: the results of `pytest -m gpu` by kernel and dtype.

    python benchmarks/gpu/correct.py [--minutes 8] [--resume] [-k EXPRESSION]

Collects tests/ops and tests/nn, which need torch alone; others may need packages that are missing. Leaves
correct.csv, a row for each kernel and dtype, and failures.txt, both updated while it runs. After an error
that cost the GPU, another process goes on with the next test; --resume does so after the time was up. The
exit status is pytest's, or 1 where a test was left out or has failed in an earlier process. With --device cpu
the same tests run on the CPU.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from dataclasses import asdict, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from common import FAILURE, LOST, ROOT, Parser, add_worker, begin, in_workers

if TYPE_CHECKING:
    from counting import KernelTests

    from lambdanets.bench import Provenance

WANTED = {
    "triton": "no kernel of Triton is tested",
    "hypothesis": "tests that draw their cases at random are not collected; none of them is for a GPU",
}
FOLDERS = (ROOT / "tests/ops", ROOT / "tests/nn")
QUICK = "low_precision and global-2d-row"


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


OMITTED = {"dtype", "gemm_gflops", "gemm_gflops_cpu", "copy_gbs"}  # provenance of times, not of tests


def write(path: Path, rows: list[KernelTests], where: Provenance) -> None:
    """Write the rows with their provenance."""
    from counting import KernelTests

    provenance = {name: value for name, value in asdict(where).items() if name not in OMITTED}
    with path.open("w", newline="") as file:
        table = csv.DictWriter(
            file, [*(each.name for each in fields(KernelTests)), *provenance], lineterminator="\n"
        )
        table.writeheader()
        table.writerows(asdict(row) | provenance for row in rows)


def work(words: argparse.Namespace, out: Path) -> int:
    """Run the tests that have not been run yet, and return an exit status."""
    import pytest
    import torch
    from counting import Recorder

    from lambdanets import bench

    marker = "gpu" if words.device == "cuda" else "not gpu and not slow"
    chosen = words.chosen or (QUICK if words.quick else "")
    options = ["-q", "-p", "no:cacheprovider", "-m", marker, "--rootdir", str(ROOT)]
    options += ["-k", chosen] if chosen else []
    if find_spec("hypothesis") is None:
        options += [
            f"--ignore={path}" for path in FOLDERS[0].glob("*.py") if "hypothesis" in path.read_text()
        ]
    nan = bench.Machine(gflops=float("nan"), gflops_cpu=float("nan"), copy_gbs=float("nan"))
    where = bench.provenance(torch.float32, words.device, torch.get_num_threads(), nan)

    def save(recorder: Recorder) -> None:
        write(out / "correct.csv", recorder.rows(), where)
        (out / "failures.txt").write_text("\n".join(recorder.failures))
        (out / "state.json").write_text(recorder.state())

    recorder = Recorder(ends=time.monotonic() + 60 * words.minutes, device=words.device, save=save)
    if words.resume and (out / "state.json").exists():
        recorder.go_on((out / "state.json").read_text())
    before = len(recorder.seen)
    code = int(pytest.main([*options, *map(str, FOLDERS)], plugins=[recorder]))
    save(recorder)
    if recorder.lost:
        return LOST
    if before and code == pytest.ExitCode.NO_TESTS_COLLECTED:
        code = 0
    return code or (FAILURE if recorder.late or recorder.failures else 0)


STATUS = {
    0: "all tests have passed, or were skipped with a reason",
    FAILURE: "tests have failed, or were left out; see failures.txt and the column why",
    5: "no test was chosen",
}


def main() -> int:
    parser = Parser(__doc__, "correct.csv")
    parser.add_argument("-k", dest="chosen", default="", help="tests whose names fit, as pytest has it")
    add_worker(parser, "test")
    words = parser.parse_args()
    begin(words, needed=("torch", "timm", "pytest"), wanted={} if words.worker else WANTED)
    if words.draw:
        show(words.draw)
        return 0
    out = words.out or Path("runs/gpu-correct")
    if words.worker:
        return work(words, out)
    out.mkdir(parents=True, exist_ok=True)
    if not words.resume:
        for name in ("correct.csv", "failures.txt", "state.json"):
            (out / name).unlink(missing_ok=True)
    code = in_workers(__file__, words.minutes, words.resume)
    if (out / "correct.csv").exists():
        print((out / "failures.txt").read_text())
        show(out / "correct.csv")
    print(f"exit status {code}: {STATUS.get(code, 'its process ended early')}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
