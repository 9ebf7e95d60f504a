"""The attention layers compared with their equations, on any grid, with gradients by name."""

import copy

import pytest
import torch

import attention_oracles as oracles
from closeness import assert_close, assert_close_by_name
from lambdanets.nn import (
    AxialAttention2d,
    GlobalAttention2d,
    LinearAttention2d,
    LocalAttention2d,
    separable,
)

GRIDS = [(1, 1), (5, 3), (2, 7), (1, 6), (7, 1)]
LAYERS = {
    "global": (GlobalAttention2d, {"grid": (5, 7)}, oracles.global_attention),
    "axial": (AxialAttention2d, {"grid": (5, 7)}, oracles.axial_attention),
    "local": (LocalAttention2d, {"window": 3}, oracles.local_attention),
    "linear": (LinearAttention2d, {}, oracles.linear_attention),
}


def made(kind, dim=5, dim_out=12, **options):
    module, defaults, oracle = LAYERS[kind]
    layer = module(dim, dim_out, num_heads=3, **{"dtype": torch.float64, **defaults, **options})
    for norm in layer.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
            torch.nn.init.normal_(norm.bias)
    return layer, oracle


def compare(layer, oracle, x):
    """Compare the output and the gradients of the input and all parameters with those of an oracle."""
    results = []
    for function in (layer, lambda x: oracle(layer, x)):
        layer.zero_grad()
        x = x.detach().clone().requires_grad_()
        y = function(x)
        torch.manual_seed(7)
        (y * torch.randn_like(y)).sum().backward()
        gradients = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
        results.append({"output": y, "x": x.grad, **gradients})
    ours, exact = results
    # A single position attends to itself with any logits, so some gradients are zero up to rounding.
    assert_close_by_name({name: t + 1 for name, t in ours.items()}, {name: exact[name] + 1 for name in ours})


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", LAYERS)
def test_outputs_and_gradients_match_the_equation(kind, grid):
    layer, oracle = made(kind)
    compare(layer, oracle, torch.randn(2, 5, *grid, dtype=torch.float64))


@pytest.mark.parametrize("block", [1, 200, 2**20])
def test_blockwise_and_fused_global_attention_match_the_explicit_map(block, monkeypatch):
    monkeypatch.setattr(separable, "BLOCK_SIZE", block)
    height, width, d = 4, 3, 5
    shapes = {"q": (12, d), "k": (12, d), "v": (12, d), "rows": (12, height), "columns": (12, width)}
    inputs = {name: torch.randn(2, 3, *shape, dtype=torch.float64) for name, shape in shapes.items()}
    upstream = torch.randn(2, 3, 12, d, dtype=torch.float64)

    def written_out(q, k, v, rows, columns):
        y, x = torch.arange(12) // width, torch.arange(12) % width
        logits = torch.einsum("bhnd,bhmd->bhnm", q, k) + rows[..., y] + columns[..., x]
        return torch.einsum("bhnm,bhmd->bhnd", logits.exp() / logits.exp().sum(3, keepdim=True), v)

    def as_in_half_precision(q, k, v, rows, columns):
        return separable._BlockwiseAttention.apply(*separable._append_positions(q, k, rows, columns), v)

    results = []
    for function in (separable.separable_attention, separable.fused, as_in_half_precision, written_out):
        leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
        y = function(**leaves)
        y.backward(upstream)
        results.append({"y": y, **{name: x.grad for name, x in leaves.items()}})
    for result in results[:-1]:
        assert_close_by_name(result, results[-1])


@pytest.mark.parametrize("block", [2**20, 1], ids=["one-block", "many-blocks"])
@pytest.mark.parametrize("grid", [(16, 16), (16, 17)], ids=str)  # on both sides of MAX_JOINT_SIDE
def test_global_attention_in_bfloat16(grid, block, monkeypatch):
    monkeypatch.setattr(separable, "BLOCK_SIZE", block)
    n = grid[0] * grid[1]
    shapes = {"q": (n, 4), "k": (n, 4), "v": (n, 4), "rows": (n, grid[0]), "columns": (n, grid[1])}
    leaves = {name: torch.randn(1, 2, *shape).bfloat16().requires_grad_() for name, shape in shapes.items()}
    exact = {name: x.detach().double().requires_grad_() for name, x in leaves.items()}
    upstream = (torch.randn(1, 2, n, 4) + 1).bfloat16()  # sums over queries grow with their number
    for function, inputs in ((separable.separable_attention, leaves), (separable.fused, exact)):
        function(**inputs).backward(upstream)
    for name, leaf in leaves.items():
        error = (leaf.grad - exact[name].grad).norm() / exact[name].grad.norm()
        assert error < 0.02, name


def test_gradients_of_batch_norm_outputs_have_their_memory_format():
    """PyTorch's batch norm is several times slower if the two memory formats differ."""
    layer, _ = made("axial")
    layer.float()
    x = torch.randn(3, 5, 4, 6).contiguous(memory_format=torch.channels_last)
    orders = []

    def watch(norm, args, y):
        y.register_hook(lambda g: orders.append((g.stride(), y.stride())))

    for norm in layer.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.register_forward_hook(watch)
    layer(x).square().sum().backward()
    assert len(orders) == 3
    for of_gradient, of_output in orders:
        assert of_gradient == of_output


@pytest.mark.parametrize("kind", ["global", "axial"])
def test_offsets_beyond_the_table_have_no_position_logits(kind):
    layer, oracle = made(kind, grid=(2, 3))
    compare(layer, oracle, torch.randn(2, 5, 4, 5, dtype=torch.float64))


@pytest.mark.parametrize("window", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("grid", [(9, 4), (11, 7)])
def test_windows_even_and_odd_small_and_larger_than_the_grid(window, grid):
    layer, oracle = made("local", window=window)
    compare(layer, oracle, torch.randn(1, 5, *grid, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["global", "local", "linear"])
def test_evaluation_without_gradients_gives_the_same_output(kind):
    layer, oracle = made(kind)
    layer.eval()
    x = torch.randn(2, 5, 7, 8, dtype=torch.float64)
    with torch.no_grad():
        assert_close(layer(x), oracle(layer, x))


def test_axial_attention_in_evaluation_uses_the_running_statistics():
    layer, oracle = made("axial")
    x = torch.randn(3, 5, 4, 6, dtype=torch.float64)
    for norm in layer.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.momentum = 1.0
    layer(x)
    unbiased = copy.deepcopy(layer).eval()
    for norm in unbiased.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_var *= (x.numel() / 5 - 1) / (x.numel() / 5)
    with torch.no_grad():
        assert_close(unbiased(x), oracle(layer, x))
    assert_close(unbiased(x), oracle(layer, x))


@pytest.mark.parametrize("kind", LAYERS)
def test_gradcheck(kind):
    layer, _ = made(kind, dim=2, dim_out=6, **({"window": 2} if kind == "local" else {}))
    x = torch.randn(2, 2, 5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision(kind, dtype):
    layer, _ = made(kind, dim=24, dim_out=24)
    x = torch.randn(2, 24, 15, 6, dtype=torch.float64)
    with torch.no_grad():
        exact = layer(x)
        low = layer.to(dtype)(x.to(dtype))
    assert low.dtype == dtype
    error = (low.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert error < 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("kind", LAYERS)
def test_the_memory_format_is_kept_and_does_not_change_the_output(kind):
    layer, _ = made(kind, dim=12)
    x = torch.randn(2, 12, 4, 5, dtype=torch.float64)
    last = layer(x.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert_close(last, layer(x))
    assert layer(x).is_contiguous()


@pytest.mark.parametrize("kind", LAYERS)
def test_autocast_trains(kind):
    layer, _ = made(kind, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(torch.randn(2, 5, 8, 9)).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_logits_of_hidden_positions_stay_finite_in_half_precision():
    layer, _ = made("local", dtype=torch.float16)
    x = torch.randn(1, 5, 8, 10, dtype=torch.float16, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


# Only the weights; the docstrings have the numbers of embeddings and norms.
@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("global", 3 * 5 * 12 + 4 * (9 + 13)),
        ("axial", 3 * 5 * 12 + 3 * 12 * 12 + 4 * (9 + 13) + 2 * 7 * 12),
        ("local", 3 * 5 * 12 + 3 * 12),
        ("linear", 3 * 5 * 12),
    ],
)
def test_the_documented_number_of_parameters(kind, count):
    assert sum(p.numel() for p in made(kind)[0].parameters()) == count


@pytest.mark.parametrize("kind", LAYERS)
def test_inputs_of_a_wrong_shape_are_named(kind):
    layer, _ = made(kind)
    with pytest.raises(ValueError, match=r"x must be of shape \(b 5 h w\), got \(2, 4, 3, 3\)"):
        layer(torch.zeros(2, 4, 3, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"x must be of shape \(b 5 h w\), got \(5,\)"):
        layer(torch.zeros(5, dtype=torch.float64))
    with pytest.raises(ValueError, match="dim_out must be a multiple of num_heads=3, got 10"):
        made(kind, dim_out=10)
    with pytest.raises(ValueError, match="dim must be at least 1, got 0"):
        made(kind, dim=0)


def test_an_invalid_window_is_refused():
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        made("local", window=0)
    with pytest.raises(ValueError, match=r"even number of channels.*multiple of 2 \* num_heads=6, got 9"):
        made("local", dim_out=9)


def test_the_tables_need_a_grid():
    with pytest.raises(ValueError, match="grid must"):
        made("global", grid=0)
