"""The time of every kernel on problems of all kinds.

The forward and the backward pass are measured separately, on random tensors: with one thread in CPU seconds
of this process, as other programs may run on the machine, with several in wall time. The kernels take turns.
Of those besides native, one whose first run takes `FAR` times the best is not run again, and one that needs
over `LARGE` bytes, or whose estimate is `HOPELESS` times the smallest, is not run. Half precision is
multiplied in the dtype that the operator uses there. `fit.py` compares the planner's estimates and selections
with the rows.
`python planner.py COMMIT --threads 2 --out planner-avx512-2threads.csv`
"""

import argparse
import csv
import itertools
import platform
import statistics
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import torch

from lambdanets import Problem
from lambdanets.ops import KERNELS
from lambdanets.ops.planner import estimate_costs, supported
from lambdanets.ops.position import to_compute_dtype

ROUNDS = 5
FAR = 8
HOPELESS = 30
LARGE = 2**32  # bytes; a kernel that would take more is left out
SLOW_MS = 1000  # a kernel whose first run takes longer is not run again
SAMPLE_SECONDS = 2e-3  # a shorter sample is the mean of several calls
BF16 = torch.bfloat16
COLUMNS = ("problem", "half", "pass", "kernel", "threads", "ms", "torch", "python", "date", "commit")


def problems() -> Iterator[Problem]:
    """Sizes of ResNet stages, of small images, of long sequences, of volumes, and odd ones."""
    # The cases of the layer race.
    yield from (Problem(grid=(7, 7), batch=32, dim_v=128), Problem(grid=(14, 14), batch=32))
    yield from (Problem(grid=(28, 28), batch=8, dim_v=32), Problem(grid=(64, 64)))
    yield Problem(grid=(14, 14), scope=(7, 7), batch=32)
    yield from (
        Problem(grid=(g, g), scope=(23, 23), batch=b, dim_v=v) for g, b, v in ((28, 8, 32), (56, 4, 16))
    )
    yield Problem(grid=(64, 64), scope=(23, 23))
    # Small images and batches.
    for grid, batch in itertools.product(((4, 4), (8, 8), (16, 16)), (1, 16)):
        yield Problem(grid=grid, batch=batch, dim_v=32)
    yield from (Problem(grid=(8, 8), scope=(15, 15), batch=128, dim_v=32), Problem(grid=(2, 2), batch=8))
    # Local scopes over sizes.
    for grid, scope, batch in (
        (16, 3, 8),
        (32, 5, 4),
        (32, 15, 4),
        (48, 9, 2),
        (64, 7, 1),
        (96, 23, 1),
        (128, 3, 1),
    ):
        yield Problem(grid=(grid, grid), scope=(scope, scope), batch=batch, dim_v=32)
    # Global, larger; rectangles; another context.
    yield from (Problem(grid=(40, 40), dim_v=64), Problem(grid=(96, 96), dim_v=16), Problem(grid=(37, 53)))
    yield from (Problem(grid=(6, 100), batch=2), Problem(grid=(100, 6), batch=2), Problem(grid=(1, 512)))
    yield from (
        Problem(grid=(20, 30), context_grid=(10, 15), batch=2),
        Problem(grid=(8, 8), context_grid=(32, 32), batch=2),
    )
    # Sequences.
    for n in (64, 256, 1024, 4096):
        yield Problem(grid=(n,), batch=max(1, 1024 // n), dim_v=32)
    yield from (Problem(grid=(1024,), causal=True), Problem(grid=(333,), causal=True, batch=4))
    for n, scope in ((512, 7), (1024, 31), (4096, 63), (4096, 255), (16384, 15)):
        yield Problem(grid=(n,), scope=(scope,), dim_v=32)
    yield Problem(grid=(2048,), scope=(128,), centre=(64,), causal=True)
    # Volumes.
    yield from (Problem(grid=(4, 8, 8), batch=2, dim_v=32), Problem(grid=(8, 14, 14), dim_v=16))
    yield from (
        Problem(grid=(8, 14, 14), scope=(3, 5, 5), dim_v=32),
        Problem(grid=(6, 20, 20), scope=(5, 9, 9), dim_v=16),
    )
    # Other depths and heads.
    yield from (
        Problem(grid=(14, 14), dim_u=4, batch=4),
        Problem(grid=(14, 14), scope=(7, 7), dim_u=4, batch=4),
    )
    yield from (
        Problem(grid=(32, 32), scope=(9, 9), dim_u=2, dim_v=32),
        Problem(grid=(24, 24), dim_k=32, batch=2),
    )
    yield from (Problem(grid=(14, 14), dim_k=8, batch=16), Problem(grid=(14, 14), num_heads=1, batch=16))
    yield from (
        Problem(grid=(14, 14), num_heads=16, dim_v=16, batch=16),
        Problem(grid=(28, 28), num_heads=8, dim_v=16, scope=(11, 11), batch=4),
        Problem(grid=(20, 20), dim_v=256, batch=2),
        Problem(grid=(32, 32), num_heads=2, dim_k=4, dim_v=128, scope=(7, 7)),
    )
    # Dilated, and in half precision.
    yield from (
        Problem(grid=(28, 28), scope=(7, 7), dilation=(2, 2), batch=2, dim_v=32),
        Problem(grid=(14, 14), batch=16, dtype=BF16),
        Problem(grid=(28, 28), scope=(23, 23), batch=4, dim_v=32, dtype=BF16),
        Problem(grid=(48, 48), batch=1, dim_v=32, dtype=BF16),
        Problem(grid=(56, 56), scope=(7, 7), batch=1, dim_v=32, dtype=BF16),
        Problem(grid=(16, 16), dtype=torch.float64, batch=2),
        Problem(grid=(16, 16), dense=True, batch=4),
    )
    # Odd sides, rectangles and thin grids; one example.
    for grid, batch in (
        ((9, 9), 16),
        ((13, 13), 8),
        ((15, 21), 4),
        ((25, 25), 1),
        ((3, 200), 4),
        ((200, 3), 4),
    ):
        yield Problem(grid=grid, batch=batch, dim_v=48)
    for grid, scope, batch in (((27, 19), 5, 4), ((9, 61), 9, 4), ((61, 9), 9, 4), ((33, 33), 13, 2)):
        yield Problem(grid=grid, scope=(scope, scope), batch=batch, dim_v=40)
    yield from (Problem(grid=(7, 7), dim_v=128), Problem(grid=(14, 14)), Problem(grid=(14, 14), scope=(7, 7)))
    yield from (Problem(grid=(56, 56), scope=(23, 23), dim_v=16), Problem(grid=(1, 1), batch=64))
    # Where transforms of Fourier come near: long global tables.
    for side in (80, 112, 128):
        yield Problem(grid=(side, side), dim_v=32)
    for n in (8192, 16384):
        yield Problem(grid=(n,), dim_v=32)
    yield from (Problem(grid=(8192,), causal=True, dim_v=16), Problem(grid=(4096,), scope=(1023,), dim_v=32))
    yield from (Problem(grid=(128, 128), scope=(63, 63), dim_v=16), Problem(grid=(12, 24, 24), dim_v=16))
    # Short causal sequences, thin windows, other depths.
    yield from (
        Problem(grid=(128,), causal=True, batch=16, dim_v=24),
        Problem(grid=(64,), causal=True, batch=64),
    )
    yield from (
        Problem(grid=(2048,), scope=(23,), centre=(11,), causal=True, batch=4, dim_v=24),
        Problem(grid=(40, 40), scope=(1, 31), batch=2, dim_v=32),
        Problem(grid=(40, 40), scope=(31, 1), batch=2, dim_v=32),
        Problem(grid=(28, 28), num_heads=8, dim_k=32, dim_v=64, scope=(5, 5), batch=2),
        Problem(grid=(21, 21), num_heads=3, dim_k=10, dim_v=20, batch=4),
        Problem(grid=(21, 21), num_heads=3, dim_k=10, dim_v=20, scope=(9, 9), batch=4),
        Problem(grid=(10, 10), num_heads=1, dim_k=64, dim_v=256, batch=8),
        Problem(grid=(18, 18), num_heads=2, dim_v=8, dim_u=3, batch=4),
        Problem(grid=(56, 56), scope=(7, 7), batch=4, dim_v=64, dtype=BF16),
        Problem(grid=(7, 7), batch=32, dim_v=128, dtype=BF16),
    )


@torch.no_grad()
def run(name: str, problem: Problem, inputs: tuple[torch.Tensor, ...], backward: bool, threads: int) -> float:
    """Return the milliseconds of one pass: the mean of enough calls for a sample."""
    g, *arguments = inputs
    clock = time.process_time if threads == 1 else time.perf_counter
    calls, start = 0, clock()
    while not calls or clock() - start < SAMPLE_SECONDS:
        if backward:
            KERNELS[name].gradients(g, *arguments, problem, (True, True, True))
        else:
            KERNELS[name].output(*arguments, problem, torch.empty_like(g))
        calls += 1
    return 1e3 * (clock() - start) / calls


def medians(problem: Problem, backward: bool, threads: int) -> dict[str, float]:
    """Return the median milliseconds of native, and of the other kernels that are near the best of them."""
    inputs = tuple(to_compute_dtype(problem.dtype, *problem.random_inputs()))
    costs = estimate_costs(problem, supported(problem), backward)
    others = [name for name in costs if name != "native"]
    least = min(costs[name].seconds for name in others)
    names = [
        name
        for name, cost in costs.items()
        if name == "native" or (cost.peak_bytes < LARGE and cost.seconds < HOPELESS * least)
    ]
    for name in names:  # a first run also loads code and fills caches
        if costs[name].seconds < 1:
            run(name, problem, inputs, backward, threads)
    times = {name: [run(name, problem, inputs, backward, threads)] for name in names}
    best = min(times[name][0] for name in names if name in others)
    for _ in range(ROUNDS - 1):
        for name in names:
            if times[name][0] < min(FAR * best, SLOW_MS):
                times[name].append(run(name, problem, inputs, backward, threads))
    return {name: statistics.median(of_one) for name, of_one in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    provenance = [torch.__version__, platform.python_version(), date.today().isoformat(), options.commit]
    with open(options.out, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for (index, problem), backward in itertools.product(enumerate(problems()), (False, True)):
            half, kind = ("fit", "test")[index % 2], "backward" if backward else "forward"
            for name, ms in medians(problem, backward, options.threads).items():
                writer.writerow([problem, half, kind, name, options.threads, f"{ms:.3g}", *provenance])
            file.flush()


if __name__ == "__main__":
    main()
