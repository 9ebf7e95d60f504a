"""Tables, reports and figures of the race and of the paper's tables show what is in the rows."""

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.paper.figures import _box, _cost, _overlap
from benchmarks.paper.published import REFERENCES, TABLES
from benchmarks.paper.report import REPORTS
from lambdanets.bench import Measured, Provenance, Table
from lambdanets.bench.networks import blank_record

RACE = REPORTS["race"]


def rows_of(table: Table) -> dict[str, dict[str, str]]:
    return {row[0]: dict(zip(table.headings, row, strict=True)) for row in table.rows}


def test_the_race_in_tables(race: list[Measured]) -> None:
    points, matched, rates = RACE.make_tables(race)
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


def test_the_other_clock(race: list[Measured]) -> None:
    twice = [(replace(row, cpu_ms=2 * row.wall_ms), where) for row, where in race]
    points, matched, _ = RACE.make_tables(twice, "process")
    assert rows_of(points)["EfficientNet B1"]["training"].startswith("800")
    assert rows_of(points)["EfficientNet B1"]["published: training"] == "4.00"
    assert rows_of(matched)["50@128"]["EfficientNet: training"] == "4.00x"
    assert "CPU milliseconds of all threads" in RACE.markdown(twice, clock="process")


def test_a_table_of_the_paper(race: list[Measured]) -> None:
    def of_paper(row, title: str, said: float):
        return replace(
            row, bench="table13", title=title, published_examples_per_s=said, published_parameters_m=5.1
        )

    where = race[0][1]
    first = [(of_paper(row, REFERENCES["table13"], 7000.0), where) for row, _ in race[:2]]
    second = [(of_paper(row, "L-L-L-L", 1750.0), where) for row, _ in race[2:4]]
    speed, memory = REPORTS["table13"].make_tables([*first, *second])
    row = dict(zip(speed.headings[:6], speed.rows[1][:6], strict=True))
    assert row["paper: images/s"] == "1,750"
    assert row["paper: parameters M"] == "5.10"
    assert [cell for cell in speed.rows[1] if cell.endswith("x")] == ["0.25x", "0.25x", "0.25x"]
    assert memory.headings[:4] == ("row", "size", "training peak MiB", "batch")
    assert "L-L-L-L is efficientnet-b1" in speed.notes[-1]


def of_table(name: str, where: Provenance) -> list[Measured]:
    """A table of the paper: the first network takes 1 s for a batch of 4, the second 2 s, and so on."""
    return [
        (
            replace(blank_record(name, entry, mode), batch=4, wanted_batch=4, samples=1, wall_ms=1e3 * place),
            where,
        )
        for place, entry in enumerate(TABLES[name], 1)
        for mode in ("train", "eval")
    ]


def test_a_table_that_was_cut_short(where: Provenance) -> None:
    rows = of_table("table13", where)
    left = [each for each in rows if each[0].mode == "train" or each[0].title.startswith("C-C")]
    speed, memory = REPORTS["table13"].make_tables(left)
    assert speed.rows[1][5:] == ("1,880", "0.26x", "-", "-", "2.00*", "0.50x")
    assert speed.rows[6][5:] == ("4,980", "0.69x", "0.571*", "0.14x", "0.571*", "0.14x")
    assert memory.rows[1][2:] == ("-", "4", "-", "-")
    without = [each for each in rows if each[0].title != "C-C-C-C"]
    speed, _ = REPORTS["table13"].make_tables(without)
    assert speed.rows[0][5:] == ("1,880", "-", "2.00*", "-", "2.00*", "-")


def test_a_table_at_two_sizes(where: Provenance) -> None:
    """Each size is over its own reference, and only at the paper's there is something published."""
    rows = of_table("table13", where)
    small = [
        (
            replace(
                blank_record("table13", entry.at((96, 96)), row.mode),
                batch=4,
                samples=1,
                wall_ms=row.wall_ms / 8,
            ),
            where,
        )
        for entry, (row, _) in zip((each for each in TABLES["table13"] for _ in range(2)), rows, strict=True)
    ]
    speed, _ = REPORTS["table13"].make_tables([*rows, *small])
    assert len(speed.rows) == 16
    assert speed.rows[1][5:] == ("1,880", "0.26x", "2.00*", "0.50x", "2.00*", "0.50x")
    assert speed.rows[9][1:7] == ("96", "-", "-", "-", "-", "-")
    assert speed.rows[9][7:] == ("16.0*", "0.50x", "16.0*", "0.50x")
    assert speed.rows[8][8] == "1.00x"


def test_the_paper_s_sizes_are_over_one_reference(where: Provenance) -> None:
    speed, _ = REPORTS["table14"].make_tables(of_table("table14", where))
    assert speed.rows[4][1:] == (
        "256",
        "82.5",
        "60.2",
        "-",
        "2,780",
        "0.60x",
        "0.800*",
        "0.20x",
        "0.800*",
        "0.20x",
    )


def test_what_ran_out_of_memory_in_the_paper(where: Provenance) -> None:
    speed, memory = REPORTS["table4"].make_tables(of_table("table4", where))
    row = dict(zip(speed.headings[:6], speed.rows[0], strict=False))
    assert (row["paper: images/s"], row["ratio"]) == ("OOM", "-")
    assert memory.rows[0][2:4] == ("120", "123")


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_race_of_one_pass(tmp_path: Path, race: list[Measured], mode: str) -> None:
    """The other pass is a dash; what is published is there all the same."""
    one = [each for each in race if each[0].mode == mode]
    points, matched, rates = RACE.make_tables(one)
    name, other = ("training", "inference") if mode == "train" else ("inference", "training")
    assert rows_of(points)["EfficientNet B1"][other] == "-"
    row = rows_of(matched)["50@160"]
    assert row["EfficientNet: published"] == row[f"EfficientNet: {name}"] == "2.00x"
    assert row[f"EfficientNet: {other}"] == "-"
    row = rows_of(rates)["EfficientNet"]
    assert row["published GMAC/s"] == "307 (77 to 1,229)"
    assert row[f"{other} GMAC/s"] == "-"
    pytest.importorskip("matplotlib", reason="figures need it")
    assert len(RACE.draw(one, tmp_path)) == 4


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
    points, matched, rates = RACE.make_tables(left)
    assert rows_of(points)["EfficientNet B2"]["training"] == "not run"
    assert rows_of(matched)["50@160"]["EfficientNet: training"] == "-"
    assert rows_of(matched)["50@160"]["EfficientNet: published"] == "2.00x"
    assert rows_of(rates)["EfficientNet"]["training GMAC/s"] == "8 (3 to 12)"
    assert "not run: too large" in RACE.markdown(left)


def test_markdown_says_how_and_what_is_published(race: list[Measured]) -> None:
    text = RACE.markdown(race, ["race-pareto.png"])
    assert text.startswith("# `python -m benchmarks.paper race`")
    assert "nothing is extrapolated" in text
    assert "LambdaNetworks, Table 19" in text
    assert "An Abacus, cpu, 1 thread" in text
    assert "![race-pareto.png](race-pareto.png)" in text


def test_figures(tmp_path: Path, race: list[Measured]) -> None:
    pytest.importorskip("matplotlib", reason="figures need it")
    made = RACE.draw(race, tmp_path)
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
    nothing = [(replace(row, samples=0), where) for row, where in race]
    assert RACE.draw(nothing, tmp_path) == []


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
