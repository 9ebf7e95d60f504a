"""Kernel "native" alone: GFLOP/s of each pass, as a share of the peak that a loop of multiply-adds reaches.

`python kernel.py [--isa ISA] [--threads N] [--out FILE]` writes kernel.csv. Operations are those of pairs
inside windows: 2 h (k + v) for each pair forward, 2 h (3 k + 2 v) backward. Times are medians, wall times
divided by the number of calls with several threads, and CPU times with one. The peak is measured before and
after all cases, on one thread, times the number of threads: the system's compiler compiles a loop of
independent multiply-adds for the instruction set, of pairs of bfloat16 where the CPU multiplies those.
"""

import argparse
import ctypes
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lambdanets.bench.records import NONE, Machine, provenance, write_rows
from lambdanets.ops import Problem
from lambdanets.ops.kernels import native
from lambdanets.ops.kernels.native import compiler

CASES = {
    "g7": Problem(grid=(7, 7), batch=32, dim_v=128),
    "g14": Problem(grid=(14, 14), batch=32),
    "g28": Problem(grid=(28, 28), batch=8, dim_v=32),
    "g64": Problem(grid=(64, 64)),
    "r7@14": Problem(grid=(14, 14), scope=(7, 7), batch=32),
    "r23@28": Problem(grid=(28, 28), scope=(23, 23), batch=8, dim_v=32),
    "r23@56": Problem(grid=(56, 56), scope=(23, 23), batch=4, dim_v=16),
    "r23@64": Problem(grid=(64, 64), scope=(23, 23)),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ROUNDS, SECONDS = 15, 0.03  # of a case, and the least of a round
LOOP = """
#include "vector.h"

constexpr int CHAINS = 12, STEPS = 1 << 22;
float result[CHAINS * LANES<float>];

template <typename Step>
void run(const Step& step) {
    Vector<float> sum[CHAINS] = {}, x = broadcast(1e-3f), y = broadcast(1e-3f);
    keep(x), keep(y);
    for (int i = 0; i < STEPS; ++i) {
#pragma GCC unroll 16
        for (int n = 0; n < CHAINS; ++n) sum[n] = step(sum[n], x, y), keep(sum[n]);
    }
#pragma GCC unroll 16
    for (int n = 0; n < CHAINS; ++n) store(result + n * LANES<float>, sum[n]);
}

using V = Vector<float>;

extern "C" double float32() {
    run([](V sum, V x, V y) { return sum * x + y; });
    return 2.0 * STEPS * CHAINS * LANES<float>;
}

extern "C" double bfloat16() {
#if defined(__AVX512BF16__)
    if (__builtin_cpu_supports("avx512bf16")) {
        run([](V sum, V x, V y) { return add_pairs(sum, x, y); });
        return 4.0 * STEPS * CHAINS * LANES<float>;
    }
#endif
    return float32();
}
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One pass of a case: its time, its operations per second, and their share of the peak."""

    case: str
    direction: str
    isa: str
    ms: float
    gflops: float
    peak_gflops: float
    share: float


def build_loop(isa: str) -> Callable[[str], float]:
    """Return a function that measures the FLOP/s of one thread in a dtype."""
    flags = [*compiler.ISAS[compiler.machine()][isa.upper()], *compiler.OPTIONAL.get(isa.upper(), ())]
    flags += ["-O3", "-std=gnu++17", "-fPIC", "-shared", f"-DISA_{isa.upper()}", f"-I{compiler.SOURCE}"]
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "loop.cpp", Path(folder) / "loop.so"
        source.write_text(LOOP)
        subprocess.run([*compiler.find_compiler(), *flags, str(source), "-o", str(library)], check=True)
        loaded = ctypes.CDLL(str(library))

    def measure(dtype: str) -> float:
        function = getattr(loaded, dtype)
        function.restype = ctypes.c_double
        best = 0.0
        for _ in range(5):
            start = time.process_time()
            operations = function()
            best = max(best, operations / (time.process_time() - start))
        return best

    return measure


def seconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    """Return the median time of a call."""
    call()
    start = clock()
    call()
    repeat = max(1, int(SECONDS / max(clock() - start, 1e-6)))
    times = []
    for _ in range(ROUNDS):
        start = clock()
        for _ in range(repeat):
            call()
        times.append((clock() - start) / repeat)
    return statistics.median(times)


def measure(problem: Problem, clock: Callable[[], float]) -> dict[str, tuple[float, int]]:
    """Return the time and the operations of each pass."""
    g, q, v, e = problem.random_inputs()
    y = torch.empty_like(g)
    calls = {
        "forward": lambda: native.output(q, v, e, problem, y),
        "backward": lambda: native.gradients(g, q, v, e, problem, (True, True, True)),
    }
    return {
        name: (seconds(call, clock), native.cost(problem, backward=name == "backward").flops)
        for name, call in calls.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--isa", choices=native.ISAS, default=native.isa())
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("kernel.csv"))
    chosen = parser.parse_args()
    os.environ[native.ISA_VARIABLE] = chosen.isa
    torch.set_num_threads(chosen.threads)
    clock = time.process_time if chosen.threads == 1 else time.perf_counter
    loop = build_loop(chosen.isa)
    peaks = {dtype: loop(dtype) for dtype in DTYPES}
    found = {
        (case, dtype): measure(replace(CASES[case], dtype=DTYPES[dtype]), clock)
        for case in chosen.cases
        for dtype in DTYPES
    }
    rows = []
    for (case, dtype), passes in found.items():
        peak = max(peaks[dtype], loop(dtype)) * chosen.threads / 1e9
        machine = Machine(gflops=NONE, gflops_cpu=NONE, copy_gbs=NONE)
        where = provenance(DTYPES[dtype], "cpu", chosen.threads, machine)
        for name, (duration, operations) in passes.items():
            gflops = operations / duration / 1e9
            row = Row(
                case=case, direction=name, isa=chosen.isa, ms=1e3 * duration, gflops=gflops,
                peak_gflops=peak, share=gflops / peak,
            )  # fmt: skip
            rows.append((row, where))
            print(f"{case:8} {dtype:9} {name:9} {row.ms:8.3f} ms {gflops:6.0f} GFLOP/s {row.share:5.0%}")
    write_rows(chosen.out, Row, rows)


if __name__ == "__main__":
    main()
