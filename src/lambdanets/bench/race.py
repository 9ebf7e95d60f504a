"""The bench of the operator: check, warm up, race in turn, measure memory; case by case."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from lambdanets.nn.lambda_layer import LambdaLayer
from lambdanets.ops import plan

from .cases import Case
from .checking import ROUNDED, CheckError, check, distance, make_layer, require_close
from .contenders import CONTENDERS, OURS, Contender, free_memory, lines_of, made
from .measuring import Machine, Stopwatch, Timing, alternate, full_float32, quantiles
from .memory import SHORT, Request, is_lost, is_out_of_memory, peak_mib, release
from .passes import Pass, Result, inputs, least_bytes, prepare
from .records import NONE, Record

FAILED = "failed"
SHARE = 0.8  # of the free memory that a contender may be expected to need
# Where our layer takes a kernel of its own making, what all are compared with in the case itself is our layer
# by another one, the first that serves; or this kernel would be compared with itself.
OWN_PROGRAMS = "triton"
JUDGES = ("attention", "fft", "conv", "reference")

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
        memory: Whether peaks are measured, on a CPU each in a process of its own.
        channels_last: Whether the channels of a position lie side by side in memory, in inputs and in the
            weights of 3x3 convolutions.
        forgiving: Whether an error, or a result that differs, costs its contender the times alone, with a row
            that says so; otherwise it stops the bench. A GPU that is lost stops it all the same.
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


class DeviceLost(RuntimeError):
    """A GPU answers no more to this process, after an error of what ran on it."""


@full_float32()
def race(
    cases: Sequence[Case],
    settings: Settings,
    machine: Machine,
    *,
    contenders: Sequence[Contender] = CONTENDERS,
    known: Mapping[tuple[str, str, Key], str] | None = None,
    report: Report = lambda line: None,
    save: Callable[[list[Record]], None] = lambda records: None,
) -> list[Record]:
    """Race the contenders over the cases.

    In every case all take turns on one input; those that compute the lambda layer have the weights of ours
    and are compared with it before they are timed. Who memory does not suffice for goes on with half the
    batch, and its row says so; ratios are those of one example. On a curve, who exceeds `max_seconds` at one
    size takes no part in larger ones.

    Args:
        cases: The cases, the points of a curve from small to large.
        settings: How.
        machine: The best that the hardware reached just before.
        contenders: Who; our layer must be among them, for it is what the others are compared with.
        known: By case, pass and contender, why somebody takes no part: who lost the GPU to a process before.
        report: Told a line on what happens.
        save: Given all rows so far after every pass, and before an error goes on.

    Returns:
        One row for each case, pass and contender, those who took no part with the reason.

    Raises:
        CheckError: A contender's results differ from ours, and the settings do not forgive it.
        DeviceLost: The GPU answers no more, and the settings forgive errors. The one whose error it was has a
            row; a pass that was not at its end has no others.
    """
    torch.set_num_threads(settings.threads)
    known = known or {}
    records: list[Record] = []
    tired: dict[tuple[str, str, Key], str] = {}
    for case in cases:
        report(f"{case.name}: {case}; comparing results")
        exact: dict[Key, float] = {}
        wrong: dict[Key, str] = {}
        for key, contender in _keyed(contenders).items():
            if all((case.name, which, key) in known for which in settings.passes):
                continue
            try:
                error = check(case, contender, settings.device, settings.dtype)
                exact[key] = NONE if error is None else error
            except Exception as error:  # a compiler's, a driver's: they have no class in common
                if not settings.forgiving:
                    raise
                wrong[key] = fault(error)
                if is_lost(settings.device):
                    lost = _Entrant(contender, case.batch, [wrong[key]])
                    records += [_record(case, which, lost, None, None, settings) for which in settings.passes]
                    save(records)
                    raise DeviceLost(wrong[key]) from error
        for which in settings.passes:
            out = {
                key: sentence
                for key, contender in _keyed(contenders).items()
                if (
                    sentence := wrong.get(key, "")
                    or known.get((case.name, which, key), "")
                    or contender.refuses(case, settings.dtype, settings.device)
                    or tired.get((case.series, which, key), "")
                )
            }
            report(f"{case.name}: {which}, {len(contenders) - len(out)} in turn, {settings.rounds} rounds")
            entrants = {key: _Entrant(each, case.batch) for key, each in _keyed(contenders).items()}
            try:
                rows = _race_once(case, which, settings, entrants, out)
            except DeviceLost:
                failed = [each for each in entrants.values() if each.failed]
                records += [_record(case, which, each, None, None, settings) for each in failed]
                save(records)
                raise
            for key, record in rows.items():
                if case.series and record.samples == 1 and "one call" in record.note:
                    tired[case.series, which, key] = (
                        f"left out: took {record.wall_ms / 1e3:.0f} s at {record.grid} already"
                    )
            if settings.memory:
                report(f"{case.name}: {which}, memory")
            for key, contender in _keyed(contenders).items():
                record = replace(rows[key], error64=exact.get(key, NONE))
                if record.samples:
                    measured = replace(case, batch=record.batch)
                    record = _with_flops(record, measured, contender, settings, machine)
                    if settings.memory:
                        record = _with_memory(record, measured, which, settings)
                records.append(record)
            save(records)
            if settings.forgiving and is_lost(settings.device):
                raise DeviceLost(f"{case.name}: {which}, memory")
    return records


def _keyed(contenders: Sequence[Contender]) -> dict[Key, Contender]:
    return {(each.name, each.role): each for each in contenders}


@dataclass
class _Entrant:
    """A contender in one pass of a case: how many examples it takes, what it runs, what it gave first."""

    contender: Contender
    batch: int
    notes: list[str] = field(default_factory=list)
    run: Callable[[], Result] | None = None
    first: Timing = field(default_factory=Timing)
    error: float = NONE
    least_bytes: int = 0
    failed: bool = False

    def fail(self, error: Exception, settings: Settings) -> None:
        """Take no further part, and say why.

        Raises:
            DeviceLost: The GPU answers no more.
        """
        self.run, self.failed = None, True
        self.notes.append(fault(error))
        if is_lost(settings.device):
            raise DeviceLost(self.notes[-1]) from error

    def halve(self, why: str) -> None:
        """Go on with half the batch and say so, or say that there is no half."""
        if self.batch > 1:
            self.notes.append(f"{why} at batch {self.batch}, halved")
        else:
            self.notes = [f"left out: {why}, even with one example"]
        self.batch //= 2


def _race_once(
    case: Case, which: Pass, settings: Settings, entrants: dict[Key, _Entrant], out: dict[Key, str]
) -> dict[Key, Record]:
    start = _Start(case, which, settings)
    # Ours first: what the others give is compared with it.
    for key, entrant in sorted(entrants.items(), key=lambda item: item[1].contender.role != "layer"):
        if key in out:
            entrant.notes.append(out[key])
            continue
        try:
            start(entrant)
        except Exception as error:  # as above
            if not settings.forgiving:
                raise
            entrant.fail(error, settings)
    start.clear()
    running = {_text(key): each for key, each in entrants.items() if each.run is not None}
    timings = alternate(
        {name: each.run for name, each in running.items() if each.run is not None},
        rounds=settings.rounds,
        first={name: each.first for name, each in running.items()},
        max_seconds=settings.max_seconds,
        device=settings.device,
        failed=(lambda name, error: running[name].fail(error, settings)) if settings.forgiving else None,
    )
    ours = next((key for key, each in entrants.items() if each.contender.role == "layer"), None)
    reference = None if ours is None else (timings.get(_text(ours)), entrants[ours].batch)
    return {
        key: _record(case, which, entrant, timings.get(_text(key)), reference, settings)
        for key, entrant in entrants.items()
    }


def fault(error: Exception) -> str:
    """What the row of a contender says that is wrong or has failed."""
    if isinstance(error, CheckError):
        return str(error)
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{FAILED}: {type(error).__name__}: {first}"


class _Start:
    """Builds entrants, makes their first calls, with half the batch where memory is short, and compares."""

    def __init__(self, case: Case, which: Pass, settings: Settings) -> None:
        self.case = case
        self.which: Pass = which
        self.settings = settings
        self.ours = make_layer(case, "auto", settings.dtype, settings.device)
        self.given = inputs(case, settings.dtype, settings.device, channels_last=settings.channels_last)
        self.watch = Stopwatch(settings.device)
        self.judges = _judges(case, which, settings)
        self.expected: dict[int, tuple[str, Result]] = {}  # what our layer gives, and by whom, by batch

    def __call__(self, entrant: _Entrant) -> None:
        while entrant.batch and entrant.run is None:
            if short := self._short_of_memory(entrant):
                entrant.halve(short)
                continue
            try:
                result = self._first_call(entrant)
            except (MemoryError, RuntimeError, ValueError) as error:
                # A kernel may know only now that it cannot serve; whatever else is wrong is not ours to hide.
                if is_out_of_memory(error):
                    entrant.halve(str(error) if isinstance(error, MemoryError) else SHORT[0])
                elif isinstance(error, ValueError):
                    entrant.notes.append(f"cannot take part: {error}")
                    return
                else:
                    raise
            else:
                self._compare(entrant, result)
                return
            release(self.settings.device)

    def clear(self) -> None:
        """Forget the results: what comes next needs the memory."""
        self.expected.clear()
        gc.collect()

    def _short_of_memory(self, entrant: _Entrant) -> str:
        settings = self.settings
        case = replace(self.case, batch=entrant.batch)
        needs = entrant.contender.needs(case, self.which == "train", settings.dtype, settings.device)
        free = free_memory(torch.device(settings.device))
        if needs > SHARE * free:
            return f"needs about {needs / 2**30:.0f} GiB, {free / 2**30:.0f} GiB are free"
        return ""

    def _first_call(self, entrant: _Entrant) -> Result:
        settings, contender = self.settings, entrant.contender
        case = replace(self.case, batch=entrant.batch)
        module = made(contender, case, settings.dtype, settings.device, settings.channels_last)
        if contender.adopt is not None:
            contender.adopt(self.ours, module)
        x, upstream = (each[: entrant.batch] for each in self.given)
        run = prepare(module, self.which, x, upstream)
        entrant.first, result = self.watch.first(run)
        entrant.run, entrant.least_bytes = run, least_bytes(module, self.which, x)
        return result

    def _compare(self, entrant: _Entrant, result: Result) -> None:
        contender, batch = entrant.contender, entrant.batch
        if contender.adopt is None:
            return
        if batch not in self.expected and self.judges:
            self._judge(batch)
        if contender.role == "layer" and batch not in self.expected:
            if self.judges:
                entrant.notes.append("compared with no other kernel in this case")
            self.expected[batch] = OURS, result
            return
        if batch not in self.expected and batch <= max(self.expected, default=0):
            self.expected[batch] = OURS, self._by(self.ours, batch)
        if batch in self.expected:
            by, expected = self.expected[batch]
            entrant.error = distance(result, expected)
            dtype = self.settings.dtype
            what = f"{self.which} in {str(dtype).removeprefix('torch.')}, against {by}"
            require_close(entrant.error, ROUNDED[dtype], contender, self.case, what)

    def _judge(self, batch: int) -> None:
        """Let the first other kernel that serves say what is right."""
        settings, case = self.settings, replace(self.case, batch=batch)
        for name in self.judges:
            try:
                layer = make_layer(case, name, settings.dtype, settings.device)
                layer.load_state_dict(self.ours.state_dict())
                self.expected[batch] = f"{OURS} by {name}", self._by(layer, batch)
                return
            except Exception:  # whatever it is, the next one is asked
                if is_lost(settings.device):
                    raise
            release(settings.device)

    def _by(self, layer: LambdaLayer, batch: int) -> Result:
        return prepare(layer, self.which, *(each[:batch] for each in self.given))()


def _judges(case: Case, which: Pass, settings: Settings) -> list[str]:
    """Kernels that say what is right in a case itself, the first that serves; none where our layer does."""
    problem = case.problem(train=which == "train", dtype=settings.dtype, device=settings.device)
    made = plan(problem)
    if OWN_PROGRAMS not in (made.kernel, made.backward_kernel):
        return []
    return [name for name in JUDGES if all(line.cost is not None for line in lines_of(problem, name))]


def _text(key: Key) -> str:
    return "/".join(key)


def _record(
    case: Case,
    which: Pass,
    entrant: _Entrant,
    timing: Timing | None,
    ours: tuple[Timing | None, int] | None,
    settings: Settings,
) -> Record:
    contender = entrant.contender
    blank = Record(
        case=case.name,
        title=str(case),
        series=case.series,
        grid="x".join(map(str, case.grid)),
        scope="x".join(map(str, case.scope)) if case.scope else "global",
        batch=entrant.batch if timing else case.batch,
        dim=case.dim,
        num_heads=case.num_heads,
        dim_k=case.dim_k,
        dim_u=case.dim_u,
        mode=which,
        contender=contender.name,
        role=contender.role,
        layout="channels_last" if settings.channels_last else "contiguous",
        note="; ".join(entrant.notes),
        error=entrant.error,
    )
    if timing is None:
        return blank
    wall, cpu = quantiles(timing.wall), quantiles(timing.cpu or [NONE])
    base, batch = ours or (None, 0)
    share = batch / entrant.batch  # of the examples of ours' call
    base_wall = quantiles(base.wall)[0] if base else NONE
    base_cpu = quantiles(base.cpu)[0] if base and base.cpu else NONE
    return replace(
        blank,
        note="; ".join([*entrant.notes, *([f"one call{timing.unwarmed}"] if timing.single else [])]),
        wall_ms=wall[0],
        wall_q20=wall[1],
        wall_q80=wall[2],
        cpu_ms=cpu[0],
        cpu_q20=cpu[1],
        cpu_q80=cpu[2],
        samples=len(timing.wall),
        ratio=share * wall[0] / base_wall,
        ratio_cpu=share * cpu[0] / base_cpu,
        gbytes=entrant.least_bytes / 1e9,
    )


def _with_flops(
    record: Record, case: Case, contender: Contender, settings: Settings, machine: Machine
) -> Record:
    """What of the machine's best it reaches: all in bytes, our own rows in operations, too.

    Operations of our rows are those of the kernels that they took; projections have twice as many backward.
    """
    record = replace(record, of_copy=1e3 * record.gbytes / record.wall_ms / machine.copy_gbs)
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
    request = Request(
        case=case,
        name=record.contender,
        role=record.role,
        which=which,
        dtype=settings.dtype,
        device=settings.device,
        threads=settings.threads,
        channels_last=settings.channels_last,
    )
    try:
        found = peak_mib(request)
    except Exception as error:  # as above
        if not settings.forgiving:
            raise
        found = fault(error)
    if isinstance(found, str):
        return replace(record, note="; ".join(filter(None, (record.note, f"memory: {found}"))))
    return replace(record, peak_mib=found)
