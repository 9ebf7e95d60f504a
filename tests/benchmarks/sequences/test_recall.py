"""The generator of associative recall, and one short cell."""

import pytest
import torch

from benchmarks.sequences import recall
from benchmarks.sequences.recall import RecallRow, learning_rate, run_cell
from benchmarks.sequences.recall_task import BLANK, IGNORED, recall_batch
from lambdanets.bench.records import NONE, Machine, provenance, read_rows, write_rows


def draw(batch: int = 200, seed: int = 0, **options):
    sizes = {"pairs": 5, "length": 40, "vocabulary": 32, "power": 0.01} | options
    return recall_batch(batch, **sizes, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("power", [0.01, 1.0])
def test_each_query_is_a_key_that_occurred_before_and_its_target_is_the_value(power):
    tokens, targets = draw(power=power)
    for row, wanted in zip(tokens.tolist(), targets.tolist(), strict=True):
        values = dict(zip(row[:10:2], row[1:10:2], strict=True))
        assert len(values) == 5 == len(set(values.values()))
        assert all(1 <= key < 16 <= value < 32 for key, value in values.items())
        assert wanted[:10] == [IGNORED] * 10
        asked = [position for position in range(10, 40) if wanted[position] != IGNORED]
        assert {row[position] for position in asked} == set(values)
        assert all(wanted[position] == values[row[position]] for position in asked)
        assert all(row[position] == BLANK for position in range(10, 40) if position not in asked)
        assert len(asked) == 5


def test_equal_seeds_give_equal_sequences():
    for one, other in zip(draw(seed=3), draw(seed=3), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(draw(seed=3)[0], draw(seed=4)[0])


def test_queries_of_the_power_law_come_earlier_than_uniform_ones():
    early, uniform = ((draw(power=power)[1] != IGNORED).float().mean(0) for power in (0.01, 1.0))
    positions = torch.arange(40.0)
    assert (early * positions).sum() < 0.8 * (uniform * positions).sum()
    assert early[10] > 2 * early[20] > 0
    assert uniform[10:40:2].sub(1 / 3).abs().max() < 0.15  # 5 queries in 15 positions


def test_as_many_queries_as_positions_fit():
    tokens, targets = draw(pairs=10, length=40)
    assert (targets != IGNORED).sum(1).tolist() == [10] * 200
    assert (tokens[:, 20:] != BLANK).float().mean() == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 18}, "at least 4"),
        ({"length": 41}, "even"),
        ({"pairs": 10, "vocabulary": 20}, "at least 22"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        draw(**options)


def test_the_learning_rate_rises_and_falls_to_zero():
    factors = [learning_rate(step, 1000) for step in range(1000)]
    assert max(factors) == factors[99] == factors[500] == 1
    assert factors[0] == 0.01
    assert factors[-1] < 1e-5


def test_a_cell_is_written_read_and_drawn(tmp_path, monkeypatch):
    row = run_cell("lambda_k16_heads_conv", seed=0, steps=2)
    assert row.state_elements == 4 * 16 * (16 + 1) + 3 * 16 + 3 * (64 + 16 + 64)
    assert 0 <= row.accuracy_32 < 0.1 < row.loss_32
    where = provenance(torch.float32, "cpu", 1, Machine(gflops=NONE, gflops_cpu=NONE, copy_gbs=NONE))
    write_rows(tmp_path / "rows.csv", RecallRow, [(row, where)])
    [(again, _)] = rows = read_rows(tmp_path / "rows.csv", RecallRow, "recall")
    assert (again.cell, again.accuracy_32) == (row.cell, pytest.approx(row.accuracy_32))
    monkeypatch.setattr(recall, "HERE", tmp_path)
    recall.report(rows)
    text = (tmp_path / "recall.md").read_text()
    assert f"| `lambda_k16_heads_conv` | 1,568 | {row.parameters:,} | 1 |" in text
    assert (tmp_path / "recall.png").exists()
