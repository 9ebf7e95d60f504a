"""Registers, shared memory and spills of the Triton kernels, compiled for sm_80 and sm_90 without a GPU.

    python benchmarks/gpu/compiled.py [compiled.csv]

Writes a row per kernel, case, dtype and capability. ptxas is the one that Triton brings.
"""

from __future__ import annotations

import csv
import platform
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.nvidia.compiler import get_ptxas

from lambdanets.ops import Problem
from lambdanets.ops.kernels.triton.launch import calls_without_memory

LIMITS = {80: 163 * 1024, 90: 227 * 1024}  # bytes of shared memory that a program may use
CASES = {
    "c4": Problem(grid=(14, 14), scope=(23, 23), batch=128, dim_v=64, dtype=torch.bfloat16, device="cuda"),
    "c5": Problem(grid=(7, 7), batch=128, dim_v=128, dtype=torch.bfloat16, device="cuda"),
    "64x64": Problem(grid=(64, 64), batch=8, dim_v=64, dtype=torch.bfloat16, device="cuda"),
    "c4 float32": Problem(grid=(14, 14), scope=(23, 23), batch=128, dim_v=64, device="cuda"),
}


@dataclass(frozen=True)
class Resources:
    """The resources of a compiled kernel: registers per thread, bytes per program, its products and moves."""

    registers: int
    spilled: int
    shared: int
    products: str
    moves: str


def resources(compiled: Any, capability: int) -> Resources:
    """Return the resources that ptxas and Triton report for a compiled kernel."""
    ptx = compiled.asm["ptx"]
    suffix = "a" if capability >= 90 else ""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "program.ptx")
        source.write_text(ptx)
        command = [get_ptxas(capability).path, "-v", f"-arch=sm_{capability}{suffix}", "--regAllocOptLevel=2"]
        command += [str(source), "-o", str(source.with_suffix(".cubin"))]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return Resources(
        registers=_number(r"Used (\d+) registers", report),
        spilled=_number(r"(\d+) bytes spill stores", report),
        shared=compiled.metadata.shared,
        products=_counts(r"^\s*(wgmma\.mma_async|mma\.sync)", ptx) or "none",
        moves=_counts(
            r"^\s*(?:@%p\d+ )?(ld\.shared|st\.shared|ldmatrix|stmatrix|shfl|cp\.async\.c[ag])\S*", ptx
        ),
    )


def _counts(pattern: str, ptx: str) -> str:
    """Return the number of some instructions in a kernel, loops counted once."""
    found = Counter(match[1] for match in re.finditer(pattern, ptx, re.M))
    return " ".join(f"{name}={count}" for name, count in sorted(found.items()))


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    if match is None:
        raise RuntimeError(f"ptxas reported nothing like {pattern!r}: {text}")
    return int(match[1])


def rows() -> Iterator[dict[str, Any]]:
    for name, problem in CASES.items():
        for _, _, call in calls_without_memory(problem):
            for capability, limit in LIMITS.items():
                module = call.kernel.__module__.rpartition(".")[2]
                found = resources(call.compile(capability), capability)
                yield {
                    "program": f"{module}.{call.kernel.__name__.removesuffix('_kernel')}",
                    "case": name,
                    "problem": str(problem),
                    "capability": capability,
                    "instances": call.num_programs,
                    "threads": 32 * call.warps,
                    "stages": call.stages,
                    "tile": " ".join(
                        f"{key}={value}" for key, value in call.constants.items() if key[0] in "BNM"
                    ),
                    "registers": found.registers,
                    "spilled_bytes": found.spilled,
                    "shared_bytes": found.shared,
                    "fits": found.shared <= limit,
                    "products": found.products,
                    "moves": found.moves,
                    "triton": triton.__version__,
                    "torch": torch.__version__,
                    "python": platform.python_version(),
                    "date": date.today().isoformat(),
                }


def main(path: str = "benchmarks/gpu/compiled.csv") -> None:
    with Path(path).open("w", newline="") as file:
        writer = None
        for row in rows():
            if writer is None:
                writer = csv.DictWriter(file, fieldnames=list(row), lineterminator="\n")
                writer.writeheader()
            writer.writerow(row)
            print(
                *(row[key] for key in ("program", "case", "capability", "registers", "spilled_bytes")),
                end=" ",
            )
            print(*(row[key] for key in ("shared_bytes", "products", "tile", "instances")), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
