"""A bench of networks of milliseconds: every row, and what happens when memory or time runs out."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from lambdanets.bench import (
    DeviceLost,
    Limits,
    Machine,
    Measured,
    NetworkSpec,
    Provenance,
    Settings,
    check_networks,
    measure_networks,
    network_bench,
    select_networks,
    timing,
)
from lambdanets.bench.networks import NetworkJob

PAIR = select_networks(["lambda_resnet_digits", "resnet_digits_conv"])
SETTINGS = Settings(rounds=2, memory=False)
LIMITS = Limits(batch=4)


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> None:
    """A machine of known speed: measuring it takes longer than these networks."""
    monkeypatch.setattr(network_bench, "measure_machine", lambda dtype, device: machine)


def bench(
    *, settings: Settings = SETTINGS, limits: Limits = LIMITS, who: Any = PAIR, **more: Any
) -> list[Measured]:
    return measure_networks("models", who, settings, limits, **more)


def test_a_row_for_each_network_and_pass_with_its_provenance() -> None:
    saved: list[int] = []
    told: list[tuple[str, float]] = []
    found = bench(
        save=lambda rows: saved.append(len(rows)), report=lambda what, done: told.append((what, done))
    )
    assert [(row.model, row.mode) for row, _ in found] == [
        (entry.model, mode) for entry in PAIR for mode in ("train", "eval")
    ]
    assert saved == [0, 2, 4]
    for row, where in found:
        assert (row.batch, row.wanted_batch, row.samples, row.size, row.note) == (4, 4, 2, "8", "")
        assert 0 < row.wall_q20 <= row.wall_ms <= row.wall_q80
        assert row.images_per_s == pytest.approx(4000 / row.wall_ms)
        assert row.parameters > 1000
        assert row.macs > 1000
        assert math.isnan(row.peak_mib)
        assert where.torch == torch.__version__
    assert [row.group for row, _ in found] == [1, 2, 1, 2]  # both took turns, first in training
    shares = [done for _, done in told]
    assert shares == sorted(shares)
    assert told[-1] == ("done", 1.0)
    assert any(
        "training step in turn: lambda_resnet_digits@8, resnet_digits_conv@8" in what for what, _ in told
    )


def test_peaks_come_from_a_process_of_their_own() -> None:
    if not network_bench.peak_mib.__globals__["CLEAR"].exists():
        pytest.skip("this system does not report peaks")
    who = select_networks(["resnet_cifar_conv"])
    settings = replace(SETTINGS, memory=True, rounds=1)
    found = {row.mode: row for row, _ in bench(who=who, settings=settings, limits=Limits(batch=16))}
    weights = 4 * found["train"].parameters / 2**20
    # Weights, gradients and momenta, and at least the stem's output of 16 x 64 x 32 x 32 twice.
    assert found["train"].peak_mib > 3 * weights + 8
    assert weights + 4 < found["eval"].peak_mib < found["train"].peak_mib


@pytest.mark.parametrize("answer", ["out of memory", "killed: out of memory"])
def test_where_memory_does_not_suffice_the_batch_is_halved(
    monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    def peak(job: NetworkJob) -> float | str:
        return answer if job.batch > 1 and job.network is PAIR[0] else 7.0

    monkeypatch.setattr(network_bench, "peak_mib", peak)
    found = bench(settings=replace(SETTINGS, memory=True, passes=("train",)))
    first, second = (row for row, _ in found)
    assert (first.batch, first.wanted_batch, first.samples, first.peak_mib) == (1, 4, 2, 7.0)
    assert first.note == f"{answer} at batch 4, halved; {answer} at batch 2, halved"
    assert (second.batch, second.note) == (4, "")


def test_not_even_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        network_bench, "peak_mib", lambda job: "out of memory" if job.network is PAIR[0] else 7.0
    )
    found = bench(settings=replace(SETTINGS, memory=True, passes=("eval",)))
    first, second = (row for row, _ in found)
    assert (first.batch, first.samples) == (0, 0)
    assert first.note.endswith("not run: out of memory even with one image")
    assert second.samples == 2


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_memory_that_runs_out_here_halves_it_too(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    prepared = NetworkJob.prepare

    def prepare(step: NetworkJob) -> Any:
        if step.batch > 2:
            raise error
        return prepared(step)

    monkeypatch.setattr(NetworkJob, "prepare", prepare)
    for row, _ in bench():
        assert (row.batch, row.samples, row.note) == (2, 2, "out of memory at batch 4, halved")


def test_a_bug_is_not_short_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(step: NetworkJob) -> Any:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(NetworkJob, "prepare", prepare)
    with pytest.raises(RuntimeError, match="shapes differ"):
        bench()


FORGIVING = replace(SETTINGS, passes=("eval",), forgiving=True)


@pytest.mark.parametrize("where", ["prepare", "first step", "in turn", "memory"])
def test_a_network_that_fails_has_a_row_where_that_is_forgiven(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    prepared, calls = NetworkJob.prepare, 0

    def prepare(step: NetworkJob) -> Any:
        run = prepared(step)
        if step.network is not PAIR[0]:
            return run

        def fail() -> Any:
            nonlocal calls
            calls += 1
            if where == "first step" or calls > 1:
                raise AttributeError("no such program\nat all")
            return run()

        if where == "prepare":
            raise AttributeError("no such program")
        return fail

    def peak(job: NetworkJob) -> float:
        if where == "memory" and job.network is PAIR[0]:
            raise AttributeError("no such program")
        return 7.0

    monkeypatch.setattr(NetworkJob, "prepare", prepare)
    monkeypatch.setattr(network_bench, "peak_mib", peak)
    settings = replace(FORGIVING, memory=True)
    found = bench(settings=settings)
    bad, good = (row for row, _ in found)
    assert (bad.samples, bad.batch) == (0, 0)
    assert bad.note == "not run: failed: AttributeError: no such program"
    assert (good.samples, good.note) == (2, "")
    assert bench(settings=settings, earlier=found) == found, "the error would come again"


def test_who_loses_the_gpu_has_a_row_and_the_others_come_when_the_bench_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepared = NetworkJob.prepare
    saved: list[Measured] = []

    def prepare(step: NetworkJob) -> Any:
        if step.network is PAIR[0]:
            raise RuntimeError("an illegal memory access")
        return prepared(step)

    monkeypatch.setattr(NetworkJob, "prepare", prepare)
    monkeypatch.setattr(timing, "is_lost", lambda device: True)
    with pytest.raises(DeviceLost):
        bench(settings=FORGIVING, save=lambda rows: saved.extend(rows))
    ((row, _),) = saved
    assert (row.model, row.note) == (
        PAIR[0].model,
        "not run: failed: RuntimeError: an illegal memory access",
    )
    bad, good = (row for row, _ in bench(settings=FORGIVING, earlier=saved))
    assert bad == row
    assert good.samples == 2


def test_long_steps_have_smaller_batches_unless_the_batch_was_asked_for() -> None:
    settings = replace(SETTINGS, max_seconds=1e-9, rounds=3)
    for row, _ in bench(settings=settings):
        assert (row.batch, row.samples) == (1, 1)
        assert row.note == "batch 1: steps of 4 images would take too long; one step, without a warm-up"
    for row, _ in bench(settings=settings, limits=Limits(batch=4, fixed=True)):
        assert (row.batch, row.samples) == (4, 1)


def test_the_largest_are_left_out_and_say_so() -> None:
    who = select_networks(["lambda_resnet_digits", "resnet50"])
    found = bench(who=who, limits=Limits(batch=2, largest=1.0), settings=replace(SETTINGS, passes=("eval",)))
    assert [row.samples for row, _ in found] == [2, 0]
    assert found[1][0].note == "not run: above the 1 GMAC of --largest"
    assert found[1][0].parameters == 25_557_032


def test_a_row_of_a_table_without_a_network_says_so() -> None:
    who = [*PAIR, NetworkSpec(model="resnet50_of_the_future", size=(8, 8), label="Attention of the future")]
    row = bench(who=who, settings=replace(SETTINGS, passes=("eval",)))[-1][0]
    assert (row.title, row.samples) == ("Attention of the future", 0)
    assert row.note.startswith("not run: there is no model named 'resnet50_of_the_future'")


@pytest.mark.parametrize("memory", [False, True])
def test_who_cannot_train_on_one_image_has_a_row_and_the_others_go_on(
    capfd: pytest.CaptureFixture[str], memory: bool
) -> None:
    """At 2 pixels the last stage has one position, at 8 it has more."""
    who = [*select_networks(["lambda_resnet_digits@2"]), *PAIR]
    settings = replace(SETTINGS, memory=memory, passes=("train",), rounds=1)
    first, *others = (row for row, _ in bench(who=who, settings=settings, limits=Limits(batch=1)))
    assert (first.batch, first.samples) == (0, 0)
    assert first.note.startswith(
        "not run: lambda_resnet_digits cannot take images of 2: Expected more than 1"
    )
    assert [row.samples for row in others] == [1, 1]
    assert "Traceback" not in capfd.readouterr().err


def test_time_without_a_limit() -> None:
    assert all(row.samples == 2 for row, _ in bench(settings=replace(SETTINGS, max_seconds=math.inf)))


def test_those_who_do_not_fit_together_do_not_take_turns_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_bench, "peak_mib", lambda job: 10.0)
    monkeypatch.setattr(network_bench, "free_memory", lambda device: 11 * 2**20)
    found = bench(settings=replace(SETTINGS, memory=True, passes=("eval",)))
    assert [row.group for row, _ in found] == [1, 2]
    assert all(row.samples == 2 for row, _ in found)


def test_what_was_measured_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bench()
    earlier = [(row, where) for row, where in whole if (row.model, row.mode) != (PAIR[1].model, "eval")]
    started: list[tuple[str, str]] = []
    begin = network_bench._first_step

    def start(trial: Any, which: Any, *rest: Any) -> None:
        started.append((trial.network.model, which))
        begin(trial, which, *rest)

    monkeypatch.setattr(network_bench, "_first_step", start)
    again = bench(earlier=earlier)
    assert started == [(PAIR[1].model, "eval")]
    assert again[:3] == earlier
    assert again[3][0].group == 3


def test_going_on_loses_no_row_of_another_network_or_pass() -> None:
    whole = bench()
    again = bench(earlier=whole, who=PAIR[1:], settings=replace(SETTINGS, passes=("train",)))
    assert sorted(again, key=lambda each: each[0].key) == sorted(whole, key=lambda each: each[0].key)
    more = bench(earlier=whole[:2], who=PAIR[1:])
    assert more[:2] == whole[:2]
    assert [(row.model, row.mode) for row, _ in more[2:]] == [(PAIR[1].model, m) for m in ("train", "eval")]


@pytest.mark.parametrize(
    ("name", "was", "now"), [("threads", 99, 1), ("timm", "0.1", "1.99"), ("batch", 8, 4)]
)
def test_rows_that_were_measured_otherwise_are_refused(
    monkeypatch: pytest.MonkeyPatch, where: Provenance, name: str, was: object, now: object
) -> None:
    monkeypatch.setattr(network_bench, "provenance", lambda *_: where)
    earlier = bench(settings=replace(SETTINGS, passes=("eval",)))
    for who in (PAIR, select_networks(["lambda_resnet_digits@10"])):
        other = [
            (replace(row, wanted_batch=was), place)
            if name == "batch"
            else (row, replace(place, **{name: was}))
            for row, place in earlier
        ]
        sentence = rf"measured with {name}={was}, this run has {name}={now}; .* leave --resume"
        with pytest.raises(ValueError, match=sentence):
            bench(who=who, earlier=other)


def test_what_cannot_be_is_refused_before_anything_runs() -> None:
    check_networks(PAIR, SETTINGS, LIMITS)
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        Limits(batch=0)
    for largest in (-1.0, 0.0, math.nan):
        with pytest.raises(ValueError, match=f"largest must be greater than 0, got {largest}"):
            Limits(largest=largest)
    # At 4 pixels the last stage has 2x2 positions; at 2 it has one, which a batch norm cannot train on.
    small = select_networks(["lambda_resnet_digits@2"])
    check_networks(small, replace(SETTINGS, passes=("eval",)), Limits(batch=1))
    with pytest.raises(ValueError, match="cannot take images of 2: Expected more than 1 value per channel"):
        check_networks(small, SETTINGS, Limits(batch=1))
