"""The plan: one chosen kernel, a row and a reason for every kernel; the checks of a problem."""

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from cases import BY_NAME, CASES, Case
from lambdanets.ops import KERNELS, GlobalContext, Plan, Problem, lambda_layer, plan, planner
from lambdanets.ops.planner import PlanRow

PROBLEMS = {
    "global": {"grid": (64, 64)},
    "global-train": {"grid": (14, 14), "batch": 8, "train": True},
    "local": {"grid": (56, 56), "scope": (23, 23)},
    "local-u": {"grid": (28, 28), "scope": (7, 7), "dim_u": 4},
    "local-dilated": {"grid": (28, 28), "scope": (7, 7), "dilation": (2, 2)},
    "sequence": {"grid": (4096,), "scope": (64,), "causal": True},
    "volume": {"grid": (8, 16, 16), "scope": (3, 5, 5), "dtype": torch.bfloat16},
    "cross": {"grid": (16, 16), "context_grid": (8, 4)},
    "content-only": {"grid": (32, 32), "position": False},
    "position-only": {"grid": (32, 32), "content": False},
    "dense": {"grid": (32, 32), "dense": True},
    "gpu": {"grid": (64, 64), "scope": (23, 23), "device": "cuda", "dtype": torch.bfloat16, "train": True},
}
problems = pytest.mark.parametrize("options", PROBLEMS.values(), ids=PROBLEMS)


def rows_by_pass(result: Plan) -> dict[str, tuple[PlanRow, ...]]:
    """Return the rows of each pass of a plan."""
    return {"forward": result.rows} | ({"backward": result.backward_rows} if result.problem.train else {})


@problems
def test_every_kernel_has_a_row_and_a_reason(options: dict[str, Any]) -> None:
    problem = Problem(**options)
    result = plan(problem)
    assert isinstance(result, Plan)
    assert (result.backward_kernel is not None) == problem.train == bool(result.backward_rows)
    for rows in rows_by_pass(result).values():
        assert [row.kernel for row in rows] == list(KERNELS)
        assert [row.verdict for row in rows].count("chosen") == 1
        for row in rows:
            assert row.reason.strip()
            reasons = KERNELS[row.kernel].unsupported(problem)
            assert (row.cost is None) == bool(reasons), row.kernel
            assert all(reason in row.reason for reason in reasons)


@problems
def test_the_chosen_kernel_is_near_the_least_estimate_and_the_leanest_there(options: dict[str, Any]) -> None:
    result = plan(Problem(**options))
    chosen = {"forward": result.kernel, "backward": result.backward_kernel}
    for name, rows in rows_by_pass(result).items():
        costs = {row.kernel: row.cost for row in rows if row.cost is not None}
        least = min(cost.seconds for cost in costs.values())
        near = {kernel: cost.peak_bytes for kernel, cost in costs.items() if cost.seconds <= 1.05 * least}
        assert near[chosen[name] or ""] == min(near.values())


@problems
def test_printing_shows_every_kernel_with_its_reason(options: dict[str, Any]) -> None:
    result = plan(Problem(**options))
    text = str(result)
    for rows in rows_by_pass(result).values():
        for row in rows:
            assert any(line.startswith(row.kernel) and row.reason in line for line in text.splitlines())
    assert "x".join(map(str, options["grid"])) in text or str(options["grid"]) in text
    assert text.count("chosen: ") == len(rows_by_pass(result))


@pytest.mark.parametrize("case", [case for case in CASES if case.position], ids=str)
def test_auto_is_the_planned_kernel_in_both_passes(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = {name: x.requires_grad_() for name, x in case.inputs().items()}
    problem = Problem.of(
        inputs["q"], inputs["k"], inputs["v"], inputs.get("e"), case.context(), case.content, True
    )
    ran: list[str] = []
    for name, kernel in KERNELS.items():
        for part in ("output", "gradients"):
            whole = getattr(kernel, part)
            monkeypatch.setattr(kernel, part, lambda *args, f=whole, n=name: (ran.append(n), f(*args))[1])
    case.call(lambda_layer, inputs).sum().backward()
    made = plan(problem)
    assert ran == [made.kernel, made.backward_kernel]


def test_measured_is_the_fastest_when_tried_and_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"reference": 3.0, "conv": 2.0, "attention": 1.0, "fft": 4.0}
    tried: list[tuple[Problem, bool]] = []

    def measure(problem: Problem, backward: bool = False) -> dict[str, float]:
        tried.append((problem, backward))
        return times

    monkeypatch.setattr(planner, "measure", measure)
    planner._select_kernel.cache_clear()
    q, k, v, e = (
        torch.randn(1, 2, 35, 3, requires_grad=True),
        torch.randn(1, 35, 3, 1),
        torch.randn(1, 35, 5, 1),
        torch.randn(9, 13, 3, 1),
    )
    for _ in range(3):
        lambda_layer(q, k, v, e, context=GlobalContext((5, 7)), kernel="measured").sum().backward()
    assert [backward for _, backward in tried] == [False, True]
    planner._select_kernel.cache_clear()


def test_measuring_runs_the_kernels_and_shows_their_times() -> None:
    made = plan(Problem(grid=(9, 7), batch=2, train=True), measured=True)
    for name, rows in rows_by_pass(made).items():
        times = {row.kernel: row.measured for row in rows if row.measured is not None}
        assert len(times) > 1
        chosen = {"forward": made.kernel, "backward": made.backward_kernel}[name]
        assert times[chosen or ""] == min(times.values())


def test_measuring_is_independent_of_surrounding_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real kernels are timed on plain tensors in their compute dtype, in any surrounding mode."""
    calls: list[tuple[type, torch.dtype]] = []
    whole = KERNELS["attention"].output

    def output(q: torch.Tensor, *rest: Any) -> None:
        calls.append((type(q), q.dtype))
        whole(q, *rest)

    monkeypatch.setattr(KERNELS["attention"], "output", output)
    monkeypatch.setattr(planner, "compute_dtype", lambda dtype, device: torch.float32)
    problem = Problem(grid=(14, 14), batch=4, dtype=torch.float16)
    counter = FlopCounterMode(display=False)
    for surrounding in (torch.autocast("cpu", torch.bfloat16), FakeTensorMode(), counter):
        with surrounding:
            assert planner.measure(problem)["attention"] > 0
    assert counter.get_total_flops() == 0
    torch.func.vmap(lambda x: (planner.measure(problem), x)[1])(torch.ones(2))
    assert set(calls) == {(torch.Tensor, torch.float32)}


def test_without_positions_all_kernels_are_the_same() -> None:
    made = plan(Problem(grid=(64,), causal=True, position=False))
    assert {row.verdict for row in made.rows} == {"chosen", "same", "cannot serve"}


@pytest.mark.parametrize(
    "name", ["global-cross-2d", "local-dilated-2d", "causal-local-u4", "masked-padded", "global-dense-2d"]
)
def test_a_problem_has_the_sizes_of_its_call(name: str) -> None:
    case = BY_NAME[name]
    inputs = case.inputs()
    problem = Problem.of(
        inputs["q"], inputs["k"], inputs["v"], inputs["e"], case.context(), case.content, True
    )
    assert problem.num_queries == case.n
    assert problem.num_context == case.m
    sizes = (problem.batch, problem.num_heads, problem.dim_k, problem.dim_v, problem.dim_u)
    assert sizes == (case.batch, case.num_heads, case.dim_k, case.dim_v, case.dim_u)
    assert (problem.causal, problem.masked, problem.content) == (case.causal, case.masked, case.content)
    assert problem.dense == case.dense
    assert problem.scope == case.scope
    assert problem.train
    assert problem.dtype == torch.float64


@pytest.mark.parametrize("name", list(KERNELS))
def test_costs_grow_with_the_work(name: str) -> None:
    problem = Problem(grid=(8, 8), scope=(5, 5), batch=2)
    cost = KERNELS[name].cost(problem)
    assert min(cost.flops, cost.bytes) > 0
    assert cost.peak_bytes > 0 or name == "triton"  # which has no temporaries
    backward = KERNELS[name].cost(problem, backward=True)
    assert backward.flops > 1.9 * cost.flops
    assert backward.seconds > cost.seconds > 0
    for more in ({"batch": 8}, {"dim_v": 256}, {"grid": (16, 16)}, {"dim_k": 256}):
        larger = KERNELS[name].cost(replace(problem, **more))
        assert larger.flops > 1.9 * cost.flops, more
        assert larger.seconds > cost.seconds, more
        assert larger.bytes > cost.bytes, more
    halved = KERNELS[name].cost(replace(problem, dtype=torch.bfloat16))
    assert halved.flops == cost.flops
    assert halved.bytes < cost.bytes


@pytest.mark.parametrize("name", list(KERNELS))
@pytest.mark.parametrize(
    "case_name", ["global-2d", "local-2d", "global-u4", "global-cross-2d", "global-position-only"]
)
def test_flops_are_those_torch_counts(name: str, case_name: str) -> None:
    """PyTorch counts independently; within a factor of two, since it counts products but no sums."""
    from torch.utils.flop_counter import FlopCounterMode

    case = replace(BY_NAME[case_name], dim_k=16, dim_v=32)
    inputs = case.inputs()
    problem = Problem.of(
        inputs["q"], inputs["k"], inputs["v"], inputs["e"], case.context(), case.content, False
    )
    # Torch does not see the products of kernel "native": `test_native.py` counts its pairs.
    if name == "native" or KERNELS[name].unsupported(problem):
        return
    arguments = (inputs["q"], inputs["v"], inputs["e"])
    upstream = case.upstream(inputs["q"].dtype, "cpu")
    for backward in (False, True):
        with FlopCounterMode(display=False) as counter:
            if backward:
                KERNELS[name].gradients(upstream, *arguments, problem, (True, True, True))
            else:
                KERNELS[name].output(*arguments, problem, torch.empty_like(upstream))
        counted = counter.get_total_flops()
        # torch counts the products of a convolution with its padding, which are not done.
        least = 0.05 if name == "conv" else 0.5
        assert least < KERNELS[name].cost(problem, backward=backward).flops / counted < 2


@pytest.mark.parametrize(
    "options",
    [
        {"grid": (5,)},
        {"grid": (5,), "context_grid": (9,)},
        {"grid": (9,), "context_grid": (4,)},
        {"grid": (7,), "causal": True},
        {"grid": (7,), "scope": (3,)},
        {"grid": (7,), "scope": (4,)},
        {"grid": (6,), "scope": (17,)},
        {"grid": (3, 5), "scope": (3, 4)},
        {"grid": (3, 5), "context_grid": (7, 2), "scope": (5, 3)},
    ],
    ids=str,
)
def test_a_convolution_counts_the_pairs_inside_the_grid(options: dict[str, Any]) -> None:
    problem = Problem(**options, content=False, dim_k=3, dim_v=5, num_heads=2)
    e = torch.ones(*problem.context.table_shape, 3, 1, dtype=torch.float64)
    ones = torch.ones(1, 1, problem.num_queries, 3, dtype=torch.float64)
    v = torch.ones(1, problem.num_context, 1, 1, dtype=torch.float64)
    keys = torch.ones(1, problem.num_context, 3, 1, dtype=torch.float64)
    seen = lambda_layer(ones, keys, v, e, context=problem.context, content=False, kernel="reference")
    pairs = round(seen.sum().item() / 3)
    applied = 2 * 2 * problem.num_queries * 3 * 5
    assert KERNELS["conv"].cost(problem).flops == 2 * pairs * 3 * 5 + applied


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"grid": (0, 4)}, "grid"),
        ({"grid": ()}, "grid"),
        ({"grid": (2.5, 4)}, "grid"),
        ({"context_grid": (3, 0)}, "context_grid"),
        ({"context_grid": (3,)}, "context_grid"),
        ({"scope": (3,)}, "scope"),
        ({"scope": (0, 3)}, "scope"),
        ({"scope": (3, 3), "dilation": (0, 1)}, "dilation"),
        ({"scope": (3, 3), "dilation": (1, 1, 1)}, "dilation"),
        ({"num_heads": 0}, "num_heads"),
        ({"dim_k": 0}, "dim_k"),
        ({"dim_v": -1}, "dim_v"),
        ({"dim_u": 0}, "dim_u"),
        ({"batch": -1}, "batch"),
        ({"content": False, "position": False}, "content"),
        ({"causal": True}, "causal"),
        ({"dense": True, "scope": (3, 3)}, "scope"),
        ({"position": False, "scope": (3, 3)}, "scope"),
        ({"dim_k": 2.5}, "dim_k must be an int, got 2.5"),
        ({"dim_v": True}, "dim_v"),
        ({"dtype": torch.int8}, "int8"),
        ({"grid": (9,), "masked": True, "causal": True}, "causal"),
    ],
    ids=str,
)
def test_wrong_problems_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Problem(**({"grid": (4, 4)} | options))


def test_a_problem_is_frozen_and_takes_ints_for_grids() -> None:
    problem = Problem(grid=7, scope=3, dilation=2)
    assert (problem.grid, problem.scope, problem.dilation) == ((7,), (3,), (2,))
    assert Problem(grid=(4, 4), scope=3) == Problem(grid=(4, 4), scope=(3, 3))
    with pytest.raises(FrozenInstanceError):
        problem.batch = 2
    with pytest.raises(TypeError):
        Problem((4, 4))
