"""The numbers on the pages equal the committed rows."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from benchmarks.paper.report import REPORTS
from benchmarks.planner.fit import loss, selected_over_best
from benchmarks.planner.fit import read as read_times
from benchmarks.study import read, summary_table
from benchmarks.study.report import pairs_table
from lambdanets.bench import Table, read_networks
from lambdanets.ops import hardware
from lambdanets.ops.kernels import native

ROOT = Path(__file__).parents[1]
PAGE, README = ROOT / "docs/results.md", ROOT / "README.md"
STUDY, MODELS = ROOT / "benchmarks/study", ROOT / "benchmarks/models"
MEASURED = ("box_ap", "box_ap50", "mask_ap", "mask_ap50")
BASE = {"1": "1.00x"}  # the row or column that the others are divided by


def plain(cell: str) -> str:
    """Return a cell without emphasis, links and typographic minus signs."""
    return re.sub(
        r"\s*\(.*\)$", "", cell.replace("*", "").replace("`", "").replace("\N{MINUS SIGN}", "-").strip()
    )


def rows_with(path: Path, heading: str) -> list[list[str]]:
    """Return the rows of every table whose heading contains these words."""
    found: list[list[str]] = []
    for block in re.findall(r"(?:^\|.*\n)+", path.read_text(), re.MULTILINE):
        lines = [[plain(cell) for cell in line.strip("|").split("|")] for line in block.splitlines()]
        if heading in block.splitlines()[0]:
            found += lines[2:]
    assert found, f"{path.name} has no table with {heading}"
    return found


def committed(file: str) -> list[dict[str, str]]:
    """Return the rows of a committed CSV."""
    with (ROOT / "benchmarks" / file).open(newline="") as opened:
        return list(csv.DictReader(opened))


def table_of(name: str, title: str) -> Table:
    """Return a table of a committed benchmark of networks."""
    (table,) = (
        each
        for each in REPORTS[name].make_tables(read_networks(MODELS / f"{name}.csv", name))
        if each.title.startswith(title)
    )
    return table


def columns(table: Table, heading: str) -> list[list[str]]:
    """Return the columns of this name, each from top to bottom."""
    places = [at for at, name in enumerate(table.headings) if name == heading]
    return [[row[at] for row in table.rows] for at in places]


def in_full(cells: Sequence[str]) -> list[str]:
    return [BASE.get(cell, cell) for cell in cells]


def test_accuracies_are_those_of_the_study() -> None:
    table = summary_table(read(STUDY / "cells.csv"))
    known = {row[1]: dict(zip(table.headings, row, strict=True)) for row in table.rows}
    rows = rows_with(PAGE, "in the blocks")
    assert {row[1] for row in rows} == set(known)
    for _, parameters, top1, gain, speed, *_ in rows:
        own = known[parameters]
        assert top1 == own["top-1 %"]
        assert gain == own["minus conv"].replace("-", "", own["minus conv"] == "-")
        assert speed == own["per CPU s"]


def test_ratios_are_those_of_the_race() -> None:
    known = {row[0]: row for row in table_of("race", "Speed at matched accuracy").rows}
    rows = rows_with(PAGE, "| LambdaResNet | *top-1*")
    assert {row[0] for row in rows} == set(known) - {"420@320"}  # no counterpart to interpolate to
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


def test_a_slide_is_that_of_its_rows() -> None:
    rows = committed("detection/slide.csv")
    shown = rows_with(ROOT / "docs/detection.md", "| passes of the network |")
    for row, (_, *cells) in zip(rows, shown, strict=True):
        shares = (f"{100 * float(row[name]):.1f} %" for name in ("precision", "recall", "f1", "of_single"))
        assert cells == [row["passes"], row["found"], *shares]
    assert {row["annotated"] for row in rows} == {"734"}


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


def test_ratios_are_those_of_tables_13_and_14() -> None:
    paper, inference, training = columns(table_of("table13", "Table 13"), "ratio")
    rows = rows_with(PAGE, "C-C-C-C")[1:]
    assert [in_full(row[1:]) for row in rows] == [paper, inference, training]
    paper, inference, training = columns(table_of("table14", "Table 14"), "ratio")
    rows = rows_with(PAGE, "over ResNet-101 without SE")
    assert [in_full([row[at] for row in rows]) for at in (2, 3, 4)] == [paper, inference, training]


def layer_rows(folder: str) -> dict[tuple[str, str, str], dict[str, str]]:
    """Return the rows of a benchmark of layers by case, pass and contender."""
    return {(row["title"], row["mode"], row["contender"]): row for row in committed(f"op/{folder}/op.csv")}


def test_times_are_those_of_the_layers() -> None:
    one, two, memory = (layer_rows(f"avx512-native{each}") for each in ("-1thread", "", "-memory"))
    shown = [
        [cell.strip().replace("*", "") for cell in line.strip("|").split("|")]
        for line in PAGE.read_text().splitlines()
        if re.match(r"\| \d+x\d+, ", line)
    ]
    assert len(shown) == len({title for title, *_ in one}) == 8
    for case, *cells in shown:
        title, expected = case, []
        for mode in ("train", "eval"):
            time, peers, conv = (
                [float(one[title, mode, name]["cpu_ms"]) for name in names]
                for names in (("lambdanets",), ("lucidrains", "timm"), ("3x3 conv",))
            )
            wall = min(float(two[title, mode, name]["ratio"]) for name in ("lucidrains", "timm"))
            expected += [time[0], min(peers), min(peers) / time[0], conv[0], wall]
        ours, peer = (
            min(float(memory[title, "train", name]["peak_mib"]) for name in names)
            for names in (("lambdanets",), ("lucidrains", "timm"))
        )
        found = [float(each) for each in re.findall(r"[\d.]+", " ".join(cells).replace(",", ""))]
        for number, value in zip(found, [*expected, ours, peer], strict=True):
            assert abs(number - value) <= 0.006 * value, f"{case}: {number} on the page, {value} in the rows"


def test_ratios_with_avx2_are_those_of_their_rows() -> None:
    rows = layer_rows("avx2-native-1thread")
    ratios = [
        min(float(rows[title, "train", name]["ratio_cpu"]) for name in ("lucidrains", "timm"))
        for title in {title for title, *_ in rows}
    ]
    text = " ".join(PAGE.read_text().split())
    assert f"takes {min(ratios):.1f} to {max(ratios):.0f} times less CPU time than the fastest peer" in text


def test_rates_are_those_of_the_kernel() -> None:
    rows = {
        (row["case"], row["isa"], row["dtype"], row["direction"]): row
        for isa in ("avx512", "avx2")
        for row in committed(f"op/kernel-{isa}.csv")
    }
    shown = [
        line.strip("|").split("|") for line in PAGE.read_text().splitlines() if "| position part" in line
    ]
    assert len(shown) == len({case for case, *_ in rows}) == 8
    for (_, *cells), case in zip(shown, dict.fromkeys(case for case, *_ in rows), strict=True):
        kinds = [("avx512", "float32"), ("avx512", "bfloat16"), ("avx2", "float32")]
        found = [rows[case, *kind, each] for kind in kinds for each in ("forward", "backward")]
        assert [cell.strip() for cell in cells] == [
            f"{float(row['gflops']):.0f} ({100 * float(row['share']):.0f} %)" for row in found
        ]


def test_selections_are_those_of_the_planner(monkeypatch: pytest.MonkeyPatch) -> None:
    """The present planner on the committed times, as it estimates for the CPU on which they were measured."""
    monkeypatch.setenv(native.ISA_VARIABLE, "avx512")
    if native.isa() != "avx512" or not hardware.ONEDNN:
        pytest.skip("the rows are of a CPU with full AVX-512 and the native kernel")
    text = " ".join(PAGE.read_text().split())
    found, before = [], torch.get_num_threads()
    for name in ("planner-avx512", "planner-avx512-2threads"):
        halves = read_times([ROOT / f"benchmarks/planner/{name}.csv"])
        cases = halves["fit"] + halves["test"]
        assert len(cases) == 200  # 100 problems in both passes
        found.append([selected_over_best(cases), selected_over_best(cases, ("native",))])
        if name == "planner-avx512":
            fitted, tested = (f"{loss(halves[half]) ** 0.5:.3f}" for half in ("fit", "test"))
            assert f"log(estimate / time) is {fitted}, on the others {tested}" in text
    torch.set_num_threads(before)
    assert all(ratios[int(0.95 * len(ratios)) - 1] == 1 for ratios, _ in found)
    one, two = (f"{ratios[-1]:.2f} times" for ratios, _ in found)
    assert f"{one} as long as the fastest with one thread and {two} with two" in text
    one, two = (f"{ratios[int(0.95 * len(ratios))]:.2f}" for _, ratios in found)
    assert f"are within {one} and {two} times the fastest" in text


def test_times_of_whole_networks_are_those_of_their_rows() -> None:
    rows = {
        (row["model"], row["mode"], row["batch"], row["form"]): float(row["wall_ms"])
        for row in committed("models/cpu.csv")
    }
    shown = rows_with(PAGE, "| network | inference, batch 1 |")
    assert len(shown) == 4
    for name, *cells in shown:
        for cell, case in zip(cells, (("eval", "1"), ("eval", "8"), ("train", "8")), strict=True):
            times = [rows[name, *case, form] for form in ("before", "contiguous", "kept memory")]
            assert cell.split(" → ") == [f"{ms:,.0f}" if ms >= 100 else f"{ms:.1f}" for ms in times]


def test_times_are_those_of_accelerate() -> None:
    rows = {(row["model"], row["mode"]): row for row in committed("accelerate/accelerate.csv")}
    lines = [
        line for line in PAGE.read_text().splitlines() if re.match(r"\| `lambda_resnet\d+\w+` \| .*%\)", line)
    ]
    assert len(lines) == 3
    for line in lines:
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        expected: list[str] = []
        for mode in ("eval", "train"):
            row = rows[name.strip("`"), mode]
            before, after, bound = (
                f"{int(float(row[f'{part}_ms']) + 0.5):,}" for part in ("original", "accelerated", "bound")
            )
            expected += [f"{before} → {after} ({100 * float(row['cost_removed']):.0f} %)", bound]
        assert cells == expected


def test_accuracies_are_those_of_the_longer_runs() -> None:
    speeds = {(row["model"], row["precision"]): row for row in committed("cifar10/speed.csv")}
    shown = rows_with(PAGE, "| network | parameters | top-1 | training images")
    assert len(shown) == 2
    for name, _, top1, speed in shown:
        last = committed(f"cifar10/{name}.csv")[-1]
        assert top1 == f"{100 * float(last['val_top1']):.2f} %"
        assert speed == f"{float(speeds[name, 'bfloat16']['images_per_cpu_second']):.0f}"
    text = " ".join(PAGE.read_text().split())

    def best_and_last(name: str) -> tuple[str, str]:
        top1 = [100 * float(row["val_top1"]) for row in committed(f"digits/{name}.csv")]
        return f"{max(top1):.2f}", f"{top1[-1]:.2f}"

    (best, last), (best1, last1), (best2, last2) = map(best_and_last, ("demo", "seed1", "seed2"))
    assert f"classifies {best} % of the 359 held-out digits" in text
    assert f"{best1} and {best2} % (last epochs: {last}, {last1} and {last2} %" in text
    best, last = best_and_last("demo-avx2")
    assert f"gave {best} % at the best epoch and {last} % at the last" in text
    best, last = best_and_last("demo-avx512-narrow")
    assert f"units of 256 bits {best} and {last} %" in text
    assert f"{100 * float(committed('photos/lambda_resnet_mini.csv')[-1]['val_top1']):.1f} % of 1,000" in text


def test_the_readme_repeats_the_results() -> None:
    text = " ".join(README.read_text().split()).replace("\N{MINUS SIGN}", "-")
    rows = layer_rows("avx512-native-1thread")
    cases = {title for title, *_ in rows}

    def ratio(title: str, names: Sequence[str]) -> float:
        return min(float(rows[title, "train", name]["ratio_cpu"]) for name in names)

    peers = [ratio(title, ("lucidrains", "timm")) for title in cases]
    assert f"takes {min(peers):.0f} to {max(peers):.0f} times less time" in text
    small = [ratio(title, ["3x3 conv"]) for title in cases if "7x7 " in title or "14x14 " in title]
    assert f"{min(small):.0f} to {max(small):.0f} times faster on 7x7 and 14x14 grids" in text
    large = [ratio(title, ["3x3 conv"]) for title in cases if "7x7 " not in title and "14x14 " not in title]
    assert sum(each < 1 for each in large) > len(large) / 2  # "slower on most larger ones"
    cells = read(STUDY / "cells.csv")
    pairs = pairs_table(cells)
    (both,) = (row for row in pairs.rows if row[0] == "lambda")
    loss, half = both[pairs.headings.index("lambda, content only")].strip("*+").split(" ± ")
    assert f"content alone loses {float(loss):.1f} ± {float(half):.1f} points" in text
    table = summary_table(cells)
    known = {row[0]: dict(zip(table.headings, row, strict=True)) for row in table.rows}
    assert f"convolutions ({known['lambda']['minus conv']})" in text
    own, other = (
        f"{100 * float(committed(f'cifar10/{name}.csv')[-1]['val_top1']):.2f} %"
        for name in ("lambda_resnet_cifar", "resnet_cifar_conv")
    )
    assert f"reached {own} with lambda layers and {other} with convolutions" in text
    nuclei = {
        row["model"]: f"{100 * float(row['mask_ap50']):.1f} %" for row in committed("detection/nuclei.csv")
    }
    ours, theirs = nuclei["lambda_resnet_mini"], nuclei["resnet_mini_conv"]
    assert f"a mask AP50 of {ours} ({theirs} with convolutions)" in text
    race = table_of("race", "Speed at matched accuracy").rows
    measured = [float(cell.rstrip("x")) for row in race for cell in row[3:5] if cell != "-"]
    assert f"{min(measured):.1f} to {max(measured):.1f} times as fast as EfficientNets" in text
