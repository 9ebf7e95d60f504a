"""The output of the layer compared with explicit projections, norms and loops."""

import copy
import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from closeness import assert_close
from lambdanets.nn import LambdaLayer1d, LambdaLayer2d, LambdaLayer3d
from oracles import cell, lambda_layer_loops

Grid = tuple[int, ...]
LAYERS = {1: LambdaLayer1d, 2: LambdaLayer2d, 3: LambdaLayer3d}
DIM, HEADS, DIM_K = 6, 3, 5


def make(rank: int, dim_out: int | None = None, **options: Any) -> nn.Module:
    """Return a small float64 layer with norms that are not the identity."""
    torch.manual_seed(0)
    layer = LAYERS[rank](DIM, dim_out, dim_k=DIM_K, num_heads=HEADS, dtype=torch.float64, **options)
    for norm in (layer.norm_queries, layer.norm_values):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return layer


def normalised(norm: nn.Module, x: Tensor) -> Tensor:
    """Apply a batch norm to `[b, c, n]` by its formula."""
    mean, variance = norm.running_mean, norm.running_var
    if norm.training:
        mean, variance = x.mean((0, 2)), x.var((0, 2), unbiased=False)
    scale = norm.weight / (variance + norm.eps).sqrt()
    return (x - mean[:, None]) * scale[:, None] + norm.bias[:, None]


def dense_positions(
    layer: nn.Module, grid: Grid, context_grid: Grid, scope: Grid | None, dilation: int
) -> Tensor:
    """Return E `[n, m, k, u]`: the entry of the table for each offset, zero for offsets beyond it."""
    table = layer.positions.detach()
    lengths = table.shape[:-2]
    centre = tuple(length - 1 if layer.causal else length // 2 for length in lengths)
    assert scope is None or scope == lengths
    step = 1 if scope is None else dilation
    e = table.new_zeros(math.prod(grid), math.prod(context_grid), *table.shape[-2:])
    for n, m in product(range(e.shape[0]), range(e.shape[1])):
        offsets = [t - f for f, t in zip(cell(n, grid), cell(m, context_grid), strict=True)]
        entry = tuple(o // step + c for o, c in zip(offsets, centre, strict=True))
        there = all(0 <= i < length for i, length in zip(entry, lengths, strict=True))
        if there and all(o % step == 0 for o in offsets):
            e[n, m] = table[entry]
    return e


@torch.no_grad()
def compose(
    layer: nn.Module,
    x: Tensor,
    context: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    scope: Grid | None = None,
    dilation: int = 1,
    content: bool = True,
    causal: bool = False,
) -> Tensor:
    """Return the expected output, from the parameters of the layer and the definition."""
    source = x if context is None else context
    grid, context_grid = tuple(x.shape[2:]), tuple(source.shape[2:])

    def project(convolution: nn.Module, x: Tensor) -> Tensor:
        assert convolution.bias is None
        return torch.einsum("oi,bin->bon", convolution.weight.flatten(1), x.flatten(2))

    q = normalised(layer.norm_queries, project(layer.to_queries, x)).unflatten(1, (HEADS, -1)).mT  # b h n k
    v = normalised(layer.norm_values, project(layer.to_values, source))
    dim_v = layer_out(layer, v) // HEADS
    v = v.unflatten(1, (dim_v, -1)).permute(0, 3, 1, 2)  # b m v u
    dim_u = v.shape[-1]
    if content:
        k = project(layer.to_keys, source).unflatten(1, (DIM_K, dim_u)).permute(0, 3, 1, 2)  # b m k u
    else:
        k = torch.zeros(v.shape[0], v.shape[1], DIM_K, dim_u, dtype=v.dtype)
    e = None if layer.positions is None else dense_positions(layer, grid, context_grid, scope, dilation)
    mask = None if mask is None else mask.flatten(1)
    y = lambda_layer_loops(q, k, v, e, dense=True, causal=causal, mask=mask, content=content)
    return y.mT.reshape(x.shape[0], HEADS * dim_v, *grid)  # channels are head-major, then value


def layer_out(layer: nn.Module, v: Tensor) -> int:
    """Return dim_out from the number of value channels of the layer, v * u."""
    dim_u = 1 if layer.positions is None else layer.positions.shape[-1]
    return v.shape[1] // dim_u * HEADS


def inputs(*grids: Grid, batch: int = 2) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(batch, DIM, *grid, generator=generator, dtype=torch.float64) for grid in grids)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    ("rank", "grid", "dim_out", "options"),
    [
        (1, (7,), None, {"scope": 3}),
        (1, (7,), 12, {"scope": 4, "dim_u": 2}),
        (1, (7,), None, {"grid": 7}),
        (1, (7,), 3, {"scope": 5, "causal": True}),
        (1, (7,), None, {"grid": 7, "causal": True}),
        (1, (5,), None, {"scope": 13}),
        (1, (1,), None, {"scope": 3}),
        (2, (3, 5), None, {"scope": 3}),
        (2, (3, 5), 12, {"scope": (3, 4)}),
        (2, (3, 5), None, {"scope": 3, "dilation": 2}),
        (2, (3, 5), None, {"scope": 3, "dim_u": 4}),
        (2, (3, 5), None, {"grid": (3, 5)}),
        (2, (3, 5), 12, {"grid": (3, 5), "dim_u": 2}),
        (2, (3, 5), None, {"position": False}),
        (2, (3, 5), None, {"scope": 3, "content": False}),
        (2, (3, 5), None, {"grid": (3, 5), "content": False}),
        (3, (2, 3, 2), None, {"scope": (1, 3, 2)}),
        (3, (2, 3, 2), 9, {"grid": (2, 3, 2)}),
    ],
    ids=str,
)
def test_output_matches_projections_norms_and_loops(
    rank: int, grid: Grid, dim_out: int | None, options: dict[str, Any], training: bool
) -> None:
    layer = make(rank, dim_out, **options).train(training)
    (x,) = inputs(grid)
    scope = options.get("scope")
    expected = compose(
        layer,
        x,
        scope=(scope,) * rank if isinstance(scope, int) else scope,
        dilation=options.get("dilation", 1),
        content=options.get("content", True),
        causal=options.get("causal", False),
    )
    y = layer(x)
    assert y.shape == (2, dim_out or DIM, *grid)
    assert_close(y, expected)


@pytest.mark.parametrize("grid", [(2, 2), (4, 6), (1, 1), (7, 2), (3, 5)], ids=str)
@pytest.mark.parametrize("options", [{"grid": (3, 5)}, {"scope": (3, 4)}], ids=["global", "local"])
def test_any_grid_at_run_time(grid: Grid, options: dict[str, Any]) -> None:
    """A larger table is used in its middle, a smaller one lacks offsets, a local one works on all grids."""
    layer = make(2, **options).eval()
    (x,) = inputs(grid)
    assert_close(layer(x), compose(layer, x, scope=options.get("scope")))


@pytest.mark.parametrize(("rank", "grid"), [(1, (2,)), (1, (9,)), (3, (1, 2, 3)), (3, (2, 1, 4))], ids=str)
def test_any_grid_at_run_time_on_other_ranks(rank: int, grid: Grid) -> None:
    layer = make(rank, grid=(4, 2, 3)[:rank]).eval()
    (x,) = inputs(grid)
    assert_close(layer(x), compose(layer, x))


def test_causal_at_other_lengths() -> None:
    layer = make(1, grid=5, causal=True).eval()
    for length in (3, 8):
        (x,) = inputs((length,))
        assert_close(layer(x), compose(layer, x, causal=True))


@pytest.mark.parametrize("context_grid", [(3, 5), (2, 7), (6, 1)], ids=str)
@pytest.mark.parametrize(
    "options",
    [{"grid": (3, 5)}, {"scope": (3, 4)}, {"scope": (3, 3), "dilation": 2}, {"position": False}],
    ids=str,
)
def test_separate_context_and_mask(context_grid: Grid, options: dict[str, Any]) -> None:
    layer = make(2, dim_out=12, **options).eval()
    x, context = inputs((3, 5), context_grid)
    mask = torch.rand(2, *context_grid) < 0.7
    mask[0, 0, 0], mask[1] = True, False  # the second example sees nothing
    given = {"scope": options.get("scope"), "dilation": options.get("dilation", 1)}
    assert_close(layer(x, context), compose(layer, x, context, **given))
    masked = layer(x, context, mask)
    assert_close(masked, compose(layer, x, context, mask, **given))
    assert (masked[1] == 0).all()
    assert torch.equal(layer(x, context=context, mask=mask.flatten(1)), masked)


def test_mask_without_a_context_hides_parts_of_the_input() -> None:
    layer = make(1, scope=3).eval()
    (x,) = inputs((7,))
    mask = torch.tensor([[True] * 5 + [False] * 2, [True] * 7])
    assert_close(layer(x, mask=mask), compose(layer, x, mask=mask, scope=(3,)))


@pytest.mark.parametrize("kernel", ["reference", "auto", "conv", "attention"])
def test_kernels_agree(kernel: str) -> None:
    (x,) = inputs((3, 5))
    layer = make(2, scope=3, kernel=kernel).eval()
    assert_close(layer(x), compose(layer, x, scope=(3, 3)))


def test_causal_output_does_not_depend_on_the_future() -> None:
    layer = make(1, scope=4, causal=True).eval()
    (x,) = inputs((9,))
    changed = x.clone()
    changed[:, :, 5:] += 1
    before, after = layer(x), layer(changed)
    assert_close(after[:, :, :5], before[:, :, :5])
    assert (after[:, :, 5:] != before[:, :, 5:]).any()


@pytest.mark.parametrize(
    ("rank", "options"),
    [
        (2, {"scope": 3, "dim_u": 2}),
        (2, {"grid": (3, 5)}),
        (2, {"position": False}),
        (2, {"scope": 3, "content": False}),
        (1, {"scope": 3, "causal": True}),
        (3, {"scope": 3}),
    ],
    ids=str,
)
def test_every_parameter_and_the_input_get_a_gradient(rank: int, options: dict[str, Any]) -> None:
    layer = make(rank, **options).train()
    (x,) = inputs((3, 5, 2)[:rank])
    y = layer(x.requires_grad_())
    y.backward(torch.randn_like(y))
    for name, parameter in [("x", x), *layer.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).any(), name


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("grid", "memory_format"),
    [
        ((7,), torch.contiguous_format),
        ((5, 4), torch.contiguous_format),
        ((5, 4), torch.channels_last),
        ((3, 2, 4), torch.contiguous_format),
    ],
    ids=str,
)
def test_gradients_in_training_are_those_of_finite_differences(
    grid: Grid, memory_format: torch.memory_format, batch: int
) -> None:
    """Also for a single image, whose gradient strides PyTorch's batch norm may misread."""
    layer = make(len(grid), dim_out=2 * HEADS, scope=3).train()
    x = torch.randn(batch, DIM, *grid, dtype=torch.float64).contiguous(memory_format=memory_format)
    assert torch.autograd.gradcheck(layer, x.requires_grad_())


@pytest.mark.parametrize("batch", [1, 2])
def test_training_is_one_graph(batch: int) -> None:
    layer = make(2, dim_out=2 * HEADS, scope=3).train()
    x = torch.randn(batch, DIM, 5, 4, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")
    gradients = [torch.autograd.grad(function(x).square().sum(), x)[0] for function in (layer, compiled)]
    torch.testing.assert_close(*gradients)


def test_forward_mode_differentiation_in_training() -> None:
    layer = make(2, dim_out=2 * HEADS, scope=3, kernel="reference").train()
    x, tangent = torch.randn(2, 1, DIM, 3, 4, dtype=torch.float64)
    with forward_ad.dual_level():
        forward = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, tangent))).tangent
    step = 1e-6
    difference = (layer(x + step * tangent) - layer(x - step * tangent)) / (2 * step)
    torch.testing.assert_close(forward, difference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("rank", "options"),
    [(1, {"scope": 3, "causal": True}), (2, {"grid": 4, "dim_u": 2}), (3, {"scope": 3}), (2, {"scope": 4})],
    ids=str,
)
def test_the_position_bias_is_one_lambda_at_all_positions(
    rank: int, options: dict[str, Any], training: bool
) -> None:
    layer = make(rank, 9, position_bias=True, **options).train(training)
    x = torch.randn(2, DIM, *(3, 5, 2)[:rank], dtype=torch.float64)
    assert not layer.position_bias.any()
    without = copy.deepcopy(layer)(x)
    nn.init.normal_(layer.position_bias)
    queries = torch.einsum("oi,bin->bon", layer.to_queries.weight.flatten(1), x.flatten(2))
    queries = normalised(layer.norm_queries, queries)
    added = torch.einsum("bhkn,k->bhn", queries.unflatten(1, (HEADS, DIM_K)), layer.position_bias)
    expected = without + added.repeat_interleave(3, 1).view_as(without)
    y = layer(x)
    assert_close(y, expected.detach())
    upstream = torch.randn_like(y)
    (found,) = torch.autograd.grad(y, layer.position_bias, upstream)
    (wanted,) = torch.autograd.grad(expected, layer.position_bias, upstream)
    assert_close(found, wanted)
