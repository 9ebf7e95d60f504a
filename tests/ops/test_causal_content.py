"""The causal content part with a softmax: the native recurrence, and the chunks that serve elsewhere."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.utils.flop_counter import FlopCounterMode

from cases import Case
from closeness import assert_close_by_name
from lambdanets import LambdaLayer1d
from lambdanets.ops import GlobalContext, Problem, content, lambda_layer, planner
from lambdanets.ops import causal_content as operators
from lambdanets.ops.causal_content import causal_content_gradients, causal_content_output
from lambdanets.ops.kernels import native
from lambdanets.ops.kernels.native import library
from oracles import lambda_layer_einsum
from preloaded import run_preloaded

needs_library = pytest.mark.skipif(library.unavailable() is not None, reason=str(library.unavailable()))
WAYS = [pytest.param("native", marks=needs_library), "chunks"]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Compute the content part in one of the two ways."""
    if request.param == "chunks":
        for module in (operators, planner):
            monkeypatch.setattr(module, "is_recurrence", lambda problem: False)
    return request.param


def causal(name: str, n: int, m: int | None = None, **sizes: Any) -> Case:
    return Case(name=name, grid=(n,), context_grid=None if m is None else (m,), **SIZES | sizes)


SIZES: dict[str, Any] = {"causal": True, "position": False}
CASES = [
    causal("usual", 70, num_heads=4, dim_k=16, dim_v=24),
    causal("one", 1),
    causal("all-ones", 1, num_heads=1, dim_k=1, dim_v=1),
    causal("two-heads", 31, num_heads=2, dim_k=17, dim_v=16),
    causal("many-heads", 33, num_heads=9, dim_k=4, dim_v=33),
    causal("wide", 40, num_heads=1, dim_k=40, dim_v=150, batch=1),
    causal("wide-u", 35, num_heads=6, dim_k=19, dim_v=70, dim_u=2, batch=1, padded=True),
    causal("u", 65, dim_u=3),
    causal("padded", 67, padded=True),
    causal("padded-u", 34, padded=True, dim_u=4, dim_k=16),
    causal("shorter", 70, 31),
    causal("shorter-padded", 97, 33, padded=True),
    causal("longer", 33, 70),
    causal("longer-padded-u", 31, 64, padded=True, dim_u=2),
    causal("long", 1000, batch=1, num_heads=2, dim_k=3, dim_v=5),
]
cases = pytest.mark.parametrize("case", CASES, ids=str)
USUAL, PADDED = CASES[0], CASES[8]


def results(
    call: Callable[[dict[str, Tensor]], Tensor], case: Case, inputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return the output and the gradient of every input, by name."""
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    y = call(leaves)
    gradients = torch.autograd.grad(y, list(leaves.values()), case.upstream(y.dtype))
    return {"y": y.detach()} | dict(zip(leaves, gradients, strict=True))


def apply(case: Case, **options: Any) -> Callable[[dict[str, Tensor]], Tensor]:
    return lambda inputs: case.call(lambda_layer, inputs, **options)


def by_einsum(case: Case) -> Callable[[dict[str, Tensor]], Tensor]:
    return lambda inputs: case.call_oracle(lambda_layer_einsum, inputs)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, x in found.items():
        assert torch.equal(x, expected[name]), name


@needs_library
def test_the_library_serves_causal_content_on_cpus_alone() -> None:
    problem = Problem(grid=(5,), causal=True)
    assert planner.is_recurrence(problem)
    for options in (
        {"device": "cuda"},
        {"causal": False},
        {"content": False},
        {"normalize": "l2"},
        {"dtype": torch.float8_e5m2},
    ):
        assert not planner.is_recurrence(Problem(**{"grid": (5,), "causal": True} | options))


@cases
def test_equals_the_plain_einsum(case: Case, way: str) -> None:
    inputs = case.inputs()
    exact = results(by_einsum(case), case, inputs)
    assert_close_by_name(results(apply(case), case, inputs), exact)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@cases
def test_the_size_of_chunks_does_not_matter(case: Case, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "is_recurrence", lambda problem: False)
    monkeypatch.setattr(content, "CHUNK", size)
    inputs = case.inputs()
    exact = results(apply(case, kernel="reference"), case, inputs)
    assert_close_by_name(results(apply(case), case, inputs), exact)


@needs_library
@pytest.mark.parametrize(
    "isa", [name for name in native.ISAS if native.ISAS[name] <= native.ISAS[native.isa()]]
)
@cases
def test_every_instruction_set_gives_the_same(case: Case, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.ISA_VARIABLE, isa)
    inputs = case.inputs()
    exact = results(apply(case, kernel="reference"), case, inputs)
    assert_close_by_name(results(apply(case), case, inputs), exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@cases
def test_low_precision_is_at_most_twice_as_wrong_as_the_plain_einsum(
    case: Case, dtype: torch.dtype, way: str
) -> None:
    inputs = case.inputs(dtype)
    exact = results(by_einsum(case), case, {name: x.double() for name, x in inputs.items()})
    found, plain = results(apply(case), case, inputs), results(by_einsum(case), case, inputs)
    assert {x.dtype for x in found.values()} == {dtype}
    if case.n == 1:
        # The weight of the one element is 1, the gradient of its key 0: two equal terms cancel.
        size = float((case.upstream() * exact["y"]).sum((1, 3)).abs().max())
        for gradients in (exact, found, plain):
            gradients["k"] = gradients["k"] + size
    assert_close_by_name(found, exact, plain)


def keys_like(order: str, keys: Tensor) -> Tensor:
    """Return keys [b, m, k, u] in an order that a running maximum must survive."""
    steps = torch.linspace(-80, 80, keys.shape[1], dtype=keys.dtype)[:, None, None]
    return {
        "constant": torch.full_like(keys, 3.7),
        "alternating": 80.0 * (-1) ** torch.arange(keys.shape[1])[:, None, None] + 0 * keys,
        "large": 80 * keys,
        "rising": keys + steps,
        "falling": keys - steps,
        "far-below": torch.where(torch.arange(keys.shape[1])[:, None, None] == 1, 1e30, keys),
        "lowest": torch.where(keys > 0, torch.finfo(keys.dtype).min, keys),
        "infinitely-low": torch.where(keys > 1, -torch.inf, keys),
    }[order]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    "order",
    ["constant", "alternating", "large", "rising", "falling", "far-below", "lowest", "infinitely-low"],
)
@pytest.mark.parametrize("case", [USUAL, PADDED], ids=str)
def test_keys_of_any_size_are_served(case: Case, order: str, dtype: torch.dtype, way: str) -> None:
    inputs = case.inputs(dtype)
    inputs["k"] = keys_like(order, inputs["k"])
    exact = results(by_einsum(case), case, {name: x.double() for name, x in inputs.items()})
    plain = None if dtype == torch.float64 else results(by_einsum(case), case, inputs)
    found = results(apply(case), case, inputs)
    # A sharp softmax has next to no gradient: the remainder is compared at the size of the terms that cancel.
    size = exact["v"].abs().max()
    for gradients in (exact, found, plain or {}):
        if gradients:
            gradients["k"] = gradients["k"] + size.to(gradients["k"].dtype)
    assert_close_by_name(found, exact, plain)


def test_queries_before_the_first_visible_element_give_zeros(way: str) -> None:
    case = causal("late", 50)
    inputs = case.inputs()
    mask = torch.ones(case.batch, case.m, dtype=torch.bool)
    mask[0, :37] = False
    inputs["k"][1, :3] = -torch.inf

    def call(leaves: dict[str, Tensor]) -> Tensor:
        return lambda_layer(**leaves, context=case.context(), mask=mask)

    found = results(call, case, inputs)
    assert found["y"][0, :, :37].eq(0).all()
    assert found["y"][1, :, :3].eq(0).all()
    assert found["y"][0, :, 37:].abs().gt(0).all()
    for name in ("k", "v"):
        assert found[name][0, :37].eq(0).all()
        assert found[name][1, :3].eq(0).all()


def test_a_column_without_finite_keys_adds_nothing(way: str) -> None:
    """The definition has NaN at the last query, from which nothing is hidden."""
    case = causal("low", 40)
    inputs, without = case.inputs(), case.inputs()
    inputs["k"][0, :, 1] = -torch.inf
    without["q"][0, :, :, 1] = 0
    y, reference = apply(case)(inputs), apply(case, kernel="reference")(inputs)
    assert_close_by_name({"y": y}, {"y": apply(case)(without)})
    assert_close_by_name({"y": y[:, :, :-1]}, {"y": reference[:, :, :-1]})
    assert reference[0, :, -1].isnan().all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf], ids=str)
@pytest.mark.parametrize("name", ["k", "v"])
def test_infinities_reach_the_queries_that_see_them(name: str, bad: float, way: str) -> None:
    case = USUAL
    inputs, changed = case.inputs(), case.inputs()
    changed[name][0, 40, 3] = bad
    y, usual = apply(case)(changed), apply(case)(inputs)
    reference = apply(case, kernel="reference")(changed)
    assert torch.equal(y[0, :, 40:].isfinite(), reference[0, :, 40:].isfinite())
    assert not y[0, :, 40:].isfinite().all()
    assert torch.equal(y[1], usual[1])
    if way == "native":
        # Products with weights of 0 make all queries of the definition infinite.
        assert torch.equal(y[0, :, :40], usual[0, :, :40])
    mask = torch.ones(case.batch, case.m, dtype=torch.bool)
    mask[0, 40] = False
    hidden = [lambda_layer(**x, context=case.context(), mask=mask) for x in (changed, inputs)]
    assert torch.equal(*hidden)


@needs_library
def test_an_infinite_value_stays_infinite_in_later_chunks() -> None:
    n = 100
    q, k, v = torch.ones(1, 1, n, 2), torch.zeros(1, n, 2, 1), torch.zeros(1, n, 3, 1)
    v[0, 5, 1] = torch.inf
    y = lambda_layer(q, k, v, context=GlobalContext(n, causal=True))
    assert y[0, 0, 5:, 1].eq(torch.inf).all()
    assert y[0, 0, :, [0, 2]].eq(0).all()


@pytest.mark.parametrize(
    "case",
    [
        causal("tiny", 3, num_heads=1, dim_k=2, dim_v=2),
        causal("tiny-u", 3, num_heads=2, dim_k=2, dim_v=1, dim_u=2, batch=1),
        causal("tiny-padded", 4, num_heads=1, dim_k=2, dim_v=2, padded=True),
        causal("tiny-shorter", 4, 2, num_heads=1, dim_k=2, dim_v=2, batch=1),
        causal("tiny-longer", 2, 4, num_heads=1, dim_k=2, dim_v=2, batch=1),
    ],
    ids=str,
)
def test_gradients_to_second_order_equal_finite_differences(case: Case, way: str) -> None:
    inputs = {name: x.requires_grad_() for name, x in case.inputs().items()}

    def call(*tensors: Tensor) -> Tensor:
        return apply(case)(dict(zip(inputs, tensors, strict=True)))

    assert torch.autograd.gradcheck(call, tuple(inputs.values()))
    assert torch.autograd.gradgradcheck(call, tuple(inputs.values()))


@pytest.mark.parametrize("trained", ["q", "k", "v"])
def test_gradients_of_one_input_to_third_order(trained: str, way: str) -> None:
    """Frozen inputs have no gradient, in any order."""
    case = PADDED

    def derivatives(kernel: str) -> dict[str, Tensor]:
        leaves = case.inputs()
        x = leaves[trained].requires_grad_()
        derivative = apply(case, kernel=kernel)(leaves).sin()
        found = {}
        for order in ("first", "second", "third"):
            (derivative,) = torch.autograd.grad(derivative.square().sum(), x, create_graph=True)
            found[order] = derivative.detach()
        return found

    assert_close_by_name(derivatives("auto"), derivatives("reference"))


@cases
def test_no_gradient_comes_from_the_future(case: Case, way: str) -> None:
    inputs = {name: x.requires_grad_() for name, x in case.inputs().items()}
    query = case.n // 2
    y = apply(case)(inputs)[:, :, query]
    gradients = dict(zip(inputs, torch.autograd.grad(y.sum(), list(inputs.values())), strict=True))
    for name in ("k", "v"):
        assert gradients[name][:, query + 1 :].eq(0).all()
    others = torch.arange(case.n) != query
    assert gradients["q"][:, :, others].eq(0).all()


@needs_library
@cases
def test_results_do_not_depend_on_threads_or_runs(case: Case) -> None:
    inputs, threads = case.inputs(torch.float32), torch.get_num_threads()
    found = []
    try:
        for number in (1, 2, 3, 1):
            torch.set_num_threads(number)
            found.append(results(apply(case), case, inputs))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert_equal(other, found[0])


def scattered(x: Tensor, order: tuple[int, ...]) -> Tensor:
    """Return the same values with the axes in memory in this order, and gaps between the elements."""
    wide = x.permute(order).contiguous().repeat_interleave(2, -1)[..., ::2]
    return wide.permute([order.index(axis) for axis in range(x.ndim)])


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (0, 1, 3, 2), (2, 0, 3, 1)], ids=str)
@pytest.mark.parametrize("case", [USUAL, PADDED], ids=str)
def test_strides_change_nothing(case: Case, order: tuple[int, ...], way: str) -> None:
    inputs = case.inputs()
    exact = results(apply(case), case, inputs)
    leaves = {name: scattered(x, order).requires_grad_() for name, x in inputs.items()}
    y = apply(case)(leaves)
    y.backward(scattered(case.upstream(), order))
    found = {"y": y.detach()} | {name: x.grad for name, x in leaves.items() if x.grad is not None}
    assert_close_by_name(found, exact)
    mask = scattered(torch.ones(1, 1, case.batch, case.m, dtype=torch.bool), order)[0, 0]
    masked = lambda_layer(**leaves, context=case.context(), mask=mask)
    torch.testing.assert_close(masked, lambda_layer(**inputs, context=case.context()))


@pytest.mark.parametrize("layout", [(0, 1, 2, 3), (0, 1, 3, 2), (0, 2, 1, 3)], ids=str)
@needs_library
def test_the_output_has_the_memory_layout_of_the_queries(layout: tuple[int, ...]) -> None:
    inputs = USUAL.inputs()
    inputs["q"] = inputs["q"].permute(layout).contiguous().permute(layout)
    assert apply(USUAL)(inputs).permute(layout).is_contiguous()


def test_an_expanded_gradient_is_read_by_its_strides(way: str) -> None:
    case = USUAL
    found, exact = ({name: x.requires_grad_() for name, x in case.inputs().items()} for _ in range(2))
    apply(case)(found).sum().backward()
    apply(case, kernel="reference")(exact).sum().backward()
    gradients = [{name: x.grad for name, x in each.items() if x.grad is not None} for each in (found, exact)]
    assert_close_by_name(*gradients)


def test_an_empty_batch_gives_an_empty_output(way: str) -> None:
    case = causal("empty", 5, batch=0)
    found = results(apply(case), case, case.inputs())
    assert found["y"].shape == (0, case.num_heads, 5, case.dim_v)
    assert [found[name].shape[0] for name in ("q", "k", "v")] == [0, 0, 0]


@needs_library
def test_registration_is_sound() -> None:
    for case in (causal("sound", 7), causal("sound-padded", 7, 9, padded=True, dim_u=2)):
        x = {name: x.float().requires_grad_() for name, x in case.inputs().items()}
        for memory_layout in ("hnv", "hvn", "nhv"):
            options = (None, None, None, case.mask(), memory_layout)
            torch.library.opcheck(causal_content_output, (*x.values(), *options))
        for needs_grad in ([True, True, True], [True, False, True], [False, True, False]):
            tensors = [case.upstream(torch.float32), None, None, *(each.detach() for each in x.values())]
            options = (None, None, None, case.mask(), [*needs_grad, False, False, False])
            torch.library.opcheck(causal_content_gradients, (*tensors, *options))


@needs_library
def test_one_graph_holds_the_recurrence_forward_and_backward() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    mask, context = PADDED.mask(), PADDED.context()

    def call(**leaves: Tensor) -> Tensor:
        return lambda_layer(**leaves, context=context, mask=mask)

    compiled = torch.compile(call, fullgraph=True, backend=aot_autograd(fw_compiler=keep))
    inputs, exact = ({name: x.requires_grad_() for name, x in PADDED.inputs().items()} for _ in range(2))
    y, expected = compiled(**inputs), call(**exact)
    assert torch.equal(y, expected)
    y.backward(PADDED.upstream())
    expected.backward(PADDED.upstream())
    assert all(torch.equal(x.grad, exact[name].grad) for name, x in inputs.items())
    called = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    assert sum("causal_content_output" in name for name in called) == 1
    assert sum("causal_content_gradients" in name for name in called) == 1
    assert not any("exp" in name and "expand" not in name for name in called)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@needs_library
@cases
def test_a_graph_with_the_operators_computes_the_chunks_where_the_library_is_missing(
    case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, g, mask = case.inputs(dtype), case.upstream(dtype), case.mask()
    inputs["q"] = inputs["q"].mT.contiguous().mT
    with monkeypatch.context() as chunks:
        chunks.setattr(operators, "is_recurrence", lambda problem: False)
        expected = results(apply(case), case, inputs)
    monkeypatch.setattr(library, "_find", lambda: library._Found(reason="it is not there"))
    y, *_ = causal_content_output(*inputs.values(), None, None, None, mask, "hvn")
    assert y.mT.is_contiguous()
    arguments = (g, None, None, *inputs.values(), None, None, None, mask)
    found = causal_content_gradients(*arguments, [True] * 3 + [False] * 3)
    gradients = dict(zip("qkv", found, strict=False))
    assert_equal({"y": y} | gradients, expected)
    assert all(gradients[name].stride() == x.stride() for name, x in inputs.items())
    dq, dk, dv, *_ = causal_content_gradients(*arguments, [False, True] + [False] * 4)
    assert dq.numel() == dv.numel() == 0
    assert torch.equal(dk, gradients["k"])


ELSEWHERE = """
import sys, torch
from lambdanets.ops.kernels.native import library
saved = torch.load(sys.argv[2])
x = saved["x"].requires_grad_()
y = torch.jit.load(sys.argv[1])(x)
y.square().sum().backward()
torch.save({"y": y.detach(), "x": x.grad}, sys.argv[3])
print(library.unavailable())
"""


@needs_library
@pytest.mark.parametrize("causal", [True, False])
def test_a_traced_layer_runs_in_a_process_without_the_library(tmp_path: Path, causal: bool) -> None:
    layer = LambdaLayer1d(8, dim_k=4, grid=33, causal=causal, norm="rms").double()
    x = torch.randn(2, 8, 33, dtype=torch.float64, requires_grad=True)
    with pytest.warns(torch.jit.TracerWarning):
        traced = torch.jit.trace(layer, x, check_trace=False)
    operator = "causal_content_output" if causal else "lambdanets::content_lambda"
    assert operator in str(traced.inlined_graph)
    traced.save(tmp_path / "layer.pt")
    torch.save({"x": x.detach()}, tmp_path / "x.pt")
    files = [str(tmp_path / name) for name in ("layer.pt", "x.pt", "y.pt")]
    done = run_preloaded("-c", ELSEWHERE, *files, env=os.environ | {"LAMBDANETS_NATIVE": "0"})
    assert (done.returncode, done.stdout) == (0, "LAMBDANETS_NATIVE=0 turns it off\n"), done.stderr
    y = layer(x)
    y.square().sum().backward()
    assert x.grad is not None
    assert_close_by_name(torch.load(files[2]), {"y": y.detach(), "x": x.grad})


def test_an_exported_layer_holds_no_operator_of_this_package() -> None:
    layer = LambdaLayer1d(8, dim_k=4, grid=9, causal=True, norm="rms").double().eval()
    x = torch.randn(2, 8, 9, dtype=torch.float64)
    exported = torch.export.export(layer, (x,))
    assert not [node for node in exported.graph.nodes if "lambdanets" in str(node.target)]
    torch.testing.assert_close(exported.module()(x), layer(x))


def test_transforms_of_torch_func_give_the_derivatives_of_the_definition(way: str) -> None:
    case = causal("func", 9, padded=True)
    inputs, context, mask = case.inputs(), case.context(), case.mask()
    direction = case.inputs(seed=3)["k"]

    def call(keys: Tensor, kernel: str) -> Tensor:
        return lambda_layer(**inputs | {"k": keys}, context=context, mask=mask, kernel=kernel)

    def derivatives(kernel: str) -> dict[str, Tensor]:
        function = torch.func.jvp(lambda k: call(k, kernel), (inputs["k"],), (direction,))
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(inputs["k"], direction)
            tangent = torch.autograd.forward_ad.unpack_dual(call(dual, kernel)).tangent
        return {
            "jvp": function[1],
            "dual": tangent,
            "grad": torch.func.grad(lambda k: call(k, kernel).square().sum())(inputs["k"]),
            "vmap": torch.func.vmap(lambda k: call(k, kernel))(torch.stack([inputs["k"], direction])),
        }

    assert_close_by_name(derivatives("auto"), derivatives("reference"))


def test_transforms_of_torch_func_may_be_inside_a_compiled_graph(way: str) -> None:
    case = causal("compiled-func", 9)
    inputs = case.inputs()

    def derivative(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        context = GlobalContext(9, causal=True)
        return torch.func.grad(lambda k: lambda_layer(q, k, v, context=context).square().sum())(k)

    compiled = torch.compile(derivative, fullgraph=True, backend="aot_eager")
    assert_close_by_name({"k": compiled(**inputs)}, {"k": derivative(**inputs)})


def test_a_compiled_graph_serves_sequences_of_any_length(way: str) -> None:
    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return lambda_layer(q, k, v, context=GlobalContext(q.shape[2], causal=True))

    def with_any_length(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
        for name, x in leaves.items():
            torch._dynamo.maybe_mark_dynamic(x, 2 if name == "q" else 1)
        return leaves

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for n in (20, 40):
        case = causal("dynamic", n)
        inputs = case.inputs()
        found = results(lambda leaves: compiled(**with_any_length(leaves)), case, inputs)
        assert_close_by_name(found, results(apply(case, kernel="reference"), case, inputs))


def peak_bytes(call: Callable[[], object]) -> int:
    """Return the peak of live bytes of a call, by the allocator's own count."""
    with torch.profiler.profile(profile_memory=True) as profile:
        call()
    alive = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return peak


@needs_library
def test_memory_is_that_of_the_inputs_and_their_gradients() -> None:
    case = causal("memory", 3000, num_heads=2, dim_k=16, dim_v=16)
    inputs = {name: x.requires_grad_() for name, x in case.inputs(torch.float32).items()}
    g = case.upstream(torch.float32)
    saved: dict[int, int] = {}

    def save(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def train() -> None:
        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            y = apply(case)(inputs)
        y.backward(g)

    given = sum(x.nbytes for x in inputs.values())
    assert peak_bytes(train) < 2.5 * (given + g.nbytes)
    assert sum(saved.values()) == given


def test_torch_counts_the_operations_of_the_plan(way: str) -> None:
    case = causal("flops", 40)
    problem = Problem.of(*case.inputs().values(), None, case.context(), train=True)
    if way == "native":
        with FlopCounterMode(display=False) as counter:
            results(apply(case), case, case.inputs())
        assert counter.get_total_flops() == planner.plan(problem).flops
    assert planner.content_flops(problem) > problem.content_flops
