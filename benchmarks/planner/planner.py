"""Every kernel on problems of all kinds, beside the planner's estimate and choice: writes planner.csv.

One thread; processor seconds of this process, not seconds of the clock: other programs ran on the machine.
`python planner.py COMMIT`
"""

import csv
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch

from lambdanets import Problem, lambda_layer, plan
from lambdanets.ops import KERNELS
from lambdanets.ops.planner import estimate

PROBLEMS = [
    Problem(grid=(8, 8), batch=32, dim_v=32),
    Problem(grid=(14, 14), batch=8),
    Problem(grid=(14, 14), scope=(7, 7), batch=8),
    Problem(grid=(14, 14), scope=(7, 7), batch=2, dim_u=4),
    Problem(grid=(28, 28), scope=(7, 7), batch=2, dim_v=32),
    Problem(grid=(28, 28), batch=2, dim_v=32),
    Problem(grid=(28, 28), scope=(23, 23), batch=2, dim_v=32),
    Problem(grid=(256,), batch=4, causal=True),
    Problem(grid=(1024,), batch=1),
    Problem(grid=(1024,), scope=(31,), batch=2),
    Problem(grid=(3, 3), batch=2),
    Problem(grid=(6, 6, 6), batch=2, dim_v=16),
]
ROUNDS = 5


def call(kernel: str, problem: Problem) -> Callable[[], None]:
    """One forward pass, with its backward pass when training, on random tensors."""
    p, context = problem, problem.context
    n, m, grad = p.num_queries, p.num_context, p.train
    q = torch.randn(p.batch, p.num_heads, n, p.dim_k, requires_grad=grad)
    k = torch.randn(p.batch, m, p.dim_k, p.dim_u, requires_grad=grad)
    v = torch.randn(p.batch, m, p.dim_v, p.dim_u, requires_grad=grad)
    e = torch.randn(*context.table_shape, p.dim_k, p.dim_u, requires_grad=grad)
    upstream = torch.randn(p.batch, p.num_heads, n, p.dim_v)

    def run() -> None:
        y = lambda_layer(q, k, v, e, context=context, kernel=kernel)
        if grad:
            torch.autograd.grad(y, (q, k, v, e), upstream)

    return run


def main(commit: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows, ratios = [], []
    for problem in [replace(problem, train=train) for problem in PROBLEMS for train in (False, True)]:
        calls = {name: call(name, problem) for name in KERNELS if not KERNELS[name].unsupported(problem)}
        times: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(ROUNDS + 1):
            for name, run in calls.items():
                start = time.process_time()
                run()
                if turn:
                    times[name].append(1e3 * (time.process_time() - start))
        medians = {name: statistics.median(values) for name, values in times.items()}
        chosen = plan(problem).kernel
        ratios.append(medians[chosen] / min(medians.values()))
        for name, median in medians.items():
            guess = 1e3 * estimate(name, KERNELS[name].cost(problem), problem)
            rows.append(
                [str(problem), name, f"{median:.3g}", f"{guess:.3g}", name == chosen, f"{ratios[-1]:.2f}"]
            )
    provenance = [torch.__version__, platform.python_version(), date.today().isoformat(), commit]
    with open(Path(__file__).parent / "planner.csv", "w", newline="") as file:
        writer = csv.writer(file)
        head = "problem kernel cpu_ms estimated_ms chosen choice_over_best torch python date commit"
        writer.writerow(head.split())
        writer.writerows([*row, *provenance] for row in rows)
    middle, worst = statistics.median(ratios), max(ratios)
    print(f"{len(ratios)} problems: choice over best, median {middle:.2f}, worst {worst:.2f}")


if __name__ == "__main__":
    main(sys.argv[1])
