"""Fit the rates behind the planner's estimates to the rows of every second problem, and test the others.

Reads files of `planner.py`, measured on one machine, and prints the rates that minimise the mean square of
log(estimate / time), with the planner's selections by the rates in the code and by the fitted ones. A weak
pull keeps rates that the rows do not determine. Rows of half "fit" are fitted; those of half "test" show
whether the rates serve problems that they have not seen. Rates are those of one thread: files of several are
only checked.
`python fit.py planner-avx512.csv --check planner-avx512-2threads.csv`
"""

import argparse
import csv
import math
import statistics
from collections import defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from scipy.optimize import minimize

from benchmarks.planner.planner import problems
from lambdanets import Problem
from lambdanets.ops import hardware
from lambdanets.ops.kernels import conv, native
from lambdanets.ops.planner import estimate_costs, rank_kernels

RATES: list[tuple[ModuleType, str, Any]] = [
    (native, "RATES", native.isa()),
    (native, "BFLOAT16_GAIN", None),
    (native, "BACKWARD_SLOWDOWN", None),
    (native, "CALL_SECONDS", None),
    (native, "COPY_BANDWIDTH", None),
    (hardware, "ONEDNN_RATE", None),
    (hardware, "CPU_RATE", None),
    (hardware, "HALF_RATE", None),
    (hardware, "BANDWIDTH", "cpu"),
    (hardware, "CALL_SECONDS", "cpu"),
    (hardware, "HALF_RATE_SIDE", None),
    (conv, "HALF_RATE_TAPS", None),
    (conv, "GRADIENT_RATE", None),
]
"""Module, name and, for a dictionary, key of each rate."""

PULL = 3e-3

Case = tuple[Problem, bool, int, dict[str, float]]  # a problem, whether backward, threads, ms by kernel


def read(paths: list[Path]) -> dict[str, list[Case]]:
    """Return the cases by half."""
    known = {str(problem): problem for problem in problems()}
    found: dict[tuple[str, str, str, int], dict[str, float]] = defaultdict(dict)
    for path in paths:
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                key = row["half"], row["problem"], row["pass"], int(row["threads"])
                found[key][row["kernel"]] = float(row["ms"])
    halves = defaultdict(list)
    for (half, name, kind, threads), times in found.items():
        halves[half].append((known[name], kind == "backward", threads, times))
    return halves


def get(module: ModuleType, name: str, key: Any) -> float:
    value = getattr(module, name)
    return float(value if key is None else value[key])


def put(module: ModuleType, name: str, key: Any, value: float) -> None:
    if key is None:
        setattr(module, name, value)
    else:
        getattr(module, name)[key] = value


def loss(cases: list[Case], far: float = 8) -> float:
    """Return the mean square of log(estimate / time), of kernels within `far` times the best."""
    errors = []
    for problem, backward, threads, times in cases:
        torch.set_num_threads(threads)
        costs, best = estimate_costs(problem, list(times), backward), min(times.values())
        errors += [
            math.log(1e3 * costs[name].seconds / ms) ** 2 for name, ms in times.items() if ms < far * best
        ]
    return statistics.mean(errors)


def selected_over_best(cases: list[Case], left_out: tuple[str, ...] = ()) -> list[float]:
    """Return, in ascending order, the time of the selected kernel over that of the fastest, of each case."""
    ratios = []
    for problem, backward, threads, times in cases:
        torch.set_num_threads(threads)
        kept = [kernel for kernel in times if kernel not in left_out]
        costs = estimate_costs(problem, kept, backward)
        ratios.append(times[rank_kernels(problem, costs)[0]] / min(times[kernel] for kernel in kept))
    return sorted(ratios)


def report(sets: dict[str, list[Case]]) -> None:
    """Print the loss, and the time of the selected kernel over that of the best, of each set."""
    for name, cases in sets.items():
        line = f"{name}: rms of log(estimate / time) {math.sqrt(loss(cases)):.3f}"
        for title, left_out in (("selected over best", ()), ("without native", ("native",))):
            ratios = selected_over_best(cases, left_out)
            line += f"; {title}: 95 % {ratios[int(0.95 * len(ratios))]:.2f}, worst {ratios[-1]:.2f}"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--check", type=Path, nargs="+", default=[])
    options = parser.parse_args()
    halves, others = read(options.files), read(options.check)
    sets = halves | {f"{half}, checked": cases for half, cases in others.items()}
    start = [get(*rate) for rate in RATES]
    print("Rates in the code:")
    report(sets)

    def set_rates(logs: list[float]) -> None:
        for rate, first, log in zip(RATES, start, logs, strict=True):
            put(*rate, first * math.exp(log))

    def objective(logs: list[float]) -> float:
        set_rates(logs)
        return loss(halves["fit"]) + PULL * sum(log**2 for log in logs)

    found = minimize(objective, [0.0] * len(RATES), method="Powell", options={"maxiter": 8, "xtol": 1e-2})
    set_rates(found.x)
    print("Fitted rates:")
    report(sets)
    for rate in RATES:
        module, name, key = rate
        print(f"{module.__name__}.{name}{'' if key is None else f'[{key!r}]'} = {get(*rate):.3g}")


if __name__ == "__main__":
    main()
