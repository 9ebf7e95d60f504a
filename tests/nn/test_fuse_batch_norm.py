"""Projections fused with batch norms in evaluation: same output, and no fusing of modified modules."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cases import LAYER_OPTIONS
from closeness import assert_close
from lambdanets import LambdaLayer2d
from lambdanets.nn import fuse_batch_norm


@pytest.fixture(autouse=True, params=["library", "convolutions"])
def _projections(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test with projections by the native library, where it is built, and by convolutions."""
    if request.param == "convolutions":
        monkeypatch.setattr(fuse_batch_norm, "is_native", lambda *_: False)


def make(**options: Any) -> LambdaLayer2d:
    """Return a layer in evaluation with norms that are not the identity."""
    torch.manual_seed(0)
    layer = LambdaLayer2d(6, 12, dim_k=5, dtype=torch.float64, **options).eval()
    for norm in (layer.norm_queries, layer.norm_values):
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            nn.init.normal_(tensor)
        norm.running_var.uniform_(0.5, 2)
    return layer


def both(layer: nn.Module, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output without gradients, where projections may be fused, and with gradients."""
    with torch.no_grad():
        folded = layer(*inputs)
    return folded, layer(*inputs).detach()


@pytest.mark.parametrize("options", LAYER_OPTIONS, ids=str)
@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
def test_fusing_does_not_change_the_output(options: dict[str, Any], cross: bool) -> None:
    layer = make(**options)
    inputs = [torch.randn(2, 6, 5, 7, dtype=torch.float64)]
    inputs += [torch.randn(2, 6, 5, 7, dtype=torch.float64)] if cross else []
    assert_close(*both(layer, *inputs))


def test_fusing_runs_one_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = make(scope=3), torch.randn(2, 6, 5, 7, dtype=torch.float64)
    called: list[type] = []
    for kind in (nn.Conv2d, nn.BatchNorm2d):
        whole = kind.forward
        monkeypatch.setattr(kind, "forward", lambda m, x, f=whole: (called.append(type(m)), f(m, x))[1])
    with torch.no_grad():
        layer(x)
    assert not called
    layer(x)  # with gradients, projections are concatenated and norms are separate
    assert called == [nn.BatchNorm2d, nn.BatchNorm2d]
    called.clear()
    hook = layer.to_keys.register_forward_hook(lambda *_: None)
    layer(x)
    hook.remove()
    assert called.count(nn.Conv2d) == 3
    assert called.count(nn.BatchNorm2d) == 2


def test_a_forward_of_an_instance_is_respected() -> None:
    layer, x = make(scope=3), torch.randn(2, 6, 5, 7, dtype=torch.float64)
    layer.norm_values.forward = torch.zeros_like  # type: ignore[method-assign]
    assert_close(*both(layer, x))


def test_changed_weights_take_effect_at_once() -> None:
    layer, x = make(scope=3), torch.randn(2, 6, 5, 7, dtype=torch.float64)
    both(layer, x)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter))
        layer.norm_values.running_var.mul_(3)
    assert_close(*both(layer, x))


@pytest.mark.parametrize("name", ["to_queries", "to_keys", "to_values", "norm_queries", "norm_values"])
def test_hooks_run_and_replaced_modules_are_used(name: str) -> None:
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    layer = make(scope=3)
    before = both(layer, x)[0]
    heard: list[str] = []
    handle = getattr(layer, name).register_forward_hook(lambda *_: heard.append(name))
    assert_close(*both(layer, x))
    assert len(heard) == 2
    handle.remove()
    module = getattr(layer, name)
    setattr(layer, name, nn.Sequential(module, nn.Tanh()))
    after = both(layer, x)
    assert_close(*after)
    assert not torch.allclose(after[0], before)


def test_projections_of_another_kind_are_not_fused() -> None:
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    layer = make(scope=3)
    layer.to_values = nn.Conv2d(6, 3, 3, padding=1, dtype=torch.float64)
    assert_close(*both(layer, x))
    layer.to_values = nn.Conv2d(6, 3, 1, dtype=torch.float64)  # with a bias
    assert_close(*both(layer, x))
    layer.norm_queries.train()
    with torch.no_grad():
        before = layer.norm_queries.num_batches_tracked.item()
        layer(x)
    assert layer.norm_queries.num_batches_tracked.item() == before + 1


@pytest.mark.parametrize("channels_last", [False, True])
def test_in_place_modules_may_follow_a_projection(channels_last: bool) -> None:
    """For a single image, a slice of the concatenated projections would be a read-only view."""
    layer = LambdaLayer2d(6, 8, num_heads=2, scope=3, norm=None, dtype=torch.float64)
    layer.norm_values = nn.ReLU(inplace=True)
    x = torch.randn(1, 6, 5, 7, dtype=torch.float64)
    layer(x.contiguous(memory_format=torch.channels_last) if channels_last else x).sum().backward()
    assert layer.to_values.weight.grad is not None


def test_global_hooks_run_for_the_projections() -> None:
    layer, x = make(scope=3), torch.randn(2, 6, 5, 7, dtype=torch.float64)
    called: list[type] = []
    hook = nn.modules.module.register_module_forward_hook(lambda m, *_: called.append(type(m)))
    try:
        layer(x)
    finally:
        hook.remove()
    assert called.count(nn.Conv2d) == 3
