"""Tables and lines as they leave the command: whole, and as they are."""

import io
import os

import pytest
from rich.console import Console

from lambdanets.cli import console
from lambdanets.cli.console import draw, table

RAW = "[bold]:cat:[/] \x1b[31m"
SHOWN = "[bold]:cat:[/] \\x1b[31m"


def pipe(encoding: str = "utf-8") -> tuple[io.BytesIO, io.TextIOWrapper]:
    raw = io.BytesIO()
    return raw, io.TextIOWrapper(raw, encoding, errors="strict", write_through=True)


def printed(monkeypatch: pytest.MonkeyPatch, encoding: str = "utf-8", **columns: str) -> str:
    raw, stream = pipe(encoding)
    monkeypatch.setattr("sys.stdout", stream)
    rows = table(**(columns or {"name": "wrap", "other": "left"}))
    rows.add_row(RAW, "/a/" + "b" * 200)
    rows.add_row("猫", os.fsdecode(b"caf\xe9"))
    draw(console.stdout(), RAW, rows)
    return raw.getvalue().decode(encoding)


def test_text_is_printed_as_it_is_and_nothing_is_folded_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    title, *lines = printed(monkeypatch).splitlines()
    assert title == SHOWN
    assert sum(SHOWN in line and "/a/" + "b" * 200 in line for line in lines) == 1
    assert sum("猫" in line and "caf\\udce9" in line for line in lines) == 1


def test_a_stream_that_lacks_letters_gets_an_even_table(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line for line in printed(monkeypatch, "ascii").splitlines()[1:] if line.strip()]
    assert any("\\u732b" in line for line in lines)
    assert len(set(map(len, lines))) == 1


def test_a_narrow_terminal_folds_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Console, "is_terminal", property(lambda self: True))
    monkeypatch.setenv("COLUMNS", "60")
    assert "/a/" + "b" * 200 in printed(monkeypatch)
