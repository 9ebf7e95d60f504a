"""1x1 projections by the native library: sizes, memory formats, threads, derivatives, and where it serves."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from closeness import assert_close_by_name
from lambdanets.nn.fuse_batch_norm import project_concatenated
from lambdanets.ops.kernels import native
from lambdanets.ops.kernels.native import projection
from lambdanets.ops.kernels.native.projection import Norm
from lambdanets.ops.projection import is_native, project, project_normalized

MISSING = native.library.unavailable()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=f"the native kernel: {MISSING}")

BEST = "base" if MISSING else native.isa()

SIZES = [  # batch, channels, grid, channels of the projections
    (1, 1, (1,), (1,)),
    (3, 5, (7,), (2, 3, 1)),
    (2, 17, (1, 1), (33, 16, 4)),
    (40, 16, (1, 1), (16, 16)),
    (2, 64, (8, 8), (64, 16, 16)),
    (5, 33, (7, 7), (50, 1, 31)),
    (1, 40, (2, 150), (20, 7)),
    (3, 300, (5, 9), (17, 30, 16)),
    (2, 700, (3, 5), (9,)),
    (4, 7, (11, 13), (530, 5)),
    (9, 12, (300,), (20, 5, 6)),
    (2, 19, (3, 4, 5), (4, 8, 15, 16)),
]


def images(*shape: int, channels_last: bool, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return random images `[b, c, *grid]` in a memory format."""
    x = torch.randn(shape, dtype=dtype)
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x


def make(
    size: tuple[Any, ...], channels_last: bool = False, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return an input, weights and gradients of the outputs."""
    batch, channels, grid, outputs = size
    x = images(batch, channels, *grid, channels_last=channels_last, dtype=dtype)
    weights = [torch.randn(o, channels, *[1] * len(grid), dtype=dtype) for o in outputs]
    return x, weights, [images(batch, o, *grid, channels_last=channels_last, dtype=dtype) for o in outputs]


def plain(x: Tensor, *weights: Tensor) -> list[Tensor]:
    """Return the projections by einsum."""
    return [torch.einsum("od,bd...->bo...", weight.flatten(1), x) for weight in weights]


def results(
    function: Callable[..., Any], x: Tensor, weights: list[Tensor], g: list[Tensor]
) -> dict[str, Tensor]:
    """Return outputs and all gradients."""
    leaves = [each.detach().requires_grad_() for each in (x, *weights)]
    y = function(*leaves)
    found = torch.autograd.grad(list(y), leaves, g)
    return {f"y{i}": each.detach() for i, each in enumerate(y)} | {
        f"d{i}": each for i, each in enumerate(found)
    }


def by_library(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    return project(x, weights)


def check(x: Tensor, weights: list[Tensor], g: list[Tensor]) -> None:
    """Compare outputs and gradients with the einsum in float64."""
    exact = results(plain, x.double(), [w.double() for w in weights], [each.double() for each in g])
    assert_close_by_name(
        results(by_library, x, weights, g),
        exact,
        results(plain, x, weights, g) if x.dtype != torch.float64 else None,
    )


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_plain_einsum(
    size: tuple[Any, ...], dtype: torch.dtype, channels_last: bool, isa: str
) -> None:
    check(*make(size, channels_last, dtype))


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels-last"])
def test_outputs_and_gradients_have_the_memory_format_of_the_input(channels_last: bool) -> None:
    x, weights, g = make(SIZES[5], channels_last)
    found = results(by_library, x, weights, g)
    expected = torch.channels_last if channels_last else torch.contiguous_format
    for name in ("y0", "y1", "y2", "d0"):
        assert found[name].is_contiguous(memory_format=expected)
    for i, weight in enumerate(weights):
        assert found[f"d{i + 1}"].shape == weight.shape


def test_gradients_of_weights_have_their_strides() -> None:
    """Otherwise DistributedDataParallel warns of them at every start."""
    x, weights, g = make(SIZES[4])
    weights = [weight.to(memory_format=torch.channels_last) for weight in weights]
    assert weights[0].stride() != torch.empty(weights[0].shape).stride()
    assert is_native(x, weights)
    found = results(by_library, x, weights, g)
    assert [found[f"d{i + 1}"].stride() for i in range(len(weights))] == [w.stride() for w in weights]


def slices(channels_last: bool) -> dict[str, Tensor]:
    """Return inputs that are parts of larger tensors, [2, 20, 6, 7]."""
    wide = images(5, 50, 6, 7, channels_last=channels_last)
    return {
        "channels": wide[:2, 7:27],
        "examples": wide[::3, :20],
        "one example twice": wide[:1, :20].expand(2, -1, -1, -1),
        "every other channel": wide[:2, ::2][:, :20],
        "a part of the grid": images(2, 20, 9, 9, channels_last=channels_last)[..., 1:7, 2:],
        "transposed": images(2, 20, 7, 6, channels_last=channels_last).mT,
    }


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("name", slices(False))
def test_strides(name: str, channels_last: bool) -> None:
    """What the library cannot read is copied by the operator, and left to convolutions by `is_native`."""
    x = slices(channels_last)[name]
    _, weights, g = make((2, 20, (6, 7), (16, 3, 30)))
    check(x, weights, g)
    check(x, weights, [each.contiguous(memory_format=torch.channels_last) for each in g])
    check(x, weights, [each[:, :1, :1, :1].expand_as(each) for each in g])
    check(x, [weight.transpose(0, 1).contiguous().transpose(0, 1) for weight in weights], g)


def test_which_strides_the_library_reads() -> None:
    read = {name for name, x in slices(False).items() if projection.has_native_strides(x)}
    assert read == {"channels", "examples", "one example twice", "every other channel"}
    read = {name for name, x in slices(True).items() if projection.has_native_strides(x)}
    assert read == {"channels"}
    assert projection.has_native_strides(torch.randn(3, 5, 1, 1))
    assert projection.has_native_strides(torch.randn(5, 3, 1, 1).transpose(0, 1))
    assert not projection.has_native_strides(torch.randn(3, 10, 1, 1)[:, ::2])


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels-last"])
def test_memory_around_the_results_is_not_written(channels_last: bool) -> None:
    x, weights, g = make(SIZES[5], channels_last, torch.float32)

    def guarded(like: Tensor) -> tuple[Tensor, Tensor]:
        buffer = torch.full((like.numel() + 512,), torch.nan)
        return buffer[256:-256].as_strided(like.shape, like.stride(), 256), buffer

    y, dx, d_weights = map(guarded, g), guarded(x), map(guarded, weights)
    y, d_weights = list(y), list(d_weights)
    projection.output(x, weights, [each for each, _ in y], [None] * 3)
    projection.gradients(g, x, weights, dx[0], [each for each, _ in d_weights])
    for written, buffer in (*y, dx, *d_weights):
        assert written.isfinite().all()
        assert buffer[:256].isnan().all()
        assert buffer[-256:].isnan().all()


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize(
    "size",
    [
        (3, 300, (33, 33), (40, 9, 16)),
        (1, 64, (8, 8), (64, 16, 16)),
        (1, 200, (20, 20), (700, 30)),
        (70, 80, (7, 7), (100,)),
    ],
    ids=str,
)
def test_bits_are_the_same_for_every_number_of_threads(
    size: tuple[Any, ...], channels_last: bool, threads: None
) -> None:
    x, weights, g = make(size, channels_last, torch.float32)
    check(x, weights, g)
    first = results(by_library, x, weights, g)
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        again = results(by_library, x, weights, g)
        assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("needs", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1), (1, 1, 1)])
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels-last"])
def test_gradients_that_are_not_needed(needs: tuple[int, ...], channels_last: bool) -> None:
    x, weights, g = make((3, 20, (5, 6), (17, 4)), channels_last)
    exact = results(plain, x, weights, g)
    leaves = [each.requires_grad_(bool(needed)) for each, needed in zip((x, *weights), needs, strict=True)]
    found = torch.autograd.grad(list(by_library(*leaves)), [leaf for leaf in leaves if leaf.requires_grad], g)
    expected = {f"d{i}": exact[f"d{i}"] for i, needed in enumerate(needs) if needed}
    assert_close_by_name(dict(zip(expected, found, strict=True)), expected)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels-last"])
def test_an_empty_batch(channels_last: bool) -> None:
    check(*make((0, 20, (5, 6), (17, 4)), channels_last))


def test_an_output_that_is_not_used_has_no_gradient() -> None:
    x, weights, g = make((3, 20, (5, 6), (17, 4)))
    leaves = [each.requires_grad_() for each in (x, *weights)]
    dx, d_used, d_unused = torch.autograd.grad(project(x, weights)[0], leaves, g[0])
    exact = torch.autograd.grad(plain(*leaves)[0], leaves[:2], g[0])
    assert_close_by_name({"x": dx, "w": d_used}, dict(zip("xw", exact, strict=True)))
    assert not d_unused.any()


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("needs", [(1, 1, 1), (1, 0, 0), (0, 1, 0)], ids=str)
def test_derivatives_of_first_and_second_order(needs: tuple[int, ...], channels_last: bool) -> None:
    x, weights, _ = make((2, 3, (2, 2), (2, 1)), channels_last)
    leaves = [each.requires_grad_(bool(needed)) for each, needed in zip((x, *weights), needs, strict=True)]
    assert torch.autograd.gradcheck(by_library, leaves)
    assert torch.autograd.gradgradcheck(by_library, leaves)


def test_derivatives_of_third_order() -> None:
    x, weights, _ = make((2, 3, (2, 2), (2, 1)))

    def third(function: Callable[..., Any]) -> dict[str, Tensor]:
        leaves = [each.detach().requires_grad_() for each in (x, *weights)]
        total = sum(y.pow(4).sum() for y in function(*leaves))
        for _ in range(3):
            found = torch.autograd.grad(total, leaves, create_graph=True)
            total = sum(each.square().sum() for each in found)
        return dict(zip(("x", "a", "b"), found, strict=True))

    assert_close_by_name(third(by_library), third(plain))


@pytest.mark.parametrize("way", ["is_grads_batched", "vmap"])
def test_gradients_of_several_outputs_at_once(way: str) -> None:
    x, weights, g = make(SIZES[5])
    leaves = [each.requires_grad_() for each in (x, *weights)]
    batched = [torch.stack([each, 2 * each]) for each in g]

    def batch(function: Callable[..., Any]) -> dict[str, Tensor]:
        y = list(function(*leaves))
        if way == "vmap":
            found = torch.func.vmap(lambda *g: torch.autograd.grad(y, leaves, g))(*batched)
        else:
            found = torch.autograd.grad(y, leaves, batched, is_grads_batched=True)
        return {str(i): each for i, each in enumerate(found)}

    assert_close_by_name(batch(by_library), batch(plain))


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("affine", [True, False])
def test_norms_in_evaluation(affine: bool, channels_last: bool, isa: str) -> None:
    x, weights, _ = make(SIZES[5], channels_last)
    modules = [
        nn.BatchNorm2d(len(w), eps=0.01 * (i + 1), affine=affine).double() for i, w in enumerate(weights)
    ]
    for norm in modules:
        for tensor in norm.parameters():
            nn.init.normal_(tensor)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0, 2)
        norm.eval()
    norms = [Norm(m.running_mean, m.running_var, m.weight, m.bias, m.eps) for m in modules]
    found = project_normalized(x, weights, [norms[0], None, norms[2]])
    a, b, c = plain(x, *weights)
    exact = {"a": modules[0](a), "b": b, "c": modules[2](c)}
    assert_close_by_name(dict(zip("abc", found, strict=True)), exact)


def test_values_that_are_not_finite_reach_their_position_alone() -> None:
    x, weights, _ = make(SIZES[5], dtype=torch.float32)
    x[1, 3, 2, 2] = torch.inf
    x[0, 1, 1, 0] = torch.nan
    for y, expected in zip(project(x, weights), plain(x, *weights), strict=True):
        assert torch.equal(y.isfinite(), expected.isfinite())


def test_a_changed_weight_is_noticed_before_backward() -> None:
    x, weights, g = make(SIZES[1])
    leaves = [each.requires_grad_() for each in (x, *weights)]
    y = by_library(*leaves)
    with torch.no_grad():
        weights[0].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y, leaves, g)


def test_saved_tensors_may_return_with_other_strides() -> None:
    x, weights, g = make(SIZES[5], channels_last=True)
    exact = results(plain, x, weights, g)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.contiguous(), lambda x: x):
        assert_close_by_name(results(by_library, x, weights, g), exact)


def test_convolutions_serve_calls_that_a_dispatch_mode_observes() -> None:
    x, weights, _ = make(SIZES[4])
    assert is_native(x, weights)
    with FlopCounterMode(display=False):
        assert not is_native(x, weights)


@pytest.mark.parametrize("pre_dispatch", [False, True])
def test_traced_graphs_hold_convolutions(pre_dispatch: bool) -> None:
    layer, x, other = nn.Conv2d(6, 5, 1, bias=False), *torch.randn(2, 2, 6, 5, 5)
    with torch.no_grad():
        graph = make_fx(lambda x: project_concatenated(x, [layer])[0], pre_dispatch=pre_dispatch)(x)
        torch.testing.assert_close(graph(other), layer(other))


def test_a_dispatch_mode_observes_the_backward_pass_of_a_call_before_it() -> None:
    x, weights, g = make(SIZES[4])
    exact = results(plain, x, weights, g)
    leaves = [each.requires_grad_() for each in (x, *weights)]
    y = project(x, weights)
    with FlopCounterMode(display=False) as counter:
        found = torch.autograd.grad(y, leaves, g)
    assert counter.get_total_flops() == 2 * 2 * x.numel() * sum(map(len, weights))
    assert_close_by_name(
        {f"d{i}": each for i, each in enumerate(found)},
        {name: exact[name] for name in ("d0", "d1", "d2", "d3")},
    )


def test_tensors_that_are_negated_when_they_are_read() -> None:
    negated = torch.randn(2, 1, 6, 7, dtype=torch.complex128).conj().imag
    weight = torch.randn(3, 1, 1, 1, dtype=torch.float64)
    assert negated.is_neg()
    assert projection.has_native_strides(negated)
    assert not is_native(negated, [weight])
    x, weights, _ = make((2, 3, (6, 7), (1,)))
    assert_close_by_name(
        results(by_library, x, weights, [negated]), results(plain, x, weights, [negated.resolve_neg()])
    )


def test_a_lack_of_memory_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = SimpleNamespace(lambdanets_projection_output=lambda call: 1)
    monkeypatch.setattr(native.library, "require", lambda device: refusing)
    x, weights, _ = make(SIZES[1])
    with pytest.raises(MemoryError, match="projections"):
        project(x, weights)


class Labelled(Tensor):
    """A subclass of a tensor."""


def test_calls_that_stay_with_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weights, _ = make((2, 20, (6, 7), (16, 3)), dtype=torch.float32)
    norm = Norm(*[torch.ones(16)] * 4, 1e-5)
    assert is_native(x, weights)
    assert is_native(x.double(), [w.double() for w in weights])
    assert is_native(x, [nn.Parameter(w) for w in weights], [norm, None])
    refused: dict[str, tuple[Any, ...]] = {
        "float16": (x.half(), [w.half() for w in weights]),
        "bfloat16": (x.bfloat16(), [w.bfloat16() for w in weights]),
        "two dtypes": (x, [weights[0].double(), weights[1]]),
        "another dtype of a norm": (x, weights, [norm._replace(mean=torch.ones(16).double()), None]),
        "another device": (x.to("meta"), [w.to("meta") for w in weights]),
        "strides": (x[..., 1:], weights),
        "channels": (x[:, :19], weights),
        "one example without a batch": (x[0], weights),
        "a larger kernel": (x, [torch.randn(16, 20, 3, 3), weights[1]]),
        "channels of a norm": (x, weights, [None, norm]),
        "too many": (x, weights * 3),
        "a subclass": (x.as_subclass(Labelled), weights),
        "a subclass of a weight": (x, [weights[0].as_subclass(Labelled), weights[1]]),
    }
    for name, arguments in refused.items():
        assert not is_native(*arguments), name
    with torch.autocast("cpu"):
        assert not is_native(x, weights)
    with torch.autograd.forward_ad.dual_level():
        assert not is_native(torch.autograd.forward_ad.make_dual(x, x), weights)
    seen = []
    torch.func.vmap(lambda x: (seen.append(is_native(x, weights)), x)[1])(x[None])
    torch.func.grad(lambda x: (seen.append(is_native(x, weights)), x.sum())[1])(x)
    assert seen == [False, False]
    monkeypatch.setenv(native.ISA_VARIABLE, "base")
    assert not is_native(x, weights)
    monkeypatch.delenv(native.ISA_VARIABLE)
    assert is_native(x, weights) == (BEST != "base")
    monkeypatch.setattr(native.library, "unavailable", lambda: "it is not here")
    assert not is_native(x, weights)


def test_the_switch_of_the_library_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weights, _ = make((32, 64, (14, 14), (64, 16)), dtype=torch.float32)
    assert is_native(x, weights)
    monkeypatch.setenv(native.library.SWITCH, "0")
    native.library.refresh()
    try:
        assert not is_native(x, weights)
    finally:
        monkeypatch.undo()
        native.library.refresh()
