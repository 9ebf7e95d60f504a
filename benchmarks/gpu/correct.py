"""Every kernel against the definition on a GPU: what `pytest -m gpu` passes, fails and leaves out.

    python benchmarks/gpu/correct.py [--minutes 8] [-k EXPRESSION]

Collects tests/ops and tests/nn, which need torch alone; others may need packages that are not here. Leaves
correct.csv, a row for each kernel and type, and failures.txt. The exit status is pytest's, or 1 where the
time was up. With --device cpu the same tests run on the processor.
"""

from __future__ import annotations

import csv
import sys
import time
from dataclasses import asdict, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from common import FAILURE, MINUTES, ROOT, Parser, begin

if TYPE_CHECKING:
    from counting import Row

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
    recorder = Recorder(ends=time.monotonic() + 60 * words.minutes)
    code = int(pytest.main([*options, *map(str, FOLDERS)], plugins=[recorder]))

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


UNSAID = {"dtype", "gemm_gflops", "gemm_gflops_cpu", "copy_gbs"}  # of a race


def write(path: Path, rows: list[Row], where: Provenance) -> None:
    """Write the rows, each with where they are from."""
    from counting import Row

    places = {name: value for name, value in asdict(where).items() if name not in UNSAID}
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, [*(each.name for each in fields(Row)), *places], lineterminator="\n")
        table.writeheader()
        table.writerows(asdict(row) | places for row in rows)


if __name__ == "__main__":
    sys.exit(main())
