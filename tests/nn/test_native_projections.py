"""Layers whose projections are those of the native library: the same results, and convolutions in graphs."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from closeness import assert_close_by_name
from lambdanets import LambdaLayer1d, LambdaLayer2d, LambdaLayer3d
from lambdanets.nn import fuse_batch_norm
from lambdanets.ops import projection as operators
from lambdanets.ops.kernels import native

MISSING = native.library.unavailable()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=f"the native kernel: {MISSING}")

LAYERS = [
    (LambdaLayer1d, {"grid": 30}, (30,)),
    (LambdaLayer1d, {"scope": 5, "causal": True, "norm": "rms"}, (30,)),
    (LambdaLayer2d, {"grid": 7}, (7, 7)),
    (LambdaLayer2d, {"scope": 3, "dim_u": 2}, (6, 9)),
    (LambdaLayer2d, {"position": False, "norm": None}, (6, 9)),
    (LambdaLayer2d, {"scope": 3, "content": False}, (1, 1)),
    (LambdaLayer3d, {"scope": 3}, (3, 4, 5)),
]


def images(*shape: int, channels_last: bool, seed: int = 0) -> Tensor:
    """Return random images `[b, c, *grid]` in a memory format."""
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_a_layer_gives_the_same_results_with_convolutions(
    layer: tuple[Any, ...], training: bool, cross: bool, channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, options, grid = layer
    module = kind(12, 20, dim_k=5, dtype=torch.float64, **options)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.rand_like(tensor))
    module.train(training)
    inputs = [images(3, 12, *grid, channels_last=channels_last, seed=i) for i in range(1 + cross)]
    called: list[str] = []
    for name in ("project", "project_normalized"):
        whole = getattr(operators, name)
        monkeypatch.setattr(fuse_batch_norm, name, lambda *a, n=name, f=whole: (called.append(n), f(*a))[1])

    def run() -> dict[str, Tensor]:
        leaves = [x.detach().requires_grad_(training) for x in inputs]
        with torch.set_grad_enabled(training):
            y = module(*leaves)
        if not training:
            return {"y": y}
        upstream = images(*y.shape, channels_last=channels_last, seed=2)
        parameters = dict(module.named_parameters())
        found = torch.autograd.grad(y, [*leaves, *parameters.values()], upstream, allow_unused=True)
        names = ["x", *["context"] * cross, *parameters]
        named = zip(names, found, strict=True)
        return {"y": y.detach()} | {name: each for name, each in named if each is not None}

    found = run()
    monkeypatch.setattr(fuse_batch_norm, "is_native", lambda *_: False)
    assert_close_by_name(found, run())
    batch_norms = isinstance(module.norm_queries, nn.modules.batchnorm._BatchNorm)
    assert called == ["project_normalized" if batch_norms and not training else "project"] * (1 + cross)


def test_graphs_and_transforms_of_a_layer_hold_convolutions() -> None:
    layer, x = LambdaLayer2d(12, grid=5, dtype=torch.float64).eval(), torch.randn(2, 12, 5, 5).double()
    exact = layer(x).detach()
    graphs: list[torch.fx.GraphModule] = []
    compiled = torch.compile(layer, fullgraph=True, backend=lambda graph, _: (graphs.append(graph), graph)[1])
    exported = torch.export.export(layer, (x,))
    found = {"compiled": compiled(x), "exported": exported.module()(x)}
    found["traced"] = torch.jit.trace(layer, (x,), check_trace=False)(x)
    found["functional"] = torch.func.functional_call(layer, dict(layer.named_parameters()), (x,))
    assert_close_by_name(found, dict.fromkeys(found, exact))
    for graph in (*graphs, exported.graph_module):
        assert "conv2d" in graph.print_readable(print_output=False)
    reference = LambdaLayer2d(12, grid=5, dtype=torch.float64, kernel="reference").eval()
    reference.load_state_dict(layer.state_dict())
    value, tangent = torch.func.jvp(reference, (x,), (x,))
    step = 1e-6
    slope = (reference(x + step * x) - reference(x - step * x)) / (2 * step)
    assert (tangent - slope).abs().max() < 1e-6 * slope.abs().max()
    gradient = torch.func.grad(lambda x: reference(x).sum())(x)
    leaf = x.clone().requires_grad_()
    assert_close_by_name(
        {"value": value.detach(), "gradient": gradient},
        {"value": exact, "gradient": torch.autograd.grad(reference(leaf).sum(), leaf)[0]},
    )
