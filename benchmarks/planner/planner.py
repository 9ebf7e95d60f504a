"""Every kernel on problems of all kinds, beside the planner's estimate and selection.

Writes a file for the CPU's instruction set, such as planner-avx2.csv. The forward and the backward pass are
measured separately, on random tensors, with one thread, in CPU seconds of this process, as other programs may
run on the machine. The kernels take turns; a kernel whose first run takes `FAR` times the best is not run
again; one that needs over `LARGE` bytes, or whose estimate is `HOPELESS` times the smallest, is not run. Half
precision is multiplied in the dtype that the operator uses there.
`python planner.py COMMIT`
"""

import csv
import itertools
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import torch

from lambdanets import Problem
from lambdanets.ops import KERNELS
from lambdanets.ops.hardware import FULL_AVX512_FAMILY, amd_family
from lambdanets.ops.planner import select_kernel, supported
from lambdanets.ops.position import to_compute_dtype

ROUNDS = 5
FAR = 8
HOPELESS = 30
LARGE = 2**32  # bytes; a kernel that would take more is left out
BF16 = torch.bfloat16


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
    yield Problem(grid=(2048,), scope=(128,), causal=True)
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


@torch.no_grad()
def run(name: str, problem: Problem, inputs: tuple[torch.Tensor, ...], backward: bool) -> float:
    """Return the CPU milliseconds of one pass."""
    g, *arguments = inputs
    start = time.process_time()
    if backward:
        KERNELS[name].gradients(g, *arguments, problem, (True, True, True))
    else:
        KERNELS[name].output(*arguments, problem, torch.empty_like(g))
    return 1e3 * (time.process_time() - start)


def medians(problem: Problem, backward: bool) -> dict[str, float]:
    inputs = tuple(to_compute_dtype(problem.dtype, *problem.random_inputs()))
    costs = {name: KERNELS[name].cost(problem, backward=backward) for name in supported(problem)}
    least = min(cost.seconds for cost in costs.values())
    names = [
        name for name, cost in costs.items() if cost.peak_bytes < LARGE and cost.seconds < HOPELESS * least
    ]
    for name in names:  # a first run also loads code and fills caches
        if costs[name].seconds < 1:
            run(name, problem, inputs, backward)
    times = {name: [run(name, problem, inputs, backward)] for name in names}
    best = min(first for (first,) in times.values())
    for _ in range(ROUNDS - 1):
        for name in names:
            if times[name][0] < FAR * best:
                times[name].append(run(name, problem, inputs, backward))
    return {name: statistics.median(of_one) for name, of_one in times.items()}


def processor() -> str:
    """avx2, avx512, or avx512-narrow where AVX-512 instructions run on units of 256 bits."""
    kind = torch.backends.cpu.get_cpu_capability().lower()
    return "avx512-narrow" if kind == "avx512" and 0 < amd_family() < FULL_AVX512_FAMILY else kind


def main(commit: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    provenance = [torch.__version__, platform.python_version(), date.today().isoformat(), commit]
    head = "problem pass kernel cpu_ms estimated_ms chosen choice_over_best torch python date commit"
    ratios: dict[str, float] = {}
    path = Path(__file__).parent / f"planner-{processor()}.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head.split())
        for problem, backward in itertools.product(problems(), (False, True)):
            found, kind = medians(problem, backward), "backward" if backward else "forward"
            chosen = select_kernel(problem, "auto", backward=backward)
            ratio = found[chosen] / min(found.values())
            ratios[f"{problem}, {kind}"] = ratio
            for name, median in found.items():
                guess = 1e3 * KERNELS[name].cost(problem, backward=backward).seconds
                row = [problem, kind, name, f"{median:.3g}", f"{guess:.3g}", name == chosen, f"{ratio:.2f}"]
                writer.writerow([*row, *provenance])
            file.flush()
    middle, worst = statistics.median(ratios.values()), max(ratios, key=lambda name: ratios[name])
    print(f"{len(ratios) // 2} problems, forward and backward: choice over best, median {middle:.2f}")
    print(f"worst {ratios[worst]:.2f}: {worst}")


if __name__ == "__main__":
    main(sys.argv[1])
