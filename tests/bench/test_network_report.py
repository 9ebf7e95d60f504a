"""Rows of networks survive their file; tables, reports and bars show what is in the rows."""

from dataclasses import replace
from pathlib import Path

import pytest

from lambdanets.bench import MODELS_REPORT, Measured, NetworkRecord, Table, read_networks, write_networks
from lambdanets.bench.network_report import bar_figure, provenance_range


def rows_of(table: Table) -> dict[str, dict[str, str]]:
    return {row[0]: dict(zip(table.headings, row, strict=True)) for row in table.rows}


@pytest.fixture
def models(race: list[Measured]) -> list[Measured]:
    return [(replace(row, bench="models"), where) for row, where in race]


def test_rows_survive_the_file_each_with_its_provenance(tmp_path: Path, race: list[Measured]) -> None:
    later = [(race[0][0], replace(race[0][1], date="2026-01-03 00:00")), *race[1:]]
    path = tmp_path / "race.csv"
    write_networks(path, later)
    again = read_networks(path, "race")
    assert [where.date for _, where in again[:2]] == ["2026-01-03 00:00", "2026-01-02 03:04"]
    for (row, _), (other, _) in zip(race, again, strict=True):
        assert row.key == other.key
        assert other.seconds == pytest.approx(row.seconds)
        assert other.published_source == "A paper, Table 1"
    with pytest.raises(ValueError, match="holds rows of the benchmark race, not of models"):
        read_networks(path, "models")


def test_models_in_tables(models: list[Measured]) -> None:
    train, infer = MODELS_REPORT.make_tables(models)
    row = rows_of(train)["efficientnet-b0"]
    assert (row["parameters M"], row["GMAC"], row["batch"]) == ("5.00", "0.4", "4")
    assert row["images/s"] == "10.2 ±10%"
    assert rows_of(infer)["efficientnet-b0"]["images/s"] == "102 ±10%"


def test_panels_name_the_batch_that_most_bars_have(race: list[Measured]) -> None:
    pytest.importorskip("matplotlib", reason="figures need it")

    def panels(batches: tuple[int, ...]) -> dict[str, list[str]]:
        rows: list[NetworkRecord] = [
            replace(row, batch=batch, samples=5 if batch else 0, peak_mib=70.0 if batch else float("nan"))
            for (row, _), batch in zip(race[::2], batches, strict=False)
        ]
        return {
            axes.get_title(loc="left"): [text.get_text() for text in axes.texts]
            for axes in bar_figure(rows, {}).axes
        }

    assert panels((0, 4, 4, 2))["training step, peak memory at batch 4"] == [
        "not run",
        "70.0 MiB",
        "70.0 MiB",
        "70.0 MiB  (batch 2)",
    ]
    assert panels((4, 2))["training step, peak memory"] == ["70.0 MiB  (batch 4)", "70.0 MiB  (batch 2)"]
    assert "training step, for one image at batch 4" in panels((4,))


def test_rows_of_two_commits_say_so(race: list[Measured]) -> None:
    later = [race[0], (race[1][0], replace(race[1][1], commit="def5678", date="2026-01-03 00:00"))]
    assert provenance_range(later).endswith("2026-01-02 03:04 to 2026-01-03 00:00; commits abc1234, def5678")


def test_figures(tmp_path: Path, models: list[Measured]) -> None:
    pytest.importorskip("matplotlib", reason="figures need it")
    drawn = MODELS_REPORT.draw(models, tmp_path)
    assert [path.name for path in drawn] == ["models-bars.png", "models-bars.svg"]
    nothing = [(replace(row, samples=0), where) for row, where in models]
    assert MODELS_REPORT.draw(nothing, tmp_path) == []


def test_markdown(models: list[Measured]) -> None:
    text = MODELS_REPORT.markdown(models, ["models-bars.png"], "process")
    assert text.startswith("# `lambdanets bench models`")
    assert "Times measured here are CPU milliseconds of all threads." in text
    assert text.endswith("![models-bars.png](models-bars.png)\n")
