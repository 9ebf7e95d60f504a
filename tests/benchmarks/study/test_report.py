"""Table and figure from rows written by hand."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.study import CellRecord, draw_figures, markdown, read, summary_table
from benchmarks.study.report import pairs_table

Make = Callable[..., CellRecord]
Write = Callable[[Path, list[CellRecord]], None]


@pytest.fixture
def rows(record: Make) -> list[CellRecord]:
    conv = [record("conv", seed, top1) for seed, top1 in enumerate((0.80, 0.82, 0.81))]
    ours = [
        record("lambda", seed, top1, peak_mib=900.0 + seed) for seed, top1 in enumerate((0.81, 0.84, 0.83))
    ]
    return [*conv, *ours, record("axial", 0, 0.7, peak_mib=math.nan)]


def test_the_best_comes_first_with_its_interval_and_the_paired_difference(rows: list[CellRecord]) -> None:
    table = summary_table(rows)
    cells = {row[0]: dict(zip(table.headings, row, strict=True)) for row in table.rows}
    assert list(cells) == ["the lambda", "the conv", "the axial"]
    # 80, 82, 81: deviation 1, and 4.303 / sqrt(3) = 2.484. Differences 1, 2, 2: deviation 0.577.
    assert cells["the conv"]["top-1 %"] == "81.00 ± 2.48"
    assert cells["the conv"]["sd"] == "1.00"
    assert cells["the conv"]["minus conv"] == "-"
    assert cells["the lambda"]["minus conv"] == "+1.67 ± 1.43"
    assert cells["the lambda"]["peak MiB"] == "902"


def test_one_seed_says_so_and_shows_no_interval(rows: list[CellRecord]) -> None:
    table = summary_table(rows)
    (axial,) = (dict(zip(table.headings, row, strict=True)) for row in table.rows if row[0] == "the axial")
    assert axial["top-1 %"] == "70.00 (one seed)"
    assert axial["minus conv"] == "-10.00 (one seed)"
    assert axial["sd"] == axial["peak MiB"] == "-"
    assert "axial lacks seeds 1, 2" in table.notes
    assert any(note.startswith("one seed has no interval") for note in table.notes)


def test_every_pair_once_and_bold_where_the_interval_leaves_out_zero(rows: list[CellRecord]) -> None:
    table = pairs_table(rows)
    assert table.headings == ("minus", "the conv", "the axial")
    assert table.rows == (
        ("the lambda", "**+1.67 ± 1.43**", "+11.00 (one seed)"),
        ("the conv", "", "+10.00 (one seed)"),
    )
    assert pairs_table(rows[:1]).rows == ()
    assert "Every pair" not in markdown(rows[:1])


def test_what_is_not_alike_is_told(record: Make) -> None:
    table = summary_table([record("lambda", 0, 0.8, threads=1), record("lambda", 1, 0.9, threads=2)])
    assert "conv is not there: no differences" in table.notes
    assert "cells differ in threads: 1, 2" in table.notes


def test_the_report_is_drawn_from_the_rows_alone(
    rows: list[CellRecord], tmp_path: Path, write_cells: Write
) -> None:
    write_cells(tmp_path / "cells.csv", rows)
    again = read(tmp_path / "cells.csv")
    assert markdown(again) == markdown(rows)
    figures = draw_figures(again, tmp_path)
    assert [figure.name for figure in figures] == ["study.png", "study.svg"]
    with Image.open(tmp_path / "study.png") as image:
        assert len(image.getcolors(1 << 24) or []) > 20
    text = markdown(again, [figure.name for figure in figures])
    assert "| the lambda | 3 | 3 | 82.67 ± 3.79 |" in text
    assert text.count("![") == 1


def test_names_in_the_figure_do_not_cover_one_another(record: Make, tmp_path: Path) -> None:
    names = [f"lambda number {place}" for place in range(9)]
    crowd = [
        record(name, seed, 0.8 + place * 1e-3 + seed * 1e-3, title=name, images_per_cpu_second=300.0 + place)
        for place, name in enumerate(names)
        for seed in range(2)
    ]
    svg = draw_figures(crowd, tmp_path)[1].read_text()
    boxes = []
    for name in names:
        # matplotlib writes the text before its glyphs, and the second time in the panel of speeds.
        *_, place = re.finditer(rf"<!-- {name} -->\s*<g[^>]*translate\(([\d.]+) ([\d.]+)\)", svg)
        boxes.append((float(place[1]), float(place[2])))
    for index, (x, y) in enumerate(boxes):
        assert all(abs(y - other_y) > 6 or abs(x - other_x) > 50 for other_x, other_y in boxes[:index])


def test_another_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cells.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="is not a table of a study"):
        read(tmp_path / "cells.csv")
    assert read(tmp_path / "none.csv") == []
