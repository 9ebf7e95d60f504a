"""The bench of the operator: check, warm up, race in turn, measure memory; case by case."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from lambdanets.ops import plan

from .cases import Case
from .checking import ROUNDED, check, distance, make_layer, require_close
from .contenders import CONTENDERS, OURS, Contender, free_memory, lines_of
from .measuring import Machine, Stopwatch, Timing, alternate, quantiles
from .memory import Request, is_out_of_memory, peak_mib
from .passes import Pass, Result, inputs, prepare
from .records import NONE, Record

SHARE = 0.8  # of the free memory that a contender may be expected to need

Key = tuple[str, str]
Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a bench runs.

    Attributes:
        passes: Which passes are timed.
        dtype: Element type of input and weights.
        device: Where.
        threads: Threads of PyTorch.
        rounds: Samples of each contender.
        max_seconds: Whose first call takes longer is measured by that one.
        memory: Whether peaks are measured, each in a process of its own.
    """

    passes: tuple[Pass, ...] = ("train", "eval")
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    threads: int = 1
    rounds: int = 9
    max_seconds: float = 20.0
    memory: bool = True

    def __post_init__(self) -> None:
        for name in ("threads", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.max_seconds > 0:
            raise ValueError(f"max_seconds must be greater than 0, got {self.max_seconds}")


def race(
    cases: Sequence[Case],
    settings: Settings,
    machine: Machine,
    *,
    contenders: Sequence[Contender] = CONTENDERS,
    report: Report = lambda line: None,
    save: Callable[[list[Record]], None] = lambda records: None,
) -> list[Record]:
    """Race the contenders over the cases.

    In every case all take turns on one input; those that compute the lambda layer have the weights of ours
    and are compared with it before they are timed. On a curve, who exceeds `max_seconds` at one size takes no
    part in larger ones.

    Args:
        cases: The cases, the points of a curve from small to large.
        settings: How.
        machine: The best that the hardware reached just before.
        contenders: Who; our layer must be among them, for it is what the others are compared with.
        report: Told a line on what happens.
        save: Given all rows so far after every pass.

    Returns:
        One row for each case, pass and contender, those who took no part with the reason.

    Raises:
        CheckError: A contender's results differ from ours.
    """
    torch.set_num_threads(settings.threads)
    records: list[Record] = []
    tired: dict[tuple[str, str, Key], str] = {}
    for case in cases:
        report(f"{case.name}: {case}; comparing results")
        exact = check(case, contenders, settings.device)
        for which in settings.passes:
            out = {
                key: sentence
                for key, contender in _keyed(contenders).items()
                if (
                    sentence := _sits_out(contender, case, which, settings)
                    or tired.get((case.series, which, key), "")
                )
            }
            report(f"{case.name}: {which}, {len(contenders) - len(out)} in turn, {settings.rounds} rounds")
            rows = _race_once(case, which, settings, contenders, out)
            for key, record in rows.items():
                if case.series and record.note.startswith("one call"):
                    tired[case.series, which, key] = (
                        f"left out: took {record.wall_ms / 1e3:.0f} s at {record.grid} already"
                    )
            if settings.memory:
                report(f"{case.name}: {which}, memory, a process each")
            for key, contender in _keyed(contenders).items():
                record = replace(rows[key], error64=exact.get(key, NONE))
                if record.samples:
                    record = _with_flops(record, case, contender, settings, machine)
                if settings.memory and record.samples:
                    record = _with_memory(record, case, which, settings)
                records.append(record)
            save(records)
    return records


def _keyed(contenders: Sequence[Contender]) -> dict[Key, Contender]:
    return {(each.name, each.role): each for each in contenders}


def _sits_out(contender: Contender, case: Case, which: Pass, settings: Settings) -> str:
    sentence = contender.refuses(case)
    if sentence:
        return sentence
    needs = contender.needs(case, which == "train", settings.dtype)
    free = free_memory(torch.device(settings.device))
    if needs > SHARE * free:
        return f"left out: needs about {needs / 2**30:.0f} GiB, {free / 2**30:.0f} GiB are free"
    return ""


def _race_once(
    case: Case, which: Pass, settings: Settings, contenders: Sequence[Contender], out: dict[Key, str]
) -> dict[Key, Record]:
    ours = make_layer(case, "auto", settings.dtype, settings.device)
    x, upstream = inputs(case, settings.dtype, settings.device)
    watch = Stopwatch(settings.device)
    expected: Result | None = None
    runs: dict[Key, Callable[[], Result]] = {}
    first: dict[Key, Timing] = {}
    errors: dict[Key, float] = {}
    notes = dict(out)
    # Ours first: what the others give is compared with it.
    order = sorted(_keyed(contenders).items(), key=lambda item: item[1].role != "layer")
    for key, contender in order:
        if key in out:
            continue
        module = contender.build(case).to(settings.device, settings.dtype)
        if contender.adopt is not None:
            contender.adopt(ours, module)
        run = prepare(module, which, x, upstream)
        results: list[Result] = []
        timing = Timing()
        try:
            watch.record(timing, lambda run=run, results=results: results.append(run()))
        except (MemoryError, RuntimeError, ValueError) as error:
            # A kernel may know only now that it cannot serve; whatever else is wrong is not ours to hide.
            if not (is_out_of_memory(error) or isinstance(error, ValueError)):
                raise
            short = is_out_of_memory(error) and not isinstance(error, MemoryError)
            notes[key] = "out of memory" if short or not str(error) else f"cannot take part: {error}"
            continue
        if contender.role == "layer":
            expected = results[0]
        elif contender.adopt is not None and expected is not None:
            errors[key] = distance(results[0], expected)
            what = f"{which} in {str(settings.dtype).removeprefix('torch.')}, against {OURS}"
            require_close(errors[key], ROUNDED[settings.dtype], contender, case, what)
        runs[key], first[key] = run, timing
        del results
    expected = None
    gc.collect()
    timings = alternate(
        {_text(key): run for key, run in runs.items()},
        rounds=settings.rounds,
        first={_text(key): timing for key, timing in first.items()},
        max_seconds=settings.max_seconds,
        device=settings.device,
    )
    reference = next((timings[_text(key)] for key in runs if key[1] == "layer"), None)
    return {
        key: _record(case, which, contender, timings.get(_text(key)), reference, errors.get(key), notes)
        for key, contender in _keyed(contenders).items()
    }


def _text(key: Key) -> str:
    return "/".join(key)


def _record(
    case: Case,
    which: Pass,
    contender: Contender,
    timing: Timing | None,
    ours: Timing | None,
    error: float | None,
    notes: dict[Key, str],
) -> Record:
    blank = Record(
        case=case.name,
        title=str(case),
        series=case.series,
        grid="x".join(map(str, case.grid)),
        scope="x".join(map(str, case.scope)) if case.scope else "global",
        batch=case.batch,
        dim=case.dim,
        num_heads=case.num_heads,
        dim_k=case.dim_k,
        dim_u=case.dim_u,
        mode=which,
        contender=contender.name,
        role=contender.role,
        note=notes.get((contender.name, contender.role), ""),
    )
    if timing is None:
        return blank
    wall, cpu = quantiles(timing.wall), quantiles(timing.cpu or [NONE])
    base_wall = quantiles(ours.wall)[0] if ours else NONE
    base_cpu = quantiles(ours.cpu)[0] if ours and ours.cpu else NONE
    return replace(
        blank,
        note="one call, without a warm-up" if timing.single else "",
        wall_ms=wall[0],
        wall_q20=wall[1],
        wall_q80=wall[2],
        cpu_ms=cpu[0],
        cpu_q20=cpu[1],
        cpu_q80=cpu[2],
        samples=len(timing.wall),
        ratio=wall[0] / base_wall,
        ratio_cpu=cpu[0] / base_cpu,
        error=NONE if error is None else error,
    )


def _with_flops(
    record: Record, case: Case, contender: Contender, settings: Settings, machine: Machine
) -> Record:
    """Operations of our own rows, and which kernels they took; projections have twice as many backward."""
    if contender.role not in ("layer", "kernel"):
        return record
    problem = case.problem(train=record.mode == "train", dtype=settings.dtype, device=settings.device)
    made = plan(problem)
    kernel = contender.name
    operator = made.flops
    if contender.role == "layer":
        passes = dict.fromkeys(name for name in (made.kernel, made.backward_kernel) if name)
        kernel = " + ".join(passes)
    else:
        costs = [row.cost for row in lines_of(problem, kernel) if row.cost is not None]
        operator = sum(cost.flops for cost in costs) + problem.content_flops * (3 if problem.train else 1)
    columns = case.num_heads * case.dim_k + case.dim_u * (case.dim_k + case.dim_v)
    projections = 2 * case.batch * case.positions * case.dim * columns
    flops = operator + (3 if problem.train else 1) * projections
    return replace(
        record,
        kernel=kernel,
        gflop=flops / 1e9,
        of_gemm=flops / record.wall_ms / 1e6 / machine.gflops,
        of_gemm_cpu=flops / record.cpu_ms / 1e6 / machine.gflops_cpu,
    )


def _with_memory(record: Record, case: Case, which: Pass, settings: Settings) -> Record:
    found = peak_mib(
        Request(
            case=case,
            name=record.contender,
            role=record.role,
            which=which,
            dtype=settings.dtype,
            device=settings.device,
            threads=settings.threads,
        )
    )
    if isinstance(found, str):
        return replace(record, note="; ".join(filter(None, (record.note, f"memory: {found}"))))
    return replace(record, peak_mib=found)
