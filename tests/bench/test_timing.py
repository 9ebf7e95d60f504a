"""Who is called how often, in which order, and what the samples say."""

import time
from typing import Any

import pytest
import torch

from lambdanets.bench.timing import (
    Stopwatch,
    Timing,
    alternate,
    full_float32,
    measure_machine,
    quantiles,
)


def test_all_take_turns_each_round_in_another_order() -> None:
    called: list[str] = []

    def call(name: str):
        def run() -> None:
            called.append(name)
            time.sleep(6e-3)

        return run

    first = {name: Timing(wall=[6.0]) for name in "abc"}
    timings = alternate(
        {name: call(name) for name in "abc"}, rounds=5, first=first, max_seconds=1, device="cpu"
    )
    rounds = ["".join(called[start : start + 3]) for start in range(3, len(called), 3)]
    assert len(rounds) == 5
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert len(set(rounds)) > 1
    for timing in timings.values():
        assert len(timing.wall) == len(timing.cpu) == 5
        assert min(timing.wall) >= 6
        assert max(timing.cpu) < min(timing.wall), "sleeping takes no processor time"
        assert not timing.single


def test_short_calls_are_timed_several_at_once() -> None:
    called = []
    timings = alternate(
        {"a": lambda: called.append(1)},
        rounds=3,
        first={"a": Timing(wall=[0.001])},
        max_seconds=1,
        device="cpu",
    )
    assert len(timings["a"].wall) == 3
    assert len(called) == 1 + 3 * 200
    assert max(timings["a"].wall) < 5, "milliseconds of one call, not of all"


def test_a_slow_first_call_is_the_only_one() -> None:
    def never() -> None:
        raise AssertionError("called again")

    first = Timing(wall=[2500.0], cpu=[2400.0])
    timings = alternate({"slow": never}, rounds=5, first={"slow": first}, max_seconds=2, device="cpu")
    assert timings["slow"] == Timing(wall=[2500.0], cpu=[2400.0], single=True)


def test_quantiles() -> None:
    assert quantiles([5.0, 1.0, 2.0, 3.0, 4.0, 6.0]) == pytest.approx((3.5, 2.0, 5.0))
    assert quantiles([7.0]) == (7.0, 7.0, 7.0)


def test_the_first_call_is_one_call_on_a_processor_and_gives_what_it_gave() -> None:
    called: list[int] = []
    timing, result = Stopwatch("cpu").first(lambda: called.append(1) or "result")
    assert (called, result) == ([1], "result")
    assert (len(timing.wall), len(timing.cpu), timing.single) == (1, 1, False)


def test_float32_is_float32_and_what_was_allowed_before_is_allowed_after() -> None:
    kinds: Any = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [kind.fp32_precision for kind in kinds]
    assert before[0] == "tf32"
    with full_float32():
        assert [kind.fp32_precision for kind in kinds] == ["ieee", "ieee"]
    assert [kind.fp32_precision for kind in kinds] == before
    assert torch.backends.cudnn.allow_tf32, "the older words are understood as before"


def test_float32_is_float32_where_the_newer_words_have_allowed_less() -> None:
    products: Any = torch.backends.cuda.matmul
    before = products.fp32_precision
    products.fp32_precision = "tf32"
    try:
        with pytest.raises(RuntimeError, match="mix of the legacy and new APIs"):
            assert products.allow_tf32
        with full_float32():
            assert products.fp32_precision == "ieee"
        assert products.fp32_precision == "tf32"
    finally:
        products.fp32_precision = before


@pytest.mark.parametrize("calls", [1, 3])
def test_who_fails_in_turn_takes_nobody_along(calls: int) -> None:
    """At once, or after two good calls."""
    called: list[int] = []
    told: list[str] = []

    def fail() -> None:
        called.append(1)
        if len(called) >= calls:
            raise RuntimeError("no more")

    def race(**how: Any) -> dict[str, Timing]:
        called.clear()
        first = {"bad": Timing(wall=[10.0]), "good": Timing(wall=[10.0])}
        runs = {"bad": fail, "good": lambda: time.sleep(1e-3)}
        return alternate(runs, rounds=4, first=first, max_seconds=1, device="cpu", **how)

    timings = race(failed=lambda name, error: told.append(f"{name}: {error}"))
    assert told == ["bad: no more"]
    assert len(called) == calls
    assert timings.keys() == {"good"}
    assert len(timings["good"].wall) == 4
    with pytest.raises(RuntimeError, match="no more"):
        race()


def test_processor_time_counts_work() -> None:
    def work() -> None:
        end = time.process_time() + 0.02
        while time.process_time() < end:
            pass

    wall, cpu = Stopwatch("cpu").sample(work)
    assert 20 <= cpu < wall + 5


def test_the_machine_has_a_speed() -> None:
    found = measure_machine(torch.float32, "cpu", side=256, times=3)
    assert found.gflops > 0.1
    assert found.gflops_cpu > 0.1
    assert found.copy_gbs > 0.05
