import math
from itertools import pairwise

import pytest

from lambdanets.train import ScheduleConfig
from lambdanets.train.optim import lr_factor


def factors(config: ScheduleConfig, epochs: int = 10, steps: int = 5) -> list[float]:
    total = epochs * steps
    return [lr_factor(step, config, total_steps=total, steps_per_epoch=steps) for step in range(total)]


def test_warmup_is_linear_and_ends_at_the_peak() -> None:
    values = factors(ScheduleConfig(warmup_epochs=2))
    assert values[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert max(values) == values[9] == values[10] == 1.0


def test_warmup_may_start_above_zero_and_last_a_fraction_of_an_epoch() -> None:
    values = factors(ScheduleConfig(warmup_epochs=0.4, start=0.5))
    assert values[:3] == pytest.approx([0.75, 1.0, 1.0])


def test_cosine_passes_through_its_known_points() -> None:
    values = factors(ScheduleConfig(name="cosine", final=0.1))
    assert values[0] == 1.0
    assert values[25] == pytest.approx(0.55)
    assert values[-1] == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 49 / 50)))
    assert all(later < earlier for earlier, later in pairwise(values))


def test_linear_and_constant() -> None:
    assert factors(ScheduleConfig(name="linear"))[::10] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])
    assert set(factors(ScheduleConfig(name="constant"))) == {1.0}


def test_steps_drop_to_a_tenth_each() -> None:
    values = factors(ScheduleConfig(name="steps", warmup_epochs=2, drops=(0.5, 0.8)))
    assert values[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert values[10:25] == [1.0] * 15
    assert values[25:40] == pytest.approx([0.1] * 15)
    assert values[40:] == pytest.approx([0.01] * 10)
    for drops in ((0.8, 0.5), (0.5, 0.5), (0.5, 1.0), (0.0,)):
        with pytest.raises(ValueError, match=r"schedule\.drops"):
            ScheduleConfig(name="steps", drops=drops)


def test_a_run_shorter_than_its_warmup_never_divides_by_zero() -> None:
    values = factors(ScheduleConfig(warmup_epochs=20), epochs=2)
    assert values == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert lr_factor(10, ScheduleConfig(warmup_epochs=20), total_steps=10, steps_per_epoch=5) == 1.0


@pytest.mark.parametrize("wrong", [{"warmup_epochs": -1}, {"final": 1.5}, {"start": -0.1}])
def test_impossible_schedules_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ScheduleConfig(**wrong)  # pyright: ignore[reportArgumentType]
