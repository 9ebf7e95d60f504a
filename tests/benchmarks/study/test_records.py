"""Tables that were cut off, lost or doubled, beside the results that the runs have left."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.study import TRUNKS, Cell, CellRecord, Study, StudyFiles, read, restore, run
from benchmarks.study.records import to_cells
from benchmarks.study.settings import Images
from lambdanets.recipes import get_recipe

Make = Callable[..., CellRecord]
Write = Callable[[Path, list[CellRecord]], None]


@pytest.fixture
def rows(record: Make) -> list[CellRecord]:
    return [record(name, seed, 0.8 + seed / 100) for seed in (0, 1) for name in ("conv", "lambda")]


@pytest.fixture
def files(rows: list[CellRecord], tmp_path: Path) -> StudyFiles:
    """A study of four cells, with both tables."""
    files = StudyFiles(tmp_path)
    for time, row in enumerate(rows):
        path = files.result(row.cell)
        path.parent.mkdir(parents=True)
        epochs = [{"epoch": 1, "val_top1": 0.7}, {"epoch": 2, "val_top1": row.top1}]
        path.write_text(json.dumps({"row": to_cells(row), "epochs": epochs}))
        os.utime(path, (time, time))
    restore(files)
    return files


def cut(path: Path, characters: int) -> None:
    path.write_text(path.read_text()[:-characters])


def test_results_become_rows_in_the_order_of_their_ends(files: StudyFiles, rows: list[CellRecord]) -> None:
    assert [record.cell for record in read(files.cells)] == [row.cell for row in rows]
    assert files.curves.read_text().splitlines()[:4] == [
        "contender,seed,epoch,val_top1", "conv,0,1,0.7", "conv,0,2,0.8", "lambda,0,1,0.7",
    ]  # fmt: skip
    before = files.cells.stat().st_mtime_ns, files.curves.stat().st_mtime_ns
    restore(files)
    assert (files.cells.stat().st_mtime_ns, files.curves.stat().st_mtime_ns) == before


def test_a_table_that_ends_anywhere_comes_back_or_is_refused(files: StudyFiles) -> None:
    whole = files.cells.read_text()
    start = len(whole.splitlines(keepends=True)[0])
    for end in [*range(0, start, 40), start - 1, start, *range(start, len(whole), 13), len(whole) - 1]:
        files.cells.write_text(whole[:end])
        if not whole[:end].endswith("\n") and end:
            with pytest.raises(
                ValueError, match=r"cells\.csv, line \d, is damaged \(it .*\): delete the line"
            ):
                read(files.cells)
        restore(files)
        assert files.cells.read_text() == whole


def test_a_damaged_row_without_its_result_is_refused_by_its_line(files: StudyFiles) -> None:
    files.result(Cell(contender="lambda", seed=1)).unlink()
    whole = files.cells.read_text()
    for text in (whole[:-40], whole.replace("lambda,the lambda,1,x", "lambda,the lambda,1")):
        files.cells.write_text(text)
        with pytest.raises(ValueError, match=r"line 5, is damaged \(it has \d+ values, not 41\)"):
            restore(files)
        assert files.cells.read_text() == text
    files.cells.write_text(
        whole.replace("lambda,the lambda,1,x,x,x,{},3", "lambda,the lambda,1,x,x,x,{},many")
    )
    with pytest.raises(ValueError, match=r"line 5, is damaged \(.*'many'"):
        restore(files)


def test_a_damaged_result_is_named(files: StudyFiles) -> None:
    path = files.result(Cell(contender="conv", seed=0))
    path.write_text("{")
    with pytest.raises(ValueError, match=r"cell\.json is damaged .* delete the folder .*conv-seed0"):
        restore(files)


@pytest.mark.parametrize("lost", ["all", "a line", "an end"])
def test_lost_epochs_come_back(files: StudyFiles, lost: str) -> None:
    whole = files.curves.read_text()
    if lost == "all":
        files.curves.unlink()
    elif lost == "a line":
        files.curves.write_text(whole.replace("lambda,0,2,0.8\n", ""))
    else:
        cut(files.curves, 2)
    restore(files)
    assert files.curves.read_text() == whole


def test_a_study_that_goes_on_begins_with_whole_tables(files: StudyFiles, rows: list[CellRecord]) -> None:
    whole, curves = files.cells.read_text(), files.curves.read_text()
    cut(files.cells, 60)
    files.curves.unlink()
    checkpoints = files.run(rows[0].cell) / "checkpoints"
    checkpoints.mkdir()
    study = Study(
        trunk="digits",
        config=get_recipe("digits"),
        contenders=TRUNKS["digits"].choose(["conv", "lambda"]),
        images=Images(train=2, val=1, classes=2, fingerprint=""),
    )
    progress = run(study, files, [row.cell for row in rows], jobs=1, watch=lambda _: None)
    assert list(progress.done) == [row.cell for row in rows]
    assert (files.cells.read_text(), files.curves.read_text()) == (whole, curves)
    assert not checkpoints.exists()


def test_of_two_rows_for_a_cell_the_last_counts(
    rows: list[CellRecord], record: Make, tmp_path: Path, write_cells: Write
) -> None:
    again = record("conv", 0, 0.9)
    write_cells(tmp_path / "cells.csv", [*rows, again])
    assert [(row.cell, row.top1) for row in read(tmp_path / "cells.csv")] == [
        (again.cell, 0.9), *((row.cell, row.top1) for row in rows[1:]),
    ]  # fmt: skip
