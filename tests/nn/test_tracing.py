"""The layers in graphs of torch.fx and in TorchScript."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import QConfigMapping, quantize_fx

from closeness import assert_close, assert_close_by_name
from lambdanets.nn import (
    AxialAttention2d,
    GlobalAttention2d,
    LambdaLayer1d,
    LambdaLayer2d,
    LambdaLayer3d,
    LinearAttention2d,
    LocalAttention2d,
)
from lambdanets.nn.lambda_layer import LambdaLayer

DOUBLE: dict[str, Any] = {"num_heads": 2, "dtype": torch.float64}
LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "1d-causal-rms": (LambdaLayer1d(8, **DOUBLE, scope=3, causal=True, norm="rms"), (6,)),
    "2d": (LambdaLayer2d(8, **DOUBLE, scope=3), (3, 4)),
    "2d-content": (LambdaLayer2d(8, **DOUBLE, position=False, norm=None), (3, 4)),
    "2d-position-bias": (
        LambdaLayer2d(8, **DOUBLE, grid=4, content=False, position_bias=True, dim_u=2),
        (3, 4),
    ),
    "3d": (LambdaLayer3d(8, **DOUBLE, scope=3), (2, 3, 2)),
    "global-attention": (GlobalAttention2d(8, **DOUBLE, grid=4), (3, 4)),
    "axial-attention": (AxialAttention2d(8, **DOUBLE, grid=4), (3, 4)),
    "local-attention": (LocalAttention2d(8, **DOUBLE, window=3), (3, 4)),
    "linear-attention": (LinearAttention2d(8, **DOUBLE), (3, 4)),
}


def step(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The output and the gradient of each parameter, by name."""
    y = module(x)
    names, parameters = zip(*sorted(module.named_parameters()), strict=True)
    return {"output": y} | dict(zip(names, torch.autograd.grad(y.square().sum(), parameters), strict=True))


class Same(nn.Module):
    """A module whose annotations are strings, as with `from __future__ import annotations`."""

    def forward(self, x: "Tensor") -> "Tensor":
        return x + 0


def pickled(graph: nn.Module) -> nn.Module:
    """Return a graph after pickling, where PyTorch can: 2.12 fails for any module with such annotations."""
    try:
        pickle.dumps(torch.fx.symbolic_trace(Same()))
    except AttributeError:
        return graph
    return pickle.loads(pickle.dumps(graph))


@pytest.mark.parametrize("name", LAYERS)
def test_a_symbolic_trace_computes_the_same_as_the_layer(name: str) -> None:
    """In training and in evaluation, on any size, and after pickling."""
    layer, grid = copy.deepcopy(LAYERS[name])
    graph = pickled(torch.fx.symbolic_trace(copy.deepcopy(layer)))
    x = torch.randn(2, 8, *grid, dtype=torch.float64)
    assert_close_by_name(step(graph, x), step(layer, x))
    larger = torch.randn(1, 8, *(size + 1 for size in grid), dtype=torch.float64)
    with torch.no_grad():
        assert_close(graph.eval()(larger), layer.eval()(larger))


def test_a_trace_in_evaluation_without_gradients_keeps_the_modules() -> None:
    layer = LambdaLayer2d(8, **DOUBLE, scope=3).eval()
    with torch.no_grad():
        graph = torch.fx.symbolic_trace(layer)
    called = {node.target for node in graph.graph.nodes if node.op == "call_module"}
    assert called == {"to_queries", "to_keys", "to_values", "norm_queries", "norm_values"}
    layer.norm_queries.running_var.mul_(3)  # the graph shares the modules
    x = torch.randn(2, 8, 3, 4, dtype=torch.float64)
    assert_close(graph(x), layer(x))


def test_a_trace_takes_a_context_and_a_mask_and_checks_them() -> None:
    layer = LambdaLayer2d(8, **DOUBLE, scope=3, norm="rms")
    graph = torch.fx.symbolic_trace(layer)
    x, context = (torch.randn(2, 8, *grid, dtype=torch.float64) for grid in ((3, 4), (2, 5)))
    mask = torch.rand(2, 2, 5) < 0.7
    assert_close(graph(x, context, mask), layer(x, context, mask))
    for wrong in (x[:, :7], x[:1]):
        with pytest.raises(ValueError, match="context must"):
            graph(x, wrong)


@pytest.mark.parametrize("options", [{"decay": True}, {"short_conv": 2}, {"key_heads": 2}])
def test_a_trace_of_a_layer_that_needs_a_recurrence_is_refused(options: dict[str, Any]) -> None:
    layer = LambdaLayer1d(8, **DOUBLE, scope=3, causal=True, norm="rms", **options)
    with pytest.raises(ValueError, match=r"torch\.fx serves a LambdaLayer1d without"):
        torch.fx.symbolic_trace(layer)


def test_a_trace_of_a_call_with_a_state_is_refused() -> None:
    class Continued(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = LambdaLayer1d(8, **DOUBLE, scope=3, causal=True, norm="rms")

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x, return_state=True)[0]

    with pytest.raises(ValueError, match="called without state,"):
        torch.fx.symbolic_trace(Continued())


@pytest.mark.filterwarnings("ignore")  # PyTorch announces that its quantisation moves to torchao
def test_fx_quantisation_prepares_the_projections() -> None:
    mapping = QConfigMapping().set_global(torch.ao.quantization.default_qconfig)
    layer = nn.Sequential(nn.Conv2d(3, 8, 1), LambdaLayer2d(8, num_heads=2, scope=3)).eval()
    x = torch.randn(2, 3, 4, 5)
    prepared = quantize_fx.prepare_fx(copy.deepcopy(layer), mapping, (x,))
    torch.testing.assert_close(prepared(x), layer(x))
    assert quantize_fx.convert_fx(prepared)(x).shape == (2, 8, 4, 5)


@pytest.mark.filterwarnings("ignore")  # PyTorch announces the end of TorchScript
@pytest.mark.parametrize(
    "name", [name for name, (layer, _) in LAYERS.items() if isinstance(layer, LambdaLayer)]
)
def test_torchscript_computes_the_same_as_the_layer(name: str) -> None:
    """In training and in evaluation, after saving and loading."""
    layer, grid = copy.deepcopy(LAYERS[name])
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(copy.deepcopy(layer)), file)
    file.seek(0)
    scripted = torch.jit.load(file)
    x = torch.randn(2, 8, *grid, dtype=torch.float64)
    assert_close_by_name(step(scripted, x), step(layer, x))
    with torch.no_grad():
        assert_close(scripted.eval()(x[:1]), layer.eval()(x[:1]))


@pytest.mark.filterwarnings("ignore")
def test_torchscript_takes_a_context_and_a_mask_and_checks_them() -> None:
    layer = LambdaLayer1d(8, scope=3, causal=True, norm="rms", **DOUBLE)
    scripted = torch.jit.script(layer)
    x, context = torch.randn(2, 2, 8, 6, dtype=torch.float64)
    mask = torch.rand(2, 6) < 0.7
    assert_close(scripted(x, context, mask), layer(x, context, mask))
    # TorchScript raises every error of an operator as a RuntimeError of the same words.
    with pytest.raises(RuntimeError, match="causal=True needs a context as long as x, 1 positions, got 6"):
        scripted(x[..., -1:], context)
