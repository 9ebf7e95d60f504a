"""The planner: which kernel serves a problem, for each pass separately, and why the others do not.

Each kernel estimates its own time. Of the kernels that support the problem and fit into the available memory,
those within a factor `NEAR` of the lowest estimate count as equally fast, and the planner selects the one of
them that needs the least memory.
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

from . import reference
from .checks import unknown_name
from .hardware import available_memory, compute_dtype
from .kernels import KERNELS, native
from .matmul import no_autocast
from .problem import Cost, Problem

NEAR = 1.05  # estimates within this factor of the lowest count as equal
# The part of a kernel's time that threads share, on a CPU. `attention` and `fft` make many short calls, for
# which two threads that wait asleep took as long as one, or longer.
PARALLEL_SHARE = {"native": 0.86, "conv": 0.76, "reference": 0.7}
MEASURED_RANGE = 8  # kernels whose estimate is within this factor of the lowest are measured
# The paper (appendix E.1) uses a convolution for more query positions than this, or for u > 1, and otherwise
# the definition (kernel "reference").
PAPER_RULE_LENGTH = 85**2
CHOICES = ("auto", "measured")  # values of the argument `kernel` with which the planner selects the kernel


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """One kernel's row of a plan, for one pass.

    Args:
        kernel: The kernel's name.
        cost: Its estimated cost, None if it does not support the problem.
        verdict: One of "chosen"; "slower"; "larger" (about as fast as the chosen one, but needs more memory);
            "same" (no kernel runs, as there are no positions); "too large" (does not fit into the available
            memory); "cannot serve" (does not support the problem).
        reason: The reason for the verdict, as a phrase.
        measured: Measured seconds, None if it was not measured.
    """

    kernel: str
    cost: Cost | None
    verdict: str
    reason: str
    measured: float | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The kernels chosen for a problem, and a row for every kernel. Printing it shows a table.

    Args:
        problem: The problem.
        kernel: The kernel of the forward pass, None if no kernel fits into the machine's memory.
        backward_kernel: The kernel of the backward pass, None without a backward pass.
        rows: A row per kernel for the forward pass.
        backward_rows: The same for the backward pass; empty without one.
        refusal: If no kernel fits, the error's text, with the nearest problem that would fit.
        paper_kernel: The kernel by the rule of the paper's appendix E.1; None without relative positions.
        flops: Floating-point operations of the chosen kernels and of the content part, with those of the
            backward pass, if any.
    """

    problem: Problem
    kernel: str | None
    backward_kernel: str | None
    rows: tuple[PlanRow, ...]
    backward_rows: tuple[PlanRow, ...] = ()
    refusal: str | None = None
    paper_kernel: str | None = None
    flops: int = 0

    def __str__(self) -> str:
        lines = [str(self.problem)]
        for title, rows in (("forward", self.rows), ("backward", self.backward_rows)):
            if not rows:
                continue
            lines.append(f"{title:<11}{'GFLOP':>10}{'MiB moved':>12}{'MiB peak':>11}{'est. ms':>10}  verdict")
            for row in rows:
                columns = f"{'-':>10}{'-':>12}{'-':>11}{'-':>10}"
                if row.cost is not None:
                    columns = (
                        f"{row.cost.flops / 1e9:>10.3f}{row.cost.bytes / 2**20:>12.1f}"
                        f"{row.cost.peak_bytes / 2**20:>11.1f}{row.cost.seconds * 1e3:>10.2f}"
                    )
                lines.append(f"{row.kernel:<11}{columns}  {row.verdict}: {row.reason}")
        if self.problem.content:
            flops = content_flops(self.problem)
            lines.append(f"{'content':<11}{flops / 1e9:>10.3f}  the same with every kernel")
        if self.paper_kernel is not None:
            lines.append(f"the paper's rule (appendix E.1) would take {self.paper_kernel}")
        if self.refusal is not None:
            lines.append(self.refusal)
        return "\n".join(lines)


def supported(problem: Problem) -> list[str]:
    """Return the names of the kernels that support a problem, regardless of memory."""
    return [name for name, kernel in KERNELS.items() if not kernel.unsupported(problem)]


def in_compute_dtype(problem: Problem) -> Problem:
    """Return the problem in the dtype that its kernels compute in (`hardware.compute_dtype`)."""
    dtype = compute_dtype(problem.dtype, problem.device)
    return problem if dtype == problem.dtype else replace(problem, dtype=dtype)


def estimate_costs(problem: Problem, names: Iterable[str], backward: bool) -> dict[str, Cost]:
    """Return the estimated cost of one pass of a problem for each kernel, with PyTorch's threads."""
    computed = in_compute_dtype(problem)
    costs = {name: KERNELS[name].cost(computed, backward=backward) for name in names}
    threads = torch.get_num_threads() if problem.device == "cpu" else 1
    if threads == 1:
        return costs
    shares = {name: PARALLEL_SHARE.get(name, 0.0) for name in costs}
    return {
        name: replace(cost, seconds=cost.seconds * (1 - shares[name] + shares[name] / threads))
        for name, cost in costs.items()
    }


def is_recurrence(problem: Problem) -> bool:
    """Return whether the native library computes the content part of a problem, as a recurrence."""
    return problem.causal and is_native_content(problem)


def is_native_content(problem: Problem) -> bool:
    """Return whether the native library computes the content part of a problem."""
    return (
        problem.content
        and not problem.masked
        and has_native_content(problem.normalize, problem.device, problem.dtype)
    )


def has_native_content(normalize: str, device: str, dtype: torch.dtype) -> bool:
    """Return whether the native library computes content parts with a normalisation, on a device type."""
    return (
        normalize == "softmax"
        and device == "cpu"
        and dtype in native.DTYPES
        and native.library.unavailable() is None
    )


def content_flops(problem: Problem) -> int:
    """Return the floating-point operations of the content part, with those of the backward pass, if any."""
    flops = problem.content_flops + (0 if is_recurrence(problem) else problem.chunk_flops)
    return flops * (3 if problem.train else 1)


def required_bytes(problem: Problem, name: str, cost: Cost) -> int:
    """Return the bytes of a whole call: inputs, output, temporaries and, when training, gradients.

    Args:
        problem: The problem.
        name: The kernel's name.
        cost: The kernel's cost of the pass.
    """
    passes = 2 if problem.train else 1
    tables = problem.itemsize * problem.table_elements
    # Embeddings under an n x m mask are a copy with zeros.
    inputs = problem.io_bytes + tables * (2 if problem.masked else 1)
    computed = in_compute_dtype(problem)
    if computed is not problem and problem.position:
        inputs += computed.io_bytes + computed.itemsize * computed.table_elements
    definition = name == reference.NAME
    recurrence = not definition and is_recurrence(problem)
    content = problem.content_peak_bytes(definition=definition, recurrence=recurrence)
    return inputs * passes + cost.peak_bytes + content


def fits_memory(problem: Problem, name: str, cost: Cost) -> bool:
    """Return whether the memory of a whole call is available; True if no limit is known."""
    limit = available_memory(problem.device)
    return limit is None or required_bytes(problem, name, cost) <= limit


def rank_kernels(problem: Problem, costs: dict[str, Cost]) -> list[str]:
    """Return the kernels that fit into memory, best first.

    Kernels near the lowest estimate come first, ordered by memory; the others follow, ordered by time.
    """
    fitting = [name for name, cost in costs.items() if fits_memory(problem, name, cost)]
    lowest = min((costs[name].seconds for name in fitting), default=0.0)

    def key(name: str) -> tuple[bool, float]:
        """Return the sorting key: bytes for kernels near the lowest estimate, else seconds."""
        cost = costs[name]
        near = cost.seconds <= NEAR * lowest
        return not near, required_bytes(problem, name, cost) if near else cost.seconds

    return sorted(fitting, key=key)


def select_kernel(problem: Problem, kernel: str, *, backward: bool) -> str:
    """Return the name of the kernel for one pass of a problem.

    Args:
        problem: The problem.
        kernel: "auto" (the best by estimate), "measured" (the fastest when run on random tensors) or a name.
        backward: Whether the pass is the backward one.

    The selection is cached for the life of the process: for the same problem and number of threads, neither
    times nor the available memory are measured again. Errors are not cached.

    Raises:
        MemoryError: If the kernel, or every kernel that may be selected, needs more memory than is available.
    """
    return _select_kernel(problem, kernel, backward, torch.get_num_threads())


@lru_cache(maxsize=4096)
def _select_kernel(problem: Problem, kernel: str, backward: bool, threads: int) -> str:
    """Return the result of `select_kernel` for PyTorch's present number of threads."""
    names = supported(problem) if kernel in CHOICES else [kernel]
    ranked = rank_kernels(problem, estimate_costs(problem, names, backward))
    if not ranked:
        raise MemoryError(refusal(problem, backward, kernel))
    if kernel == "measured" and problem.position:
        times = measure(problem, backward)
        return min(times, key=lambda name: times[name])
    return ranked[0]


def refusal(problem: Problem, backward: bool, kernel: str = "auto") -> str:
    """Return the error's text for a problem that no kernel fits, with a smaller problem that fits, if any.

    The smaller one has the largest batch that fits, or one example on a grid that is halved until it fits.

    Args:
        problem: The problem.
        backward: Whether the pass is the backward one.
        kernel: The kernel as the user named it.
    """
    limit = available_memory(problem.device) or 0
    names = supported(problem) if kernel in CHOICES else [kernel]

    def lowest(p: Problem) -> int:
        """Return the lowest number of bytes that some kernel needs."""
        return min(required_bytes(p, name, cost) for name, cost in estimate_costs(p, names, backward).items())

    def largest_batch(p: Problem) -> int:
        """Return the largest batch that fits, by bisection; 0 if one example is too large."""
        fits, too_large = 0, p.batch
        while too_large - fits > 1:
            batch = (fits + too_large) // 2
            if lowest(replace(p, batch=batch)) <= limit:
                fits = batch
            else:
                too_large = batch
        return fits

    nearest = replace(problem, batch=largest_batch(problem) or 1)
    while lowest(nearest) > limit and max(*nearest.grid, *(nearest.context_grid or nearest.grid)) > 1:
        grids = {"grid": nearest.grid, "context_grid": nearest.context_grid or nearest.grid}
        smaller = {name: tuple(max(1, size // 2) for size in grid) for name, grid in grids.items()}
        nearest = replace(nearest, **smaller)  # type: ignore[arg-type]
    hint = ""
    if lowest(nearest) <= limit:
        hint = f"; a batch of {nearest.batch} would fit"
        if nearest.grid != problem.grid or nearest.context_grid != problem.context_grid:
            grids = [nearest.grid, nearest.context_grid or nearest.grid]
            queries, keys = ("x".join(map(str, grid)) for grid in grids)
            on = queries if queries == keys else f"{queries} with a context of {keys}"
            hint = f"; a batch of {nearest.batch} on a grid of {on} would fit"
    by_name = kernel not in CHOICES
    others = "; kernel='auto' looks for one that needs less" if by_name else ""
    return (
        f"this problem ({problem}) needs at least {lowest(problem):,} bytes "
        f"with {f'kernel {kernel!r}' if by_name else 'any kernel'}, {limit:,} are available"
        f"{hint}{others}"
    )


def measure(problem: Problem, backward: bool = False) -> dict[str, float]:
    """Return seconds by kernel, measured on random tensors, of all kernels near the lowest estimate.

    A kernel's time is the median of four runs. Kernels that do not fit into memory, or whose estimate is more
    than `MEASURED_RANGE` times the lowest, are left out.

    Modes around the call (autocast, vmap, counters, fake tensors) are suspended, so that real kernels run.
    """
    with temporarily_clear_interpreter_stack(), _disable_current_modes(), no_autocast(problem.device):
        return _measure(problem, backward)


@torch.no_grad()
def _measure(problem: Problem, backward: bool) -> dict[str, float]:
    """Return the result of `measure`, without suspending the modes around the call."""
    costs = estimate_costs(problem, supported(problem), backward)
    lowest = min(cost.seconds for cost in costs.values())
    computed = in_compute_dtype(problem)
    g, q, v, e = computed.random_inputs()
    wait = torch.cuda.synchronize if problem.device == "cuda" else lambda: None

    def seconds(name: str) -> float:
        """Return the wall time of one run of a kernel, in seconds."""
        wait()
        start = time.perf_counter()
        if backward:
            KERNELS[name].gradients(g, q, v, e, computed, (True, True, True))
        else:
            KERNELS[name].output(q, v, e, computed, torch.empty_like(g))
        wait()
        return time.perf_counter() - start

    times = {}
    for name, cost in costs.items():
        if fits_memory(problem, name, cost) and cost.seconds <= MEASURED_RANGE * lowest:
            times[name] = statistics.median(seconds(name) for _ in range(4))
    return times


def plan(problem: Problem, *, measured: bool = False) -> Plan:
    """Return the kernels chosen for a problem, with each kernel's cost, estimated time and verdict.

    Args:
        problem: The problem.
        measured: Whether to run the kernels on random tensors and choose by their times.
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
    return Plan(
        problem=problem,
        kernel=kernels.get("forward"),
        backward_kernel=kernels.get("backward"),
        rows=passes["forward"],
        backward_rows=passes.get("backward", ()),
        refusal=refusal(problem, "backward" in too_large) if too_large else None,
        paper_kernel=paper,
        flops=content_flops(problem)
        + sum(row.cost.flops for rows in chosen.values() for row in rows if row.cost),
    )


def _rows(problem: Problem, backward: bool, measured: bool) -> tuple[PlanRow, ...]:
    """Return a row for every kernel, in the order of `KERNELS`, for one pass."""
    costs = estimate_costs(problem, supported(problem), backward)
    fitting = rank_kernels(problem, costs)
    times = measure(problem, backward) if measured and fitting and problem.position else {}
    chosen = ""
    if times:
        chosen = min(times, key=lambda name: times[name])
    elif fitting:
        chosen = select_kernel(problem, "auto", backward=backward)
    rows = []
    for name, kernel in KERNELS.items():
        cost = costs.get(name)
        if cost is None:
            verdict, reason = "cannot serve", "; ".join(kernel.unsupported(problem))
        elif name not in fitting:
            required = required_bytes(problem, name, cost) / 2**30
            available = (available_memory(problem.device) or 0) / 2**30
            verdict, reason = "too large", f"needs {required:,.1f} GiB, {available:,.1f} are available"
        elif not problem.position:
            verdict = "chosen" if name == chosen else "same"
            reason = "without positions all kernels are equal"
        elif name == chosen:
            verdict = "chosen"
            reason = "the fastest when measured" if times else "the lowest estimated time, or near it"
        else:
            best = costs[chosen]
            seconds = (times[name], times[chosen]) if name in times else (cost.seconds, best.seconds)
            verdict, reason = "slower", f"{seconds[0] / max(seconds[1], 1e-12):.2g}x the time of {chosen}"
            if not measured and cost.seconds <= NEAR * best.seconds:
                memory_ratio = cost.peak_bytes / max(1, best.peak_bytes)
                verdict, reason = "larger", f"{memory_ratio:.2g}x the memory, {reason}"
        rows.append(PlanRow(kernel=name, cost=cost, verdict=verdict, reason=reason, measured=times.get(name)))
    return tuple(rows)


def resolve(kernel: str, problem: Problem) -> tuple[str, str]:
    """Return the kernels of the forward and the backward pass for a call's `kernel` argument.

    While a graph is traced, sizes may be symbols: `kernel` is then returned as it is, and "auto" or
    "measured" is resolved when the graph runs. Without positions it is returned as it is too: no kernel runs.

    Raises:
        ValueError: If there is no such kernel, or it does not support the problem (with its reasons).
        MemoryError: If the kernel, or every kernel that may be selected, needs more memory than is available.
    """
    if kernel not in CHOICES and kernel not in KERNELS:
        raise unknown_name("kernel", kernel, [*CHOICES, *KERNELS])
    if kernel in KERNELS:
        reasons = KERNELS[kernel].unsupported(problem)
        if reasons:
            raise ValueError(f"kernel {kernel!r} cannot serve this problem ({problem}): {'; '.join(reasons)}")
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return kernel, kernel
    forward = select_kernel(problem, kernel, backward=False)
    backward = select_kernel(problem, kernel, backward=True) if problem.train else forward
    return (forward, backward) if problem.position else (kernel, kernel)
