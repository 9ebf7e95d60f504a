"""The layer as a module: parameters, initialisation, meta device, saving, resizing, errors."""

import copy
import math
import re
from typing import Any

import pytest
import torch
from torch import nn

from cases import LAYER_OPTIONS
from closeness import assert_close
from lambdanets.nn import LambdaLayer1d, LambdaLayer2d, LambdaLayer3d
from lambdanets.ops import planner

LAYERS = {1: LambdaLayer1d, 2: LambdaLayer2d, 3: LambdaLayer3d}


def test_defaults_are_those_of_the_paper() -> None:
    layer = LambdaLayer2d(256, scope=23)
    assert layer.to_queries.weight.shape == (4 * 16, 256, 1, 1)
    assert layer.to_keys.weight.shape == (16, 256, 1, 1)
    assert layer.to_values.weight.shape == (64, 256, 1, 1)
    assert layer.norm_queries.weight.shape == (4 * 16,)
    assert layer.norm_values.weight.shape == (64,)
    assert layer.positions.shape == (23, 23, 16, 1)
    assert all(projection.bias is None for projection in (layer.to_queries, layer.to_keys, layer.to_values))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("dim_u", [1, 3])
@pytest.mark.parametrize(
    ("options", "entries"),
    [
        ({"scope": 3}, lambda rank: 3**rank),
        ({"scope": 4, "dilation": 2}, lambda rank: 4**rank),
        ({"grid": 4}, lambda rank: 7**rank),
        ({"position": False}, lambda rank: 0),
    ],
    ids=["local", "dilated", "global", "content-only"],
)
def test_parameter_count(rank: int, dim_u: int, options: dict[str, Any], entries: Any) -> None:
    dim, dim_out, h, k, u = 10, 14, 2, 5, dim_u
    v = dim_out // h
    layer = LAYERS[rank](dim, dim_out, dim_k=k, num_heads=h, dim_u=u, **options)
    expected = dim * h * k + dim * k * u + dim * v * u + 2 * h * k + 2 * v * u + entries(rank) * k * u
    assert sum(p.numel() for p in layer.parameters()) == expected
    if options.get("position", True):
        assert layer.positions.shape[-2:] == (k, u)
        assert layer.positions.ndim == rank + 2


def test_scopes_and_grids_may_differ_by_axis() -> None:
    assert LambdaLayer2d(8, scope=(3, 4)).positions.shape == (3, 4, 16, 1)
    assert LambdaLayer2d(8, grid=(3, 4)).positions.shape == (5, 7, 16, 1)
    assert LambdaLayer3d(8, grid=(1, 2, 3)).positions.shape == (1, 3, 5, 16, 1)


def deviations(layer: nn.Module, dim: int) -> None:
    """The paper's initialisation (appendix E.1), within five standard errors of a sample's deviation."""
    wanted = {
        "to_queries.weight": (16 * dim) ** -0.5,
        "to_keys.weight": dim**-0.5,
        "to_values.weight": dim**-0.5,
        "positions": 1.0,
    }
    parameters = dict(layer.named_parameters())
    for name, std in wanted.items():
        x = parameters[name].detach().double()
        slack = 5 / math.sqrt(2 * x.numel())
        assert abs(x.std().item() / std - 1) < slack, name
        assert abs(x.mean().item()) / std < 2 * slack, name
        # a normal distribution has 4.55 % beyond two deviations; a uniform or truncated one has none
        assert 0.03 < (x.abs() > 2 * std).double().mean() < 0.06, name
    for norm in (layer.norm_queries, layer.norm_values):
        assert (norm.weight == 1).all()
        assert (norm.bias == 0).all()
        assert (norm.running_mean == 0).all()
        assert (norm.running_var == 1).all()


@pytest.mark.parametrize("options", [{"scope": 23}, {"grid": 12}], ids=["local", "global"])
def test_initialisation(options: dict[str, Any]) -> None:
    deviations(LambdaLayer2d(256, **options), 256)


def test_meta_device_then_reset_parameters() -> None:
    layer = LambdaLayer2d(256, scope=23, device="meta")
    assert all(x.is_meta for x in [*layer.parameters(), *layer.buffers()])
    layer = layer.to_empty(device="cpu")
    assert layer.positions.isnan().all(), "the memory is poisoned, so a parameter that is not reset shows"
    layer.reset_parameters()
    deviations(layer, 256)
    assert layer(torch.randn(2, 256, 5, 7)).isfinite().all()


@pytest.mark.parametrize("options", [{"scope": 3}, {"grid": 5}, {"position": False}], ids=str)
def test_runs_on_the_meta_device(options: dict[str, Any]) -> None:
    layer = LambdaLayer2d(8, 12, device="meta", **options)
    assert layer(torch.randn(2, 8, 5, 7, device="meta")).shape == (2, 12, 5, 7)


def test_dtype_reaches_every_parameter() -> None:
    layer = LambdaLayer2d(8, scope=3, dtype=torch.float64)
    assert {p.dtype for p in layer.parameters()} == {torch.float64}
    assert layer(torch.randn(2, 8, 3, 5, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("options", LAYER_OPTIONS, ids=str)
def test_state_dict_round_trip(options: dict[str, Any]) -> None:
    layer = LambdaLayer2d(8, num_heads=2, **options)
    x = torch.randn(2, 8, 5, 7)
    layer(x)  # moves the running statistics
    other = LambdaLayer2d(8, num_heads=2, **options)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.eval()(x), layer.eval()(x))


def test_state_dict_names() -> None:
    norm = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    names = {f"to_{x}.weight" for x in ("queries", "keys", "values")} | {"positions"}
    names |= {f"norm_{x}.{y}" for x in ("queries", "values") for y in norm}
    assert set(LambdaLayer2d(8, scope=3).state_dict()) == names
    assert set(LambdaLayer2d(8, position=False).state_dict()) == names - {"positions"}
    assert set(LambdaLayer2d(8, scope=3, position_bias=True).state_dict()) == names | {"position_bias"}


def test_deepcopy_is_independent() -> None:
    layer = LambdaLayer2d(8, num_heads=2, scope=3).eval()
    twin = copy.deepcopy(layer)
    x = torch.randn(2, 8, 5, 7)
    before = layer(x)
    assert torch.equal(twin(x), before)
    nn.init.zeros_(twin.positions)
    assert torch.equal(layer(x), before)
    assert not torch.equal(twin(x), before)


def test_resize_positions_interpolates() -> None:
    """All old entries keep their relative place, and a constant table stays constant."""
    layer = LambdaLayer2d(8, num_heads=2, grid=(3, 4), dtype=torch.float64).eval()
    table = layer.positions.detach().clone()
    assert table.shape == (5, 7, 16, 1)
    layer.resize_positions((5, 7))
    assert layer.positions.shape == (9, 13, 16, 1)
    assert isinstance(layer.positions, nn.Parameter)
    assert layer.positions.requires_grad
    assert_close(layer.positions[::2, ::2], table)
    assert layer(torch.randn(2, 8, 5, 7, dtype=torch.float64)).isfinite().all()
    nn.init.constant_(layer.positions, 3.0)
    layer.resize_positions((2, 6))
    assert layer.positions.shape == (3, 11, 16, 1)
    assert_close(layer.positions, torch.full_like(layer.positions, 3.0))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_resize_positions_keeps_the_centre_and_the_corners(rank: int) -> None:
    layer = LAYERS[rank](8, num_heads=2, grid=3, dim_u=2)
    table = layer.positions.detach().clone()
    layer.resize_positions(3)
    assert torch.equal(layer.positions, table)
    layer.resize_positions((6, 5, 4)[:rank])
    assert layer.positions.shape == (*(11, 9, 7)[:rank], 16, 2)
    torch.testing.assert_close(layer.positions[(0,) * rank], table[(0,) * rank])
    torch.testing.assert_close(layer.positions[(-1,) * rank], table[(-1,) * rank])
    torch.testing.assert_close(layer.positions[(5, 4, 3)[:rank]], table[(2,) * rank])


@pytest.mark.parametrize("options", [{"scope": 3}, {"position": False}], ids=str)
def test_resize_positions_needs_a_global_table(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="resize_positions"):
        LambdaLayer2d(8, num_heads=2, **options).resize_positions(5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dim_out": 10}, ["dim_out", "num_heads", "10", "4"]),
        ({"scope": None}, ["scope", "grid"]),
        ({"scope": (3, 3, 3)}, ["scope"]),
        ({"scope": 0}, ["scope"]),
        ({"scope": 2.5}, ["scope"]),
        ({"scope": None, "grid": (3,)}, ["grid"]),
        ({"scope": None, "grid": (3, 0)}, ["grid"]),
        ({"dilation": 0}, ["dilation"]),
        ({"dim": 0}, ["dim"]),
        ({"dim_k": 0}, ["dim_k"]),
        ({"dim_u": 0}, ["dim_u"]),
        ({"num_heads": 0}, ["num_heads"]),
        ({"content": False, "position": False}, ["content", "position"]),
        ({"causal": True}, ["causal"]),
        ({"kernel": "convolution"}, ["kernel", "convolution", "conv"]),
        ({"kernel": None}, ["kernel", "None"]),
        ({"normalize": None}, ["normalize", "None"]),
        ({"dim_k": 2.0}, ["dim_k", "int"]),
        ({"norm": "layer"}, ["norm", "layer", "rms"]),
        ({"scope": None, "position": False, "kernel": "conv"}, ["kernel", "conv", "position"]),
        ({"scope": None, "position": False, "position_bias": True}, ["position_bias", "position=False"]),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(options: dict[str, Any], words: list[str]) -> None:
    options = {"dim": 8, "scope": 3} | options
    with pytest.raises(ValueError) as refused:
        LambdaLayer2d(**options)(torch.randn(2, 8, 5, 7))
    for word in words:
        assert re.search(rf"\b{word}\b", str(refused.value)), f"{word} is not in: {refused.value}"


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"x": (2, 7, 5, 7)}, ["x", "8", "7"]),
        ({"x": (2, 8, 5)}, ["x", "2, 8, 5"]),
        ({"x": (2, 8, 5, 7, 3)}, ["x"]),
        ({"x": (2, 8, 0, 7)}, ["x", "positions"]),
        ({"context": (2, 7, 5, 7)}, ["context"]),
        ({"context": (3, 8, 5, 7)}, ["context"]),
        ({"context": (2, 8, 5)}, ["context"]),
        ({"mask": (2, 5, 6)}, ["mask", "2, 5, 6"]),
        ({"mask": (5, 7)}, ["mask"]),
        ({"context": (2, 8, 3, 4), "mask": (2, 5, 7)}, ["mask"]),
    ],
    ids=str,
)
def test_wrong_inputs_are_named(shapes: dict[str, tuple[int, ...]], words: list[str]) -> None:
    layer = LambdaLayer2d(8, scope=3).eval()
    given = {
        name: torch.ones(shape, dtype=torch.bool if name == "mask" else None)
        for name, shape in shapes.items()
    }
    with pytest.raises(ValueError) as refused:
        layer(**({"x": torch.ones(2, 8, 5, 7)} | given))
    for word in words:
        assert re.search(rf"\b{word}\b", str(refused.value)), f"{word} is not in: {refused.value}"


def test_a_mask_of_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match="mask"):
        LambdaLayer1d(8, scope=3).eval()(torch.ones(2, 8, 5), mask=torch.ones(2, 5))


@pytest.mark.parametrize("length", [1, 4, 6])
def test_a_causal_layer_refuses_a_context_of_another_length(length: int) -> None:
    """The last position alone, as in a step of decoding, would be position 0."""
    layer, x = LambdaLayer1d(8, scope=3, causal=True).eval(), torch.randn(2, 8, 5)
    with pytest.raises(ValueError, match=rf"causal=True needs a context as long as x, {length} positions"):
        layer(torch.randn(2, 8, length), context=x)
    assert torch.equal(layer(x, context=x), layer(x))


def test_a_packed_sequence_is_refused_with_advice() -> None:
    packed = nn.utils.rnn.pack_sequence([torch.randn(5, 8), torch.randn(3, 8)])
    with pytest.raises(ValueError, match="must be a tensor, got PackedSequence; pad the sequences and give"):
        LambdaLayer1d(8, scope=3)(packed)


def test_one_value_per_channel_is_refused_by_batch_norms_in_training_only() -> None:
    x = torch.randn(1, 8, 1, 1)
    layer = LambdaLayer2d(8, scope=3)
    with pytest.raises(ValueError, match=r"more than one value per channel.*give a larger batch or grid"):
        layer(x)
    with pytest.raises(ValueError, match=r"but context of shape \(1, 8, 1, 1\) has one"):
        layer(torch.randn(1, 8, 2, 2), context=x)
    assert layer.eval()(x).isfinite().all()
    assert LambdaLayer2d(8, scope=3, norm="rms")(x).isfinite().all()


def test_parameters_beyond_the_machines_memory_are_refused_before_they_are_allocated() -> None:
    with pytest.raises(MemoryError, match=r"dim_k=1000000000000.* take 356,000,000,000,256 bytes, "):
        LambdaLayer2d(16, dim_k=10**12, scope=3)


def test_repr_has_the_sizes_of_the_layer() -> None:
    text = repr(LambdaLayer2d(256, 128, dim_k=32, num_heads=8, scope=23))
    for word in ("LambdaLayer2d", "256", "128", "32", "8", "23"):
        assert word in text


def test_a_table_resized_to_one_entry_keeps_offset_zero() -> None:
    layer = LambdaLayer2d(8, grid=(3, 4), num_heads=2)
    before = layer.positions.detach().clone()
    layer.resize_positions((1, 4))
    assert torch.equal(layer.positions, before[2:3])


def test_a_causal_table_resized_keeps_offset_zero_at_its_end() -> None:
    layer = LambdaLayer1d(8, grid=4, causal=True, norm=None)
    before = layer.positions.detach().clone()
    layer.resize_positions(7)
    torch.testing.assert_close(layer.positions[::2], before)
    layer.resize_positions(1)
    assert torch.equal(layer.positions, before[3:])


def test_an_unknown_kernel_is_refused_at_construction() -> None:
    with pytest.raises(ValueError, match="did you mean conv"):
        LambdaLayer2d(8, scope=3, kernel="convv")


@pytest.mark.filterwarnings("ignore")  # torch announces the end of tracing, and that sizes become constants
def test_a_trace_computes_the_same_as_the_layer() -> None:
    layer = LambdaLayer2d(8, scope=3, num_heads=2).eval()
    x = torch.randn(2, 8, 4, 5)
    assert torch.equal(torch.jit.trace(layer, x)(x), layer(x))


@pytest.mark.filterwarnings("ignore")
def test_a_trace_may_use_other_kernels_with_and_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch traces a second time without gradients, and compares."""
    whole = planner.select_kernel
    monkeypatch.setattr(
        planner,
        "select_kernel",
        lambda problem, kernel, *, backward: "conv" if backward else whole(problem, kernel, backward=False),
    )
    layer = LambdaLayer2d(8, scope=3, num_heads=2, kernel="auto").eval()
    x = torch.randn(2, 8, 4, 5)
    traced = torch.jit.trace(layer, x)
    torch.testing.assert_close(traced(x), layer(x))
