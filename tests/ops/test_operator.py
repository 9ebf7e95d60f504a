"""The position part as custom operators: registration, graphs, export, gradients of gradients."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import BY_NAME, CASES, Case
from closeness import assert_close_by_name
from lambdanets import LambdaLayer2d
from lambdanets.ops import GlobalContext, LocalContext, Problem, exported, functional, lambda_layer, plan
from lambdanets.ops.position import decode, encode, position_gradients, position_output
from oracles import lambda_layer_einsum
from running import RUNNING

kernels = pytest.mark.parametrize("kernel", RUNNING)
CONTEXTS = {
    "global": GlobalContext((3, 4)),
    "local": LocalContext((3, 4), (3, 2)),
    "cross": GlobalContext((3, 4), context_grid=(2, 5)),
    "causal": GlobalContext((7,), causal=True),
    "dense": None,
}


def arguments(name: str, dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
    context = CONTEXTS[name]
    n, m = (7, 5) if context is None else (context.num_queries, context.num_context)
    table = (n, m) if context is None else context.table_shape
    q, v, e = torch.randn(2, 3, n, 2), torch.randn(2, m, 4, 2), torch.randn(*table, 2, 2)
    lambdas = torch.randn(2, 2, 4) if name in ("global", "local", "dense") else None
    tensors = [None if x is None else x.to(dtype).requires_grad_() for x in (q, v, e, lambdas)]
    problem = Problem.of(q, v, v, e, context or GlobalContext((n,), context_grid=(m,)))
    return *tensors, encode(problem)


def supported(name: str, kernel: str) -> bool:
    return name != "dense" or kernel in ("auto", "reference", "attention")


NEEDS_GRAD = {
    "hnv": [True, True, True, True],
    "hvn": [False, True, False, True],
    "nhv": [True, False, True, False],
}


CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


def registrations() -> list[tuple[str, str, str]]:
    """Return all supported pairs of a context and a kernel, each with a memory layout.

    Memory layouts take turns, so that each context and each kernel has each of them.
    """
    layouts, found = list(NEEDS_GRAD), []
    for i, name in enumerate(CONTEXTS):
        served = [kernel for kernel in ("auto", *RUNNING) if supported(name, kernel)]
        found += [(name, kernel, layouts[(i + j) % len(layouts)]) for j, kernel in enumerate(served)]
    return found


@pytest.mark.parametrize(("name", "kernel", "memory_layout"), registrations())
def test_registration_is_sound(name: str, kernel: str, memory_layout: str) -> None:
    inputs = arguments(name, torch.float32)
    g = torch.randn(2, 3, inputs[0].shape[2], 4, requires_grad=True)
    *others, content_lambda = NEEDS_GRAD[memory_layout]
    needs_grad = [*others, content_lambda and inputs[3] is not None]
    # A graph does not depend on the kernel: that of each context and of each layout is checked with one.
    checks = (*CHECKS, "test_aot_dispatch_dynamic") if kernel == "auto" else CHECKS
    torch.library.opcheck(position_output, (*inputs, memory_layout, kernel, kernel), test_utils=checks)
    given = (g, *inputs, memory_layout, kernel, kernel, needs_grad)
    torch.library.opcheck(position_gradients, given, test_utils=checks)


@pytest.mark.parametrize("case", [case for case in CASES if case.position], ids=str)
def test_the_encoded_geometry_is_decoded_to_the_same_problem(case: Case) -> None:
    x = case.inputs()
    problem = Problem.of(x["q"], x["k"], x["v"], x["e"], case.context(), case.content)
    found = decode(
        tuple(encode(problem)), x["q"].shape, x["v"].shape, problem.dtype, problem.device, case.content
    )
    if problem.relative:
        assert found == problem
        assert found.context == case.context()
    else:  # of dense embeddings only the sizes matter
        assert found.dense
        assert (found.num_queries, found.num_context) == (case.n, case.m)


@pytest.mark.parametrize("name", CONTEXTS)
@kernels
def test_gradients_of_gradients_are_right(name: str, kernel: str) -> None:
    if not supported(name, kernel):
        return
    *tensors, geometry = arguments(name)
    tensors = [x for x in tensors if x is not None]

    def call(q: Tensor, v: Tensor, e: Tensor, lambdas: Tensor | None = None) -> Tensor:
        return position_output(q, v, e, lambdas, geometry, "hnv", kernel, kernel)

    torch.manual_seed(1)
    assert torch.autograd.gradcheck(call, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, tensors, fast_mode=True)


@pytest.mark.parametrize("case_name", ["global-2d", "local-2d", "global-u4", "causal", "global-dense-2d"])
@kernels
def test_a_gradient_penalty_equals_that_of_the_definition(case_name: str, kernel: str) -> None:
    """Second derivatives through the whole operator, as a gradient penalty needs them."""
    case = BY_NAME[case_name]
    if not supported("dense" if case.dense else "", kernel):
        return

    def penalty(kernel: str) -> dict[str, Tensor]:
        leaves = {name: x.requires_grad_() for name, x in case.inputs().items()}
        y = case.call(lambda_layer, leaves, kernel=kernel)
        first = torch.autograd.grad((y * case.upstream()).sum(), leaves.values(), create_graph=True)
        second = torch.autograd.grad(
            sum((x.square().sum() for x in first), torch.tensor(0.0)), leaves.values()
        )
        return dict(zip(leaves, second, strict=True))

    assert_close_by_name(penalty(kernel), penalty("reference"))


@pytest.mark.parametrize(("name", "dynamic"), [("global-2d", False), ("local-2d", True), ("causal", False)])
def test_one_graph_holds_the_operator_forward_and_backward(name: str, dynamic: bool) -> None:
    # Sizes that were compiled before would make these dynamic: seconds instead of tenths.
    torch.compiler.reset()
    case = BY_NAME[name]
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    from torch._dynamo.backends.common import aot_autograd

    inputs = {name: x.requires_grad_() for name, x in case.inputs().items()}
    backend = aot_autograd(fw_compiler=keep)
    compiled = torch.compile(
        lambda **x: case.call(lambda_layer, x), fullgraph=True, backend=backend, dynamic=dynamic
    )
    y = compiled(**inputs)
    torch.testing.assert_close(y, case.call(lambda_layer, inputs))
    y.sum().backward()
    called = [str(node.target) for graph in graphs for node in graph.graph.nodes if "lambdanets" in str(node)]
    called += [str(node.target) for graph in graphs for node in graph.graph.nodes]
    assert sum("position_output" in name for name in called) == 1
    assert sum("position_gradients" in name for name in called) == 1


@pytest.mark.parametrize("options", [{"scope": 5}, {"scope": 23}, {"grid": 9}, {"grid": 20}], ids=str)
def test_an_exported_layer_serves_any_size(options: dict[str, Any]) -> None:
    layer = LambdaLayer2d(8, dim_k=4, **options).double().eval()
    height, width = torch.export.Dim("height", min=2, max=64), torch.export.Dim("width", min=2, max=64)
    x = torch.randn(2, 8, 12, 15, dtype=torch.float64)
    program = torch.export.export(layer, (x,), dynamic_shapes=({2: height, 3: width},))
    assert not [node for node in program.graph.nodes if "lambdanets" in str(node.target)]
    for size in ((12, 15), (3, 40), (31, 7)):
        x = torch.randn(2, 8, *size, dtype=torch.float64)
        torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.parametrize("form", ["pairs", "rows", "cut rows", "convolution"])
@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.position and not (case.dense or case.masked or case.padded)],
    ids=str,
)
def test_all_forms_of_an_exported_graph_are_the_position_part(
    case: Case, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "rows" in form and case.dilation:
        return
    monkeypatch.setattr(exported, "preferred_form", lambda q, v, e, context: form.removeprefix("cut "))
    monkeypatch.setattr(exported, "ROW", 2 if form == "cut rows" else exported.ROW)
    inputs = case.inputs()
    found = exported.exported_output(inputs["q"], inputs["v"], inputs["e"], case.context())
    torch.testing.assert_close(found, replace(case, content=False).call_oracle(lambda_layer_einsum, inputs))


LARGE_GRIDS: list[tuple[dict[str, Any], int, str]] = [
    ({"grid": 14}, 14, "pairs"),
    ({"grid": 20}, 20, "rows"),
    ({"scope": 7}, 30, "convolution"),
    ({"scope": 23}, 30, "rows"),
    ({"scope": 23}, 48, "convolution"),
    ({"scope": 55}, 20, "rows"),
]


@pytest.mark.parametrize(("options", "side", "form"), LARGE_GRIDS, ids=str)
def test_an_exported_layer_on_a_large_grid_has_neither_embeddings_nor_map_of_all_pairs(
    options: dict[str, Any], side: int, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forms: list[str] = []
    prefer = exported.preferred_form
    monkeypatch.setattr(exported, "preferred_form", lambda *given: forms.append(prefer(*given)) or forms[-1])
    layer = LambdaLayer2d(64, dim_k=16, **options).double().eval()
    x = torch.randn(1, 64, side, side, dtype=torch.float64)
    program = torch.export.export(layer, (x,))
    torch.testing.assert_close(program.module()(x), layer(x))
    values = (node.meta.get("val") for node in program.graph.nodes)
    largest = max(x.numel() for x in values if isinstance(x, Tensor))
    # The products of a row and the table, about two entries for each element.
    assert largest <= (4 * side * (2 * side * side + 1) if form == "rows" else exported.MAX_EMBEDDINGS)
    assert set(forms) == {form}


def test_onnxruntime_serves_rows_of_queries_for_any_batch(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    layer = LambdaLayer2d(8, dim_k=16, grid=(19, 17)).eval()
    x = torch.randn(3, 8, 19, 17)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("batch", max=64)},))
    file = tmp_path / "layer.onnx"
    made = torch.onnx.export(program, input_names=["x"], verbose=False)
    made.save(file)
    # The table is stored once, without its parts.
    constants = [x.const_value for x in made.model.graph.initializers.values()]
    assert sum(x.nbytes for x in constants) < 1.2 * layer.positions.nbytes
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for images in (x, x[:1]):
        (found,) = session.run(None, {"x": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), layer(images).detach(), rtol=1e-4, atol=1e-4)


def test_forward_and_backward_may_take_different_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "resolve", lambda kernel, problem: ("conv", "fft"))
    case = BY_NAME["local-2d"]
    found, exact = ({name: x.requires_grad_() for name, x in case.inputs().items()} for _ in range(2))
    case.call(lambda_layer, found).backward(case.upstream())
    case.call(lambda_layer, exact, kernel="reference").backward(case.upstream())
    assert_close_by_name(
        {name: x.grad for name, x in found.items()}, {name: x.grad for name, x in exact.items()}
    )


def test_derivatives_that_torch_would_get_wrong_are_refused() -> None:
    """PyTorch silently drops the tangent of a custom operator."""
    case = BY_NAME["local-2d"]
    inputs = case.inputs()

    def call(q: Tensor, kernel: str) -> Tensor:
        return case.call(lambda_layer, inputs | {"q": q}, kernel=kernel)

    for derivative in (
        lambda kernel: torch.func.jvp(lambda q: call(q, kernel), (inputs["q"],), (inputs["q"],)),
        lambda kernel: torch.func.grad(lambda q: call(q, kernel).sum())(inputs["q"]),
        lambda kernel: torch.func.vmap(torch.func.grad(lambda q: call(q, kernel).sum()))(inputs["q"][None]),
        lambda kernel: torch.func.grad(lambda q: torch.func.vmap(lambda one: call(one, kernel))(q).sum())(
            inputs["q"][None]
        ),
        lambda kernel: torch.func.jacrev(lambda q: call(q, kernel))(inputs["q"]),
    ):
        with pytest.raises(NotImplementedError, match="kernel='reference'"):
            derivative("auto")
        derivative("reference")
    values = torch.func.vmap(lambda q: call(q, "auto"))(inputs["q"][None])[0]
    torch.testing.assert_close(values, call(inputs["q"], "reference"))
    layer = LambdaLayer2d(4, num_heads=2, dim_k=3, scope=3, kernel="reference").eval()
    x = torch.randn(1, 4, 5, 6)
    torch.func.grad(lambda x: layer(x).square().sum())(x)


@pytest.mark.parametrize("kernel", ["reference", "attention", "conv", "fft"])
@pytest.mark.parametrize("size", [64, 700, 2**20])
def test_block_sizes_do_not_change_positions(kernel: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks small enough to cut small problems along every axis that is ever cut."""
    from lambdanets.ops.kernels import attention, conv, fft

    for module in (attention, conv, fft):
        monkeypatch.setattr(module, "BLOCK", size)
    monkeypatch.setattr(fft, "ROWS", max(1, size // 200))
    monkeypatch.setattr(fft, "COLUMNS", max(1, size // 100))
    for case in CASES:
        if (
            not case.position
            or case.n > 60
            or not supported("dense" if case.dense or case.masked else "", kernel)
        ):
            continue
        found, exact = ({name: x.requires_grad_() for name, x in case.inputs().items()} for _ in range(2))
        case.call(lambda_layer, found, kernel=kernel).backward(case.upstream())
        case.call(lambda_layer, exact, kernel="reference").backward(case.upstream())
        gradients = [{n: x.grad for n, x in g.items() if x.grad is not None} for g in (found, exact)]
        assert_close_by_name(*gradients)


def test_torch_counts_the_operations_of_the_chosen_kernels() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    layer = LambdaLayer2d(16, dim_k=4, scope=5)
    x = torch.randn(3, 16, 9, 8)
    with FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    counted = {str(name): flops for name, flops in counter.get_flop_counts()["Global"].items()}
    made = plan(Problem(grid=(9, 8), scope=5, batch=3, dim_k=4, dim_v=4, content=False, train=True))
    applied = 3 * 2 * 3 * 4 * (9 * 8) * 4 * 4  # content lambdas to queries, and both gradients of that
    operators = counted["lambdanets.position_output"] + counted["lambdanets.position_gradients"]
    assert operators == made.flops + applied
