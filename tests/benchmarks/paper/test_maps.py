"""Table 4's memory column, computed, against the paper's printed numbers."""

import pytest

from benchmarks.paper.published import TABLES, attention_gib, lambda_gib, local_attention_gib


def test_the_formula_written_out() -> None:
    """Sixteen layers one by one, element by element counts, four bytes each."""
    maps = tables = local = 0
    for side in [56] * 3 + [28] * 4 + [14] * 6 + [7] * 3:
        positions = side * side
        maps += 128 * 8 * positions * positions
        tables += positions * positions * 16
        local += 128 * 8 * positions * 49
    assert attention_gib() == pytest.approx(4 * maps / 2**30)
    assert lambda_gib(16) == pytest.approx(4 * tables / 2**30)
    assert local_attention_gib(7) == pytest.approx(4 * local / 2**30)


def test_the_paper_s_numbers_to_their_rounding() -> None:
    rows = [entry for entry in TABLES["table4"] if entry.published and entry.published.memory]
    assert [entry.published.memory for entry in rows] == ["120", "4.8", "1.9", "0.95", "0.63"]  # type: ignore[union-attr]
    for entry in rows:
        # Two digits, of which 122.8 -> 120 and 0.9596 -> 0.95 are cut, not rounded.
        assert entry.maps_gib == pytest.approx(float(entry.published.memory), rel=0.025)  # type: ignore[union-attr]


def test_another_size_has_neither_the_formula_nor_what_is_published() -> None:
    entry = TABLES["table4"][0]
    assert entry.at((224, 224)) is entry
    other = entry.at((96, 128))
    assert (other.model, other.title, other.size) == (entry.model, entry.title, (96, 128))
    assert (other.published, other.maps_gib) == (None, None)
