"""Memory between forward and backward, long axes in low precision, problems that are large or empty."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from lambdanets.ops import (
    KERNELS,
    GlobalContext,
    LocalContext,
    MaskedContext,
    Problem,
    lambda_layer,
    plan,
    planner,
)
from lambdanets.ops.problem import Cost
from running import RUNNING


def saved_bytes(*args: torch.Tensor, **options: object) -> int:
    """Bytes that autograd saves for the backward pass of one call, a storage counted once."""
    storages: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        lambda_layer(*args, **options)  # type: ignore[arg-type]
    return sum(storages.values())


def peak_bytes(profile: torch.profiler.profile) -> int:
    """Return the peak of live bytes, by the allocator's own count."""
    alive = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return peak


def test_masked_content_saves_no_weights_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lambdanets.ops.content.MASKED_BLOCK", 2**14)
    n, m, k = 96, 101, 8
    q, keys = torch.randn(2, 3, n, k, requires_grad=True), torch.randn(2, m, k, 1, requires_grad=True)
    v = torch.randn(2, m, 5, 1, requires_grad=True)
    context = MaskedContext(torch.rand(n, m) < 0.5)
    pairs = 4 * 2 * n * m * k
    assert saved_bytes(q, keys, v, context=context, kernel="reference") > pairs
    assert saved_bytes(q, keys, v, context=context, kernel="attention") < pairs / 4


@pytest.mark.parametrize("kernel", RUNNING)
def test_the_gradient_of_a_long_table_is_summed_in_full_precision(kernel: str) -> None:
    n, context = 1200, GlobalContext((1200,))
    q, k, v = torch.rand(1, 1, n, 2), torch.rand(1, n, 2, 1), torch.rand(1, n, 2, 1)
    e = torch.rand(2 * n - 1, 2, 1)
    gradients = {}
    for dtype, name in ((torch.float64, "reference"), (torch.bfloat16, kernel)):
        table = e.to(dtype).requires_grad_()
        # All of one sign, so that a sum in low precision stops growing.
        y = lambda_layer(q.to(dtype), k.to(dtype), v.to(dtype), table, context=context, kernel=name)
        gradients[dtype] = torch.autograd.grad(y.sum(), table)[0].double()
    exact = gradients[torch.float64]
    assert (gradients[torch.bfloat16] - exact).norm() / exact.norm() < 0.01


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Set the bytes of memory that the planner takes as available."""

    def have(size: int) -> None:
        monkeypatch.setattr(planner, "available_memory", lambda device: size)
        planner._select_kernel.cache_clear()

    yield have
    planner._select_kernel.cache_clear()


def test_the_planned_kernels_run_near_the_memory_limit(
    machine: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plan and call must count the memory of the content part and of the gradients in the same way."""
    problem = Problem(grid=(24, 24), batch=8, num_heads=8, dim_v=16, train=True)
    g, q, v, e = (x.requires_grad_() for x in problem.random_inputs())
    k = torch.randn(8, 576, 16, 1, requires_grad=True)
    ran: list[str] = []
    for name, kernel in KERNELS.items():
        for part in ("output", "gradients"):
            whole = getattr(kernel, part)
            monkeypatch.setattr(kernel, part, lambda *args, f=whole, n=name: (ran.append(n), f(*args))[1])
    for limit in range(20, 60, 4):
        machine(limit * 2**20)
        made = plan(problem)
        ran.clear()
        if made.refusal is not None:
            with pytest.raises(MemoryError):
                lambda_layer(q, k, v, e, context=problem.context)
            assert not ran
            continue
        lambda_layer(q, k, v, e, context=problem.context).backward(g)
        assert ran == [made.kernel, made.backward_kernel]


def test_a_problem_too_large_for_one_kernel_goes_to_another(machine: Callable[[int], None]) -> None:
    machine(2**30)
    made = plan(Problem(grid=(128, 128), dim_v=16, train=True))
    for rows in (made.rows, made.backward_rows):
        by_name = {row.kernel: row for row in rows}
        assert by_name["reference"].verdict == "too large"
        assert "GiB" in by_name["reference"].reason
    assert made.kernel not in (None, "reference")


def test_a_problem_too_large_for_all_kernels_is_refused_before_it_starts(
    machine: Callable[[int], None],
) -> None:
    q, k, v = torch.randn(64, 2, 900, 16), torch.randn(64, 900, 16, 1), torch.randn(64, 900, 8, 1)
    e = torch.randn(59, 59, 16, 1)
    context = GlobalContext((30, 30))
    assert lambda_layer(q, k, v, e, context=context).isfinite().all()
    machine(2**24)
    with pytest.raises(MemoryError, match=r"30x30.*b=64.*bytes.*batch of \d+ would fit") as error:
        lambda_layer(q, k, v, e, context=context)
    fitting = int(str(error.value).split("batch of ")[1].split()[0])
    some = slice(0, fitting)
    assert lambda_layer(q[some], k[some], v[some], e, context=context).shape[0] == fitting
    more = slice(0, fitting + 1)
    with pytest.raises(MemoryError, match=f"a batch of {fitting} would fit"):
        lambda_layer(q[more], k[more], v[more], e, context=context)
    made = plan(Problem.of(q, k, v, e, context))
    assert made.kernel is None
    assert made.refusal == str(error.value)
    assert {row.verdict for row in made.rows if row.cost is not None} == {"too large"}
    with pytest.raises(MemoryError, match="kernel 'reference'"):
        lambda_layer(q[some], k[some], v[some], e, context=context, kernel="reference")
    machine(2**19)
    with pytest.raises(MemoryError, match=r"batch of 1 on a grid of \d+x\d+ would fit"):
        lambda_layer(q, k, v, e, context=context)


def test_content_alone_is_refused_too() -> None:
    n = 10**9
    one = torch.zeros(1, 1, 1, 1)
    q, k = one.expand(1, 4, n, 4), one.expand(1, n, 4, 1)
    with pytest.raises(MemoryError, match=r"content only, causal.*would fit"):
        lambda_layer(q, k, k, context=GlobalContext((n,), causal=True))


PEAKS: dict[str, dict[str, Any]] = {
    "causal": {"context": GlobalContext((5000,), causal=True)},
    "causal-many-heads": {"context": GlobalContext((5000,), causal=True), "num_heads": 64, "dim_k": 4},
    "causal-u": {"context": GlobalContext((2500,), causal=True), "dim_u": 4},
    "causal-by-definition": {"context": GlobalContext((500,), causal=True), "kernel": "reference"},
    "masked": {"context": MaskedContext(torch.ones(900, 900, dtype=torch.bool).tril())},
    "masked-dense": {"context": MaskedContext(torch.ones(900, 900, dtype=torch.bool)), "dense": True},
    "local": {"context": LocalContext((64, 64), (3, 3)), "batch": 8},
    "float16": {"context": LocalContext((48, 48), (5, 5)), "batch": 8, "dtype": torch.float16},
    "global": {"context": GlobalContext((40, 40)), "batch": 4},
}


@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("options", PEAKS.values(), ids=PEAKS)
def test_a_call_takes_about_the_memory_that_the_planner_estimates(
    options: dict[str, Any], train: bool
) -> None:
    """The peak of the call's allocations, by the allocator's own count, plus its inputs."""
    sizes = {"batch": 2, "num_heads": 4, "dim_k": 16, "dim_v": 16, "dim_u": 1, "dtype": torch.float32}
    b, h, k, v, u, dtype = (options.get(name, usual) for name, usual in sizes.items())
    context, kernel = options["context"], options.get("kernel", "auto")
    n = m = context.num_queries
    shapes = [(b, h, n, k), (b, m, k, u), (b, m, v, u)]
    if isinstance(context, LocalContext) or (isinstance(context, GlobalContext) and not context.causal):
        shapes.append((*context.table_shape, k, u))
    elif options.get("dense"):
        shapes.append((n, m, k, u))
    inputs = [torch.randn(shape, dtype=dtype, requires_grad=train) for shape in shapes]
    with torch.profiler.profile(profile_memory=True) as profile:
        y = lambda_layer(*inputs, context=context, kernel=kernel)
        if train:
            y.backward(y.detach())
    peak = peak_bytes(profile)
    peak += sum(x.nbytes for x in inputs)
    problem = Problem.of(*inputs[:3], inputs[3] if len(inputs) > 3 else None, context, train=train)
    names = planner.resolve(kernel, problem)
    if not problem.position and kernel == "auto":
        names = ("attention", "attention")
    estimated = max(
        planner.required_bytes(problem, name, planner.estimate_costs(problem, [name], backward)[name])
        for name, backward in zip(names, (False, True), strict=True)
        if train or not backward
    )
    assert 0.8 * estimated < 4 * peak
    assert peak < 1.25 * estimated


@pytest.mark.parametrize("kernel", [name for name in RUNNING if name != "reference"])
def test_between_forward_and_backward_only_the_inputs_are_saved(kernel: str) -> None:
    n = 20 * 21
    q, k = torch.randn(2, 4, n, 8, requires_grad=True), torch.randn(2, n, 8, 1, requires_grad=True)
    v, e = torch.randn(2, n, 6, 1, requires_grad=True), torch.randn(39, 41, 8, 1, requires_grad=True)
    given = sum(x.nbytes for x in (q, k, v, e))
    saved = saved_bytes(q, k, v, e, context=GlobalContext((20, 21)), kernel=kernel)
    lambdas, pair_map = 4 * 2 * n * 8 * 6, 4 * 2 * 4 * n * n
    assert saved < 2.5 * given < min(4 * lambdas, pair_map)


@pytest.mark.parametrize("kernel", ["attention", "fft"])
@pytest.mark.parametrize(
    "problem",
    [
        Problem(grid=(48, 48), dim_v=32, batch=4),
        Problem(grid=(64, 64), scope=23, dim_v=16, batch=4),
        Problem(grid=(3000,), dim_v=32),
    ],
    ids=str,
)
def test_peak_memory_is_about_the_estimate_of_the_planner(kernel: str, problem: Problem) -> None:
    """The peak is the allocator's own count of live bytes, from a profile of one call."""
    g, q, v, e = problem.random_inputs()
    for backward in (False, True):
        with torch.profiler.profile(profile_memory=True) as profile, torch.no_grad():
            if backward:
                result = KERNELS[kernel].gradients(g, q, v, e, problem, (True, True, True))
            else:
                result = (torch.empty_like(g),)
                KERNELS[kernel].output(q, v, e, problem, *result)
        peak = peak_bytes(profile)
        given = sum(x.nbytes for x in result if x is not None)
        estimated = KERNELS[kernel].cost(problem, backward=backward).peak_bytes
        assert (peak - given) / 2 < estimated < 4 * peak


def test_a_further_kernel_is_planned_without_further_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Instant:
        NAME = "instant"
        output = staticmethod(KERNELS["reference"].output)
        gradients = staticmethod(KERNELS["reference"].gradients)
        unsupported = staticmethod(KERNELS["reference"].unsupported)

        @staticmethod
        def cost(problem: Problem, *, backward: bool = False) -> Cost:
            return replace(KERNELS["attention"].cost(problem, backward=backward), seconds=1e-12)

    monkeypatch.setitem(KERNELS, "instant", Instant())
    planner._select_kernel.cache_clear()
    made = plan(Problem(grid=(7, 5), train=True))
    planner._select_kernel.cache_clear()
    assert (made.kernel, made.backward_kernel) == ("instant", "instant")
    q, k, v = torch.randn(1, 2, 35, 3), torch.randn(1, 35, 3, 1), torch.randn(1, 35, 5, 1)
    e = torch.randn(13, 9, 3, 1)
    context = GlobalContext((7, 5))
    assert lambda_layer(q, k, v, e, context=context, kernel="instant").shape == (1, 2, 35, 5)


@pytest.mark.parametrize("kernel", RUNNING)
def test_an_empty_batch_gives_an_empty_output(kernel: str) -> None:
    q, k, v, e = (
        torch.randn(0, 2, 15, 3),
        torch.randn(0, 15, 3, 1),
        torch.randn(0, 15, 5, 1),
        torch.randn(9, 5, 3, 1),
    )
    mask = torch.ones(0, 15, dtype=torch.bool)
    assert lambda_layer(q, k, v, e, context=GlobalContext((5, 3)), mask=mask, kernel=kernel).shape == (
        0,
        2,
        15,
        5,
    )
