"""Properties that only a GPU can show: graphs, memory, bits, large tensors, a second device.

The results are compared with the definition where those of all kernels are, in `test_kernels.py`.
"""

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cases import BY_NAME, Case
from closeness import assert_close_by_name
from lambdanets import LambdaLayer2d
from lambdanets.ops import KERNELS, GlobalContext, LocalContext, Problem, lambda_layer, plan
from lambdanets.ops.kernels.triton.tiling import Tile, candidate_tiles
from oracles import lambda_layer_einsum

pytestmark = pytest.mark.gpu
TRITON = not KERNELS["triton"].unsupported(Problem(grid=(4, 4), device="cuda"))
triton = pytest.mark.skipif(not TRITON, reason="the Triton kernel does not serve this device")
PROBLEM = Problem(grid=(14, 14), scope=(23, 23), batch=32, dtype=torch.bfloat16, device="cuda", train=True)


@pytest.fixture
def tuned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Tune tiles as for a user, with the cache in a temporary folder; memory is not poisoned."""
    from lambdanets.ops.kernels.triton import tuning

    monkeypatch.setattr(tuning, "_tuned", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    torch.use_deterministic_algorithms(False)  # which the fixture of these tests has set
    return tmp_path / "lambdanets" / "tiles"


def assert_near(found: Tensor, exact: Tensor, fraction: float) -> None:
    """Assert that the distance is at most a fraction of the norm."""
    assert (found.double() - exact.double()).norm() <= fraction * exact.double().norm()


def layer_and_images(**options: object) -> tuple[LambdaLayer2d, Tensor]:
    layer = LambdaLayer2d(64, scope=23, kernel="triton", **options).cuda()
    return layer, torch.randn(8, 64, 15, 17, device="cuda")


def results(problem: Problem) -> dict[str, Tensor]:
    g, q, v, e = problem.random_inputs()
    y = torch.empty_like(g)
    KERNELS["triton"].output(q, v, e, problem, y)
    dq, dv, de = KERNELS["triton"].gradients(g, q, v, e, problem, (True, True, True))
    return {"y": y, "dq": dq, "dv": dv, "de": de}


@triton
def test_tiles_are_tuned_once_and_cached(tuned: Path) -> None:
    first = results(PROBLEM)
    cached = {file.name: file.read_text() for file in tuned.iterdir()}
    assert len(cached) == 4
    again = results(PROBLEM)
    assert cached == {file.name: file.read_text() for file in tuned.iterdir()}
    assert all(torch.equal(first[name], again[name]) for name in first)


@triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("sizes", [(5, 5), (1, 1)], ids=str)
def test_every_tile_is_right_and_repeats_its_bits(dtype: torch.dtype, sizes: tuple[int, int]) -> None:
    """The problem is larger than a tile on every axis."""
    from lambdanets.ops.kernels.triton import launch

    batch, heads = sizes
    case = Case(name="seams", grid=(9, 37), scope=(6, 11), batch=batch, num_heads=heads, dim_k=17, dim_v=133)
    x = case.inputs(dtype, "cuda")
    q, v, e = x["q"], x["v"], x["e"]
    g = case.upstream(dtype, "cuda")
    problem = Problem.of(q, x["k"], v, e, case.context(), False, False)

    def by_einsum(dtype: torch.dtype) -> dict[str, Tensor]:
        leaves = {name: value.to(dtype).requires_grad_() for name, value in x.items()}
        y = lambda_layer_einsum(**leaves, grid=case.grid, scope=case.scope, content=False)
        gradients = torch.autograd.grad(y, [leaves[name] for name in "qve"], g.to(dtype))
        return {"output": y.detach()} | dict(zip(("dq", "dv", "de"), gradients, strict=True))

    exact, plain = by_einsum(torch.float64), by_einsum(dtype)

    def launched(name: str, tile: Tile, into: Tensor) -> Tensor:
        if name == "output":
            calls = [launch.output_call(q, v, e, problem, into, tile)]
        elif name == "dq":
            calls = [launch.query_gradient_call(g, v, e, problem, into, tile)]
        elif name == "dv":
            calls = [launch.value_gradient_call(g, q, e, problem, into, tile)]
        else:
            calls = launch.table_gradient_calls(g, q, v, problem, into, tile)
        for call in calls:
            call.launch()
        return into

    for name, like in (("output", g), ("dq", q), ("dv", v), ("de", e)):
        for tile in candidate_tiles(problem, name):
            first, second = (launched(name, tile, torch.zeros_like(like)) for _ in range(2))
            assert_close_by_name({name: first}, {name: exact[name]}, {name: plain[name]})
            assert torch.equal(first, second), tile


@triton
def test_a_compiled_layer_is_one_graph_and_equals_itself(tuned: Path) -> None:
    layer, x = layer_and_images()
    compiled = torch.compile(layer, fullgraph=True)
    found, exact = ({"y": module(x)} for module in (compiled, layer))
    for result in (found, exact):
        layer.zero_grad()
        result["y"].square().sum().backward()
        result.update({name: p.grad.clone() for name, p in layer.named_parameters() if p.grad is not None})
    for name in exact:
        assert_near(found[name], exact[name], 1e-3)


@triton
@pytest.mark.parametrize("warm", [True, False])
def test_a_training_step_is_recorded_as_a_graph_and_repeated(tuned: Path, warm: bool) -> None:
    """Also if nothing is tuned yet: nothing is tuned while a graph is recorded."""
    problem = replace(PROBLEM, batch=7 if warm else 9)
    g, q, v, e = problem.random_inputs()
    y = torch.empty_like(g)

    def step() -> tuple[Tensor | None, ...]:
        KERNELS["triton"].output(q, v, e, problem, y)
        return KERNELS["triton"].gradients(g, q, v, e, problem, (True, True, True))

    if warm:
        step()
    else:  # the programs are loaded, but for these sizes nothing has been tried
        results(replace(problem, batch=8))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = step()
    q.normal_(generator=torch.Generator("cuda").manual_seed(5))
    graph.replay()
    found = {"y": y.clone()} | {n: x.clone() for n, x in zip("qve", recorded, strict=True) if x is not None}
    exact = {"y": y} | dict(zip("qve", step(), strict=True))
    for name, x in found.items():
        assert_near(x, exact[name], 2e-2)


@triton
@pytest.mark.parametrize("kind", ["forward", "backward"])
def test_nothing_of_the_size_of_lambdas_or_of_maps_is_stored(kind: str) -> None:
    problem = Problem(grid=(64, 64), batch=16, dtype=torch.bfloat16, device="cuda")
    g, q, v, e = problem.random_inputs()
    y = torch.empty_like(g)

    def call() -> list[Tensor | None]:
        if kind == "forward":
            KERNELS["triton"].output(q, v, e, problem, y)
            return []
        return list(KERNELS["triton"].gradients(g, q, v, e, problem, (True, True, True)))

    call()
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = call()
    torch.cuda.synchronize()
    rise = torch.cuda.max_memory_allocated() - before - sum(x.nbytes for x in found if x is not None)
    estimated = KERNELS["triton"].cost(problem, backward=kind == "backward").peak_bytes
    assert rise <= 1.1 * estimated + 2**20  # which `test_triton.py` compares with lambdas


@triton
def test_float32_is_rounded_only_where_pytorch_may() -> None:
    case = Case(name="precise", grid=(16, 16), batch=2, dim_k=16, dim_v=64, num_heads=4, content=False)
    x = case.inputs(torch.float32, "cuda")
    exact = case.call(lambda_layer, case.inputs(torch.float64, "cuda"), kernel="reference")
    errors = {}
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        for precision in ("ieee", "tf32"):
            torch.backends.cuda.matmul.fp32_precision = precision
            found = case.call(lambda_layer, x, kernel="triton")
            errors[precision] = float((found - exact).norm() / exact.norm())
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert errors["ieee"] < 1e-6
    assert 1e-5 < errors["tf32"] < 3e-3


@triton
def test_a_layer_under_autocast_computes_in_half_precision() -> None:
    layer, x = layer_and_images()
    with torch.autocast("cuda", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    assert_near(y, layer(x), 5e-2)


@triton
@pytest.mark.slow
def test_tensors_of_more_than_2_to_the_31_elements(tuned: Path) -> None:
    """The last positions of a sequence whose values need 64-bit indices equal those of a short sequence."""
    n, scope, dim_v = 2**25 + 8, 5, 64
    if torch.cuda.mem_get_info()[0] < 16 * 2**30:
        pytest.skip("needs 16 GiB of GPU memory")
    options = {"device": "cuda", "dtype": torch.bfloat16}
    q, v = torch.randn(1, 1, n, 16, **options), torch.randn(1, n, dim_v, 1, **options)
    e = torch.randn(scope, 16, 1, **options)
    problem = Problem(grid=(n,), scope=(scope,), num_heads=1, dtype=torch.bfloat16, device="cuda")
    y = torch.empty(1, 1, n, dim_v, **options)
    KERNELS["triton"].output(q, v, e, problem, y)
    tail = 64
    short = replace(problem, grid=(tail,))
    exact = torch.empty(1, 1, tail, dim_v, device="cuda", dtype=torch.float64)
    inputs = [x[:, :, -tail:] if x is q else x[:, -tail:] if x is v else x for x in (q, v, e)]
    KERNELS["reference"].output(*(x.double() for x in inputs), replace(short, dtype=torch.float64), exact)
    found = y[:, :, -tail:]
    inside = slice(scope, tail)  # the first of the short sequence see less than those of the long one
    assert_near(found[:, :, inside], exact[:, :, inside], 2e-2)


@triton
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="it takes two GPUs")
def test_tensors_on_the_second_device() -> None:
    case = BY_NAME["local-2d-rectangle"]
    exact = case.call(lambda_layer, case.inputs(torch.float64, "cuda:1"), kernel="reference")
    found = case.call(lambda_layer, case.inputs(torch.float64, "cuda:1"), kernel="triton")
    assert found.device.index == 1
    assert_close_by_name({"y": found}, {"y": exact})


def test_the_planned_kernels_serve_large_and_small_grids() -> None:
    for context in (GlobalContext((7, 7)), GlobalContext((40, 40)), LocalContext((56, 56), (7, 7))):
        n = context.num_queries
        shapes = [(2, 4, n, 16), (2, n, 16, 1), (2, n, 32, 1), (*context.table_shape, 16, 1)]
        q, k, v, e = (torch.randn(shape, device="cuda", requires_grad=True) for shape in shapes)
        made = plan(Problem.of(q, k, v, e, context, True, True))
        assert made.kernel is not None
        lambda_layer(q, k, v, e, context=context).square().sum().backward()
        found = [x.grad.clone() for x in (q, k, v, e) if x.grad is not None]
        for x in (q, k, v, e):
            x.grad = None
        lambda_layer(q, k, v, e, context=context, kernel="reference").square().sum().backward()
        for gradient, x in zip(found, (q, k, v, e), strict=True):
            assert_near(gradient, x.grad, 1e-3)


def test_tensors_on_two_devices_are_refused() -> None:
    case = BY_NAME["global-2d"]
    x = case.inputs(torch.float32, "cuda")
    with pytest.raises(ValueError, match=r"share dtype and device: q is .* on cuda:0, e is .* on cpu"):
        case.call(lambda_layer, x | {"e": x["e"].cpu()}, kernel="triton")
