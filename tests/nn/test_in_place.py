"""In-place operations around a layer: allowed as for a convolution, and never a wrong gradient."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from closeness import assert_close
from lambdanets.nn import (
    AxialAttention2d,
    GlobalAttention2d,
    LambdaLayer1d,
    LambdaLayer2d,
    LambdaLayer3d,
    LinearAttention2d,
    LocalAttention2d,
)
from lambdanets.ops import GlobalContext, lambda_layer

DOUBLE: dict[str, Any] = {"num_heads": 2, "dtype": torch.float64}
GRIDS = {1: (6,), 2: (3, 4), 3: (2, 3, 2)}
LAYERS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "1d": (lambda: LambdaLayer1d(8, scope=3, **DOUBLE), 1),
    "1d-causal": (lambda: LambdaLayer1d(8, scope=3, causal=True, norm="rms", **DOUBLE), 1),
    "1d-fft": (lambda: LambdaLayer1d(8, grid=6, kernel="fft", **DOUBLE), 1),
    "2d": (lambda: LambdaLayer2d(8, scope=3, **DOUBLE), 2),
    "2d-reference": (lambda: LambdaLayer2d(8, scope=3, kernel="reference", **DOUBLE), 2),
    "2d-conv": (lambda: LambdaLayer2d(8, scope=3, kernel="conv", **DOUBLE), 2),
    "2d-attention": (lambda: LambdaLayer2d(8, scope=3, kernel="attention", **DOUBLE), 2),
    "2d-content": (lambda: LambdaLayer2d(8, position=False, **DOUBLE), 2),
    "2d-position": (lambda: LambdaLayer2d(8, grid=4, content=False, **DOUBLE), 2),
    "2d-bias": (lambda: LambdaLayer2d(8, scope=3, position_bias=True, **DOUBLE), 2),
    "3d": (lambda: LambdaLayer3d(8, scope=3, **DOUBLE), 3),
    "global-attention": (lambda: GlobalAttention2d(8, grid=4, **DOUBLE), 2),
    "axial-attention": (lambda: AxialAttention2d(8, grid=4, **DOUBLE), 2),
    "local-attention": (lambda: LocalAttention2d(8, window=3, **DOUBLE), 2),
    "linear-attention": (lambda: LinearAttention2d(8, **DOUBLE), 2),
}
every_layer = pytest.mark.parametrize("name", LAYERS)
every_format = pytest.mark.parametrize(
    "channels_last", [False, True], ids=["channels-first", "channels-last"]
)


def made(name: str, channels_last: bool = False) -> tuple[nn.Module, Tensor]:
    make, rank = LAYERS[name]
    x = torch.randn(2, 8, *GRIDS[rank], dtype=torch.float64)
    if channels_last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    return make(), x.requires_grad_()


def gradients(layer: nn.Module, y: Tensor, x: Tensor) -> list[Tensor]:
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    return list(torch.autograd.grad(y, [x, *layer.parameters()], upstream))


@every_format
@every_layer
def test_in_place_modules_may_follow_a_layer(name: str, channels_last: bool) -> None:
    layer, x = made(name, channels_last)
    plain = gradients(layer, (layer(x) + x).relu(), x)
    y = layer(x)
    y += x
    for given, expected in zip(gradients(layer, nn.ReLU(inplace=True)(y), x), plain, strict=True):
        assert_close(given, expected)


@pytest.mark.parametrize("name", ["2d", "1d-causal", "axial-attention"])
def test_in_place_dropout_may_follow_under_checkpointing_and_compilation(name: str) -> None:
    layer, x = made(name)
    block = nn.Sequential(layer, nn.Dropout(0.5, inplace=True))

    def step(run: Callable[[Tensor], Tensor], kind: type[nn.Dropout] | None = None) -> list[Tensor]:
        torch.manual_seed(3)
        return gradients(layer, run(x), x)

    plain = step(lambda x: nn.functional.dropout(layer(x), 0.5))
    torch._dynamo.reset()
    ways: list[Callable[[Tensor], Tensor]] = [
        block,
        lambda x: checkpoint(block, x, use_reentrant=False),
        torch.compile(block, backend="eager", fullgraph=True),
    ]
    for way in ways:
        for given, expected in zip(step(way), plain, strict=True):
            assert_close(given, expected)


@pytest.mark.parametrize("kernel", ["auto", "conv", "attention", "reference"])
def test_the_operators_output_may_be_modified_under_gradients_of_gradients(kernel: str) -> None:
    shapes = {"q": (1, 1, 4, 2), "k": (1, 4, 2, 1), "v": (1, 4, 2, 1), "e": (3, 3, 2, 1)}
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes.values()]

    def squared(*tensors: Tensor) -> Tensor:
        return lambda_layer(*tensors, context=GlobalContext((2, 2)), kernel=kernel).mul_(2).square_()

    assert torch.autograd.gradgradcheck(squared, tensors)


@pytest.mark.parametrize("changed", ["q", "k", "v", "e"])
@pytest.mark.parametrize("kernel", ["auto", "conv", "attention", "reference"])
def test_an_input_modified_after_the_forward_pass_gives_an_error_or_the_right_gradient(
    kernel: str, changed: str
) -> None:
    shapes = {"q": (1, 2, 6, 2), "k": (1, 6, 2, 1), "v": (1, 6, 3, 1), "e": (3, 5, 2, 1)}
    leaves = {name: torch.randn(shape, requires_grad=True) for name, shape in shapes.items()}

    def given(modify: bool) -> tuple[Tensor, ...]:
        tensors = {name: leaf * 1 for name, leaf in leaves.items()}
        y = lambda_layer(*tensors.values(), context=GlobalContext((2, 3)), kernel=kernel)
        if modify:
            with torch.no_grad():
                tensors[changed].mul_(1.5)
        return torch.autograd.grad(y.square().sum(), list(leaves.values()))

    expected = given(modify=False)
    try:
        found = given(modify=True)
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
    else:
        torch.testing.assert_close(found, expected)


@every_layer
def test_a_layers_input_modified_after_the_forward_pass_is_an_error(name: str) -> None:
    layer, x = made(name)
    given = x * 1
    y = layer(given)
    with torch.no_grad():
        given.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients(layer, y, x)
