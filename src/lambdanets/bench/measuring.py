"""Times: everybody in turn, round after round, so that what else the machine does falls on all alike."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

T = TypeVar("T")

# A sample shorter than this is several calls: the clock and the launch of a GPU's program cost microseconds.
LEAST_SAMPLE = 5e-3
MOST_CALLS = 200
# Milliseconds; who takes so long in the first call is sampled call by call without a second warm-up.
LONG = 1e3


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The samples of one contender, in milliseconds for one call.

    Attributes:
        wall: By the clock.
        cpu: Processor time of all threads of this process, which other programs do not lengthen; empty on
            a GPU.
        single: The first call (on a GPU the second) took longer than allowed, and is the only sample.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    single: bool = False

    @property
    def unwarmed(self) -> str:
        """What else is said of a single sample: on a GPU, without processor time, a call came before it."""
        return ", without a warm-up" if self.cpu else ""


@contextmanager
def full_float32() -> Iterator[None]:
    """Let float32 be float32: by PyTorch's default a GPU rounds it to TF32 in convolutions, not in products.

    Convolutions would be raced against products of another precision, and fail the comparison of results.
    The older `allow_tf32` cannot be read any more once somebody has set one of these.
    """
    kinds: tuple[Any, ...] = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [kind.fp32_precision for kind in kinds]
    for kind in kinds:
        kind.fp32_precision = "ieee"
    try:
        yield
    finally:
        for kind, precision in zip(kinds, before, strict=True):
            kind.fp32_precision = precision


def quantiles(samples: list[float]) -> tuple[float, float, float]:
    """Return median, 20 % and 80 % quantile."""
    if len(samples) < 2:
        return samples[0], samples[0], samples[0]
    fifths = statistics.quantiles(samples, n=5, method="inclusive")
    return statistics.median(samples), fifths[0], fifths[3]


class Stopwatch:
    """Takes samples of a call on one device."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._cuda = self._device.type == "cuda"

    def sample(self, run: Callable[[], object], calls: int = 1) -> tuple[float, float]:
        """Return the milliseconds of one call by the clock and of the processor, as a mean of some calls."""
        self._wait()
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(calls):
            run()
        self._wait()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return 1e3 * wall / calls, 1e3 * cpu / calls

    def _wait(self) -> None:
        if self._cuda:
            torch.cuda.synchronize(self._device)

    def first(self, run: Callable[[], T]) -> tuple[Timing, T]:
        """Time the first call and return what it gave.

        On a GPU it is the second: the first loads programs onto it and may compile them, which says nothing
        about the next ones.
        """
        if self._cuda:
            run()
        timing, kept = Timing(), []
        self.record(timing, lambda: kept.append(run()))
        return timing, kept[0]

    def record(self, timing: Timing, run: Callable[[], object], calls: int = 1) -> None:
        wall, cpu = self.sample(run, calls)
        timing.wall.append(wall)
        if not self._cuda:
            timing.cpu.append(cpu)


def alternate(
    runs: Mapping[str, Callable[[], object]],
    *,
    rounds: int | Mapping[str, int],
    first: Mapping[str, Timing],
    max_seconds: float,
    device: str,
    tick: Callable[[str], None] = lambda name: None,
    failed: Callable[[str, Exception], None] | None = None,
) -> dict[str, Timing]:
    """Time calls in turn, round after round, each round in another order.

    Who comes next finds the caches and the heap as the one before has left them: the order is drawn anew so
    that nobody always follows the same one.

    Args:
        runs: The calls.
        rounds: How many samples of each, or of whom how many.
        first: The timing of each one's first call; see `Stopwatch.first`.
        max_seconds: Whose first call took longer is not called again; that call is its only sample.
        device: Where they run.
        tick: Told who was sampled.
        failed: Told whose call raised what, who then is called no more; without it the error goes on.

    Returns:
        The samples of each; none of those that failed.
    """
    watch = Stopwatch(device)
    timings, calls = {}, {}
    for name, run in runs.items():
        if first[name].wall[0] > 1e3 * max_seconds:
            timings[name] = Timing(wall=first[name].wall, cpu=first[name].cpu, single=True)
            continue
        timings[name] = Timing()
        again = first[name].wall[0]
        if again <= LONG:
            try:
                again, _ = watch.sample(run)
            except Exception as error:
                if failed is None:
                    raise
                failed(name, error)
                del timings[name]
                continue
        calls[name] = min(MOST_CALLS, max(1, round(1e3 * LEAST_SAMPLE / again)))
    wanted = {name: rounds if isinstance(rounds, int) else rounds[name] for name in calls}
    order = random.Random(0)
    for turn in range(max(wanted.values(), default=0)):
        still = [name for name in calls if name in timings and turn < wanted[name]]
        for name in order.sample(still, len(still)):
            try:
                watch.record(timings[name], runs[name], calls[name])
            except Exception as error:
                if failed is None:
                    raise
                failed(name, error)
                del timings[name]
                continue
            tick(name)
    return timings


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the hardware reaches in this run, at best: the scale for the fractions of the rows.

    Attributes:
        gflops: Of a square matrix product, by the clock.
        gflops_cpu: The same by processor time of all threads; equal to `gflops` on a GPU.
        copy_gbs: Gigabytes read and written in a second by a copy.
    """

    gflops: float
    gflops_cpu: float
    copy_gbs: float


def measure_machine(dtype: torch.dtype, device: str, *, side: int = 0, times: int = 9) -> Machine:
    """Measure the best matrix product and the best copy of a few.

    Args:
        dtype: Of the matrices.
        device: Where.
        side: Rows of the matrices; chosen by the device when 0.
        times: How often.
    """
    watch = Stopwatch(device)
    on_gpu = torch.device(device).type == "cuda"
    side = side or (8192 if on_gpu else 1536)
    # Drawn there: for a GPU they are many, and the processor would take longer than all the rest. The copy is
    # of far more than caches hold.
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    source = torch.randn((4 if on_gpu else 16) * side * side, device=device)
    target = torch.empty_like(source)
    with torch.inference_mode(), full_float32():
        products = [watch.sample(lambda: a @ b) for _ in range(times)]
        copies = [watch.sample(lambda: target.copy_(source)) for _ in range(times)]
    wall = min(sample for sample, _ in products)
    cpu = min(sample for _, sample in products)
    return Machine(
        gflops=2 * side**3 / wall / 1e6,
        gflops_cpu=2 * side**3 / (wall if on_gpu else cpu) / 1e6,
        copy_gbs=2 * source.nbytes / min(sample for sample, _ in copies) / 1e6,
    )
