"""Accelerated lambda layers of timm, lucidrains and d-li14: same function, same weights."""

import copy
import io
from collections.abc import Callable

import pytest
import timm
import torch
from timm.layers.lambda_layer import LambdaLayer as TimmOriginal
from timm.models import FeatureGraphNet
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torchvision.models.feature_extraction import create_feature_extractor

from closeness import assert_close, assert_close_by_name, error
from foreign import DLi14, LambdaLayer, awake
from lambdanets import LambdaLayer2d, accelerate
from lambdanets.models.interop.layers import AcceleratedLayer, DLi14LambdaLayer

DIM = 24


TIMM = {
    "local": ({"num_heads": 3, "dim_head": 5, "r": 3}, (5, 7)),
    "local-beyond-the-grid": ({"num_heads": 2, "dim_head": 5, "r": 9}, (3, 7)),
    "local-strided": ({"num_heads": 3, "dim_head": 5, "r": 5, "stride": 2}, (6, 9)),
    "local-bias": ({"num_heads": 3, "dim_head": 5, "r": 3, "qkv_bias": True}, (5, 7)),
    "local-ratio": ({"num_heads": 2, "dim_head": None, "qk_ratio": 0.5, "r": 7}, (7, 5)),
    "local-one-head-one-column": ({"num_heads": 1, "dim_head": 5, "r": 1}, (7, 1)),
    "relative": ({"num_heads": 3, "dim_head": 5, "r": None, "feat_size": (5, 7)}, (5, 7)),
    "relative-strided-bias": (
        {"num_heads": 2, "dim_head": 7, "r": None, "feat_size": (6, 4), "stride": 2, "qkv_bias": True},
        (6, 4),
    ),
}
LUCIDRAINS = {
    "local": ({"dim_k": 5, "r": 3, "heads": 3}, (5, 7)),
    "local-beyond-the-grid": ({"dim_k": 5, "r": 9, "heads": 2}, (3, 7)),
    "local-u": ({"dim_k": 5, "r": 5, "heads": 3, "dim_u": 2, "dim_out": 12}, (7, 5)),
    "relative": ({"dim_k": 5, "n": 5, "heads": 3}, (5, 5)),
    "relative-u": ({"dim_k": 3, "n": 5, "heads": 2, "dim_u": 4, "dim_out": 14}, (5, 5)),
}
D_LI14 = {
    "local": ({"dk": 5, "Nh": 3, "r": 3}, (5, 7)),
    "beyond-the-grid-strided": ({"dk": 5, "Nh": 2, "r": 9, "stride": 2}, (3, 7)),
    "u-strided": ({"dk": 5, "du": 2, "Nh": 3, "r": 5, "stride": 2}, (7, 4)),
}
FORMS = {
    **{f"timm-{name}": (TimmOriginal, *form) for name, form in TIMM.items()},
    **{f"lucidrains-{name}": (LambdaLayer, *form) for name, form in LUCIDRAINS.items()},
    **{f"d-li14-{name}": (DLi14, *form) for name, form in D_LI14.items()},
}
every_form = pytest.mark.parametrize("form", FORMS)


def made(form: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    """Return a layer of another package, with parameters as after training, and images for it."""
    kind, options, grid = FORMS[form]
    return awake(kind(DIM, **options)).to(dtype), torch.randn(2, DIM, *grid, dtype=dtype)


def step(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return output, gradients by name and running statistics after one pass with a random gradient."""
    x = x.clone().requires_grad_()
    y = module(x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype))
    found = {"output": y, "input": x.grad, **{name: p.grad for name, p in module.named_parameters()}}
    module.zero_grad()
    statistics = {name: b.clone() for name, b in module.named_buffers() if "running" in name}
    assert [name for name, value in found.items() if value is None] == []
    for name in [name for name in found if name.endswith("qkv.bias") and module.training]:
        # batch norms and the softmax cancel these biases: their gradients are zeros, up to rounding
        assert found.pop(name).abs().max() < 1e-12 * found["input"].abs().max() * x.numel()
    return found | statistics


@every_form
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_outputs_gradients_and_statistics_match_the_original(form: str, mode: str) -> None:
    layer, x = made(form)
    layer.train(mode == "train")
    fast = accelerate(copy.deepcopy(layer))
    assert isinstance(fast, AcceleratedLayer)
    assert fast.training == (mode == "train")
    assert_close_by_name(step(fast, x), step(layer, x))


@every_form
def test_evaluation_without_gradients_matches_the_original(form: str) -> None:
    layer, x = made(form)
    fast = accelerate(copy.deepcopy(layer)).eval()
    with torch.no_grad():
        assert_close(fast(x), layer.eval()(x))


@pytest.mark.parametrize("form", [name for name in FORMS if name.startswith("lucidrains")])
def test_the_stand_in_equals_the_layer_of_lucidrains(form: str) -> None:
    package = pytest.importorskip("lambda_networks", reason="lucidrains/lambda-networks is not installed")
    stand_in, x = made(form)
    real = package.LambdaLayer(DIM, **FORMS[form][1]).double()
    assert list(real.state_dict()) == list(stand_in.state_dict())
    real.load_state_dict(stand_in.state_dict())
    fast = accelerate(copy.deepcopy(real))
    expected = step(real, x)
    assert_close_by_name(step(stand_in, x), expected)
    assert_close_by_name(step(fast, x), expected)


@every_form
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_low_precision_is_as_exact_as_the_original(form: str, mode: str) -> None:
    exact, x = made(form)
    layer = copy.deepcopy(exact).float().train(mode == "train")
    fast = accelerate(copy.deepcopy(layer))
    truth = exact.train(mode == "train")(x)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain, found = layer(x.float()), fast(x.float())
    assert_close(found.bfloat16(), truth, plain=plain.bfloat16())


@every_form
def test_weights_in_half_precision(form: str) -> None:
    exact, x = made(form)
    layer = copy.deepcopy(exact).bfloat16().eval()
    fast = accelerate(copy.deepcopy(layer))
    with torch.no_grad():
        found, plain = fast(x.bfloat16()), layer(x.bfloat16())
    assert found.dtype == torch.bfloat16
    assert_close(found, exact.eval()(x), plain=plain)


@pytest.mark.parametrize(
    "form", ["timm-local-strided", "timm-relative", "lucidrains-local-u", "d-li14-u-strided"]
)
def test_compiles_to_one_graph(form: str) -> None:
    torch.compiler.reset()  # sizes that were compiled before would make these dynamic
    layer, x = made(form)
    fast = accelerate(copy.deepcopy(layer))
    compiled = torch.compile(copy.deepcopy(fast), fullgraph=True, backend="aot_eager")
    expected = step(layer, x)
    found = {name.removeprefix("_orig_mod."): value for name, value in step(compiled, x).items()}
    assert_close_by_name(found, expected)
    compiled.eval()
    with torch.no_grad():
        assert_close(compiled(x), layer.eval()(x))


@pytest.mark.parametrize("form", ["timm-local", "timm-relative", "lucidrains-local-u"])
def test_follows_the_memory_format_of_its_input(form: str) -> None:
    layer, x = made(form)
    fast = accelerate(copy.deepcopy(layer)).eval()
    y = fast(x.to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert fast(x).is_contiguous()
    assert_close(y, layer.eval()(x))


def test_timm_with_other_output_channels() -> None:
    """timm does not support it. Its formula is that of lucidrains, so that stand-in is the reference."""
    layer = awake(TimmOriginal(DIM, 12, num_heads=3, dim_head=5, r=3)).double()
    x = torch.randn(2, DIM, 5, 7, dtype=torch.float64)
    stand_in = LambdaLayer(DIM, dim_k=5, r=3, heads=3, dim_out=12).double()
    q, k, v = layer.qkv.weight.split([15, 5, 4])
    state = {name: value for name, value in layer.state_dict().items() if name.startswith("norm")}
    state |= {"to_q.weight": q, "to_k.weight": k, "to_v.weight": v}
    state["pos_conv.weight"] = layer.conv_lambda.weight.movedim(-1, 2)
    state["pos_conv.bias"] = layer.conv_lambda.bias
    stand_in.load_state_dict(state)
    assert_close(accelerate(layer).eval()(x), stand_in.eval()(x))


def test_timm_with_an_even_scope_reaches_further_up_and_left() -> None:
    """timm does not support it. It equals the next odd scope with zeros in its last row and column."""
    even = awake(TimmOriginal(DIM, num_heads=3, dim_head=5, r=4)).double().eval()
    odd = copy.deepcopy(even)
    weight = nn.functional.pad(even.conv_lambda.weight.detach(), (0, 0, 0, 1, 0, 1))
    odd.conv_lambda.weight = nn.Parameter(weight)
    x = torch.randn(2, DIM, 5, 7, dtype=torch.float64)
    assert_close(accelerate(even)(x), odd(x))


@pytest.mark.parametrize("grid", [(3, 5), (9, 6)], ids=["smaller", "larger"])
def test_relative_positions_on_another_grid_use_the_middle_of_the_table(grid: tuple[int, int]) -> None:
    layer = awake(TimmOriginal(DIM, num_heads=3, dim_head=5, r=None, feat_size=(5, 7))).double().eval()
    other = TimmOriginal(DIM, num_heads=3, dim_head=5, r=None, feat_size=grid).double().eval()
    state = layer.state_dict()
    rows, columns = (new - old for new, old in zip(grid, (5, 7), strict=True))
    state["pos_emb"] = nn.functional.pad(state["pos_emb"], (0, 0, columns, columns, rows, rows))
    other.load_state_dict(state)
    x = torch.randn(2, DIM, *grid, dtype=torch.float64)
    assert_close(accelerate(layer)(x), other(x))


@every_form
def test_weights_load_both_ways_and_stay_the_same_tensors(form: str) -> None:
    layer, x = made(form)
    names, parameters = list(layer.state_dict()), list(layer.parameters())
    parameters[0].requires_grad_(False)
    fast = accelerate(layer)
    assert list(fast.state_dict()) == names
    kept = list(fast.parameters())
    assert len(kept) == len(parameters)
    assert all(new is old for new, old in zip(kept, parameters, strict=True))
    assert not kept[0].requires_grad
    back = FORMS[form][0](DIM, **FORMS[form][1]).double()
    back.load_state_dict(fast.state_dict())
    assert_close(back.eval()(x), fast.eval()(x))
    with torch.no_grad():
        for value in back.parameters():
            value.mul_(1.5)
    fast.load_state_dict(back.state_dict())
    assert_close(fast(x), back(x))


def test_an_optimiser_made_before_trains_the_accelerated_layer() -> None:
    layer, x = made("timm-local")
    twin = copy.deepcopy(layer)
    optimisers = [torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9) for module in (layer, twin)]
    fast = accelerate(layer)
    for module, optimiser in zip((fast, twin), optimisers, strict=True):
        for _ in range(2):
            optimiser.zero_grad()
            module(x).square().mean().backward()
            optimiser.step()
    assert_close_by_name(dict(fast.named_parameters()), {n: p.detach() for n, p in twin.named_parameters()})


def test_indices_of_pairs_are_dropped() -> None:
    for form in ("timm-relative", "lucidrains-relative"):
        layer, x = made(form)
        n = x.shape[2] * x.shape[3]
        fast = accelerate(layer)
        held = [v for v in (*vars(fast).values(), *fast.buffers()) if isinstance(v, Tensor)]
        assert all(tensor.numel() < n * n for tensor in held)
        assert_close(layer.eval()(x), fast.eval()(x))  # the original still works


def test_nested_layers_and_a_layer_used_twice_are_replaced() -> None:
    shared, other = (awake(TimmOriginal(DIM, num_heads=3, dim_head=5, r=3)) for _ in range(2))
    inner = nn.ModuleDict({"first": shared, "again": shared, "other": nn.Sequential(other, nn.ReLU())})

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.last = inner, shared

        def forward(self, x: Tensor) -> Tensor:
            x = self.inner["other"](self.inner["first"](x))
            return self.last(self.inner["again"](x))

    network = Network().double().eval()
    twin, x = copy.deepcopy(network), torch.randn(2, DIM, 5, 7, dtype=torch.float64)
    names = [name for name, _ in network.named_modules(remove_duplicate=False)]
    fast = accelerate(network)
    assert fast is network
    assert [name for name, _ in fast.named_modules(remove_duplicate=False)] == names
    assert not any(isinstance(module, TimmOriginal) for module in fast.modules())
    assert fast.last is fast.inner["first"] is fast.inner["again"]
    assert_close(fast(x), twin(x))


def test_accelerating_twice_changes_nothing() -> None:
    layer, _ = made("timm-local")
    model = nn.Sequential(layer)
    fast = accelerate(model)[0]
    assert accelerate(model)[0] is fast
    assert accelerate(fast) is fast


def test_layers_of_this_package_stay_as_they_are() -> None:
    model = nn.Sequential(LambdaLayer2d(8, scope=3))
    own = model[0]
    assert accelerate(model)[0] is own


class Different(TimmOriginal):
    """A layer that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Renamed(TimmOriginal):
    """A layer that computes the same."""


def test_a_layer_is_recognised_by_the_class_that_defines_its_forward() -> None:
    assert isinstance(accelerate(Renamed(DIM, num_heads=3)), AcceleratedLayer)
    with pytest.raises(ValueError, match="but Different has none"):
        accelerate(Different(DIM, num_heads=3))


def test_a_copied_file_is_recognised_at_any_path() -> None:
    for place in ("lambda_layer", "imagenet.models.lambda_layer"):
        elsewhere = type("LambdaLayer", (DLi14,), {"forward": DLi14.forward, "__module__": place})
        elsewhere.__qualname__ = "LambdaLayer"
        assert isinstance(accelerate(elsewhere(DIM, r=3)), DLi14LambdaLayer)


def test_another_layer_of_the_same_name_and_file_is_left_alone() -> None:
    layer = DLi14(DIM, r=3)
    layer.value = nn.Conv2d(DIM, DIM, 1)
    with pytest.raises(ValueError, match="has none"):
        accelerate(layer)


@pytest.mark.parametrize(
    "module", [nn.Sequential(nn.Conv2d(3, 8, 3)), nn.Identity()], ids=lambda m: type(m).__name__
)
def test_a_module_without_such_a_layer_is_refused(module: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"timm\.layers.* or lambda_networks.*has none"):
        accelerate(module)


def test_an_argument_that_is_not_a_module_is_refused() -> None:
    with pytest.raises(ValueError, match=r"torch\.nn\.Module, got function"):
        accelerate(lambda x: x)


def test_images_without_a_batch_are_refused() -> None:
    layer, x = made("timm-local")
    with pytest.raises(ValueError, match="b dim height width"):
        accelerate(layer)(x[0])


@pytest.mark.parametrize("form", ["timm-local-bias", "lucidrains-local-u"])
def test_changed_weights_and_statistics_take_effect_at_once(form: str) -> None:
    layer, x = made(form)
    fast = accelerate(copy.deepcopy(layer).eval())
    layer.eval()
    with torch.no_grad():
        fast(x)
        for module in (fast, layer):
            for value in (*module.parameters(), *module.buffers()):
                value.copy_(value * 2 if value.is_floating_point() else value)
        assert_close(fast(x), layer(x))


def exchange_norms(layer: nn.Module) -> None:
    layer.norm_q, layer.norm_v = nn.Identity(), nn.GroupNorm(1, layer.norm_v.num_features).double()


def no_statistics(layer: nn.Module) -> None:
    layer.norm_q = nn.BatchNorm2d(layer.norm_q.num_features, track_running_stats=False).double()


def no_weights(layer: nn.Module) -> None:
    layer.norm_q = nn.BatchNorm2d(layer.norm_q.num_features, affine=False).double().eval()
    nn.init.normal_(layer.norm_q.running_mean)


def norms_in_training(layer: nn.Module) -> None:
    layer.norm_v.train()


def hooked(layer: nn.Module) -> None:
    layer.norm_v.register_forward_hook(lambda module, inputs, output: 3 * output)


@pytest.mark.parametrize("change", [exchange_norms, no_statistics, no_weights, norms_in_training, hooked])
@pytest.mark.parametrize("form", ["timm-local", "lucidrains-relative-u"])
def test_changed_submodules_are_used(form: str, change: Callable[[nn.Module], None]) -> None:
    layer, x = made(form)
    layer.eval()
    change(layer)
    fast = accelerate(copy.deepcopy(layer))
    with torch.no_grad():
        assert_close(fast(x), layer(x))


def pruned(convolution: nn.Module) -> None:
    prune.random_unstructured(convolution, "weight", 0.5)


def dilated(convolution: nn.Module) -> None:
    convolution.dilation = (1, 2, 2)


def doubled(convolution: nn.Module) -> None:
    class Doubled(nn.Conv3d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    convolution.__class__ = Doubled


def called_otherwise(convolution: nn.Module) -> None:
    convolution.forward = lambda x: 2 * nn.Conv3d.forward(convolution, x)


@pytest.mark.filterwarnings("ignore")  # PyTorch announces the end of TorchScript
@pytest.mark.parametrize("change", [pruned, dilated, doubled, called_otherwise])
@pytest.mark.parametrize(
    ("form", "name"),
    [("timm-local", "conv_lambda"), ("lucidrains-local-u", "pos_conv"), ("d-li14-u-strided", "lambda_conv")],
)
def test_a_changed_position_convolution_is_left_alone(
    form: str, name: str, change: Callable[[nn.Module], None]
) -> None:
    layer, x = made(form)
    change(getattr(layer, name))
    with pytest.warns(UserWarning, match=rf"leaves layers as they are; LambdaLayer: {name} "):
        assert accelerate(layer) is layer
    both = nn.Sequential(made(form)[0], layer)
    with pytest.warns(UserWarning, match=f"; 1: {name} "):
        accelerate(both)
    assert [isinstance(part, AcceleratedLayer) for part in both] == [True, False]
    fast, _ = made(form)
    fast = accelerate(fast)
    change(getattr(fast, name))
    for use in (fast, lambda x: torch.jit.script(nn.Sequential(fast))(x)):
        with pytest.raises(RuntimeError, match=f"{name} as a table, but now {name}"):
            use(x)


def test_a_parametrized_position_convolution_is_followed() -> None:
    layer, x = made("lucidrains-local-u")
    parametrizations.weight_norm(layer.pos_conv)
    fast = accelerate(copy.deepcopy(layer))
    assert isinstance(fast, AcceleratedLayer)
    assert_close(fast(x), layer(x))


def test_a_compiled_layer_is_accelerated() -> None:
    layer, x = made("timm-local")
    layer.compile(backend="eager")
    fast = accelerate(layer)
    calls = []
    fast.register_forward_hook(lambda *args: calls.append(args))
    fast(x)
    assert calls
    assert fast._compiled_call_impl is None


def test_hooks_on_the_layer_stay_and_can_be_removed() -> None:
    layer, x = made("timm-local-strided")
    calls = []
    handle = layer.register_forward_hook(lambda module, inputs, output: calls.append(tuple(output.shape)))
    fast = accelerate(nn.Sequential(layer))
    del layer
    fast(x)
    assert calls == [(2, DIM, 3, 4)]
    handle.remove()
    fast(x)
    assert len(calls) == 1


def test_copies_and_pickles() -> None:
    layer, x = made("timm-relative")
    fast = accelerate(layer).eval()
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    for twin in (copy.deepcopy(fast), torch.load(file, weights_only=False)):
        assert_close(twin(x), fast(x))


def test_repr_has_the_sizes() -> None:
    layer, _ = made("lucidrains-local-u")
    assert "dim_k=5, num_heads=3, dim_u=2, scope=(5, 5)" in repr(accelerate(layer))


MODELS = [
    ("lambda_resnet26t", {}, (64, 96)),
    ("lambda_resnet50ts", {}, (96, 64)),
    ("lambda_resnet26rpt_256", {"img_size": 128}, (128, 128)),
]


@pytest.mark.parametrize(("name", "options", "size"), MODELS)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_models_of_timm_compute_the_same(name: str, options: dict, size: tuple, mode: str) -> None:
    model = awake(timm.create_model(name, num_classes=10, **options)).double().train(mode == "train")
    fast = accelerate(copy.deepcopy(model))
    assert sum(isinstance(module, AcceleratedLayer) for module in fast.modules()) >= 3
    assert list(fast.state_dict()) == list(model.state_dict())
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    assert_close_by_name(step(fast, x), step(model, x))


def test_an_accelerated_model_gives_features_and_exports() -> None:
    model = awake(timm.create_model("lambda_resnet26t", num_classes=10)).double().eval()
    fast = accelerate(copy.deepcopy(model))
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    assert_close(torch.export.export(fast, (x,)).module()(x), model(x))
    features = [FeatureGraphNet(network, (2, 4))(x) for network in (fast, model)]
    for found, expected in zip(*features, strict=True):
        assert_close(found, expected)


@pytest.mark.parametrize("name", [name for name, _, _ in MODELS])
def test_the_models_of_timm_at_their_own_size_agree_in_float32(name: str) -> None:
    model = awake(timm.create_model(name))
    fast = accelerate(copy.deepcopy(model))
    x = torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        for mode in (True, False):
            assert error(fast.train(mode)(x), model.train(mode)(x)) < 1e-4


@every_form
def test_in_place_operations_may_follow_an_accelerated_layer(form: str) -> None:
    layer, x = made(form)
    fast = accelerate(copy.deepcopy(layer))
    assert_close_by_name(
        step(nn.Sequential(fast, nn.ReLU(inplace=True)), x), step(nn.Sequential(layer, nn.ReLU()), x)
    )


@every_form
def test_torch_fx_traces_an_accelerated_layer(form: str) -> None:
    layer, x = made(form)
    fast = accelerate(copy.deepcopy(layer))
    graph = torch.fx.symbolic_trace(fast)
    assert_close_by_name(step(graph, x), step(layer, x))
    with torch.no_grad():
        assert_close(graph.eval()(x[:1]), layer.eval()(x[:1]))


@pytest.mark.filterwarnings("ignore")  # PyTorch announces the end of TorchScript
@pytest.mark.parametrize("form", [f"timm-{name}" for name in TIMM] + ["d-li14-u-strided"])
def test_torchscript_compiles_the_accelerated_layers_whose_originals_it_compiles(form: str) -> None:
    layer, x = made(form)
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(accelerate(copy.deepcopy(layer))), file)
    file.seek(0)
    scripted = torch.jit.load(file)
    assert_close_by_name(step(scripted, x), step(layer, x))


@pytest.mark.filterwarnings("ignore")
def test_models_are_traced_before_acceleration_and_after() -> None:
    model = awake(timm.create_model("lambda_resnet26t", num_classes=10)).double().eval()
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        node = "stages.2"
        expected = create_feature_extractor(copy.deepcopy(model), [node])(x)[node]
        fast = accelerate(copy.deepcopy(model))
        assert_close(create_feature_extractor(fast, [node])(x)[node], expected)
        traced = accelerate(FeatureGraphNet(copy.deepcopy(model), (3,)))
        assert any(isinstance(module, AcceleratedLayer) for module in traced.modules())
        assert_close(traced(x)[0], expected)
        assert_close(torch.jit.script(fast)(x), model(x))
