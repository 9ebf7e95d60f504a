"""The bench of networks: batch, memory, then times in turn; group after group, each saved when it is done."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from lambdanets.bench.contenders import free_memory
from lambdanets.bench.measuring import (
    Stopwatch,
    Timing,
    alternate,
    full_float32,
    measure_machine,
    quantiles,
)
from lambdanets.bench.memory import SHORT, is_lost, is_out_of_memory, peak_mib, release
from lambdanets.bench.passes import Pass
from lambdanets.bench.race import FAILED, SHARE, DeviceLost, Settings, fault
from lambdanets.bench.records import NONE, Provenance, provenance

from .entries import Entry, absent, cost
from .lineup import Contender, Limits, contenders, groups
from .passes import Step
from .records import NOT_RUN, Measured, Row, blank

Report = Callable[[str, float], None]


@dataclass
class _Work:
    """Says what goes on and how much of the expected work is done."""

    report: Report
    total: float
    done: float = 0.0

    def begin(self, what: str) -> None:
        self.report(what, min(1.0, self.done / self.total) if self.total else 1.0)

    def finish(self, seconds: float) -> None:
        self.done += seconds


def check(entries: Sequence[Entry], settings: Settings, limits: Limits) -> None:
    """Refuse, before anything is measured, what cannot be.

    Raises:
        ValueError: A network does not exist or cannot take its size or options.
    """
    for entry in entries:
        cost(entry, batch=limits.batch, train="train" in settings.passes)


@full_float32()
def measure(
    bench: str,
    entries: Sequence[Entry],
    settings: Settings,
    limits: Limits,
    *,
    earlier: Sequence[Measured] = (),
    report: Report = lambda what, done: None,
    save: Callable[[list[Measured]], None] = lambda rows: None,
) -> list[Measured]:
    """Measure networks: throughput of training steps and inference in turn, and peak memory.

    Neighbours in the sequence take turns, as many as `limits.together` and memory allow. Peaks come first,
    which also finds out which batch fits; on a CPU each in a process of its own: one that memory does not
    suffice for takes nobody else with it.

    Args:
        bench: What for; see `Row`.
        entries: The networks. Those that this installation does not have get rows that say so.
        settings: How; `max_seconds` is the time that the samples of one network and pass may take. Forgiven
            errors cost their network the times alone; its row says so, and stays when a bench goes on.
        limits: With which batch, and who is left out.
        earlier: Rows of a bench that was cut short; what they measured is not measured again, and none of
            them is lost.
        report: Told what goes on, and the fraction of the expected work that is done.
        save: Given all rows so far after every group and pass, and before an error goes on.

    Returns:
        One row for each network and pass, in the order of the networks, with its provenance. Before them
        come earlier rows of other networks and passes.

    Raises:
        ValueError: Earlier rows were measured elsewhere or otherwise, or for another batch.
        DeviceLost: The GPU answers no more, and the settings forgive errors. The one whose error it was has a
            row.
    """
    torch.set_num_threads(settings.threads)
    machine = measure_machine(settings.dtype, settings.device)
    where = provenance(settings.dtype, settings.device, settings.threads, machine)
    order = [blank(bench, entry, which).key for entry in entries for which in settings.passes]
    kept = {row.key: (row, place) for row, place in earlier if _is_kept(row, order)}
    for row, place in kept.values():
        _require_alike(row, place, where, limits)
    number = max((row.group for row, _ in kept.values()), default=0)
    order = [*(key for key in kept if key not in order), *order]
    rows: dict[tuple[str, ...], Measured] = dict(kept)
    for entry in entries:
        if all(blank(bench, entry, which).key in rows for which in settings.passes):
            continue
        report(f"{entry.title}: parameters and multiply-adds", 0.0)
        absent(entry)  # seconds for the largest; kept, so that nobody waits for it again
    lineups = {
        which: list(groups(contenders(bench, which, entries, settings, limits, rows, where), limits))
        for which in settings.passes
    }
    everybody = [each for found in lineups.values() for group in found for each in group]
    work = _Work(report, sum(each.probe + each.step + each.sampling for each in everybody))

    def ordered() -> list[Measured]:
        return [rows[key] for key in order if key in rows]

    save(ordered())
    for turn in range(max(map(len, lineups.values()), default=0)):
        for which in settings.passes:
            if turn >= len(lineups[which]):
                continue
            try:
                for group in _fitting(lineups[which][turn], which, settings, work):
                    number += 1
                    place = provenance(
                        settings.dtype,
                        settings.device,
                        settings.threads,
                        measure_machine(settings.dtype, settings.device),
                    )
                    for row in _take_turns(bench, group, which, settings, limits, number, work):
                        rows[row.key] = row, place
                    save(ordered())
            except DeviceLost:
                for each in lineups[which][turn]:
                    row = _row(bench, each, which, None, limits, 0)
                    if each.failed and row.key not in rows:
                        rows[row.key] = row, where
                save(ordered())
                raise
    work.report("done", 1.0)
    return ordered()


def _is_kept(row: Row, order: Sequence[tuple[str, ...]]) -> bool:
    """Whether an earlier row stays: of a time, of an error that would come again, or of what is not asked."""
    return bool(row.samples) or FAILED in row.note or row.key not in order


def _fitting(
    group: list[Contender], which: Pass, settings: Settings, work: _Work
) -> Iterator[list[Contender]]:
    """Measure peaks, with batches that fit, and split a group whose members do not fit in memory together."""
    kept: list[Contender] = []
    for contender in group:
        if settings.memory:
            where = "" if torch.device(settings.device).type == "cuda" else " in its own process"
            work.begin(f"{contender.entry.title}: {_WORDS[which]}, memory{where}")
            try:
                _probe(contender, which, settings)
            except Exception as error:  # a compiler's, a driver's: they have no class in common
                if not settings.forgiving:
                    raise
                _fail(contender, error, settings)
            work.finish(contender.probe)
        free = SHARE * free_memory(torch.device(settings.device)) / 2**20
        if kept and _together_mib([*kept, contender], which) > free:
            yield kept
            kept = []
        kept.append(contender)
    if kept:
        yield kept


_WORDS = {"train": "training step", "eval": "inference"}


def _together_mib(group: list[Contender], which: Pass) -> float:
    """What a group holds at once: everybody's weights, gradients and momenta, and one's temporaries."""
    copies = 3 if which == "train" else 1
    weights = sum(4 * copies * each.cost.parameters for each in group) / 2**20
    peaks = [each.peak_mib for each in group if each.peak_mib == each.peak_mib]
    return weights + max(peaks, default=0.0)


def _fail(contender: Contender, error: Exception, settings: Settings) -> None:
    """Let a network take no further part, and say why.

    Raises:
        DeviceLost: The GPU answers no more.
    """
    contender.run, contender.failed, contender.batch = None, True, 0
    contender.notes.append(f"{NOT_RUN}: {fault(error)}")
    if is_lost(settings.device):
        raise DeviceLost(contender.notes[-1]) from error


def _probe(contender: Contender, which: Pass, settings: Settings) -> None:
    while not _is_out(contender, which):
        found = peak_mib(_step(contender, which, settings))
        if not isinstance(found, str):
            contender.peak_mib = found
            return
        if found not in SHORT:
            contender.notes.append(f"memory: {found}")
            return
        if not _halve(contender, found):
            return
        release(settings.device)


def _is_out(contender: Contender, which: Pass) -> bool:
    """Whether no batch is left, or a batch norm would get a single value to train on, which is then noted."""
    if which == "train" and contender.batch == 1:
        try:
            cost(contender.entry, batch=1, train=True)
        except ValueError as error:
            contender.notes.append(f"{NOT_RUN}: {error}")
            contender.batch = 0
    return contender.batch == 0


def _halve(contender: Contender, why: str) -> bool:
    """Go on with half the batch and say so, or say that there is no half."""
    if contender.batch == 1:
        contender.notes.append(f"{NOT_RUN}: {why} even with one image")
        contender.batch = 0
        return False
    contender.notes.append(f"{why} at batch {contender.batch}, halved")
    contender.batch //= 2
    return True


def _step(contender: Contender, which: Pass, settings: Settings) -> Step:
    return Step(
        entry=contender.entry,
        which=which,
        batch=contender.batch,
        dtype=settings.dtype,
        device=settings.device,
        threads=settings.threads,
        channels=contender.cost.channels,
    )


def _take_turns(
    bench: str,
    group: list[Contender],
    which: Pass,
    settings: Settings,
    limits: Limits,
    number: int,
    work: _Work,
) -> Iterator[Row]:
    watch = Stopwatch(settings.device)
    for contender in group:
        work.begin(f"{contender.entry.title}: {_WORDS[which]}, first step")
        try:
            _start(contender, which, settings, watch)
        except Exception as error:  # as above
            if not settings.forgiving:
                raise
            _fail(contender, error, settings)
        if contender.run is not None:
            seconds = contender.first.wall[0] / 1e3
            contender.rounds = max(1, int(min(settings.rounds, settings.max_seconds / seconds)))
        work.finish(contender.step)
    running = {f"{place}": each for place, each in enumerate(group) if each.run is not None}
    names = ", ".join(each.entry.title for each in running.values())

    def tick(name: str) -> None:
        each = running[name]
        work.finish(each.sampling / each.rounds)
        work.begin(f"{_WORDS[which]} in turn: {names}")

    work.begin(f"{_WORDS[which]} in turn: {names}")
    timings = alternate(
        {name: each.run for name, each in running.items() if each.run is not None},
        rounds={name: each.rounds for name, each in running.items()},
        first={name: each.first for name, each in running.items()},
        max_seconds=settings.max_seconds,
        device=settings.device,
        tick=tick,
        failed=(lambda name, error: _fail(running[name], error, settings)) if settings.forgiving else None,
    )
    for place, contender in enumerate(group):
        contender.run = None
        yield _row(bench, contender, which, timings.get(f"{place}"), limits, number)
    gc.collect()


def _start(contender: Contender, which: Pass, settings: Settings, watch: Stopwatch) -> None:
    """Make the first call, with half the batch as long as memory does not suffice."""
    while not _is_out(contender, which):
        try:
            run = _step(contender, which, settings).prepare()
            timing, _ = watch.first(run)
        except (MemoryError, RuntimeError) as error:
            # Whatever else is wrong is not ours to hide.
            if not is_out_of_memory(error):
                raise
            run = None
        else:
            contender.run, contender.first = run, timing
            return
        release(settings.device)
        _halve(contender, SHORT[0])


def _row(
    bench: str, contender: Contender, which: Pass, timing: Timing | None, limits: Limits, number: int
) -> Row:
    row = replace(
        blank(bench, contender.entry, which),
        batch=contender.batch,
        wanted_batch=limits.batch,
        parameters=contender.cost.parameters,
        macs=contender.cost.macs,
        group=number,
        note="; ".join(contender.notes),
        peak_mib=contender.peak_mib,
    )
    if timing is None:
        return row
    wall, cpu = quantiles(timing.wall), quantiles(timing.cpu or [NONE])
    if timing.single:
        row = replace(row, note="; ".join([*contender.notes, f"one step{timing.unwarmed}"]))
    return replace(
        row,
        wall_ms=wall[0],
        wall_q20=wall[1],
        wall_q80=wall[2],
        cpu_ms=cpu[0],
        cpu_q20=cpu[1],
        cpu_q80=cpu[2],
        samples=len(timing.wall),
    )


SAME = ("device", "processor", "threads", "dtype", "torch", "timm", "lambdanets")


def _require_alike(row: Row, earlier: Provenance, now: Provenance, limits: Limits) -> None:
    """Refuse to go on with rows that were measured otherwise.

    Raises:
        ValueError: What differs.
    """
    alike = [(name, getattr(earlier, name), getattr(now, name)) for name in SAME]
    # Where there was no network, no batch was asked for.
    alike.append(("batch", row.wanted_batch or limits.batch, limits.batch))
    for name, was, is_now in alike:
        if was != is_now:
            raise ValueError(
                f"the earlier rows were measured with {name}={was}, this run has {name}={is_now}; "
                "run with that, or leave --resume out to measure everything anew"
            )
