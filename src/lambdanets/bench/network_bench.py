"""The benchmark of networks: find the batch, measure memory, then time a group of networks in turn."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from .memory import FREE_FRACTION, OUT_OF_MEMORY, free_memory, is_out_of_memory, peak_mib, release
from .networks import (
    NOT_RUN,
    Measured,
    NetworkCost,
    NetworkJob,
    NetworkRecord,
    NetworkSpec,
    blank_record,
    compute_cost,
    unavailable_reason,
)
from .records import NONE, Provenance, provenance
from .timing import (
    FAILED,
    PASS_NAMES,
    DeviceLost,
    Pass,
    Settings,
    Stopwatch,
    Timing,
    Trial,
    full_float32,
    measure_machine,
    time_trials,
)

# Operations per second of a network, as a fraction of those of a matrix product. It serves only to estimate
# the progress and a feasible batch.
EFFICIENCY = 0.3
PROCESS_SECONDS = 2.0  # estimated time to start a process
STEPS_IN_TIME = 3  # the batch is halved until so many steps are estimated to take at most `max_seconds`
# Fields of the provenance that must be equal in all rows of a file: a benchmark is resumed with these only.
SHARED_PROVENANCE = ("device", "processor", "threads", "dtype", "torch", "timm", "lambdanets", "freed_memory")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Batch, size and grouping of networks.

    Attributes:
        batch: Images of a pass, halved where memory does not suffice.
        fixed: Whether the user chose the batch; otherwise it is also halved where steps would take too long.
        largest: Networks with more GMAC (10^9 multiply-adds of a forward pass for one image) are not run;
            None for no limit.
        max_interleaved: Largest number of networks that take turns in one group.
    """

    batch: int = 8
    fixed: bool = False
    largest: float | None = None
    max_interleaved: int = 8

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch}")
        if self.largest is not None and not self.largest > 0:
            raise ValueError(f"largest must be greater than 0, got {self.largest}")


@dataclass(kw_only=True)
class NetworkTrial(Trial):
    """A network in one pass.

    Attributes:
        network: The network.
        cost: Its parameters and multiply-adds.
        peak_mib: Measured peak memory, in MiB.
        rounds: Number of samples.
        memory_seconds: Estimated time of the measurement of the peak.
        step_seconds: Estimated time of the first step.
        sampling_seconds: Estimated time of all samples.
    """

    error_prefix: ClassVar[str] = f"{NOT_RUN}: "

    network: NetworkSpec
    cost: NetworkCost
    peak_mib: float = NONE
    rounds: int = 0
    memory_seconds: float = 0.0
    step_seconds: float = 0.0
    sampling_seconds: float = 0.0

    def fail(self, error: Exception, device: str) -> None:
        """End this trial and note the error.

        Raises:
            DeviceLost: The GPU no longer answers.
        """
        self.batch = 0
        super().fail(error, device)

    def has_batch(self, which: Pass) -> bool:
        """Return whether a batch is left.

        A batch of 1 becomes 0, with a note, if batch norms cannot train on it.
        """
        if which == "train" and self.batch == 1:
            try:
                compute_cost(self.network, batch=1, train=True)
            except ValueError as error:
                self.notes.append(f"{NOT_RUN}: {error}")
                self.batch = 0
        return self.batch > 0

    def halve_for_memory(self, reason: str) -> None:
        """Halve the batch and note the reason."""
        self.halve(reason, f"{NOT_RUN}: {reason} even with one image")


@dataclass
class _Progress:
    """Reports the current step and the finished fraction of the estimated work."""

    report: Callable[[str, float], None]
    total: float
    done: float = 0.0

    def begin(self, step: str) -> None:
        self.report(step, min(1.0, self.done / self.total) if self.total else 1.0)

    def finish(self, seconds: float) -> None:
        self.done += seconds


def check_networks(networks: Sequence[NetworkSpec], settings: Settings, limits: Limits) -> None:
    """Raise an error before anything is measured where a network cannot be built or run.

    Raises:
        ValueError: A network does not exist or cannot take its size or options.
    """
    for network in networks:
        compute_cost(network, batch=limits.batch, train="train" in settings.passes)


@full_float32()
def measure_networks(
    bench: str,
    networks: Sequence[NetworkSpec],
    settings: Settings,
    limits: Limits,
    *,
    earlier: Sequence[Measured] = (),
    report: Callable[[str, float], None] = lambda step, done: None,
    save: Callable[[list[Measured]], None] = lambda rows: None,
) -> list[Measured]:
    """Measure networks: throughput of training steps and inference in turn, and peak memory.

    Groups of consecutive networks take turns, as many as `limits.max_interleaved` and memory allow. Peaks are
    measured first, which also finds the batch that fits into memory. On a CPU each peak is measured in a
    separate process, so that a lack of memory does not end the benchmark.

    Args:
        bench: Name of the benchmark; see `NetworkRecord`.
        networks: The networks. Those that are not available have rows with the reason.
        settings: Passes, dtype, device and sampling. With `forgiving`, a network that fails has a row with
            the error instead of times, which is kept when the benchmark is resumed.
        limits: Batch, size and grouping.
        earlier: Rows of a benchmark that was interrupted; their measurements are kept and not repeated.
        report: Called with the current step and the finished fraction of the estimated work.
        save: Called with all rows so far after every group and pass, and before an error is raised.

    Returns:
        One row for each network and pass, in the order of the networks, with its provenance; before them the
        earlier rows of other networks and passes.

    Raises:
        ValueError: Earlier rows were measured on another machine, with other settings or for another batch.
        DeviceLost: The GPU no longer answers, and `settings.forgiving` is True. The network that failed has a
            row.
    """
    torch.set_num_threads(settings.threads)
    where = _provenance_now(settings)
    order = [blank_record(bench, network, which).key for network in networks for which in settings.passes]
    kept = {row.key: (row, origin) for row, origin in earlier if _is_kept(row, order)}
    for row, origin in kept.values():
        _require_same_setup(row, origin, where, limits)
    group_number = max((row.group for row, _ in kept.values()), default=0)
    order = [*(key for key in kept if key not in order), *order]
    rows: dict[tuple[str, ...], Measured] = dict(kept)
    for network in networks:
        if all(blank_record(bench, network, which).key in rows for which in settings.passes):
            continue
        report(f"{network.title}: parameters and multiply-adds", 0.0)
        unavailable_reason(network)  # takes seconds for the largest; the result is cached
    groups = {
        which: list(_groups(_trials(bench, which, networks, settings, limits, rows, where), limits))
        for which in settings.passes
    }
    trials = [trial for found in groups.values() for group in found for trial in group]
    work = sum(trial.memory_seconds + trial.step_seconds + trial.sampling_seconds for trial in trials)
    progress = _Progress(report, work)

    def ordered() -> list[Measured]:
        return [rows[key] for key in order if key in rows]

    save(ordered())
    for turn in range(max(map(len, groups.values()), default=0)):
        for which in settings.passes:
            if turn >= len(groups[which]):
                continue
            try:
                for group in _fitting(groups[which][turn], which, settings, progress):
                    group_number += 1
                    origin = _provenance_now(settings)
                    for row in _time_group(bench, group, which, settings, limits, group_number, progress):
                        rows[row.key] = row, origin
                    save(ordered())
            except DeviceLost:
                for trial in groups[which][turn]:
                    row = _record(bench, trial, which, None, limits, 0)
                    if trial.failed and row.key not in rows:
                        rows[row.key] = row, where
                save(ordered())
                raise
    progress.report("done", 1.0)
    return ordered()


def _provenance_now(settings: Settings) -> Provenance:
    machine = measure_machine(settings.dtype, settings.device)
    return provenance(settings.dtype, settings.device, settings.threads, machine)


def _is_kept(row: NetworkRecord, order: Sequence[tuple[str, ...]]) -> bool:
    """Return whether an earlier row is kept rather than measured again.

    It is kept if it has a time or an error, or if this run has no such network and pass.
    """
    return bool(row.samples) or FAILED in row.note or row.key not in order


def _require_same_setup(row: NetworkRecord, earlier: Provenance, now: Provenance, limits: Limits) -> None:
    """Raise ValueError where an earlier row was measured with another setup."""
    values = [(name, getattr(earlier, name), getattr(now, name)) for name in SHARED_PROVENANCE]
    # The row of a network that was not available has no batch.
    values.append(("batch", row.wanted_batch or limits.batch, limits.batch))
    for name, was, is_now in values:
        if was != is_now:
            raise ValueError(
                f"the earlier rows were measured with {name}={was}, this run has {name}={is_now}; "
                "use the same value, or leave --resume out to measure everything again"
            )


def _trials(
    bench: str,
    which: Pass,
    networks: Sequence[NetworkSpec],
    settings: Settings,
    limits: Limits,
    rows: dict[tuple[str, ...], Measured],
    where: Provenance,
) -> Iterator[NetworkTrial]:
    """Yield the networks without a row; those that are left out get their row now."""
    for network in networks:
        record = blank_record(bench, network, which)
        if record.key in rows:
            continue
        if reason := unavailable_reason(network):
            rows[record.key] = replace(record, note=f"{NOT_RUN}: {reason}"), where
            continue
        cost = compute_cost(network)
        record = replace(record, parameters=cost.parameters, macs=cost.macs, wanted_batch=limits.batch)
        if limits.largest is not None and cost.macs > 1e9 * limits.largest:
            reason = f"{NOT_RUN}: above the {limits.largest:g} GMAC of --largest"
            rows[record.key] = replace(record, note=reason), where
            continue
        yield _trial(network, cost, which, settings, limits, where)


def _trial(
    network: NetworkSpec,
    cost: NetworkCost,
    which: Pass,
    settings: Settings,
    limits: Limits,
    where: Provenance,
) -> NetworkTrial:
    """Return a trial with its batch and its estimated times."""
    speed = EFFICIENCY * 1e9 * where.gemm_gflops
    image_seconds = 2 * cost.macs * (3 if which == "train" else 1) / speed
    batch = limits.batch
    longest = settings.max_seconds / STEPS_IN_TIME
    while not limits.fixed and batch > 1 and batch * image_seconds > longest:
        batch //= 2
    trial = NetworkTrial(network=network, cost=cost, batch=batch)
    if batch < limits.batch:
        trial.notes.append(f"batch {batch}: steps of {limits.batch} images would take too long")
    trial.step_seconds = batch * image_seconds
    trial.memory_seconds = PROCESS_SECONDS + trial.step_seconds if settings.memory else 0.0
    trial.sampling_seconds = min(settings.rounds * trial.step_seconds, settings.max_seconds)
    return trial


def _groups(trials: Iterator[NetworkTrial], limits: Limits) -> Iterator[list[NetworkTrial]]:
    """Yield groups of consecutive networks that take turns."""
    group: list[NetworkTrial] = []
    for trial in trials:
        group.append(trial)
        if len(group) == limits.max_interleaved:
            yield group
            group = []
    if group:
        yield group


def _fitting(
    group: list[NetworkTrial], which: Pass, settings: Settings, progress: _Progress
) -> Iterator[list[NetworkTrial]]:
    """Measure peaks, with batches that fit, and split a group whose members do not fit in memory together."""
    fitting: list[NetworkTrial] = []
    for trial in group:
        if settings.memory:
            process = "" if torch.device(settings.device).type == "cuda" else " in its own process"
            progress.begin(f"{trial.network.title}: {PASS_NAMES[which]}, memory{process}")
            try:
                _measure_peak(trial, which, settings)
            except Exception as error:  # errors of compilers and drivers have no class in common
                if not settings.forgiving:
                    raise
                trial.fail(error, settings.device)
            progress.finish(trial.memory_seconds)
        free = FREE_FRACTION * free_memory(torch.device(settings.device)) / 2**20
        if fitting and _group_mib([*fitting, trial], which) > free:
            yield fitting
            fitting = []
        fitting.append(trial)
    if fitting:
        yield fitting


def _group_mib(group: list[NetworkTrial], which: Pass) -> float:
    """Return the memory of a group: weights, gradients and momenta of all, and the largest peak of one."""
    copies = 3 if which == "train" else 1
    weights = sum(4 * copies * trial.cost.parameters for trial in group) / 2**20
    peaks = [trial.peak_mib for trial in group if trial.peak_mib == trial.peak_mib]
    return weights + max(peaks, default=0.0)


def _measure_peak(trial: NetworkTrial, which: Pass, settings: Settings) -> None:
    """Measure the peak, with half the batch as long as memory does not suffice."""
    while trial.has_batch(which):
        found = peak_mib(_job(trial, which, settings))
        if not isinstance(found, str):
            trial.peak_mib = found
            return
        if found not in OUT_OF_MEMORY:
            trial.notes.append(f"memory: {found}")
            return
        trial.halve_for_memory(found)
        if trial.batch:
            release(settings.device)


def _job(trial: NetworkTrial, which: Pass, settings: Settings) -> NetworkJob:
    return NetworkJob(
        network=trial.network,
        which=which,
        batch=trial.batch,
        dtype=settings.dtype,
        device=settings.device,
        threads=settings.threads,
        channels=trial.cost.channels,
    )


def _time_group(
    bench: str,
    group: list[NetworkTrial],
    which: Pass,
    settings: Settings,
    limits: Limits,
    number: int,
    progress: _Progress,
) -> Iterator[NetworkRecord]:
    """Make the first steps of a group, time its members in turn, and yield their rows."""
    watch = Stopwatch(settings.device)
    for trial in group:
        progress.begin(f"{trial.network.title}: {PASS_NAMES[which]}, first step")
        try:
            _first_step(trial, which, settings, watch)
        except Exception as error:
            if not settings.forgiving:
                raise
            trial.fail(error, settings.device)
        if trial.run is not None:
            seconds = trial.first.wall[0] / 1e3
            trial.rounds = max(1, int(min(settings.rounds, settings.max_seconds / seconds)))
        progress.finish(trial.step_seconds)
    numbered = {str(index): trial for index, trial in enumerate(group)}
    titles = ", ".join(trial.network.title for trial in group if trial.run is not None)

    def tick(name: str) -> None:
        trial = numbered[name]
        progress.finish(trial.sampling_seconds / trial.rounds)
        progress.begin(f"{PASS_NAMES[which]} in turn: {titles}")

    progress.begin(f"{PASS_NAMES[which]} in turn: {titles}")
    rounds = {name: trial.rounds for name, trial in numbered.items()}
    timings = time_trials(numbered, settings, rounds=rounds, tick=tick)
    for name, trial in numbered.items():
        trial.run = None
        yield _record(bench, trial, which, timings.get(name), limits, number)
    gc.collect()


def _first_step(trial: NetworkTrial, which: Pass, settings: Settings, watch: Stopwatch) -> None:
    """Make the first call, with half the batch as long as memory does not suffice."""
    while trial.has_batch(which):
        try:
            run = _job(trial, which, settings).prepare()
            timing, _ = watch.first(run)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            run = None
        else:
            trial.run, trial.first = run, timing
            return
        release(settings.device)
        trial.halve_for_memory(OUT_OF_MEMORY[0])


def _record(
    bench: str, trial: NetworkTrial, which: Pass, timing: Timing | None, limits: Limits, number: int
) -> NetworkRecord:
    notes = [*trial.notes, *([f"one step{timing.unwarmed}"] if timing is not None and timing.single else [])]
    return replace(
        blank_record(bench, trial.network, which),
        batch=trial.batch,
        wanted_batch=limits.batch,
        parameters=trial.cost.parameters,
        macs=trial.cost.macs,
        group=number,
        note="; ".join(notes),
        peak_mib=trial.peak_mib,
        **(timing.columns() if timing is not None else {}),
    )
