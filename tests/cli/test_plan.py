"""`lambdanets plan`: the words of the command become the problem, and the plan is shown whole."""

import pytest
import torch

from lambdanets import ops
from lambdanets.cli import main
from lambdanets.ops import KERNELS, Plan, Problem, plan


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (
            "--grid 64x64 --heads 4 --dim-k 16 --dim-v 64 --batch 8 --train",
            Problem(grid=(64, 64), batch=8, train=True),
        ),
        ("--grid 7x5 --scope 3", Problem(grid=(7, 5), scope=(3, 3))),
        ("--grid 7x5 --scope 3x9 --dilation 2", Problem(grid=(7, 5), scope=(3, 9), dilation=(2, 2))),
        (
            "--grid 11 --causal --dim-u 2 --dtype bfloat16",
            Problem(grid=(11,), causal=True, dim_u=2, dtype=torch.bfloat16),
        ),
        ("--grid 2x3x5 --no-content --device cuda", Problem(grid=(2, 3, 5), content=False, device="cuda")),
        ("--grid 6 --context-grid 9 --dense", Problem(grid=(6,), context_grid=(9,), dense=True)),
        ("--grid 6x6 --no-position --dim_k 8", Problem(grid=(6, 6), position=False, dim_k=8)),
    ],
)
def test_words_become_a_problem(monkeypatch: pytest.MonkeyPatch, words: str, problem: Problem) -> None:
    asked: list[Problem] = []

    def remember(each: Problem, *, measured: bool) -> Plan:
        asked.append(each)
        assert not measured
        return plan(each)

    monkeypatch.setattr(ops, "plan", remember)
    assert main(["plan", *words.split()]) == 0
    assert asked == [problem]


def test_every_kernel_has_its_line_and_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--grid", "8x8", "--dense"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    made = plan(Problem(grid=(8, 8), dense=True))
    assert any(row.cost is None for row in made.rows)
    for name in KERNELS:
        assert f" {name}" in shown.replace("|", " ")
    for row in made.rows:
        assert row.verdict in shown
        assert row.reason.split()[0] in shown


def test_both_passes_are_shown_when_training(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--grid", "14x14", "--batch", "2", "--train"]) == 0
    shown = capsys.readouterr().out
    assert shown.index("forward pass") < shown.index("backward pass")
    made = plan(Problem(grid=(14, 14), batch=2, train=True))
    assert shown.count("chosen:") == 2
    assert f"{made.rows[1].cost.flops / 1e9:,.3f}" in shown  # type: ignore[union-attr]
    assert "paper's rule" in shown


def test_measuring_adds_a_column(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--grid", "6x5", "--measure"]) == 0
    shown = capsys.readouterr().out
    assert "the fastest when measured" in shown
    assert " ms " in shown.replace("est. ms", "").replace("est ms", "")


def test_what_does_not_fit_is_refused_with_the_nearest_that_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["plan", "--grid", "100000", "--dim-v", "512", "--batch", "100000"]) == 1
    shown = capsys.readouterr()
    assert shown.out.count("too large") >= 3
    assert "would fit" in shown.err
    assert "bytes" in shown.err
