"""Settings and timing of benchmarks: samples in interleaved rounds, on a CPU or a GPU.

All entries of a group take turns, round after round, so that other load on the machine affects all of them.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

import torch

from lambdanets.ops.matmul import matmul

from .memory import is_lost
from .records import NONE, Machine

T = TypeVar("T")
Pass = Literal["train", "eval"]
PASS_NAMES: dict[str, str] = {"train": "training step", "eval": "inference"}

FAILED = "failed"
# A shorter sample consists of several calls: reading the time and launching a GPU kernel take microseconds.
MIN_SAMPLE_SECONDS = 5e-3
MAX_CALLS = 200
# A call whose first run takes longer is sampled one call at a time, without a second warm-up.
LONG_MS = 1e3


class CheckError(RuntimeError):
    """Two implementations of one function give different results, so their times are not compared."""


class DeviceLost(RuntimeError):
    """The GPU no longer answers this process, after an error of a kernel that ran on it."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a benchmark runs.

    Attributes:
        passes: The passes that are timed.
        dtype: Dtype of inputs and weights.
        device: Device of the benchmark.
        threads: Number of threads of PyTorch.
        rounds: Number of samples of each entry.
        max_seconds: Benchmark of layers: if the first call of a layer takes longer, it is the only sample.
            Benchmark of networks: limit for all samples of a network together.
        memory: Whether peaks are measured, on a CPU each in a process of its own.
        channels_last: Whether inputs and the weights of 3x3 convolutions are in channels-last layout.
        forgiving: Whether an entry that fails, or whose result differs, only loses its times and has a row
            with the reason; otherwise the error ends the benchmark. A lost GPU ends it in both cases.
    """

    passes: tuple[Pass, ...] = ("train", "eval")
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    threads: int = 1
    rounds: int = 9
    max_seconds: float = 20.0
    memory: bool = True
    channels_last: bool = False
    forgiving: bool = False

    def __post_init__(self) -> None:
        for name in ("threads", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.max_seconds > 0:
            raise ValueError(f"max_seconds must be greater than 0, got {self.max_seconds}")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The samples of one entry, in milliseconds per call.

    Attributes:
        wall: Wall time.
        cpu: CPU time of all threads of this process, independent of other programs; empty on a GPU.
        single: Whether the first call (on a GPU the second) took longer than allowed, and is the only sample.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    single: bool = False

    @property
    def unwarmed(self) -> str:
        """The addition to the note of a single sample: on a CPU there was no warm-up call before it."""
        return ", without a warm-up" if self.cpu else ""

    def columns(self) -> dict[str, Any]:
        """Return the columns that every row of a timed entry has: medians, quantiles, number of samples."""
        wall, cpu = quantiles(self.wall), quantiles(self.cpu or [NONE])
        return {
            "wall_ms": wall[0], "wall_q20": wall[1], "wall_q80": wall[2],
            "cpu_ms": cpu[0], "cpu_q20": cpu[1], "cpu_q80": cpu[2],
            "samples": len(self.wall),
        }  # fmt: skip


@dataclass(kw_only=True)
class Trial:
    """One entry of a benchmark in one pass: its batch, its call, and the notes of its row.

    Attributes:
        batch: Number of examples in a call; 0 if not even one fits into memory.
        notes: Why it was not timed, or how its numbers differ from those of the others.
        run: Function without arguments that runs the pass; None until it is prepared.
        first: The timing of its first call.
        failed: Whether an error has ended it.
    """

    error_prefix: ClassVar[str] = ""

    batch: int
    notes: list[str] = field(default_factory=list)
    run: Callable[[], Any] | None = None
    first: Timing = field(default_factory=Timing)
    failed: bool = False

    def fail(self, error: Exception, device: str) -> None:
        """End this trial and note the error.

        Raises:
            DeviceLost: The GPU no longer answers.
        """
        self.run, self.failed = None, True
        self.notes.append(self.error_prefix + describe_error(error))
        if is_lost(device):
            raise DeviceLost(self.notes[-1]) from error

    def halve(self, reason: str, final: str) -> None:
        """Halve the batch and note the reason; a batch of 1 becomes 0, with the note `final`."""
        if self.batch > 1:
            self.notes.append(f"{reason} at batch {self.batch}, halved")
        else:
            self.notes.append(final)
        self.batch //= 2


def describe_error(error: Exception) -> str:
    """Return the note on an error in the row of the entry that raised it."""
    if isinstance(error, CheckError):
        return str(error)
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{FAILED}: {type(error).__name__}: {first}"


@contextmanager
def full_float32() -> Iterator[None]:
    """Disable TF32 on GPUs. By default PyTorch uses it in convolutions, but not in matrix products.

    With TF32 a convolution would differ from the same function computed by matrix products, and the
    comparison of results would fail. `fp32_precision` is used, as PyTorch raises an error where it was set
    and the older `allow_tf32` is read.
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
    """Return the median, the 20 % and the 80 % quantile."""
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
        """Return the milliseconds of wall time and of CPU time per call, as a mean over some calls."""
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
        """Time the first call and return its timing and its result.

        On a GPU the second call is timed: the first one compiles kernels and loads them.
        """
        if self._cuda:
            run()
        timing, results = Timing(), []
        self.record(timing, lambda: results.append(run()))
        return timing, results[0]

    def record(self, timing: Timing, run: Callable[[], object], calls: int = 1) -> None:
        """Append one sample to a timing."""
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
    """Time calls in turn, round after round, each round in a new random order.

    The state of caches and heap depends on the call before. With a new order in each round, no call always
    follows the same other one.

    Args:
        runs: The calls by name.
        rounds: Samples of each call, or of each name.
        first: The timing of each first call; see `Stopwatch.first`.
        max_seconds: If the first run of a call took longer, the call is not repeated, and that run is its
            only sample.
        device: Device of the calls.
        tick: Called with a name after each of its samples.
        failed: Called with the name and the error of a call that raises, which is not made again. When None,
            the error is raised.

    Returns:
        The samples by name, without those of failed calls.
    """
    watch = Stopwatch(device)
    timings: dict[str, Timing] = {}
    calls: dict[str, int] = {}

    def succeeds(name: str, action: Callable[[], object]) -> bool:
        try:
            action()
        except Exception as error:
            if failed is None:
                raise
            failed(name, error)
            del timings[name]
            return False
        return True

    for name, run in runs.items():
        first_call = first[name]
        if first_call.wall[0] > 1e3 * max_seconds:
            timings[name] = Timing(wall=first_call.wall, cpu=first_call.cpu, single=True)
            continue
        timings[name] = Timing()
        warm = [first_call.wall[0]]
        if first_call.wall[0] <= LONG_MS and not succeeds(
            name, lambda run=run, warm=warm: warm.append(watch.sample(run)[0])
        ):
            continue
        calls[name] = min(MAX_CALLS, max(1, round(1e3 * MIN_SAMPLE_SECONDS / warm[-1])))
    wanted = {name: rounds if isinstance(rounds, int) else rounds[name] for name in calls}
    order = random.Random(0)
    for turn in range(max(wanted.values(), default=0)):
        active = [name for name in calls if name in timings and turn < wanted[name]]
        for name in order.sample(active, len(active)):
            if succeeds(name, lambda name=name: watch.record(timings[name], runs[name], calls[name])):
                tick(name)
    return timings


def time_trials(
    trials: Mapping[str, Trial],
    settings: Settings,
    *,
    rounds: int | Mapping[str, int],
    tick: Callable[[str], None] = lambda name: None,
) -> dict[str, Timing]:
    """Time the calls of trials in turn; see `alternate`.

    Args:
        trials: Trials by name; those whose `run` is None are left out.
        settings: `forgiving` decides whether an error ends its trial only or is raised.
        rounds: Samples of each trial, or of each name.
        tick: Called with a name after each of its samples.
    """

    def fail(name: str, error: Exception) -> None:
        trials[name].fail(error, settings.device)

    return alternate(
        {name: trial.run for name, trial in trials.items() if trial.run is not None},
        rounds=rounds,
        first={name: trial.first for name, trial in trials.items() if trial.run is not None},
        max_seconds=settings.max_seconds,
        device=settings.device,
        tick=tick,
        failed=fail if settings.forgiving else None,
    )


def measure_machine(dtype: torch.dtype, device: str, *, side: int = 0, times: int = 9) -> Machine:
    """Measure the fastest of a few matrix products, by the faster of two libraries, and of a few copies.

    Args:
        dtype: Dtype of the matrices.
        device: Device of the matrices.
        side: Rows of the matrices; chosen by the device when 0.
        times: Number of products and of copies.
    """
    watch = Stopwatch(device)
    on_gpu = torch.device(device).type == "cuda"
    side = side or (8192 if on_gpu else 1536)
    # Drawn on the device: drawing on a CPU would take longer than the measurement. The copied tensor is far
    # larger than the caches.
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    source = torch.randn((4 if on_gpu else 16) * side * side, device=device)
    target = torch.empty_like(source)
    with torch.inference_mode(), full_float32():
        products = [watch.sample(lambda: matmul(a, b)) for _ in range(times)]
        copies = [watch.sample(lambda: target.copy_(source)) for _ in range(times)]
    wall = min(sample for sample, _ in products)
    cpu = min(sample for _, sample in products)
    return Machine(
        gflops=2 * side**3 / wall / 1e6,
        gflops_cpu=2 * side**3 / (wall if on_gpu else cpu) / 1e6,
        copy_gbs=2 * source.nbytes / min(sample for sample, _ in copies) / 1e6,
    )
