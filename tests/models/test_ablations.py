"""The ablations of the lambda layer as options of a model, and the operators it is compared with."""

import copy

import pytest
import torch
from timm.utils import ModelEmaV3

from lambdanets.models import ResNet, create_model
from lambdanets.nn import (
    AxialAttention2d,
    GlobalAttention2d,
    LambdaLayer2d,
    LinearAttention2d,
    LocalAttention2d,
)
from on_meta import on_meta

ATTENTION = {
    "attention": GlobalAttention2d,
    "axial": AxialAttention2d,
    "local_attention": LocalAttention2d,
    "linear_attention": LinearAttention2d,
}


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def lambda_layers(model: torch.nn.Module) -> list[LambdaLayer2d]:
    return [module for module in model.modules() if isinstance(module, LambdaLayer2d)]


# Parameters of the 16 lambda layers of a ResNet-50, by hand: tables of 16 * scope**2; key projections of
# 16 * width; batch norms of 2 * (64 + width / 4).
WIDTHS = [64] * 3 + [128] * 4 + [256] * 6 + [512] * 3
WHOLE = 14_995_592


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"position": False}, WHOLE - 16 * 16 * 23**2),
        ({"content": False}, WHOLE - 16 * sum(WIDTHS)),
        ({"normalize": "softmax_both"}, WHOLE),
        ({"normalize": "l2"}, WHOLE),
        ({"normalize": "none"}, WHOLE),
        ({"norm": "none"}, WHOLE - sum(2 * (64 + width // 4) for width in WIDTHS)),
        ({"norm": "rms"}, WHOLE - sum(64 + width // 4 for width in WIDTHS)),
        ({"shared_positions": True}, WHOLE - 12 * 16 * 23**2),
        ({"scope": 7}, WHOLE - 16 * 16 * (23**2 - 7**2)),
        ({"operator_blocks": ((), (), (3,), "all"), "dim_k": 16}, None),
    ],
)
def test_the_ablations_are_options_with_the_expected_parameters(options, count):
    model = create_model("resnet50_lambda", device="meta", **options)
    if count is not None:
        assert parameters(model) == count
    model(torch.empty(1, 3, 64, 64, device="meta")).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_content_only_and_position_only_have_the_14_9_million_of_table_10():
    for options in ({"position": False}, {"content": False}):
        model = create_model("resnet50_lambda", device="meta", **options)
        assert parameters(model) / 1e6 == pytest.approx(14.9, abs=0.05)


def test_global_tables_fit_the_image_size_at_the_resolution_that_comes_in():
    model = create_model("resnet50_ccll", device="meta", scope="global", image_size=160)
    sides = [(len(layer.positions) + 1) // 2 for layer in lambda_layers(model)]
    assert sides == [20, 10, 10, 10, 10, 10, 10, 5, 5]
    odd = create_model("resnet50_ccll", device="meta", scope="global", image_size=150)
    sides = [(len(layer.positions) + 1) // 2 for layer in lambda_layers(odd)]
    assert sides == [19, 10, 10, 10, 10, 10, 10, 5, 5]
    shapes = []
    for layer in lambda_layers(odd):
        layer.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape[-1]))
    odd(torch.empty(1, 3, 150, 150, device="meta"))
    assert shapes == sides


@pytest.mark.parametrize("name", ["resnet_cifar_attention", "resnet_cifar_axial"])
def test_attention_has_tables_for_the_image_size(name):
    model = create_model(name, image_size=64, device="meta")
    layers = [m for m in model.modules() if isinstance(m, GlobalAttention2d | AxialAttention2d)]
    assert [len(layer.positions_height) for layer in layers] == [31, 31]
    assert model(torch.empty(1, 3, 40, 72, device="meta")).shape == (1, 10)


def test_a_global_scope_equals_a_local_scope_that_covers_the_grid():
    local = create_model("lambda_resnet_cifar").eval()  # 15 = 2 * 8 - 1 positions on the grid of 8 x 8
    everywhere = create_model("lambda_resnet_cifar", scope="global").eval()
    everywhere.load_state_dict(local.state_dict())
    for model in (local, everywhere):
        for block in model.layer3:
            torch.nn.init.ones_(block.bn3.weight)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(everywhere(x), local(x))


def shared(model: ResNet) -> list[int]:
    """Return the number of position tables of each stage."""
    stages = [[id(m.positions) for m in lambda_layers(stage)] for stage in (model.layer1, model.layer2)]
    return [len(set(tables)) for tables in stages]


def small(**options) -> ResNet:
    options = {"operator_blocks": ("all", "all"), "shared_positions": True, **options}
    return create_model("lambda_resnet_digits", **options)


@pytest.mark.parametrize("scope", [7, "global"])
def test_a_stage_shares_its_positions_through_copies_averages_and_casts(scope):
    model = small(scope=scope)
    assert shared(model) == [1, 1]
    model(torch.randn(2, 1, 8, 8)).sum().backward()
    gradient = model.layer1[0].conv2.positions.grad
    assert gradient is model.layer1[1].conv2.positions.grad
    assert shared(copy.deepcopy(model)) == [1, 1]
    assert shared(ModelEmaV3(model).module) == [1, 1]
    assert shared(model.to(torch.float64)) == [1, 1]
    separate = small(scope=scope, shared_positions=False)
    assert shared(separate) == [2, 2]
    sizes = [model.layer1[0].conv2.positions.numel(), model.layer2[0].conv2.positions.numel()]
    kept = parameters(separate) - sum(m.positions.numel() for m in lambda_layers(separate))
    assert parameters(model) == kept + sum(sizes)


def test_shared_positions_are_saved_and_loaded(tmp_path):
    model = small()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other = small()
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert shared(other) == [1, 1]
    assert torch.equal(other.layer2[1].conv2.positions, model.layer2[0].conv2.positions)
    assert sorted(other.state_dict()) == sorted(small(shared_positions=False).state_dict())
    assert sum(".positions" in name for name, _ in other.named_parameters()) == 2
    assert len(other.no_weight_decay()) == 2


def test_a_model_built_on_meta_shares_positions_after_its_initialisation():
    model = small(device="meta").to_empty(device="cpu")
    model.init_weights()
    assert shared(model) == [1, 1]


@pytest.mark.parametrize("operator", ATTENTION)
def test_each_operator_is_in_the_blocks_of_the_lambda_layers(operator):
    for prefix, ours in (("resnet50", "resnet50_lambda"), ("resnet_cifar", "lambda_resnet_cifar")):
        model, lambdas = on_meta(f"{prefix}_{operator}"), on_meta(ours)
        places = [name for name, m in lambdas.named_modules() if isinstance(m, LambdaLayer2d)]
        assert [name for name, m in model.named_modules() if isinstance(m, ATTENTION[operator])] == places
        trunk = {key: t.shape for key, t in model.state_dict().items() if ".conv2." not in key}
        assert trunk == {key: t.shape for key, t in lambdas.state_dict().items() if ".conv2." not in key}


def test_squeeze_and_excitation_is_in_the_blocks_of_the_lambda_layers():
    model = on_meta("resnet_cifar_se")
    gates = [
        [block.se is not None for block in stage] for stage in (model.layer1, model.layer2, model.layer3)
    ]
    assert gates == [[False], [False, False], [False, True, True]]
    gate = on_meta("resnet50_se").layer1[0].se
    assert tuple(gate.fc1.weight.shape) == (16, 256, 1, 1)


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("operator", ["attention", "axial", "local_attention"])
def test_dilated_attention_is_refused(operator, output_stride):
    complaint = f"output_stride must be 32 for operator '{operator}', which cannot be dilated"
    with pytest.raises(ValueError, match=complaint):
        create_model(f"resnet50_{operator}", output_stride=output_stride, device="meta")


def test_a_dilated_global_scope_is_refused_and_linear_attention_needs_no_dilation():
    with pytest.raises(ValueError, match=r"output_stride must be 32 for a lambda layer of global scope"):
        create_model("resnet50_lambda", scope="global", output_stride=16, device="meta")
    options = {"output_stride": 8, "features_only": True, "device": "meta"}
    for name, extra in (("resnet50_linear_attention", {}), ("resnet50_lambda", {"position": False})):
        model = create_model(name, **options, **extra)
        assert model.feature_info.reduction()[-1] == 8
        assert model(torch.empty(1, 3, 64, 64, device="meta"))[-1].shape[-1] == 8


@pytest.mark.parametrize("operator", ATTENTION)
def test_torch_fx_takes_attention_as_a_leaf(operator):
    options = {"features_only": True, "out_indices": (1, 2)}
    models = []
    for how in ("fx", "list"):
        torch.manual_seed(5)
        models.append(create_model(f"resnet_cifar_{operator}", feature_cls=how, **options).eval())
    by_fx, by_hand = models
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(by_fx(x), by_hand(x))


@pytest.mark.parametrize("operator", ATTENTION)
def test_attention_compiles_to_one_graph(operator):
    model = create_model(f"resnet_cifar_{operator}").eval()
    for block in model.layer3:
        torch.nn.init.ones_(block.bn3.weight)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"normalize": "softmax_both"},
        {"normalize": "l2"},
        {"normalize": "none"},
        {"norm": "none"},
        {"norm": "rms"},
        {"content": False},
        {"position": False},
        {"scope": "global"},
        {"shared_positions": True},
    ],
    ids=str,
)
def test_every_ablation_gets_gradients(options):
    model = create_model("lambda_resnet_digits", num_classes=3, **options)
    for block in (*model.layer1, *model.layer2):
        torch.nn.init.uniform_(block.bn3.weight, 0.5, 1.5)
    y = model(torch.randn(4, 1, 8, 8))
    (y * torch.randn_like(y)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.count_nonzero() > 0, name
