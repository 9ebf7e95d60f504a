"""The benchmark of layers on cases of milliseconds: contenders, refusals, and the rows of each."""

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from lambdanets.bench import (
    CONTENDERS,
    Case,
    CheckError,
    Contender,
    DeviceLost,
    LayerRecord,
    Machine,
    Settings,
    layer_bench,
    measure_layers,
    timing,
)
from lambdanets.bench.contenders import find_contender
from lambdanets.bench.layer_bench import _reference_kernels
from lambdanets.ops import plan

CASE = Case(name="tiny", grid=(6, 5), batch=2, dim=16)
OURS = find_contender("lambdanets", "layer")
SETTINGS = Settings(rounds=2, memory=False)


def row_of(rows: list[LayerRecord], name: str, mode: str = "train", case: str = "tiny") -> LayerRecord:
    return next(row for row in rows if (row.contender, row.mode, row.case) == (name, mode, case))


def test_a_row_for_each_contender_and_pass(machine: Machine) -> None:
    saved: list[int] = []
    reported: list[str] = []
    rows = measure_layers(
        [CASE], SETTINGS, machine, save=lambda rows: saved.append(len(rows)), report=reported.append
    )
    assert len(rows) == 2 * len(CONTENDERS)
    assert saved == [len(CONTENDERS), 2 * len(CONTENDERS)]
    assert reported[0] == "tiny: 2x16, 6x5 global; comparing results"
    for row in rows:
        if row.samples:
            assert row.samples == 2
            assert 0 < row.wall_q20 <= row.wall_ms <= row.wall_q80
            assert row.ratio > 0
            assert math.isnan(row.gflop) == (row.role not in ("layer", "kernel"))
            assert math.isnan(row.error64) == (row.role == "other")
        else:
            assert row.note
    ours, peer = row_of(rows, "lambdanets"), row_of(rows, "timm")
    assert ours.ratio == ours.ratio_cpu == 1
    assert peer.ratio == pytest.approx(peer.wall_ms / ours.wall_ms)
    assert 0 < peer.error < 1e-5
    assert peer.error64 < 1e-12
    assert ours.of_gemm == pytest.approx(ours.gflop / ours.wall_ms * 1e3 / machine.gflops)
    assert ours.of_gemm_cpu == pytest.approx(ours.gflop / ours.cpu_ms * 1e3 / machine.gflops_cpu)
    # Projections alone: queries 64, keys 16 and values 4 of 16 channels, three times in training.
    assert ours.gflop > 3 * 2 * 2 * 30 * 16 * 84 / 1e9
    assert row_of(rows, "lambdanets", "eval").kernel


class Wrong(nn.Module):
    """Our layer in float64, where the crop is checked, and a little more than it otherwise."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.layer = OURS.build(case)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * (1 if x.dtype == torch.float64 else 1.01)


def test_a_result_that_differs_stops_everything(machine: Machine) -> None:
    def copy_weights(ours: nn.Module, theirs: Any) -> None:
        theirs.layer.load_state_dict(ours.state_dict())

    broken = Contender(name="broken", role="peer", build=Wrong, copy_weights_from=copy_weights)
    with pytest.raises(CheckError, match=r"broken is wrong on tiny .*float32.* 1\.0e-02 .*No speed"):
        measure_layers([CASE], SETTINGS, machine, contenders=[OURS, broken])


def test_who_refuses_has_a_row_with_the_reason(machine: Machine) -> None:
    other = Contender(
        name="shy",
        role="other",
        build=OURS.build,
        unsupported=lambda case, dtype, device: "cannot take part: shy",
    )
    rows = measure_layers([CASE], replace(SETTINGS, passes=("eval",)), machine, contenders=[OURS, other])
    shy = row_of(rows, "shy", "eval")
    assert (shy.note, shy.samples) == ("cannot take part: shy", 0)
    assert math.isnan(shy.wall_ms)


def test_who_needs_too_much_memory_is_left_out_before_it_runs(machine: Machine) -> None:
    def never(case: Case) -> nn.Module:
        raise AssertionError("was built")

    large = Contender(name="large", role="other", build=never, required_bytes=lambda case, *how: 2**60)
    rows = measure_layers([CASE], replace(SETTINGS, passes=("eval",)), machine, contenders=[OURS, large])
    assert row_of(rows, "large", "eval").note.startswith("left out: needs about 1073741824 GiB")


class Short(nn.Module):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise self.error


def test_memory_that_runs_out_is_a_row_and_a_bug_is_not(machine: Machine) -> None:
    settings = replace(SETTINGS, passes=("eval",))

    def failing(error: Exception) -> Contender:
        return Contender(name="short", role="other", build=lambda case: Short(error))

    for error, note in (
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            "left out: out of memory, even with one example",
        ),
        (MemoryError("needs 3 GiB"), "left out: needs 3 GiB, even with one example"),
        (ValueError("odd sizes only"), "cannot take part: odd sizes only"),
    ):
        rows = measure_layers([CASE], settings, machine, contenders=[OURS, failing(error)])
        assert row_of(rows, "short", "eval").note == note
    with pytest.raises(RuntimeError, match="shapes"):
        measure_layers([CASE], settings, machine, contenders=[OURS, failing(RuntimeError("shapes differ"))])


class OneAtATime(nn.Module):
    """Our layer where memory suffices for one example."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.layer = OURS.build(case)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype == torch.float32 and len(x) > 1:
            raise torch.OutOfMemoryError
        return self.layer(x)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_who_is_out_of_memory_goes_on_with_half_the_batch(machine: Machine, mode: Any) -> None:
    def copy_weights(ours: nn.Module, theirs: Any) -> None:
        theirs.layer.load_state_dict(ours.state_dict())

    lean = Contender(name="lean", role="peer", build=OneAtATime, copy_weights_from=copy_weights)
    case = replace(CASE, batch=5)
    rows = measure_layers([case], replace(SETTINGS, passes=(mode,)), machine, contenders=[OURS, lean])
    ours, half = rows
    assert (ours.batch, ours.note) == (5, "")
    assert half.batch == 1
    assert half.title == ours.title == "5x16, 6x5 global"
    assert half.note == "out of memory at batch 5, halved; out of memory at batch 2, halved"
    assert half.ratio == pytest.approx(5 * half.wall_ms / ours.wall_ms)
    assert 0 <= half.error < 1e-5, "compared with our layer at its own batch"


def test_who_needs_half_the_batch_by_the_sizes_has_it_from_the_start(machine: Machine) -> None:
    class Few(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert len(x) == 1
            return x

    few = Contender(
        name="few",
        role="other",
        build=lambda case: Few(),
        required_bytes=lambda case, *how: 2**60 if case.batch > 1 else 0,
    )
    _, row = measure_layers([CASE], replace(SETTINGS, passes=("eval",)), machine, contenders=[OURS, few])
    assert (row.batch, row.samples) == (1, 2)
    assert re.fullmatch(r"needs about 1073741824 GiB, \d+ GiB are free at batch 2, halved", row.note)


def test_a_result_that_differs_is_a_row_without_times_where_that_is_forgiven(machine: Machine) -> None:
    def copy_weights(ours: nn.Module, theirs: Any) -> None:
        theirs.layer.load_state_dict(ours.state_dict())

    broken = Contender(name="broken", role="peer", build=Wrong, copy_weights_from=copy_weights)
    wrong = replace(
        broken, name="wrong", build=lambda case: Wrong(case).requires_grad_(), copy_weights_from=_scaled
    )
    failing = replace(broken, name="failing", build=lambda case: Short(AttributeError("no such program\nat")))
    who = [OURS, broken, wrong, replace(failing, copy_weights_from=None)]
    rows = measure_layers([CASE], replace(SETTINGS, forgiving=True), machine, contenders=who)
    assert all(row.samples == 2 for row in rows if row.contender == "lambdanets")
    assert row_of(rows, "failing").note == "failed: AttributeError: no such program"
    for name, how in (("broken", "float32, against lambdanets"), ("wrong", "on a crop in float64")):
        row = row_of(rows, name)
        assert (row.samples, row.wall_ms) == (0, pytest.approx(math.nan, nan_ok=True))
        assert how in row.note
        assert "No speed is shown" in row.note


def _scaled(ours: nn.Module, theirs: Any) -> None:
    theirs.layer.load_state_dict(ours.state_dict())
    with torch.no_grad():
        theirs.layer.positions.mul_(1.01)


FORGIVING = replace(SETTINGS, passes=("eval",), forgiving=True)


class FailsLater(nn.Module):
    """Serves the first call and fails from the second on."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls > 1:
            raise RuntimeError("an illegal memory access")
        return x


def test_who_fails_while_it_is_timed_is_a_row_where_that_is_forgiven(machine: Machine) -> None:
    later = Contender(name="later", role="other", build=FailsLater)
    ours, row = measure_layers([CASE], FORGIVING, machine, contenders=[OURS, later])
    assert ours.samples == 2
    assert (row.note, row.samples) == ("failed: RuntimeError: an illegal memory access", 0)
    with pytest.raises(RuntimeError, match="an illegal memory access"):
        measure_layers([CASE], replace(FORGIVING, forgiving=False), machine, contenders=[OURS, later])


def test_a_peak_that_fails_costs_no_times_where_that_is_forgiven(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(job: Any) -> float:
        raise RuntimeError("no such program")

    monkeypatch.setattr(layer_bench, "peak_mib", fail)
    settings = replace(FORGIVING, memory=True)
    (ours,) = measure_layers([CASE], settings, machine, contenders=[OURS])
    assert (ours.samples, ours.note) == (2, "memory: failed: RuntimeError: no such program")
    with pytest.raises(RuntimeError, match="no such program"):
        measure_layers([CASE], replace(settings, forgiving=False), machine, contenders=[OURS])


def test_who_loses_the_gpu_has_a_row_and_takes_no_part_afterwards(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[LayerRecord] = []
    later = Contender(name="later", role="other", build=FailsLater)
    who: dict[str, Any] = {"contenders": [OURS, later]}
    with monkeypatch.context() as patch:
        patch.setattr(timing, "is_lost", lambda device: True)
        with pytest.raises(DeviceLost):
            measure_layers([CASE], FORGIVING, machine, **who, save=lambda rows: saved.extend(rows))
    (row,) = saved
    assert (row.contender, row.note) == ("later", "failed: RuntimeError: an illegal memory access")
    known = {("tiny", "eval", ("later", "other")): row.note}
    ours, again = measure_layers([CASE], FORGIVING, machine, **who, known=known)
    assert ours.samples == 2
    assert (again.note, again.samples) == (row.note, 0)


def test_who_loses_the_gpu_on_the_crop_has_rows_of_every_pass(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[LayerRecord] = []
    broken = Contender(
        name="broken", role="peer", build=lambda case: Short(RuntimeError("lost")), copy_weights_from=_none
    )
    settings = replace(FORGIVING, passes=("train", "eval"))
    monkeypatch.setattr(layer_bench, "is_lost", lambda device: True)
    with pytest.raises(DeviceLost):
        measure_layers(
            [CASE], settings, machine, contenders=[OURS, broken], save=lambda rows: saved.extend(rows)
        )
    assert [(row.contender, row.mode, row.note) for row in saved] == [
        ("broken", mode, "failed: RuntimeError: lost") for mode in ("train", "eval")
    ]
    monkeypatch.undo()
    known = {("tiny", row.mode, ("broken", "peer")): row.note for row in saved}
    again = measure_layers(
        [CASE], settings, machine, contenders=[OURS, broken], known=known, save=lambda rows: None
    )
    assert [row.samples for row in again if row.contender == "lambdanets"] == [2, 2]
    assert [row.note for row in again if row.contender == "broken"] == [row.note for row in saved]


def _none(ours: nn.Module, theirs: nn.Module) -> None:
    pass


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_programs_of_our_own_are_compared_with_another_kernel(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, mode: Any
) -> None:
    """Or, where our layer takes them and they are wrong, everybody else would be."""

    def copy_weights(ours: nn.Module, theirs: Any) -> None:
        theirs.layer.load_state_dict(ours.state_dict())

    monkeypatch.setattr(layer_bench, "_reference_kernels", lambda *how: ["fft", "conv"])
    broken = replace(OURS, build=Wrong, copy_weights_from=copy_weights)
    peer = find_contender("timm", "peer")
    settings = replace(FORGIVING, passes=(mode,))
    ours, theirs = measure_layers([CASE], settings, machine, contenders=[broken, peer])
    assert (ours.samples, ours.error) == (0, pytest.approx(0.01, rel=0.1))
    assert f"{mode} in float32, against lambdanets by fft, it differs" in ours.note
    assert theirs.samples == 2
    assert theirs.error < 1e-5
    monkeypatch.setattr(layer_bench, "_reference_kernels", lambda *how: ["none", "conv"])
    ours, _ = measure_layers([CASE], settings, machine, contenders=[OURS, peer])
    assert 0 <= ours.error < 1e-5, "the first that serves"
    monkeypatch.setattr(layer_bench, "_reference_kernels", lambda *how: ["none"])
    ours, theirs = measure_layers([CASE], settings, machine, contenders=[OURS, peer])
    assert (ours.samples, ours.note) == (2, "compared with no other kernel in this case")
    assert theirs.error < 1e-5


def test_who_says_what_is_right_is_asked_where_our_layer_takes_triton(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for device, judges in (("cpu", []), ("cuda", ["attention", "fft", "conv", "reference"])):
        if device == "cuda" and not any(each.name == "triton" for each in CONTENDERS):
            continue
        settings = replace(SETTINGS, device=device, dtype=torch.bfloat16)
        taken = plan(CASE.problem(dtype=torch.bfloat16, device=device)).kernel
        assert _reference_kernels(CASE, "eval", settings) == (judges if taken == "triton" else [])


def test_every_pass_moves_its_input_output_and_weights(machine: Machine) -> None:
    settings = replace(SETTINGS, channels_last=True, dtype=torch.bfloat16)
    convolution = find_contender("3x3 conv", "other")
    rows = measure_layers([CASE], settings, machine, contenders=[OURS, convolution])
    numbers = 2 * 2 * 16 * 6 * 5 + 9 * 16 * 16
    row = row_of(rows, "3x3 conv")
    assert row.layout == "channels_last"
    assert row.gbytes == pytest.approx(2 * 2 * numbers / 1e9)
    assert row_of(rows, "3x3 conv", "eval").gbytes == pytest.approx(2 * numbers / 1e9)
    assert row.of_copy == pytest.approx(1e3 * row.gbytes / row.wall_ms / machine.copy_gbs)


def test_on_a_curve_the_slow_stop(machine: Machine) -> None:
    points = [Case(name=f"p{side}", grid=(side, side), dim=16, batch=2, series="curve") for side in (4, 6)]
    settings = replace(SETTINGS, passes=("eval",), max_seconds=1e-9)
    rows = measure_layers(points, settings, machine, contenders=[OURS])
    first, second = rows
    assert (first.note, first.samples) == ("one call, without a warm-up", 1)
    assert second.samples == 0
    assert second.note.endswith("at 4x4 already")
