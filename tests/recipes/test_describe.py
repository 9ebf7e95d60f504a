"""Descriptions of recipes and estimates of their cost: by hand, and against the measured rows."""

import csv
from pathlib import Path

import pytest

from lambdanets.recipes import costs, describe, get_recipe, list_recipes
from lambdanets.recipes.cost import estimate_cost
from lambdanets.recipes.imagenet import ROWS
from lambdanets.train import override

RACE = Path(__file__).parents[2] / "benchmarks" / "models" / "race.csv"


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_describes_source_expectation_needs_and_command(name: str) -> None:
    sections = describe(name).sections
    assert [*sections] in (
        ["Follows", "Expect", "Needs", "Command"],
        ["Follows", "Measured", "Needs", "Command"],
    )
    assert sections["Command"].startswith(f"lambdanets train {name}")
    assert all(text and "  " not in text for text in sections.values())


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no recipe 'digit'"):
        describe("digit")


def test_rates_are_those_of_the_rows_that_were_measured() -> None:
    with RACE.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["mode"] == "train"]
    measured = {row["title"]: 1e3 * int(row["batch"]) / float(row["wall_ms"]) for row in rows}
    published = {row["title"]: float(row["published_seconds"]) for row in rows if row["published_seconds"]}
    for row in ROWS:
        title = f"{row.depth}@{row.size}"
        assert (row.cpu_rate is None) == (title not in measured)
        if row.cpu_rate is not None:
            assert row.cpu_rate == pytest.approx(measured[title], rel=5e-3)
            assert row.seconds == published[title]
            assert str(row.cpu_rate) in describe(row.name).sections["Needs"]


def test_one_device_takes_the_images_by_its_rate() -> None:
    config = override(get_recipe("digits"), "engine.epochs=3")
    found = estimate_cost(
        config, parameters=10**6, images_per_second=100.0, devices=1, images=(6400, 0), link=1e9
    )
    assert found.hours == pytest.approx(3 * 64.0 / 3600)
    assert found.communication == 0


def test_gradients_go_around_a_ring_after_each_step() -> None:
    """4 devices of 50 images/s, steps of 200 images: 1 s each, then 2 x 3/4 x 4 MB at 2 MB/s: 3 s more."""
    config = override(get_recipe("digits"), "engine.epochs=2", "engine.global_batch=200")
    found = estimate_cost(
        config, parameters=10**6, images_per_second=50.0, devices=4, images=(1000, 0), link=2e6
    )
    assert found.hours == pytest.approx(2 * 5 * 4 / 3600)
    assert found.communication == pytest.approx(0.75)
    assert found.device_hours == pytest.approx(4 * found.hours)
    assert found.batch_size == 50


def test_validation_costs_a_forward_pass_of_each_network() -> None:
    plain = override(get_recipe("digits"), "engine.epochs=1")
    averaged = override(plain, "engine.ema=0.9")
    one, two = (
        estimate_cost(config, parameters=1, images_per_second=10.0, devices=1, images=(64, 300)).hours
        for config in (plain, averaged)
    )
    assert (one * 3600, two * 3600) == (pytest.approx(6.4 + 10), pytest.approx(6.4 + 20))


def test_a_step_that_devices_cannot_share_evenly_has_no_batch_size() -> None:
    config = get_recipe("imagenet-350-50@128")
    eight, odd, many = costs(config, images_per_second=100.0, devices=(8, 24, 512))
    assert (eight.batch_size, odd.batch_size, many.batch_size) == (64, None, 8)


@pytest.mark.parametrize("name", ["images_per_second", "devices", "link"])
def test_what_is_not_above_zero_is_refused(name: str) -> None:
    settings = {"images_per_second": 1.0, "devices": 1, "link": 1.0} | {name: 0}
    with pytest.raises(ValueError, match=f"{name} is above 0; got 0"):
        estimate_cost(get_recipe("digits"), parameters=1, **settings)
