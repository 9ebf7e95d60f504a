"""The benchmark of layers: compare results, time all contenders in turn, measure memory; case by case."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from lambdanets.nn.lambda_layer import LambdaLayer
from lambdanets.ops import plan
from lambdanets.ops.planner import content_flops

from .cases import Case
from .checking import (
    ROUNDED,
    LayerJob,
    Result,
    check,
    make_inputs,
    make_layer,
    max_difference,
    min_bytes,
    prepare,
    require_close,
)
from .contenders import CONTENDERS, OURS, Contender, build_module, plan_rows
from .layer_report import LayerRecord
from .memory import FREE_FRACTION, OUT_OF_MEMORY, free_memory, is_lost, is_out_of_memory, peak_mib, release
from .records import NONE, Machine
from .timing import (
    DeviceLost,
    Pass,
    Settings,
    Stopwatch,
    Timing,
    Trial,
    describe_error,
    full_float32,
    time_trials,
)

# Results on the case itself are compared with those of our layer. If our layer selects the kernel "triton",
# the expected results are those of the first of these kernels that supports the case: kernel "triton" would
# otherwise be compared with itself.
COMPILED_KERNEL = "triton"
REFERENCE_KERNELS = ("attention", "fft", "conv", "reference")

Key = tuple[str, str]  # name and role of a contender


@full_float32()
def measure_layers(
    cases: Sequence[Case],
    settings: Settings,
    machine: Machine,
    *,
    contenders: Sequence[Contender] = CONTENDERS,
    known: Mapping[tuple[str, str, Key], str] | None = None,
    report: Callable[[str], None] = lambda line: None,
    save: Callable[[list[LayerRecord]], None] = lambda records: None,
) -> list[LayerRecord]:
    """Compare and time the contenders in the cases.

    In every case all contenders take turns on the same input. Those that compute the lambda layer get the
    weights of our layer, and their results are compared before they are timed. For a contender that runs out
    of memory the batch is halved, with a note in its row; ratios compare the times per example. In a series,
    a contender that exceeds `max_seconds` at one size is left out at larger ones.

    Args:
        cases: The cases, those of a series from small to large.
        settings: Passes, dtype, device and sampling.
        machine: The speed of the hardware, measured just before.
        contenders: The layers; ours must be among them, as the others are compared with it.
        known: Contenders to leave out since they failed in an earlier process: the reason by case, pass and
            contender.
        report: Called with a line on each step.
        save: Called with all rows so far after every pass, and before an error is raised.

    Returns:
        One row for each case, pass and contender, with the reason where it was not timed.

    Raises:
        CheckError: The results of a contender differ, and `settings.forgiving` is False.
        DeviceLost: The GPU no longer answers, and `settings.forgiving` is True. The contender that failed has
            a row; the other contenders of the unfinished pass have none.
    """
    torch.set_num_threads(settings.threads)
    known = known or {}
    keyed = {(each.name, each.role): each for each in contenders}
    records: list[LayerRecord] = []
    too_slow: dict[tuple[str, str, Key], str] = {}
    for case in cases:
        report(f"{case.name}: {case}; comparing results")
        crop_differences: dict[Key, float] = {}
        check_errors: dict[Key, str] = {}
        for key, contender in keyed.items():
            if all((case.name, which, key) in known for which in settings.passes):
                continue
            try:
                error = check(case, contender, settings.device, settings.dtype)
                crop_differences[key] = NONE if error is None else error
            except Exception as error:  # errors of compilers and drivers have no class in common
                if not settings.forgiving:
                    raise
                check_errors[key] = describe_error(error)
                if is_lost(settings.device):
                    lost = LayerTrial(contender=contender, batch=case.batch, notes=[check_errors[key]])
                    records += [_record(case, which, lost, None, None, settings) for which in settings.passes]
                    save(records)
                    raise DeviceLost(check_errors[key]) from error
        for which in settings.passes:
            left_out = {
                key: reason
                for key, contender in keyed.items()
                if (
                    reason := check_errors.get(key, "")
                    or known.get((case.name, which, key), "")
                    or contender.unsupported(case, settings.dtype, settings.device)
                    or too_slow.get((case.series, which, key), "")
                )
            }
            report(
                f"{case.name}: {which}, {len(contenders) - len(left_out)} in turn, {settings.rounds} rounds"
            )
            trials = {key: LayerTrial(contender=each, batch=case.batch) for key, each in keyed.items()}
            try:
                rows = _measure_pass(case, which, settings, trials, left_out)
            except DeviceLost:
                failed = [trial for trial in trials.values() if trial.failed]
                records += [_record(case, which, trial, None, None, settings) for trial in failed]
                save(records)
                raise
            for key, record in rows.items():
                if case.series and record.samples == 1 and "one call" in record.note:
                    too_slow[case.series, which, key] = (
                        f"left out: took {record.wall_ms / 1e3:.0f} s at {record.grid} already"
                    )
            if settings.memory:
                report(f"{case.name}: {which}, memory")
            for key, contender in keyed.items():
                record = replace(rows[key], error64=crop_differences.get(key, NONE))
                if record.samples:
                    measured = replace(case, batch=record.batch)
                    record = _with_throughput(record, measured, contender, settings, machine)
                    if settings.memory:
                        record = _with_memory(record, measured, which, settings)
                records.append(record)
            save(records)
            if settings.forgiving and is_lost(settings.device):
                raise DeviceLost(f"{case.name}: {which}, memory")
    return records


@dataclass(kw_only=True)
class LayerTrial(Trial):
    """A contender in one pass of a case.

    Attributes:
        contender: The contender.
        error: Difference of its first result from the expected one.
        min_bytes: Bytes that the pass must move.
    """

    contender: Contender
    error: float = NONE
    min_bytes: int = 0


def _measure_pass(
    case: Case, which: Pass, settings: Settings, trials: dict[Key, LayerTrial], left_out: dict[Key, str]
) -> dict[Key, LayerRecord]:
    """Prepare and time the trials of a pass, and return their rows; `left_out` has reasons by contender."""
    prepare_trial = _TrialPreparer(case, which, settings)
    # Ours first: the results of the others are compared with its result.
    for key, trial in sorted(trials.items(), key=lambda item: item[1].contender.role != "layer"):
        if key in left_out:
            trial.notes.append(left_out[key])
            continue
        try:
            prepare_trial(trial)
        except Exception as error:
            if not settings.forgiving:
                raise
            trial.fail(error, settings.device)
    prepare_trial.clear()
    named = {"/".join(key): trial for key, trial in trials.items()}
    timings = time_trials(named, settings, rounds=settings.rounds)
    ours = next((name for name, trial in named.items() if trial.contender.role == "layer"), None)
    reference = None if ours is None else (timings.get(ours), named[ours].batch)
    return {
        key: _record(case, which, trial, timings.get("/".join(key)), reference, settings)
        for key, trial in trials.items()
    }


class _TrialPreparer:
    """Builds the module of each trial, makes its first call, and compares the result.

    Where memory does not suffice, the batch is halved.
    """

    def __init__(self, case: Case, which: Pass, settings: Settings) -> None:
        self.case = case
        self.which: Pass = which
        self.settings = settings
        self.ours = make_layer(case, "auto", settings.dtype, settings.device)
        self.inputs = make_inputs(case, settings.dtype, settings.device, channels_last=settings.channels_last)
        self.watch = Stopwatch(settings.device)
        self.reference_kernels = _reference_kernels(case, which, settings)
        # By batch: the result that is expected, and the name of the layer that computed it.
        self.expected: dict[int, tuple[str, Result]] = {}

    def __call__(self, trial: LayerTrial) -> None:
        while trial.batch and trial.run is None:
            if shortage := self._memory_shortage(trial):
                _halve(trial, shortage)
                continue
            try:
                result = self._first_call(trial)
            except (MemoryError, RuntimeError, ValueError) as error:
                # Some kernels raise ValueError only here for a case that they do not support.
                if is_out_of_memory(error):
                    _halve(trial, str(error) if isinstance(error, MemoryError) else OUT_OF_MEMORY[0])
                elif isinstance(error, ValueError):
                    trial.notes.append(f"cannot take part: {error}")
                    return
                else:
                    raise
            else:
                self._compare(trial, result)
                return
            release(self.settings.device)

    def clear(self) -> None:
        """Free the results before the timing, which needs the memory."""
        self.expected.clear()
        gc.collect()

    def _memory_shortage(self, trial: LayerTrial) -> str:
        """Return the reason if a trial is known to need more memory than is free, else ""."""
        settings = self.settings
        case = replace(self.case, batch=trial.batch)
        training = self.which == "train"
        required = trial.contender.required_bytes(case, training, settings.dtype, settings.device)
        free = free_memory(torch.device(settings.device))
        if required > FREE_FRACTION * free:
            return f"needs about {required / 2**30:.0f} GiB, {free / 2**30:.0f} GiB are free"
        return ""

    def _first_call(self, trial: LayerTrial) -> Result:
        settings, contender = self.settings, trial.contender
        case = replace(self.case, batch=trial.batch)
        module = build_module(contender, case, settings.dtype, settings.device, settings.channels_last)
        if contender.copy_weights_from is not None:
            contender.copy_weights_from(self.ours, module)
        x, upstream = (each[: trial.batch] for each in self.inputs)
        run = prepare(module, self.which, x, upstream)
        trial.first, result = self.watch.first(run)
        trial.run, trial.min_bytes = run, min_bytes(module, self.which, x)
        return result

    def _compare(self, trial: LayerTrial, result: Result) -> None:
        """Compare a first result with the expected one for its batch, if the functions are the same.

        The expected result is that of a reference kernel (`_reference_kernels`) or else that of our layer,
        which is computed again where the contender has a smaller batch than our layer.

        Raises:
            CheckError: They differ by more than rounding.
        """
        contender, batch = trial.contender, trial.batch
        if contender.copy_weights_from is None:
            return
        if batch not in self.expected and self.reference_kernels:
            self._compute_reference(batch)
        if contender.role == "layer" and batch not in self.expected:
            if self.reference_kernels:
                trial.notes.append("compared with no other kernel in this case")
            self.expected[batch] = OURS, result
            return
        if batch not in self.expected and batch <= max(self.expected, default=0):
            self.expected[batch] = OURS, self._result_of(self.ours, batch)
        if batch in self.expected:
            name, expected = self.expected[batch]
            trial.error = max_difference(result, expected)
            dtype = self.settings.dtype
            comparison = f"{self.which} in {str(dtype).removeprefix('torch.')}, against {name}"
            require_close(trial.error, ROUNDED[dtype], contender, self.case, comparison)

    def _compute_reference(self, batch: int) -> None:
        """Compute the expected result by the first reference kernel that serves."""
        settings, case = self.settings, replace(self.case, batch=batch)
        for kernel in self.reference_kernels:
            try:
                layer = make_layer(case, kernel, settings.dtype, settings.device)
                layer.load_state_dict(self.ours.state_dict())
                self.expected[batch] = f"{OURS} by {kernel}", self._result_of(layer, batch)
                return
            except Exception:  # any error: the next kernel is tried
                if is_lost(settings.device):
                    raise
            release(settings.device)

    def _result_of(self, layer: LambdaLayer, batch: int) -> Result:
        return prepare(layer, self.which, *(each[:batch] for each in self.inputs))()


def _halve(trial: LayerTrial, reason: str) -> None:
    if trial.batch == 1:
        trial.notes.clear()
    trial.halve(reason, f"left out: {reason}, even with one example")


def _reference_kernels(case: Case, which: Pass, settings: Settings) -> list[str]:
    """Return the kernels that our layer is compared with where it selects Triton's, else none."""
    problem = case.problem(train=which == "train", dtype=settings.dtype, device=settings.device)
    made = plan(problem)
    if COMPILED_KERNEL not in (made.kernel, made.backward_kernel):
        return []
    return [
        kernel
        for kernel in REFERENCE_KERNELS
        if all(row.cost is not None for row in plan_rows(problem, kernel))
    ]


def _record(
    case: Case,
    which: Pass,
    trial: LayerTrial,
    timing: Timing | None,
    ours: tuple[Timing | None, int] | None,
    settings: Settings,
) -> LayerRecord:
    """Return the row of a trial; `ours` is the timing and the batch of our layer."""
    contender = trial.contender
    record = LayerRecord(
        case=case.name,
        title=str(case),
        series=case.series,
        grid="x".join(map(str, case.grid)),
        scope="x".join(map(str, case.scope)) if case.scope else "global",
        batch=trial.batch if timing else case.batch,
        dim=case.dim,
        num_heads=case.num_heads,
        dim_k=case.dim_k,
        dim_u=case.dim_u,
        mode=which,
        contender=contender.name,
        role=contender.role,
        layout="channels_last" if settings.channels_last else "contiguous",
        note="; ".join(trial.notes),
        error=trial.error,
    )
    if timing is None:
        return record
    record = replace(
        record,
        note="; ".join([*trial.notes, *([f"one call{timing.unwarmed}"] if timing.single else [])]),
        gbytes=trial.min_bytes / 1e9,
        **timing.columns(),
    )
    base, batch = ours or (None, 0)
    if base is None:
        return record
    columns, examples = base.columns(), batch / trial.batch
    return replace(
        record,
        ratio=examples * record.wall_ms / columns["wall_ms"],
        ratio_cpu=examples * record.cpu_ms / columns["cpu_ms"],
    )


def _with_throughput(
    record: LayerRecord, case: Case, contender: Contender, settings: Settings, machine: Machine
) -> LayerRecord:
    """Add the speed of a row as fractions of the machine's.

    All rows get the fraction of the copy's bytes per second, rows of our layer and its kernels also that of
    the matrix product's operations per second. Operations are those of the selected kernels and of the
    projections, which take twice as many in the backward pass.
    """
    record = replace(record, of_copy=1e3 * record.gbytes / record.wall_ms / machine.copy_gbs)
    if contender.role not in ("layer", "kernel"):
        return record
    problem = case.problem(train=record.mode == "train", dtype=settings.dtype, device=settings.device)
    made = plan(problem)
    kernel = contender.name
    operator = made.flops
    if contender.role == "layer":
        kernels = dict.fromkeys(name for name in (made.kernel, made.backward_kernel) if name)
        kernel = " + ".join(kernels)
    else:
        costs = [row.cost for row in plan_rows(problem, kernel) if row.cost is not None]
        operator = sum(cost.flops for cost in costs) + content_flops(problem)
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


def _with_memory(record: LayerRecord, case: Case, which: Pass, settings: Settings) -> LayerRecord:
    job = LayerJob(
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
        found = peak_mib(job)
    except Exception as error:
        if not settings.forgiving:
            raise
        found = describe_error(error)
    if isinstance(found, str):
        return replace(record, note="; ".join(filter(None, (record.note, f"memory: {found}"))))
    return replace(record, peak_mib=found)
