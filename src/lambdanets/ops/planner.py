"""Which kernel serves a problem, and why not the others.

The estimate of a kernel's time is `flops / rate + bytes / bandwidth`. Rates are per kernel and device type:
what share of a matrix product's peak its inner loop reaches. Only their ratios matter for the choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from .checks import unknown_name
from .kernels import KERNELS
from .problem import Cost, Problem

BANDWIDTH = {"cpu": 20e9, "cuda": 3e12}  # bytes per second
RATE = {  # operations per second: (forward, forward and backward together, three times the operations)
    "cpu": {"reference": (60e9, 60e9), "conv": (60e9, 12e9), "attention": (80e9, 80e9)},
    "cuda": {"reference": (50e12, 50e12), "conv": (20e12, 8e12), "attention": (40e12, 40e12)},
}
PAPER_RULE_LENGTH = 85**2  # appendix E.1: a convolution beyond this many inputs or for u > 1, dense otherwise


@dataclass(frozen=True, kw_only=True)
class Row:
    """One kernel's line of a plan.

    Args:
        kernel: Its name.
        cost: What it would spend, None where it cannot serve.
        seconds: The estimated time of a forward pass, with its backward pass when training.
        verdict: "chosen", "slower" or "cannot serve".
        reason: The sentence behind the verdict.
    """

    kernel: str
    cost: Cost | None
    seconds: float | None
    verdict: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The chosen kernel of a problem, and every kernel's line. Printing it shows a table."""

    problem: Problem
    kernel: str
    rows: tuple[Row, ...]
    paper_kernel: str | None

    def __str__(self) -> str:
        lines = [f"{self.problem}"]
        lines.append(f"{'kernel':<11}{'GFLOP':>10}{'MiB moved':>12}{'MiB peak':>11}{'est. ms':>10}  verdict")
        for row in self.rows:
            if row.cost is None or row.seconds is None:
                numbers = f"{'-':>10}{'-':>12}{'-':>11}{'-':>10}"
            else:
                numbers = (
                    f"{row.cost.flops / 1e9:>10.3f}{row.cost.bytes / 2**20:>12.1f}"
                    f"{row.cost.peak_bytes / 2**20:>11.1f}{row.seconds * 1e3:>10.2f}"
                )
            lines.append(f"{row.kernel:<11}{numbers}  {row.verdict}: {row.reason}")
        if self.paper_kernel is not None:
            lines.append(f"the paper's rule (appendix E.1) would take {self.paper_kernel}")
        return "\n".join(lines)


def estimate(kernel: str, cost: Cost, problem: Problem) -> float:
    """Seconds of a forward pass, with its backward pass (twice the operations and bytes) when training."""
    device = problem.device if problem.device in RATE else "cpu"
    rate = RATE[device][kernel][problem.train]
    times = 3 if problem.train else 1
    return times * (cost.flops / rate + cost.bytes / BANDWIDTH[device])


def fastest(problem: Problem) -> str:
    """The name of the kernel of the least estimated time among those that can serve the problem.

    A loop of comparisons, since sizes are symbols while a graph of dynamic shapes is compiled.
    """
    best, least = "reference", estimate("reference", KERNELS["reference"].cost(problem), problem)
    for name, kernel in KERNELS.items():
        if not kernel.unsupported(problem):
            seconds = estimate(name, kernel.cost(problem), problem)
            if seconds < least:
                best, least = name, seconds
    return best


_fastest_cached = lru_cache(maxsize=4096)(fastest)


def plan(problem: Problem) -> Plan:
    """Choose the kernel for a problem and say why: each kernel's cost, estimated time and verdict."""
    chosen = fastest(problem)
    least = estimate(chosen, KERNELS[chosen].cost(problem), problem)
    rows = []
    for name, kernel in KERNELS.items():
        reasons = kernel.unsupported(problem)
        if reasons:
            row = Row(kernel=name, cost=None, seconds=None, verdict="cannot serve", reason="; ".join(reasons))
        else:
            cost = kernel.cost(problem)
            seconds = estimate(name, cost, problem)
            verdict = "chosen" if name == chosen else "slower"
            reason = (
                "the least estimated time"
                if name == chosen
                else f"{seconds / least:.1f}x the time of {chosen}"
            )
            row = Row(kernel=name, cost=cost, seconds=seconds, verdict=verdict, reason=reason)
        rows.append(row)
    paper = None
    if problem.relative:
        paper = "conv" if problem.num_queries > PAPER_RULE_LENGTH or problem.dim_u > 1 else "reference"
    return Plan(problem=problem, kernel=chosen, rows=tuple(rows), paper_kernel=paper)


def choose(kernel: str, problem: Problem) -> str:
    """The kernel that `kernel=` asks for.

    Raises:
        ValueError: If there is no such kernel, or it cannot serve the problem (with its reasons).
    """
    if kernel == "auto":
        return fastest(problem) if torch.compiler.is_compiling() else _fastest_cached(problem)
    if kernel not in KERNELS:
        raise unknown_name("kernel", kernel, ["auto", *KERNELS])
    reasons = KERNELS[kernel].unsupported(problem)
    if reasons:
        raise ValueError(f"kernel {kernel!r} cannot serve this problem ({problem}): {'; '.join(reasons)}")
    return kernel
