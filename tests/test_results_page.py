"""What the pages say in numbers is what the committed rows say."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.paper.report import REPORTS
from benchmarks.study import read, summary_table
from lambdanets.bench import Table, read_networks

ROOT = Path(__file__).parents[1]
PAGE, README = ROOT / "docs/results.md", ROOT / "README.md"
STUDY, MODELS = ROOT / "benchmarks/study", ROOT / "benchmarks/models"
MEASURED = ("box_ap", "box_ap50", "mask_ap", "mask_ap50")
BASE = {"1": "1.00x"}  # the row or column that the others are divided by


def plain(cell: str) -> str:
    """A cell without emphasis, links and typographic minus signs."""
    return re.sub(
        r"\s*\(.*\)$", "", cell.replace("*", "").replace("`", "").replace("\N{MINUS SIGN}", "-").strip()
    )


def rows_with(path: Path, heading: str) -> list[list[str]]:
    """The rows of every table whose heading holds these words."""
    found: list[list[str]] = []
    for block in re.findall(r"(?:^\|.*\n)+", path.read_text(), re.MULTILINE):
        lines = [[plain(cell) for cell in line.strip("|").split("|")] for line in block.splitlines()]
        if heading in block.splitlines()[0]:
            found += lines[2:]
    assert found, f"{path.name} has no table with {heading}"
    return found


def committed(file: str) -> list[dict[str, str]]:
    """The rows of a committed CSV."""
    with (ROOT / "benchmarks" / file).open(newline="") as opened:
        return list(csv.DictReader(opened))


def table_of(name: str, title: str) -> Table:
    """A table of a committed bench of networks."""
    (table,) = (
        each
        for each in REPORTS[name].make_tables(read_networks(MODELS / f"{name}.csv", name))
        if each.title.startswith(title)
    )
    return table


def columns(table: Table, heading: str) -> list[list[str]]:
    """The columns of this name, each from top to bottom."""
    places = [at for at, name in enumerate(table.headings) if name == heading]
    return [[row[at] for row in table.rows] for at in places]


def in_full(cells: Sequence[str]) -> list[str]:
    return [BASE.get(cell, cell) for cell in cells]


@pytest.mark.parametrize("path", [PAGE, README], ids=lambda path: path.name)
def test_accuracies_are_those_of_the_study(path: Path) -> None:
    table = summary_table(read(STUDY / "cells.csv"))
    known = {row[1]: dict(zip(table.headings, row, strict=True)) for row in table.rows}
    rows = rows_with(path, "in the blocks")
    assert len(rows) >= 10
    for _, parameters, top1, gain, *more in rows:
        own = known[parameters]
        assert top1 == own["top-1 %"]
        assert gain == own["minus conv"].replace("-", "", own["minus conv"] == "-")
        if path is PAGE:
            assert more[0] == own["per CPU s"]


@pytest.mark.parametrize("path", [PAGE, README], ids=lambda path: path.name)
def test_ratios_are_those_of_the_race(path: Path) -> None:
    known = {row[0]: row for row in table_of("race", "Speed at matched accuracy").rows}
    rows = rows_with(path, "| LambdaResNet | *top-1*")
    assert len(rows) >= 6
    for row in rows:
        assert [cell or "-" for cell in row] == list(known[row[0]])


def test_rates_are_those_of_the_race() -> None:
    known = {row[0]: [cell.split()[0] for cell in row[2:]] for row in table_of("race", "Multiply-adds").rows}
    published, training, inference = rows_with(PAGE, "multiply-adds per second")
    for place, family in enumerate(("EfficientNet", "LambdaResNet", "ResNet-RS with SE"), 1):
        assert f"{float(known[family][0].replace(',', '')) / 1e3:.3g}" == published[place]
        assert known[family][1:] == [training[place], inference[place]]


def test_accuracies_of_the_noisy_student_are_those_of_its_rows() -> None:
    every = committed("noisy_student/results.csv")
    rows = {(row["round"], row["network"], row["seed"]): row for row in every}
    reached = {key: float(row["top1"]) for key, row in rows.items()}
    shown = rows_with(PAGE, "| network | seed 0 | seed 1 |")
    assert len(shown) == 4
    for name, *cells in shown:
        key = tuple(name.partition(",")[0].split())
        assert cells == [f"{100 * reached[(*key, seed)]:.2f} %" for seed in ("0", "1")]

    def gains(network: tuple[str, str], beside: tuple[str, str], sign: int = 1) -> str:
        found = (sign * 100 * (reached[(*network, seed)] - reached[(*beside, seed)]) for seed in ("0", "1"))
        return " and ".join(f"{gain:.1f}" for gain in found)

    plain = gains(("plain", "student"), ("plain", "teacher"))
    noise = gains(("noisy", "teacher"), ("plain", "teacher"))
    lost = gains(("noisy", "student"), ("noisy", "teacher"), -1)
    text, guide = (" ".join(page.read_text().split()) for page in (PAGE, ROOT / "docs/imagenet.md"))
    assert f"the student gains {plain} points on its teacher" in text
    assert f"give the second teacher {noise}." in text
    assert f"the student is {lost} points below its teacher" in text
    assert f"{plain} points above a teacher without noise, and {lost} points below one with it" in guide
    kept, every = (
        " and ".join(f"{100 * float(rows['noisy', 'student', seed][part]):.0f}" for seed in ("0", "1"))
        for part in ("pseudo_right", "all_right")
    )
    assert f"although {kept} % of the labels that it keeps are right (of all, {every} %)" in text


def test_precisions_are_those_of_the_detectors() -> None:
    best = {row["model"]: row for row in committed("detection/nuclei.csv")}
    guide = ROOT / "docs/detection.md"
    for page, heading, names in (
        (PAGE, "| mask AP, small |", (*MEASURED, "mask_ap_small", "mask_ap_medium")),
        (guide, "| images/s of a core |", MEASURED),
    ):
        for name, second, *cells in rows_with(page, heading):
            row = best.pop(name) if page is guide else best[name]
            assert cells[: len(names)] == [f"{100 * float(row[figure]):.1f}" for figure in names]
            if page is guide:
                assert cells[-1] == f"{float(row['images_per_cpu_second']):.1f}"
            else:
                assert second == row["epoch"]
    assert not best


def test_drawn_masks_are_those_of_their_rows() -> None:
    rows = {(row["set"], row["drawing"]): row for row in committed("detection/masks.csv")}
    shown = rows_with(ROOT / "docs/detection.md", "| masks drawn by |")
    assert len(shown) == 2
    for name, *cells in shown:
        pairs = [(rows[each, name], figure) for each in ("coco-cc", "nuclei") for figure in ("", "_small")]
        assert cells == [f"{100 * float(row[f'mask_ap{figure}']):.1f}" for row, figure in pairs]


def test_costs_are_those_of_the_backbones() -> None:
    rows = {(row["model"], row["mode"]): row for row in committed("detection/backbones/models.csv")}
    shown = rows_with(ROOT / "docs/detection.md", "| training step, s |")
    assert len(shown) == 6
    for name, *cells in shown:
        train, evaluate = (rows[name, mode] for mode in ("train", "eval"))
        memory = [f"{float(row['peak_mib']):,.0f}" for row in (train, evaluate)]
        seconds = [float(row["cpu_ms"]) / 1000 for row in (train, evaluate)]
        assert cells == [f"{seconds[0]:.1f}", memory[0], f"{seconds[1]:.2f}", memory[1]]


def test_ratios_are_those_of_table_4() -> None:
    paper, inference, training = columns(table_of("table4", "Table 4"), "ratio")
    rows = rows_with(PAGE, "all 3x3 convolutions of a ResNet-50 replaced")
    assert in_full([row[2] for row in rows]) == inference
    assert in_full([row[3] for row in rows]) == training
    assert in_full([row[1] for row in rows])[1:] == paper[1:]
    # In the README from left to right: lambda layers, then axial, local and global attention.
    order = [3, 4, 5, 6, 1, 2, 0]
    _, across, across_training = rows_with(README, "| Table 4 |")
    assert in_full(across[1:]) == [inference[at] for at in order]
    assert in_full(across_training[1:]) == [training[at] for at in order]


def test_ratios_are_those_of_tables_13_and_14() -> None:
    paper, inference, training = columns(table_of("table13", "Table 13"), "ratio")
    for rows in (rows_with(PAGE, "C-C-C-C")[1:], rows_with(README, "| Table 13 |")):
        assert [in_full(row[1:]) for row in rows] == [paper, inference, training]
    paper, inference, training = columns(table_of("table14", "Table 14"), "ratio")
    rows = rows_with(PAGE, "over ResNet-101 without SE")
    assert [in_full([row[at] for row in rows]) for at in (2, 3, 4)] == [paper, inference, training]
