"""The layer in low precision, in another memory format, and compiled."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cases import LAYER_OPTIONS
from closeness import assert_close
from lambdanets.nn import LambdaLayer1d, LambdaLayer2d, LambdaLayer3d
from oracles import lambda_layer_einsum

LAYERS = {2: LambdaLayer2d, 3: LambdaLayer3d}


@pytest.mark.parametrize("options", LAYER_OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_is_as_exact_as_the_plain_einsum_under_autocast(
    options: dict[str, Any], dtype: torch.dtype
) -> None:
    layer = LambdaLayer2d(16, num_heads=2, dim_k=8, **options).eval()
    x = torch.randn(2, 16, 5, 7)
    dim_u = options.get("dim_u", 1)

    def plain(layer: nn.Module, x: Tensor) -> Tensor:
        q = layer.norm_queries(layer.to_queries(x)).flatten(2).unflatten(1, (2, 8)).mT
        if options.get("content", True):
            k = layer.to_keys(x).flatten(2).unflatten(1, (8, dim_u)).permute(0, 3, 1, 2)
        else:
            k = q.new_zeros(2, 35, 8, dim_u)
        v = layer.norm_values(layer.to_values(x)).flatten(2).unflatten(1, (8, dim_u)).permute(0, 3, 1, 2)
        scope = None if "scope" not in options else (options["scope"],) * 2
        e = None if layer.positions is None else layer.positions.to(q.dtype)
        y = lambda_layer_einsum(q, k, v, e, grid=(5, 7), scope=scope, content=options.get("content", True))
        return y.mT.flatten(1, 2).unflatten(2, (5, 7))

    exact = copy.deepcopy(layer).double()
    truth = plain(exact, x.double())
    assert_close(exact(x.double()), truth)
    with torch.autocast("cpu", dtype):
        assert_close(layer(x).to(dtype), truth, plain=plain(layer, x).to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", LAYER_OPTIONS, ids=str)
@pytest.mark.parametrize("size", [1e-4, 1.0, 300.0])
def test_autocast_trains_without_nan(options: dict[str, Any], dtype: torch.dtype, size: float) -> None:
    layer = LambdaLayer2d(16, num_heads=2, **options)
    x = (size * torch.randn(2, 16, 5, 7)).requires_grad_()
    with torch.autocast("cpu", dtype):
        y = layer(x)
    assert y.isfinite().all()
    y.float().mean().backward()
    gradients = {name: p.grad for name, p in [("x", x), *layer.named_parameters()] if p.grad is not None}
    assert {"x", "to_queries.weight", "to_values.weight"} <= set(gradients)
    for name, gradient in gradients.items():
        assert gradient.isfinite().all(), name


@pytest.mark.parametrize(
    ("rank", "memory_format"), [(2, torch.channels_last), (3, torch.channels_last_3d)], ids=["2d", "3d"]
)
@pytest.mark.parametrize(
    "options",
    [
        {"scope": 3},
        {"grid": 5},
        {"position": False},
        {"scope": 3, "num_heads": 1},
        {"scope": 3, "kernel": "conv"},
        {"scope": 3, "kernel": "attention"},
        {"scope": 3, "kernel": "reference"},
    ],
    ids=str,
)
def test_the_memory_format_is_kept(
    rank: int, memory_format: torch.memory_format, options: dict[str, Any]
) -> None:
    layer = LAYERS[rank](8, dtype=torch.float64, **({"num_heads": 2} | options)).eval()
    x = torch.randn(2, 8, *(3, 5, 4)[:rank], dtype=torch.float64)
    expected = layer(x)
    if rank == 2:
        layer = layer.to(memory_format=memory_format)
    y = layer(x.to(memory_format=memory_format))
    assert_close(y, expected)
    assert y.is_contiguous(memory_format=memory_format)
    assert expected.is_contiguous()


@pytest.mark.parametrize(
    ("options", "backend"),
    [({"scope": 3}, "eager"), ({"scope": 3}, "aot_eager"), ({"grid": (5, 7)}, "eager")],
    ids=str,
)
def test_compiles_to_one_graph(options: dict[str, Any], backend: str) -> None:
    torch._dynamo.reset()
    layer = LambdaLayer2d(8, num_heads=2, dtype=torch.float64, **options)
    twin = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    if backend == "eager":
        other_size = torch.randn(2, 8, 4, 6, dtype=torch.float64)
        assert_close(compiled(other_size), twin(other_size))
    x = torch.randn(2, 8, 5, 7, dtype=torch.float64)
    upstream = torch.randn_like(x)
    compiled(x).backward(upstream)
    twin(x).backward(upstream)
    for (name, parameter), other in zip(layer.named_parameters(), twin.parameters(), strict=True):
        assert_close(parameter.grad, other.grad, name=name)


def test_compiles_once_for_all_sizes() -> None:
    torch._dynamo.reset()
    layer = LambdaLayer2d(8, num_heads=2, scope=3, dtype=torch.float64).eval()
    compiled = torch.compile(layer, fullgraph=True, backend="eager", dynamic=True)
    for grid in [(5, 7), (4, 6), (9, 3)]:
        x = torch.randn(2, 8, *grid, dtype=torch.float64)
        assert_close(compiled(x), layer(x))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (LambdaLayer1d(8, num_heads=2, scope=3, causal=True), (2, 8, 11)),
        (LambdaLayer2d(8, num_heads=2, scope=4, dim_u=2, dilation=2), (2, 8, 5, 7)),
        (LambdaLayer2d(8, num_heads=2, position=False), (2, 8, 5, 7)),
        (LambdaLayer3d(8, num_heads=2, scope=3), (2, 8, 2, 3, 4)),
    ],
    ids=["causal", "u", "content-only", "3d"],
)
def test_dynamo_finds_no_break(layer: nn.Module, shape: tuple[int, ...]) -> None:
    torch._dynamo.reset()
    explanation = torch._dynamo.explain(layer)(torch.randn(shape))
    assert explanation.graph_break_count == 0, explanation.break_reasons
    assert explanation.graph_count == 1


def test_compiles_with_a_context_and_a_mask() -> None:
    torch._dynamo.reset()
    layer = LambdaLayer2d(8, num_heads=2, scope=3, dtype=torch.float64).eval()
    x, context = torch.randn(2, 8, 3, 5, dtype=torch.float64), torch.randn(2, 8, 4, 4, dtype=torch.float64)
    mask = torch.rand(2, 4, 4) < 0.7
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    assert_close(compiled(x, context, mask), layer(x, context, mask))
