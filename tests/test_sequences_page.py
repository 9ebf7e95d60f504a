"""The tables of docs/sequences.md are those of the committed rows."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from benchmarks.sequences import accuracy, speed

PAGE = (Path(__file__).parents[1] / "docs" / "sequences.md").read_text()
TABLES: dict[str, Callable[[], list[str]]] = {
    "length": speed.length_table,
    "decoding": speed.decoding_table,
    "training": speed.training_table,
    "language": partial(accuracy.language_table, "language"),
    "language_time": partial(accuracy.language_table, "language_time"),
    **{name: partial(accuracy.digits_table, name) for name in ("digits", "digits_large")},
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_that_of_its_rows(name: str) -> None:
    lines = TABLES[name]()
    assert len(lines) > 2
    assert "\n".join(lines) in PAGE
