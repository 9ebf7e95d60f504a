"""Rows survive their file; tables, reports and figures say what the rows say."""

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest

from lambdanets.bench import Table
from lambdanets.bench.networks import Measured, draw, make_tables, markdown, read, write
from lambdanets.bench.networks.labels import _box, _cost, _overlap
from lambdanets.bench.networks.published import REFERENCES


def rows_of(table: Table) -> dict[str, dict[str, str]]:
    return {row[0]: dict(zip(table.headings, row, strict=True)) for row in table.rows}


def test_rows_survive_the_file_each_with_its_provenance(tmp_path: Path, race: list[Measured]) -> None:
    later = [(race[0][0], replace(race[0][1], date="2026-01-03 00:00")), *race[1:]]
    path = tmp_path / "race.csv"
    write(path, later)
    again = read(path, "race")
    assert [where.date for _, where in again[:2]] == ["2026-01-03 00:00", "2026-01-02 03:04"]
    for (row, _), (other, _) in zip(race, again, strict=True):
        assert row.key == other.key
        assert other.seconds == pytest.approx(row.seconds)
        assert other.published_source == "A paper, Table 1"
    with pytest.raises(
        ValueError, match="measured by `lambdanets bench race`, not by `lambdanets bench models`"
    ):
        read(path, "models")


def test_the_race_in_tables(race: list[Measured]) -> None:
    points, matched, rates = make_tables(race)
    row = rows_of(points)["EfficientNet B1"]
    assert row["published: top-1"] == "79.0"
    assert row["published: training"] == "4.00"
    assert row["training"] == "400 ±10%"
    assert row["inference"] == "40.0 ±10%"
    assert "out of memory at batch 8, halved" in points.notes[0]
    assert rows_of(matched)["50@128"]["EfficientNet: training"] == "4.00x"
    assert rows_of(matched)["50@128"]["ResNet-RS: published"] == "-"
    # 0.4 GMAC, three forward passes, 1024 images in 1, 4 and 16 seconds; measured 100 and 10 times as long.
    assert rows_of(rates)["EfficientNet"] == {
        "family": "EfficientNet",
        "networks": "3",
        "published GMAC/s": "307 (77 to 1,229)",
        "training GMAC/s": "3 (1 to 12)",
        "inference GMAC/s": "10 (3 to 41)",
    }


def test_models_in_tables(race: list[Measured]) -> None:
    train, infer = make_tables([(replace(row, bench="models"), where) for row, where in race])
    row = rows_of(train)["efficientnet-b0"]
    assert (row["parameters M"], row["GMAC"], row["batch"]) == ("5.00", "0.4", "4")
    assert row["images/s"] == "10.2 ±10%"
    assert rows_of(infer)["efficientnet-b0"]["images/s"] == "102 ±10%"


def test_the_other_clock(race: list[Measured]) -> None:
    twice = [(replace(row, cpu_ms=2 * row.wall_ms), where) for row, where in race]
    points, matched, _ = make_tables(twice, "process")
    assert rows_of(points)["EfficientNet B1"]["training"].startswith("800")
    assert rows_of(points)["EfficientNet B1"]["published: training"] == "4.00"
    assert rows_of(matched)["50@128"]["EfficientNet: training"] == "4.00x"
    assert "processor milliseconds of all threads" in markdown(twice, clock="process")


def test_a_table_of_the_paper(race: list[Measured]) -> None:
    def of_paper(row, title: str, said: float):
        return replace(
            row, bench="table13", title=title, published_examples_per_s=said, published_parameters_m=5.1
        )

    where = race[0][1]
    first = [(of_paper(row, REFERENCES["table13"], 7000.0), where) for row, _ in race[:2]]
    second = [(of_paper(row, "L-L-L-L", 1750.0), where) for row, _ in race[2:4]]
    speed, memory = make_tables([*first, *second])
    row = dict(zip(speed.headings[:6], speed.rows[1][:6], strict=True))
    assert row["paper: images/s"] == "1,750"
    assert row["paper: parameters M"] == "5.10"
    assert [cell for cell in speed.rows[1] if cell.endswith("x")] == ["0.25x", "0.25x", "0.25x"]
    assert memory.headings[:4] == ("row", "size", "training peak MiB", "batch")
    assert "L-L-L-L is efficientnet-b1" in speed.notes[-1]


def test_what_was_not_run_says_so(race: list[Measured]) -> None:
    left = [
        (
            replace(row, samples=0, wall_ms=float("nan"), peak_mib=float("nan"), note="not run: too large"),
            where,
        )
        if row.title == "B2"
        else (row, where)
        for row, where in race
    ]
    points, matched, rates = make_tables(left)
    assert rows_of(points)["EfficientNet B2"]["training"] == "not run"
    assert rows_of(matched)["50@160"]["EfficientNet: training"] == "-"
    assert rows_of(matched)["50@160"]["EfficientNet: published"] == "2.00x"
    assert rows_of(rates)["EfficientNet"]["training GMAC/s"] == "8 (3 to 12)"
    assert "not run: too large" in markdown(left)


def test_markdown_says_how_and_what_is_published(race: list[Measured]) -> None:
    text = markdown(race, ["race-pareto.png"])
    assert text.startswith("# `lambdanets bench race`")
    assert "nothing is extrapolated" in text
    assert "LambdaNetworks, Table 19" in text
    assert "An Abacus, cpu, 1 thread" in text
    assert "![race-pareto.png](race-pareto.png)" in text


def test_figures(tmp_path: Path, race: list[Measured]) -> None:
    pytest.importorskip("matplotlib", reason="figures need it")
    made = draw(race, tmp_path)
    assert [path.name for path in made] == [
        "race-bars.png",
        "race-bars.svg",
        "race-pareto.png",
        "race-pareto.svg",
    ]
    assert sorted(made) == sorted(tmp_path.iterdir())
    for path in made:
        if path.suffix == ".svg":
            assert ElementTree.parse(path).getroot().tag.endswith("svg")
        else:
            assert path.read_bytes()[:4] == b"\x89PNG"
    models = [(replace(row, bench="models"), where) for row, where in race]
    assert [path.name for path in draw(models, tmp_path)] == ["models-bars.png", "models-bars.svg"]
    nothing = [(replace(row, samples=0), where) for row, where in race]
    assert draw(nothing, tmp_path) == []


def test_names_keep_away_from_one_another() -> None:
    frame = (0.0, 0.0, 100.0, 100.0)
    right = _box(50, 50, "B0", 7, 0)
    left = _box(50, 50, "B0", 7, 180)
    assert right[0] == pytest.approx(57)
    assert left[2] == pytest.approx(43)
    assert right[1] + right[3] == pytest.approx(100)
    assert not _overlap(left, right)
    assert _overlap(right, right)
    assert _cost(right, [], [(50, 50)], [], frame) == 0
    assert _cost(right, [right], [(50, 50)], [], frame) >= 10
    assert _cost(_box(150, 50, "B0", 7, 0), [], [], [], frame) >= 100
