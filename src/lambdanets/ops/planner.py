"""Which kernel serves a problem, for each pass apart, and why not the others.

The kernels estimate their own time (`machine` holds the rates). Among those that can serve and whose memory
the machine has, the least time decides; of kernels `NEAR` it, the lowest peak memory.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._python_dispatch import _disable_current_modes

from .checks import unknown_name
from .kernels import KERNELS, reference
from .machine import memory
from .problem import Cost, Problem
from .products import no_autocast, product_dtype

NEAR = 1.05  # estimates this close are taken as equal
MEASURED = 8  # kernels whose estimate is within this factor of the least are tried when measuring
PAPER_RULE_LENGTH = 85**2  # appendix E.1: a convolution beyond this many inputs or for u > 1, dense otherwise
CHOICES = ("auto", "measured")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One kernel's line of a plan, for one pass.

    Args:
        kernel: Its name.
        cost: What it would spend, None where it cannot serve.
        verdict: "chosen", "slower", "larger", "same", "too large" or "cannot serve".
        reason: The sentence behind the verdict.
        measured: Seconds it took, where that was measured.
    """

    kernel: str
    cost: Cost | None
    verdict: str
    reason: str
    measured: float | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The kernels chosen for a problem, and every kernel's line. Printing it shows a table.

    Args:
        problem: What is planned.
        kernel: The kernel of the forward pass, None where none fits into the machine's memory.
        backward_kernel: That of the backward pass, None without one.
        rows: A line per kernel for the forward pass.
        backward_rows: The same for the backward pass; empty when not training.
        refusal: Why nothing is run, and the nearest problem that would be, where none fits.
        paper_kernel: What the rule of the paper's appendix E.1 takes; None without relative positions.
        flops: Operations of the chosen kernels and of the content part, backward pass included.
    """

    problem: Problem
    kernel: str | None
    backward_kernel: str | None
    rows: tuple[Row, ...]
    backward_rows: tuple[Row, ...] = ()
    refusal: str | None = None
    paper_kernel: str | None = None
    flops: int = 0

    def __str__(self) -> str:
        lines = [f"{self.problem}"]
        for title, rows in (("forward", self.rows), ("backward", self.backward_rows)):
            if not rows:
                continue
            lines.append(f"{title:<11}{'GFLOP':>10}{'MiB moved':>12}{'MiB peak':>11}{'est. ms':>10}  verdict")
            for row in rows:
                numbers = f"{'-':>10}{'-':>12}{'-':>11}{'-':>10}"
                if row.cost is not None:
                    numbers = (
                        f"{row.cost.flops / 1e9:>10.3f}{row.cost.bytes / 2**20:>12.1f}"
                        f"{row.cost.peak_bytes / 2**20:>11.1f}{row.cost.seconds * 1e3:>10.2f}"
                    )
                lines.append(f"{row.kernel:<11}{numbers}  {row.verdict}: {row.reason}")
        if self.problem.content:
            flops = self.problem.content_flops * (3 if self.problem.train else 1)
            lines.append(f"{'content':<11}{flops / 1e9:>10.3f}  the same with every kernel")
        if self.paper_kernel is not None:
            lines.append(f"the paper's rule (appendix E.1) would take {self.paper_kernel}")
        if self.refusal is not None:
            lines.append(self.refusal)
        return "\n".join(lines)


def able(problem: Problem) -> list[str]:
    """The kernels that can serve a problem, whatever their memory."""
    return [name for name, kernel in KERNELS.items() if not kernel.unsupported(problem)]


def computed(problem: Problem) -> Problem:
    """The problem as kernels meet it: in the type in which the processor multiplies its numbers."""
    dtype = product_dtype(problem.dtype, problem.device)
    return problem if dtype == problem.dtype else replace(problem, dtype=dtype)


def estimate(problem: Problem, names: Iterable[str], backward: bool) -> dict[str, Cost]:
    """What each of these kernels would spend on a pass of a problem."""
    known = computed(problem)
    return {name: KERNELS[name].cost(known, backward=backward) for name in names}


def needed(problem: Problem, name: str, cost: Cost) -> int:
    """Bytes that a call takes in all: inputs, output and, when a backward pass follows, gradients."""
    passes = 2 if problem.train else 1
    tables = problem.itemsize * problem.table_elements
    inputs = problem.io_bytes + tables * (2 if problem.masked else 1)  # what a mask hides is zeroed in a copy
    known = computed(problem)
    if known is not problem and problem.position:
        inputs += known.io_bytes + known.itemsize * known.table_elements
    content = problem.content_peak(definition=name == reference.NAME)
    return inputs * passes + cost.peak_bytes + content


def fits(problem: Problem, name: str, cost: Cost) -> bool:
    """Whether the machine has the memory that a call takes."""
    limit = memory(problem.device)
    return limit is None or needed(problem, name, cost) <= limit


@lru_cache(maxsize=4096)
def choice(problem: Problem, backward: bool = False, kernel: str = "auto") -> str:
    """The kernel that serves a pass of a problem, of all or of one that is asked for.

    Raises:
        MemoryError: If every kernel needs more memory than the machine has.
    """
    names = able(problem) if kernel == "auto" else [kernel]
    costs = estimate(problem, names, backward)
    fitting = [name for name, cost in costs.items() if fits(problem, name, cost)]
    if not fitting:
        raise MemoryError(refusal(problem, backward, kernel))
    least = min(costs[name].seconds for name in fitting)
    near = [name for name in fitting if costs[name].seconds <= NEAR * least]
    return min(near, key=lambda name: needed(problem, name, costs[name]))


def refusal(problem: Problem, backward: bool, kernel: str = "auto") -> str:
    """The sentence for a problem that is too large, with the nearest that is not, if one is near."""
    limit = memory(problem.device) or 0
    names = able(problem) if kernel == "auto" else [kernel]

    def least(p: Problem) -> int:
        return min(needed(p, name, cost) for name, cost in estimate(p, names, backward).items())

    def largest_batch(p: Problem) -> int:
        fits, too_large = 0, p.batch
        while too_large - fits > 1:
            batch = (fits + too_large) // 2
            if least(replace(p, batch=batch)) <= limit:
                fits = batch
            else:
                too_large = batch
        return fits

    nearest = replace(problem, batch=largest_batch(problem) or 1)
    while least(nearest) > limit and max(*nearest.grid, *(nearest.context_grid or nearest.grid)) > 1:
        grids = {"grid": nearest.grid, "context_grid": nearest.context_grid or nearest.grid}
        smaller = {name: tuple(max(1, size // 2) for size in grid) for name, grid in grids.items()}
        nearest = replace(nearest, **smaller)  # type: ignore[arg-type]
    hint = ""
    if least(nearest) <= limit:
        hint = f"; a batch of {nearest.batch} would fit"
        if nearest.grid != problem.grid or nearest.context_grid != problem.context_grid:
            grids = [nearest.grid, nearest.context_grid or nearest.grid]
            queries, keys = ("x".join(map(str, grid)) for grid in grids)
            on = queries if queries == keys else f"{queries} with a context of {keys}"
            hint = f"; a batch of {nearest.batch} on a grid of {on} would fit"
    others = "" if kernel == "auto" else "; kernel='auto' looks for one that needs less"
    return (
        f"this problem ({problem}) needs at least {least(problem):,} bytes "
        f"with {'any kernel' if kernel == 'auto' else f'kernel {kernel!r}'}, the machine has {limit:,}"
        f"{hint}{others}"
    )


def measure(problem: Problem, backward: bool = False) -> dict[str, float]:
    """Seconds of each kernel on random tensors: those that fit and are not estimated to be far behind.

    Whatever modes surround the call (autocast, vmap, counters, fake tensors), real kernels are timed outside.
    """
    with temporarily_clear_interpreter_stack(), _disable_current_modes(), no_autocast(problem.device):
        return _measure(problem, backward)


@torch.no_grad()
def _measure(problem: Problem, backward: bool) -> dict[str, float]:
    costs = estimate(problem, able(problem), backward)
    least = min(cost.seconds for cost in costs.values())
    known = computed(problem)
    g, q, v, e = known.random_inputs()
    wait = torch.cuda.synchronize if problem.device == "cuda" else lambda: None

    def seconds(name: str) -> float:
        wait()
        start = time.perf_counter()
        if backward:
            KERNELS[name].gradients(g, q, v, e, known, (True, True, True))
        else:
            KERNELS[name].output(q, v, e, known, torch.empty_like(g))
        wait()
        return time.perf_counter() - start

    times = {}
    for name, cost in costs.items():
        if fits(problem, name, cost) and cost.seconds <= MEASURED * least:
            times[name] = statistics.median(seconds(name) for _ in range(4))
    return times


@lru_cache(maxsize=4096)
def measured_choice(problem: Problem, backward: bool = False) -> str:
    """The kernel that took the least time when tried; remembered for as long as the process lives."""
    if not problem.position:
        return choice(problem, backward)
    choice(problem, backward)  # refuses what is too large
    times = measure(problem, backward)
    return min(times, key=lambda name: times[name])


def plan(problem: Problem, *, measured: bool = False) -> Plan:
    """Choose the kernels for a problem and say why: each kernel's cost, estimated time and verdict.

    Args:
        problem: The sizes.
        measured: Run the kernels on random tensors of these sizes and let their times decide.
    """
    passes = {"forward": _rows(problem, False, measured)}
    if problem.train:
        passes["backward"] = _rows(problem, True, measured)
    chosen = {name: [row for row in rows if row.verdict == "chosen"] for name, rows in passes.items()}
    kernels = {name: rows[0].kernel for name, rows in chosen.items() if rows}
    too_large = [name for name in passes if name not in kernels]
    paper = None
    if problem.relative:
        paper = "conv" if problem.num_queries > PAPER_RULE_LENGTH or problem.dim_u > 1 else "reference"
    content = problem.content_flops * (3 if problem.train else 1)
    return Plan(
        problem=problem,
        kernel=kernels.get("forward"),
        backward_kernel=kernels.get("backward"),
        rows=passes["forward"],
        backward_rows=passes.get("backward", ()),
        refusal=refusal(problem, "backward" in too_large) if too_large else None,
        paper_kernel=paper,
        flops=content + sum(row.cost.flops for rows in chosen.values() for row in rows if row.cost),
    )


def _rows(problem: Problem, backward: bool, measured: bool) -> tuple[Row, ...]:
    costs = estimate(problem, able(problem), backward)
    fitting = [name for name, cost in costs.items() if fits(problem, name, cost)]
    times = measure(problem, backward) if measured and fitting and problem.position else {}
    chosen = ""
    if fitting:
        chosen = min(times, key=lambda name: times[name]) if times else choice(problem, backward)
    rows = []
    for name, kernel in KERNELS.items():
        if name not in costs:
            verdict, reason = "cannot serve", "; ".join(kernel.unsupported(problem))
        elif name not in fitting:
            verdict, reason = "too large", f"needs {needed(problem, name, costs[name]) / 2**30:,.1f} GiB"
            reason += f", the machine has {(memory(problem.device) or 0) / 2**30:,.1f}"
        elif not problem.position:
            verdict, reason = "chosen" if name == chosen else "same", "without positions the kernels are one"
        elif name == chosen:
            verdict = "chosen"
            reason = "the least time when tried" if times else "the least estimated time, or near it"
        else:
            cost, best = costs[name], costs[chosen]
            seconds = (times[name], times[chosen]) if name in times else (cost.seconds, best.seconds)
            verdict, reason = "slower", f"{seconds[0] / max(seconds[1], 1e-12):.2g}x the time of {chosen}"
            if not measured and cost.seconds <= NEAR * best.seconds:
                memory_ratio = cost.peak_bytes / max(1, best.peak_bytes)
                verdict, reason = "larger", f"{memory_ratio:.2g}x the memory, {reason}"
        rows.append(
            Row(
                kernel=name,
                cost=costs.get(name),
                verdict=verdict,
                reason=reason,
                measured=times.get(name),
            )
        )
    return tuple(rows)


def resolve(kernel: str, problem: Problem) -> tuple[str, str]:
    """The kernels of the forward and of the backward pass that `kernel=` asks for, before anything is run.

    While a graph is made, sizes may be symbols; the planner's choice then waits until the graph runs.

    Raises:
        ValueError: If there is no such kernel, or it cannot serve the problem (with its reasons).
        MemoryError: If it, or every kernel where the planner is to choose, needs more memory than there is.
    """
    if kernel not in CHOICES and kernel not in KERNELS:
        raise unknown_name("kernel", kernel, [*CHOICES, *KERNELS])
    if kernel in KERNELS:
        reasons = KERNELS[kernel].unsupported(problem)
        if reasons:
            raise ValueError(f"kernel {kernel!r} cannot serve this problem ({problem}): {'; '.join(reasons)}")
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return kernel, kernel
    forward = choose(kernel, problem)
    backward = choose(kernel, problem, backward=True) if problem.train else forward
    return (forward, backward) if problem.position else (kernel, kernel)


def choose(kernel: str, problem: Problem, *, backward: bool = False) -> str:
    """The kernel that `kernel=` asks for, for one pass.

    Raises:
        MemoryError: If it needs more memory than there is.
    """
    if kernel == "measured":
        return measured_choice(problem, backward)
    return choice(problem, backward, kernel)
