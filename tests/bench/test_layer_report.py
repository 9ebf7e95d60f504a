"""Tables and figures say what the rows say."""

import struct
from dataclasses import replace
from pathlib import Path

import pytest

from lambdanets.bench import LayerRecord, Provenance, draw_layers, layer_markdown, layer_tables


def cells(records: list[LayerRecord], title: str, case: str, clock: str = "wall") -> dict[str, str]:
    (made,) = (each for each in layer_tables(records, clock) if each.title.startswith(title))  # type: ignore[arg-type]
    (row,) = (row for row in made.rows if row[0] == case)
    return dict(zip(made.headings, row, strict=True))


def test_times_and_what_they_are_over_ours(records: list[LayerRecord]) -> None:
    row = cells(records, "Training step of the layer (forward and backward): milliseconds", "alone")
    assert row["input"] == "2x16, 7x7 global"
    assert row["ours"] == "10.0 ±10%"
    assert row["fastest peer / ours"] == "2.00x"
    assert row["lucidrains"] == "40.0 4.00x"
    assert row["3x3 conv"] == "5.00 0.50x"
    assert row["GEMM"] == "25%"


def test_the_other_clock(records: list[LayerRecord]) -> None:
    row = cells(records, "Inference (forward, in inference mode): CPU", "alone", "process")
    assert row["ours"] == "20.0 ±0%"
    assert row["fastest peer / ours"] == "3.00x"
    assert row["GEMM"] == "50%"


def test_memory(records: list[LayerRecord]) -> None:
    row = cells(records, "Inference (forward, in inference mode): peak", "alone")
    assert (row["ours"], row["leanest peer / ours"], row["lucidrains"]) == ("2.5", "2.00x", "10.0")


def test_kernels_and_why_one_is_missing(records: list[LayerRecord]) -> None:
    title = "Training step of the layer (forward and backward), kernel by kernel"
    row = cells(records, title, "alone")
    assert (row["auto selects"], row["conv"], row["fft"]) == ("fft", "12.0 1.20x", "-")
    (made,) = (each for each in layer_tables(records) if each.title.startswith(title))
    assert made.notes == ("fft: cannot serve: too square (alone, s8, s16, s32)",)


def test_a_single_call_is_marked(records: list[LayerRecord]) -> None:
    marked = [
        replace(row, samples=1, note="one call, without a warm-up")
        if (row.contender, row.case) == ("timm", "alone")
        else row
        for row in records
    ]
    title = "Inference (forward, in inference mode): milliseconds"
    assert cells(marked, title, "alone")["timm"] == "20.0* 2.00x"
    (made,) = (each for each in layer_tables(marked) if each.title.startswith(title))
    assert made.notes == ("* timm: one call, without a warm-up (alone)",)


def test_markdown_has_every_table_and_the_provenance(records: list[LayerRecord], where: Provenance) -> None:
    text = layer_markdown(records, where, "wall", ["op-time.png"])
    assert text.count("\n## ") == len(layer_tables(records)) == 6
    assert "An Abacus, cpu, 1 thread, float32; matrix product 100 Gflop/s" in text
    assert "lambdanets 1.2.3 (abc1234), torch 2.99, timm 1.99, python 3.99" in text
    assert "without batch norm" in text
    assert "![op-time.png](op-time.png)" in text
    widths = {
        line.count("|") for line in text.splitlines() if line.startswith("| alone | 2x16, 7x7 global | fft")
    }
    assert widths == {7}


def size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:])


@pytest.mark.parametrize("clock", ["wall", "process"])
def test_figures(tmp_path: Path, records: list[LayerRecord], where: Provenance, clock: str) -> None:
    pytest.importorskip("matplotlib", reason="figures need it")
    made = draw_layers(records, where, tmp_path, clock)  # type: ignore[arg-type]
    names = ["op-bars-train.png", "op-bars-eval.png", "op-time.png", "op-memory.png"]
    assert [path.name for path in made] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert all(min(size(path)) > 300 for path in made)


def test_no_curve_of_one_point_and_no_bars_of_curves(
    tmp_path: Path, records: list[LayerRecord], where: Provenance
) -> None:
    pytest.importorskip("matplotlib", reason="figures need it")
    assert draw_layers([row for row in records if row.case == "s8"], where, tmp_path, "wall") == []
