"""Particulars of kernel "native": partial vectors, tiles, threads, strides, values that are not finite.

`test_kernels.py` runs it on the cases of all kernels. These are larger: several tiles, chunks and strips.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import Case
from closeness import assert_close_by_name
from lambdanets.ops import GlobalContext, LocalContext, Problem, lambda_layer, planner
from lambdanets.ops.kernels import native
from lambdanets.ops.reference import position_embeddings
from oracles import lambda_layer_einsum

MISSING = native.library.unavailable()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=f"the native kernel: {MISSING}")

BEST = "base" if MISSING else native.isa()

LARGE = [
    Case(name="global-two-tiles", grid=(5, 14), num_heads=4, dim_k=16, dim_v=64, batch=3),
    Case(name="global-odd", grid=(9, 13), num_heads=5, dim_k=10, dim_v=20),
    Case(name="global-many-heads", grid=(4, 6), num_heads=37, dim_k=8, dim_v=16),
    Case(name="global-eight-heads", grid=(6, 8), num_heads=8, dim_k=24, dim_v=48),
    Case(name="global-one-head", grid=(8, 19), num_heads=1, dim_k=33, dim_v=17),
    Case(name="global-deep-values", grid=(3, 7), num_heads=2, dim_k=16, dim_v=150),
    Case(name="global-u", grid=(6, 11), num_heads=4, dim_k=16, dim_v=20, dim_u=3),
    Case(name="global-cross", grid=(9, 4), context_grid=(5, 21), num_heads=4, dim_k=16, dim_v=32),
    Case(name="global-long-row", grid=(1, 300), num_heads=3, dim_k=7, dim_v=18, batch=1),
    Case(name="global-1d", grid=(600,), num_heads=2, dim_k=5, dim_v=9, batch=1),
    Case(name="global-1d-u", grid=(150,), num_heads=2, dim_k=5, dim_v=9, dim_u=2),
    Case(name="global-column", grid=(140, 1), num_heads=3, dim_k=6, dim_v=16, batch=1),
    Case(name="global-3d", grid=(4, 5, 9), num_heads=4, dim_k=16, dim_v=24),
    Case(name="global-padded", grid=(7, 10), num_heads=4, dim_k=16, dim_v=80, padded=True),
    Case(name="causal", grid=(400,), num_heads=3, dim_k=6, dim_v=20, batch=1, causal=True),
    Case(name="causal-local", grid=(300,), scope=(41,), num_heads=4, dim_k=6, dim_v=20, causal=True),
    Case(name="local-7", grid=(14, 14), scope=(7, 7), num_heads=4, dim_k=16, dim_v=64),
    Case(name="local-23", grid=(28, 28), scope=(23, 23), num_heads=4, dim_k=16, dim_v=32, batch=1),
    Case(name="local-3", grid=(20, 9), scope=(3, 3), num_heads=4, dim_k=16, dim_v=17),
    Case(name="local-wide", grid=(5, 40), scope=(4, 26), num_heads=3, dim_k=9, dim_v=16),
    Case(name="local-1d", grid=(600,), scope=(60,), num_heads=4, dim_k=16, dim_v=12, batch=1),
    Case(name="local-1d-long-window", grid=(600,), scope=(333,), num_heads=2, dim_k=4, dim_v=8, batch=1),
    Case(name="local-larger", grid=(7, 9), scope=(25, 31), num_heads=4, dim_k=16, dim_v=20),
    Case(name="local-u", grid=(9, 12), scope=(5, 6), num_heads=4, dim_k=8, dim_v=20, dim_u=2),
    Case(name="local-dilated", grid=(13, 37), scope=(5, 7), dilation=(2, 3), num_heads=4, dim_k=16, dim_v=20),
    Case(name="local-dilated-u", grid=(40,), scope=(5,), dilation=(4,), num_heads=2, dim_v=9, dim_u=2),
    Case(
        name="local-cross", grid=(12, 9), context_grid=(4, 20), scope=(7, 9), num_heads=4, dim_k=16, dim_v=20
    ),
    Case(name="local-3d", grid=(5, 8, 18), scope=(3, 5, 7), num_heads=4, dim_k=16, dim_v=20, batch=1),
    Case(name="local-many-examples", grid=(4, 5), scope=(3, 3), num_heads=2, dim_v=6, batch=70),
]
BY_NAME = {case.name: case for case in LARGE}


def results(
    inputs: dict[str, Tensor], case: Case, upstream: Tensor, oracle: bool = False
) -> dict[str, Tensor]:
    """The output and the gradients of q, v and e, by kernel "native" or by the oracle."""
    leaves = {name: x.detach().requires_grad_(name != "k") for name, x in inputs.items()}
    if oracle:
        y = case.call_oracle(lambda_layer_einsum, leaves)
    else:
        y = case.call(lambda_layer, leaves, kernel="native")
    found = torch.autograd.grad(y, [leaves[name] for name in "qve"], upstream)
    return {"y": y.detach()} | dict(zip("qve", found, strict=True))


def problem_of(case: Case, inputs: dict[str, Tensor]) -> Problem:
    """The problem of a case."""
    return Problem.of(*(inputs[name] for name in "qkve"), case.context(), case.content, True)


def passes(
    g: Tensor, q: Tensor, v: Tensor, e: Tensor, problem: Problem, content_lambda: Tensor
) -> list[Tensor]:
    """The output, written between guards that must stay, and all gradients of the kernel itself."""
    y, buffer = guarded(torch.zeros_like(g))
    native.output(q, v, e, problem, y, content_lambda)
    assert buffer[:256].isnan().all()
    assert buffer[-256:].isnan().all()
    gradients = native.gradients(g, q, v, e, problem, (True, True, True), content_lambda)
    return [y, *(x for x in gradients if x is not None)]


def guarded(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return a copy of x between guards of NaN, and the whole buffer."""
    buffer = torch.full((x.numel() + 512,), torch.nan, dtype=x.dtype)
    return buffer[256:-256].view(x.shape).copy_(x), buffer


@lru_cache
def expected(case: Case, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """By the oracle: the results in float64 of inputs rounded to a dtype, and those in that dtype."""
    inputs, upstream = case.inputs(dtype), case.upstream(dtype)
    truth = {name: x.double() for name, x in inputs.items()}
    exact = results(truth, case, upstream.double(), oracle=True)
    return exact, exact if dtype == torch.float64 else results(inputs, case, upstream, oracle=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_equals_the_plain_einsum(case: Case, dtype: torch.dtype, isa: str) -> None:
    exact, plain = expected(case, dtype)
    assert_close_by_name(results(case.inputs(dtype), case, case.upstream(dtype)), exact, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("batch", [1, 3, 40])
@pytest.mark.parametrize("name", ["global-two-tiles", "local-7", "causal", "local-u", "local-1d", "local-3d"])
def test_bits_are_the_same_in_every_run_and_for_every_number_of_threads(
    name: str, batch: int, dtype: torch.dtype, threads: None
) -> None:
    problem = replace(problem_of(BY_NAME[name], BY_NAME[name].inputs(dtype)), batch=batch)
    content_lambda = torch.randn(batch, problem.dim_k, problem.dim_v).to(dtype)
    arguments = *problem.random_inputs(), problem, content_lambda
    found = []
    for count in (1, 2, 3, 1):
        torch.set_num_threads(count)
        found.append(passes(*arguments))
    assert all(torch.equal(x, y) for other in found for x, y in zip(other, found[0], strict=True))


def test_calls_of_several_python_threads_do_not_disturb_each_other() -> None:
    problems = [problem_of(case, case.inputs(torch.float32)) for case in LARGE[:1] + LARGE[16:18]]

    def run(problem: Problem) -> list[Tensor]:
        content_lambda = torch.ones(problem.batch, problem.dim_k, problem.dim_v)
        return passes(*problem.random_inputs(), problem, content_lambda)

    alone = [run(problem) for problem in problems]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(run, problems * 4))
    for i, found in enumerate(together):
        assert all(torch.equal(x, y) for x, y in zip(found, alone[i % 3], strict=True))


@pytest.mark.parametrize("name", ["global-two-tiles", "global-odd", "local-7"])
def test_layouts_of_a_layer(name: str) -> None:
    """Channels first and last, slices of one projection, and a table whose strides are those of an image."""
    case = BY_NAME[name]
    inputs, upstream = case.inputs(torch.float32), case.upstream(torch.float32)
    expected = results(inputs, case, upstream)
    b, h, n, k = inputs["q"].shape
    v = case.dim_v
    for channels_last in (False, True):
        projection = torch.full((b, h * k + v + 5, n), 7.0)
        if channels_last:
            projection = projection.mT.contiguous().mT
        q, values = projection[:, : h * k].view(b, h, k, n).mT, projection[:, h * k : h * k + v].mT[..., None]
        q.copy_(inputs["q"])
        values.copy_(inputs["v"])
        e = inputs["e"].permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last).permute(2, 3, 1, 0)
        scattered = e.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)
        for table in (e, scattered):
            given = inputs | {"q": q, "v": values, "e": table}
            g = upstream.mT.contiguous().mT
            found = results(given, case, g)
            for key, x in expected.items():
                torch.testing.assert_close(found[key], x, rtol=1e-5, atol=1e-4, msg=f"{key} {channels_last}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_memory_around_the_tensors_is_neither_used_nor_written(case: Case, dtype: torch.dtype) -> None:
    """Scratch memory holds NaN of the call before, as do all tensors' surroundings."""
    inputs = case.inputs(dtype)
    problem = problem_of(case, inputs)
    given = [case.upstream(dtype), inputs["q"], inputs["v"], inputs["e"]]
    content_lambda = torch.randn(case.batch, case.dim_k, case.dim_v).to(dtype)
    expected = passes(*given, problem, content_lambda)
    passes(*(torch.full_like(x, torch.nan) for x in given), problem, content_lambda * torch.nan)
    found = passes(*(guarded(x)[0] for x in given), problem, guarded(content_lambda)[0])
    assert all(x.isfinite().all() and torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
@pytest.mark.parametrize(
    "name", ["local-7", "local-3", "local-1d", "causal-local", "local-dilated", "local-cross", "global-odd"]
)
def test_values_that_are_not_finite_reach_those_who_see_them_alone(
    name: str, bad: float, dtype: torch.dtype
) -> None:
    case = replace(BY_NAME[name], content=False, batch=2)
    inputs, upstream = case.inputs(dtype), case.upstream(dtype)
    seen = position_embeddings(torch.ones_like(inputs["e"]), case.context())[:, :, 0, 0] != 0  # [n, m]
    n, m = case.n // 2, int(seen[case.n // 2].nonzero()[-1])

    def not_finite(changed: dict[str, Tensor], g: Tensor) -> dict[str, Tensor]:
        return {key: ~x.isfinite() for key, x in results(changed, case, g).items()}

    v = inputs["v"].clone()
    v[0, m, 1] = bad
    found = not_finite(inputs | {"v": v}, upstream)
    assert torch.equal(found["y"][0].any(2), seen[:, m].expand(case.num_heads, -1))
    assert torch.equal(found["q"][0].any(2), seen[:, m].expand(case.num_heads, -1))
    assert not found["y"][1].any()
    assert not found["v"].any()
    assert found["e"].any()

    g = upstream.clone()
    g[0, 1, n, 2] = bad
    found = not_finite(inputs, g)
    assert torch.equal(found["v"][0].flatten(1).any(1), seen[n])
    assert not found["v"][1].any()
    assert found["q"].any(3).sum() == 1
    assert not found["y"].any()

    q = inputs["q"].clone()
    q[0, 1, n, 2] = bad
    found = not_finite(inputs | {"q": q}, upstream)
    assert torch.equal(found["v"][0].flatten(1).any(1), seen[n])
    assert found["y"].any(3).sum() == 1
    assert not found["q"].any()


def test_an_entry_that_is_not_finite_reaches_its_pairs_alone() -> None:
    case = replace(BY_NAME["local-7"], content=False)
    inputs = case.inputs(torch.float32)
    e = inputs["e"].clone()
    e[0, 6, 2] = torch.inf  # three rows up and three columns to the right
    marked = torch.zeros_like(e)
    marked[0, 6] = 1
    pairs = position_embeddings(marked, case.context())[:, :, 0, 0] != 0
    found = results(inputs | {"e": e}, case, case.upstream(torch.float32))
    assert torch.equal(~found["y"].isfinite().all(3)[0, 0], pairs.any(1))
    assert torch.equal(~found["v"].isfinite().all(2)[0, :, 0], pairs.any(0))


def test_an_empty_batch() -> None:
    case = replace(BY_NAME["local-7"], batch=0)
    found = results(case.inputs(torch.float32), case, case.upstream(torch.float32))
    assert all(x.numel() == 0 for key, x in found.items() if key != "e")
    assert found["e"].count_nonzero() == 0


@pytest.mark.parametrize("needs", [(True, False, False), (False, True, False), (False, False, True)])
def test_gradients_that_are_not_needed_are_not_computed(needs: tuple[bool, bool, bool]) -> None:
    case = BY_NAME["local-7"]
    inputs = case.inputs(torch.float32)
    problem = problem_of(case, inputs)
    arguments = (case.upstream(torch.float32), inputs["q"], inputs["v"], inputs["e"], problem)
    every = native.gradients(*arguments, (True, True, True))
    found = native.gradients(*arguments, needs)
    for needed, one, same in zip(needs, found, every, strict=True):
        assert one is None if not needed else torch.equal(one, same)


@pytest.mark.parametrize("name", ["global-cross", "local-23", "local-u", "causal-local", "local-3d"])
def test_operations_are_those_of_pairs_with_an_entry(name: str) -> None:
    case = BY_NAME[name]
    inputs = case.inputs(torch.float32)
    problem = problem_of(case, inputs)
    pairs = int(position_embeddings(torch.ones_like(inputs["e"]), case.context())[..., 0, 0].sum())
    terms = 2 * case.batch * case.num_heads * case.dim_u * pairs
    assert native.cost(problem).flops == terms * (case.dim_k + case.dim_v)
    assert native.cost(problem, backward=True).flops == terms * (3 * case.dim_k + 2 * case.dim_v)


@pytest.mark.parametrize(
    ("options", "phrase"),
    [
        ({"device": "cuda"}, "for CPUs, not for cuda"),
        ({"dense": True}, "not dense embeddings"),
        ({"masked": True}, "not dense embeddings"),
        ({"grid": (2, 2, 2, 2)}, "up to 3 axes, not 4"),
        ({"dtype": torch.float8_e5m2}, "no arithmetic for torch.float8_e5m2"),
    ],
)
def test_what_it_does_not_serve_is_refused(options: dict[str, Any], phrase: str) -> None:
    assert phrase in "; ".join(native.unsupported(Problem(**{"grid": (4, 4)} | options)))
    assert native.unsupported(Problem(grid=(4, 4))) == []


def test_without_its_library_it_serves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.library, "unavailable", lambda: "it is not here")
    assert native.unsupported(Problem(grid=(4, 4))) == ["it is not here"]
    assert "native" not in planner.supported(Problem(grid=(4, 4)))


def test_a_lack_of_memory_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = SimpleNamespace(lambdanets_content_output=lambda call: 0)
    refusing.lambdanets_position_output = lambda call: 1
    monkeypatch.setattr(native.library, "require", lambda device: refusing)
    case = BY_NAME["local-7"]
    with pytest.raises(MemoryError, match="native"):
        case.call(lambda_layer, case.inputs(torch.float32), kernel="native")


def test_a_graph_holds_it() -> None:
    context = LocalContext((6, 5), (3, 3))
    q, k, v = torch.randn(2, 2, 30, 4), torch.randn(2, 30, 4, 1), torch.randn(2, 30, 6, 1)
    e = torch.randn(3, 3, 4, 1)

    def call(q: Tensor, k: Tensor, v: Tensor, e: Tensor) -> Tensor:
        return lambda_layer(q, k, v, e, context=context, kernel="native")

    compiled = torch.compile(call, backend="eager", fullgraph=True)
    assert torch.equal(compiled(q, k, v, e), call(q, k, v, e))


@pytest.mark.parametrize("name", ["AVX2", "avx-512"])
def test_an_unknown_instruction_set_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.ISA_VARIABLE, name)
    with pytest.raises(ValueError, match=f"is one of base, avx2, avx512; got '{name}'"):
        native.isa()
    monkeypatch.setenv(native.ISA_VARIABLE, "")
    assert native.isa() == BEST


def test_a_graph_that_names_the_kernel_ends_with_a_sentence_without_its_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context = GlobalContext((9,))
    q, k, v = torch.randn(1, 2, 9, 4), torch.randn(1, 9, 4, 1), torch.randn(1, 9, 3, 1)
    e = torch.randn(17, 4, 1)

    def call(q: Tensor) -> Tensor:
        return lambda_layer(q, k, v, e, context=context, kernel="native")

    with pytest.warns(torch.jit.TracerWarning):
        traced = torch.jit.trace(call, q)
    torch.testing.assert_close(traced(q), call(q))
    monkeypatch.setattr(native.library, "_find", lambda: native.library._Found(reason="it is not built"))
    with pytest.raises(RuntimeError, match="native kernel, which cannot serve here: it is not built"):
        traced(q)
    with pytest.raises(RuntimeError, match="it computes on the CPU, not on cuda"):
        native.library.require("cuda")
