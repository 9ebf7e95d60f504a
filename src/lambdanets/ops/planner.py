"""Which kernel serves a problem, and why not the others.

The estimate of a kernel's time is `flops / rate + bytes / bandwidth`; the rates are the kernels' own. Only
their ratios matter for the choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from .checks import unknown_name
from .kernels import KERNELS
from .problem import Cost, Problem

BANDWIDTH = {"cpu": 20e9, "cuda": 3e12}  # bytes per second
MEMORY = 16 * 2**30  # bytes of temporaries that a kernel may take while another needs less
NEAR = 1.25  # estimates this close are taken as equal, and the kernel of the lower peak is chosen
PAPER_RULE_LENGTH = 85**2  # appendix E.1: a convolution beyond this many inputs or for u > 1, dense otherwise


@dataclass(frozen=True, kw_only=True)
class Row:
    """One kernel's line of a plan.

    Args:
        kernel: Its name.
        cost: What it would spend, None where it cannot serve.
        seconds: The estimated time of a forward pass, with its backward pass when training.
        verdict: "chosen", "slower", "larger", "too large" or "cannot serve".
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
    """Seconds of a forward pass, with its backward pass (twice the operations and bytes) when training.

    A device of an unknown type is planned as a CPU.
    """
    times = 3 if problem.train else 1
    bandwidth = BANDWIDTH.get(problem.device, BANDWIDTH["cpu"])
    return times * (cost.flops / KERNELS[kernel].rate(problem) + cost.bytes / bandwidth)


def choice(problem: Problem) -> str:
    """The kernel that serves a problem.

    Among those that can and whose temporaries stay below `MEMORY` (or, if none does, among all that can), the
    least estimated time decides; of kernels within `NEAR` of it, the lowest peak memory. Written as
    comparisons one by one, since sizes are symbols while a graph of dynamic shapes is compiled.
    """
    able = [name for name, kernel in KERNELS.items() if not kernel.unsupported(problem)]
    costs = {name: KERNELS[name].cost(problem) for name in able}
    small = [name for name in able if costs[name].peak_bytes <= MEMORY]
    if not small:
        leanest = able[0]
        for name in able:
            if costs[name].peak_bytes < costs[leanest].peak_bytes:
                leanest = name
        return leanest
    seconds = {name: estimate(name, costs[name], problem) for name in small}
    fastest = small[0]
    for name in small:
        if seconds[name] < seconds[fastest]:
            fastest = name
    chosen = fastest
    for name in small:
        if seconds[name] < NEAR * seconds[fastest] and costs[name].peak_bytes < costs[chosen].peak_bytes:
            chosen = name
    return chosen


_cached_choice = lru_cache(maxsize=4096)(choice)


def plan(problem: Problem) -> Plan:
    """Choose the kernel for a problem and say why: each kernel's cost, estimated time and verdict."""
    chosen = choice(problem)
    best = KERNELS[chosen].cost(problem)
    least = estimate(chosen, best, problem)
    rows = []
    for name, kernel in KERNELS.items():
        reasons = kernel.unsupported(problem)
        if reasons:
            row = Row(kernel=name, cost=None, seconds=None, verdict="cannot serve", reason="; ".join(reasons))
        else:
            cost = kernel.cost(problem)
            seconds = estimate(name, cost, problem)
            ratio = f"{seconds / least:.2g}x the time of {chosen}"
            if name == chosen and best.peak_bytes > MEMORY:
                verdict, reason = "chosen", f"all need over {MEMORY / 2**30:.0f} GiB at once; this one least"
            elif name == chosen:
                verdict, reason = "chosen", "the least estimated time, or near it with less memory"
            elif cost.peak_bytes > MEMORY:
                verdict, reason = "too large", f"needs {cost.peak_bytes / 2**30:.0f} GiB at once; {ratio}"
            elif seconds < least * NEAR:
                verdict, reason = (
                    "larger",
                    f"{cost.peak_bytes / max(1, best.peak_bytes):.2g}x the memory, {ratio}",
                )
            else:
                verdict, reason = "slower", ratio
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
        return choice(problem) if torch.compiler.is_compiling() else _cached_choice(problem)
    if kernel not in KERNELS:
        raise unknown_name("kernel", kernel, ["auto", *KERNELS])
    reasons = KERNELS[kernel].unsupported(problem)
    if reasons:
        raise ValueError(f"kernel {kernel!r} cannot serve this problem ({problem}): {'; '.join(reasons)}")
    return kernel
