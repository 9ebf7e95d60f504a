"""The content lambda that all queries share: the native program, and PyTorch's operators, for the rest."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.utils.flop_counter import FlopCounterMode

from closeness import assert_close_by_name
from lambdanets import LambdaLayer2d
from lambdanets.ops import GlobalContext, Problem, lambda_layer, planner, shared_content
from lambdanets.ops.kernels import native
from lambdanets.ops.kernels.native import library
from lambdanets.ops.shared_content import content_lambda, content_lambda_gradients, shared_lambda

needs_library = pytest.mark.skipif(library.unavailable() is not None, reason=str(library.unavailable()))
WAYS = [pytest.param("native", marks=needs_library), "torch"]

# b, m, k, v, u: one element, partial vectors, whole ones, several parts of a context, many examples
SIZES = {
    "ones": (1, 1, 1, 1, 1),
    "small": (2, 5, 3, 7, 1),
    "small-u": (2, 9, 3, 2, 4),
    "images": (3, 49, 16, 32, 1),
    "wide": (2, 33, 40, 130, 2),
    "vector-and-one": (2, 257, 17, 33, 1),
    "parts": (2, 700, 16, 16, 1),
    "parts-u": (1, 1031, 5, 20, 3),
    "many": (40, 300, 8, 20, 1),
    "long": (1, 9000, 16, 24, 1),
}
ORDERS = {"contiguous": (0, 1, 2, 3), "channels-first": (0, 2, 3, 1), "u-before-k": (0, 3, 2, 1)}
sizes = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Compute the content lambda in one of the two ways."""
    if request.param == "torch":
        monkeypatch.setattr(shared_content, "is_native_content", lambda problem: False)
    return request.param


def lambda_oracle(k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Sum over the visible elements of each example: their keys normalised by exponentials and a sum."""
    found = []
    for example in range(len(k)):
        visible = torch.ones(k.shape[1], dtype=torch.bool) if mask is None else mask[example]
        keys, values = k[example, visible], v[example, visible]
        if not len(keys):
            found.append(torch.zeros(k.shape[2], v.shape[2], dtype=k.dtype))
            continue
        weights = (keys - keys.detach().amax(0)).exp()
        found.append(torch.einsum("mku,mvu->kv", weights / weights.sum(0), values))
    return torch.stack(found)


def inputs(
    size: tuple[int, ...], dtype: torch.dtype = torch.float64, masked: bool = False
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Return random keys, values, a mask that hides all of the last of several examples, and a gradient."""
    b, m, k, v, u = size
    generator = torch.Generator().manual_seed(0)
    keys, values, upstream = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((b, m, k, u), (b, m, v, u), (b, k, v))
    )
    mask = None
    if masked:
        mask = torch.rand(b, m, generator=generator) < 0.7
        mask[0, 0] = True
        if b > 1:
            mask[-1] = False
        values = values.masked_fill(~mask[:, :, None, None], 0)
    return keys.to(dtype), values.to(dtype), mask, upstream


def ordered(x: Tensor, order: tuple[int, ...], gaps: bool = False) -> Tensor:
    """Return the same values with the axes in memory in this order, optionally with gaps between elements."""
    moved = x.permute(order).contiguous()
    if gaps:
        moved = moved.repeat_interleave(2, -1)[..., ::2]
    return moved.permute([order.index(axis) for axis in range(x.ndim)])


def problem_of(k: Tensor, v: Tensor) -> Problem:
    return Problem(
        grid=(k.shape[1],),
        dim_k=k.shape[2],
        dim_v=v.shape[2],
        dim_u=k.shape[3],
        batch=k.shape[0],
        position=False,
        dtype=k.dtype,
    )


def results(function: Any, k: Tensor, v: Tensor, mask: Tensor | None, g: Tensor) -> dict[str, Tensor]:
    """Return the content lambda and its gradients, by name."""
    k, v = k.detach().requires_grad_(), v.detach().requires_grad_()
    y = function(k, v, mask)
    dk, dv = torch.autograd.grad(y, (k, v), g.to(y.dtype))
    return {"y": y.detach(), "k": dk, "v": dv}


def package(k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return shared_lambda(k, v, mask, problem_of(k, v))


def in_double(k: Tensor, v: Tensor, mask: Tensor | None, g: Tensor) -> dict[str, Tensor]:
    return results(lambda_oracle, k.double(), v.double(), mask, g)


@needs_library
def test_the_library_serves_a_softmax_on_cpus() -> None:
    assert planner.is_native_content(Problem(grid=(5,)))
    for options in (
        {"device": "cuda"},
        {"content": False},
        {"normalize": "l2"},
        {"dtype": torch.float8_e5m2},
    ):
        assert not planner.is_native_content(Problem(**{"grid": (5,)} | options))
    assert not planner.is_native_content(Problem(grid=(5,), masked=True, dense=True))


@pytest.mark.parametrize("masked", [False, True], ids=["visible", "masked"])
@pytest.mark.parametrize("gaps", [False, True], ids=["dense", "gaps"])
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@sizes
def test_equals_the_sum_over_visible_elements(
    size: tuple[int, ...], order: tuple[int, ...], gaps: bool, masked: bool, way: str
) -> None:
    k, v, mask, g = inputs(size, masked=masked)
    found = results(package, ordered(k, order, gaps), ordered(v, order, gaps), mask, g)
    assert_close_by_name(found, in_double(k, v, mask, g))


@pytest.mark.parametrize("orders", list(itertools.permutations(ORDERS, 2)), ids=str)
def test_keys_and_values_may_differ_in_order(orders: tuple[str, str], way: str) -> None:
    k, v, mask, g = inputs(SIZES["parts-u"], masked=True)
    found = results(package, ordered(k, ORDERS[orders[0]]), ordered(v, ORDERS[orders[1]]), mask, g)
    assert_close_by_name(found, in_double(k, v, mask, g))


@needs_library
@pytest.mark.parametrize(
    "isa", [name for name in native.ISAS if native.ISAS[name] <= native.ISAS[native.isa()]]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@sizes
def test_every_instruction_set_gives_the_same(
    size: tuple[int, ...], dtype: torch.dtype, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(native.ISA_VARIABLE, isa)
    k, v, mask, g = inputs(size, dtype, masked=True)
    plain = None if dtype == torch.float64 else results(lambda_oracle, k, v, mask, g)
    for order in ORDERS.values():
        found = results(package, ordered(k, order), ordered(v, order), mask, g)
        if k.shape[1] == 1:
            found["k"] = found["k"] + 1  # the gradient of a single key is 0: two equal terms cancel
        exact = in_double(k, v, mask, g)
        for each in [exact] + ([] if plain is None else [plain]):
            if k.shape[1] == 1:
                each["k"] = torch.ones_like(each["k"])
        assert_close_by_name(found, exact, plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["small", "images", "parts-u"])
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype, way: str) -> None:
    k, v, mask, g = inputs(SIZES[name], dtype, masked=True)
    g = g.float()
    found = results(package, k, v, mask, g)
    assert found["y"].dtype == torch.float32
    assert found["k"].dtype == found["v"].dtype == dtype
    exact = in_double(k, v, mask, g)
    torch.testing.assert_close(found["y"].double(), exact["y"], rtol=1e-5, atol=1e-6)
    rounding = torch.finfo(dtype).eps
    for each in ("k", "v"):
        torch.testing.assert_close(found[each].double(), exact[each], rtol=rounding, atol=rounding * 0.01)


@needs_library
@sizes
def test_results_do_not_depend_on_threads_or_runs(size: tuple[int, ...]) -> None:
    k, v, mask, g = inputs(size, torch.float32, masked=True)
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3, 1):
            torch.set_num_threads(number)
            found.append(results(package, k, v, mask, g))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(x, found[0][name]) for name, x in other.items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("kind", ["equal", "large", "rising", "one-far-above", "lowest", "infinitely-low"])
@pytest.mark.parametrize("masked", [False, True], ids=["visible", "masked"])
def test_keys_of_any_size_are_served(kind: str, masked: bool, dtype: torch.dtype, way: str) -> None:
    k, v, mask, g = inputs(SIZES["parts"], dtype, masked=masked)
    elements = torch.arange(k.shape[1])[:, None, None]
    k = {
        "equal": torch.full_like(k, 3.7),
        "large": (1e4 * k.sign()),
        "rising": k + (elements - 350) / 10,
        "one-far-above": torch.where(elements == 500, 1e30, k),
        "lowest": torch.where(k > 0, torch.finfo(dtype).min, k),
        # whole parts of the context, too
        "infinitely-low": torch.where((k > 1) | (elements < 300) & (elements > 0), -torch.inf, k),
    }[kind].to(dtype)
    found, exact = results(package, k, v, mask, g), in_double(k, v, mask, g)
    plain = None if dtype == torch.float64 else results(lambda_oracle, k, v, mask, g)
    # A sharp softmax has next to no gradient: the remainder is compared at the size of the terms that cancel.
    for gradients in (exact, found, plain or {}):
        if gradients:
            gradients["k"] = gradients["k"] + exact["v"].abs().max().to(gradients["k"].dtype)
    assert_close_by_name(found, exact, plain)


@pytest.mark.parametrize("size", ["small", "parts"])
def test_hidden_elements_have_no_effect(size: str, way: str) -> None:
    k, v, mask, g = inputs(SIZES[size], masked=True)
    assert mask is not None
    exact = results(package, k, v, mask, g)
    assert exact["y"][-1].eq(0).all()
    assert exact["k"][~mask].eq(0).all()
    assert exact["v"][~mask].eq(0).all()
    for bad in (torch.nan, torch.inf, -torch.inf, 1e300):
        found = results(package, k.masked_fill(~mask[:, :, None, None], bad), v, mask, g)
        assert all(torch.equal(x, exact[name]) for name, x in found.items())


@pytest.mark.parametrize("size", ["small", "parts"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["visible", "masked"])
def test_nan_and_infinities_are_where_the_definition_has_them(
    bad: float, size: str, masked: bool, way: str
) -> None:
    for where in ("key", "value", "column"):
        k, v, mask, _ = inputs(SIZES[size], masked=masked)
        if where == "key":
            k[0, 0, 1] = bad
        elif where == "value":
            v[0, 0, 1] = bad
        else:
            k[0, :, 1] = bad
        q = torch.ones(k.shape[0], 1, k.shape[1], k.shape[2], dtype=k.dtype)
        y, exact = (
            lambda_layer(q, k, v, context=GlobalContext(k.shape[1]), mask=mask, kernel=kernel)
            for kernel in ("auto", "reference")
        )
        torch.testing.assert_close(y, exact, equal_nan=True, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("size", [(1, 1, 1, 1, 1), (2, 3, 2, 2, 1), (1, 4, 2, 1, 2)], ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["visible", "masked"])
def test_gradients_to_second_order_equal_finite_differences(
    size: tuple[int, ...], masked: bool, way: str
) -> None:
    k, v, mask, _ = inputs(size, masked=masked)

    def call(k: Tensor, v: Tensor) -> Tensor:
        return package(k, v if mask is None else v.masked_fill(~mask[:, :, None, None], 0), mask)

    leaves = (k.requires_grad_(), v.requires_grad_())
    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)


@pytest.mark.parametrize("needs", [("k",), ("v",)], ids=str)
def test_frozen_inputs_have_no_gradient(needs: tuple[str, ...], way: str) -> None:
    k, v, mask, g = inputs(SIZES["small-u"], masked=True)
    exact = in_double(k, v, mask, g)
    leaves = {"k": k, "v": v}
    for name in needs:
        leaves[name].requires_grad_()
    package(k, v, mask).backward(g)
    assert_close_by_name({name: leaves[name].grad for name in needs}, {name: exact[name] for name in needs})
    assert all(leaves[name].grad is None for name in leaves if name not in needs)


def test_an_expanded_gradient_is_read_by_its_strides(way: str) -> None:
    k, v, mask, g = inputs(SIZES["images"])
    found = results(package, k, v, mask, torch.ones(()).double().expand(g.shape))
    assert_close_by_name(found, in_double(k, v, mask, torch.ones_like(g)))


def test_an_empty_batch_gives_an_empty_lambda(way: str) -> None:
    found = results(package, *inputs((0, 4, 3, 2, 1)))
    assert [tuple(found[name].shape) for name in "ykv"] == [(0, 3, 2), (0, 4, 3, 1), (0, 4, 2, 1)]


@needs_library
def test_registration_is_sound() -> None:
    for size, masked in (((2, 5, 3, 4, 1), False), ((2, 5, 3, 4, 2), True)):
        k, v, mask, g = inputs(size, torch.float32, masked)
        torch.library.opcheck(content_lambda, (k.requires_grad_(), v.requires_grad_(), mask))
        for needs_grad in ([True, True], [True, False], [False, True]):
            arguments = (g.float(), k.detach(), v.detach(), mask, needs_grad)
            torch.library.opcheck(content_lambda_gradients, arguments)


@needs_library
def test_one_graph_holds_it_forward_and_backward() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    k, v, _, _ = inputs(SIZES["images"])
    q = torch.randn(k.shape[0], 2, 49, 16, dtype=k.dtype)

    def call(k: Tensor, v: Tensor) -> Tensor:
        return lambda_layer(q, k, v, context=GlobalContext((7, 7)))

    compiled = torch.compile(call, fullgraph=True, backend=aot_autograd(fw_compiler=keep))
    found, exact = ([x.clone().requires_grad_() for x in (k, v)] for _ in range(2))
    for function, leaves in ((compiled, found), (call, exact)):
        function(*leaves).square().sum().backward()
    for x, expected in zip(found, exact, strict=True):
        torch.testing.assert_close(x.grad, expected.grad, rtol=1e-12, atol=1e-12)
    called = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    assert sum("content_lambda.default" in name for name in called) == 1
    assert sum("content_lambda_gradients" in name for name in called) == 1
    assert not any("softmax" in name for name in called)


def test_a_compiled_graph_serves_contexts_of_any_length(way: str) -> None:
    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return lambda_layer(q, k, v, context=GlobalContext(q.shape[2]))

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (20, 700):
        k, v, _, _ = inputs((2, length, 3, 4, 1))
        q = torch.randn(2, 1, length, 3, dtype=k.dtype)
        torch.testing.assert_close(compiled(q, k, v), call(q, k, v))


def test_an_exported_layer_holds_no_operator_of_this_package() -> None:
    layer = LambdaLayer2d(8, dim_k=4, grid=3, norm=None).double().eval()
    x = torch.randn(2, 8, 3, 3, dtype=torch.float64)
    exported = torch.export.export(layer, (x,))
    assert not [node for node in exported.graph.nodes if "lambdanets" in str(node.target)]
    torch.testing.assert_close(exported.module()(x), layer(x))


def test_transforms_of_torch_func_give_the_derivatives_of_the_definition(way: str) -> None:
    k, v, _, _ = inputs((2, 6, 3, 4, 1))
    q = torch.randn(2, 1, 6, 3, dtype=k.dtype)
    direction = torch.randn_like(k)

    def call(keys: Tensor, kernel: str) -> Tensor:
        return lambda_layer(q, keys, v, context=GlobalContext(6), kernel=kernel)

    def derivatives(kernel: str) -> dict[str, Tensor]:
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(k, direction)
            tangent = torch.autograd.forward_ad.unpack_dual(call(dual, kernel)).tangent
        return {
            "jvp": torch.func.jvp(lambda k: call(k, kernel), (k,), (direction,))[1],
            "dual": tangent,
            "grad": torch.func.grad(lambda k: call(k, kernel).square().sum())(k),
            "vmap": torch.func.vmap(lambda k: call(k, kernel))(torch.stack([k, direction])),
        }

    assert_close_by_name(derivatives("auto"), derivatives("reference"))


@needs_library
def test_operations_are_counted() -> None:
    k, v, mask, _ = inputs((2, 9, 3, 4, 2))
    k.requires_grad_()
    v.requires_grad_()
    with FlopCounterMode(display=False) as counter:
        y = content_lambda(k, v, mask)
    assert counter.get_total_flops() == 2 * 2 * 9 * 3 * 4 * 2
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 2 * 2 * 2 * 9 * 3 * 4 * 2


@needs_library
def test_a_lack_of_memory_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = SimpleNamespace(lambdanets_content_output=lambda call: 1)
    monkeypatch.setattr(native.library, "require", lambda device: refusing)
    k, v, _, _ = inputs(SIZES["small"])
    with pytest.raises(MemoryError, match="content lambda"):
        package(k, v, None)
