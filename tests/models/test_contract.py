"""timm's interface of a backbone on all models: large models on the meta device, small models computed."""

import warnings

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.optim import param_groups_weight_decay
from torchvision.models.feature_extraction import create_feature_extractor

from lambdanets.models import create_model
from lambdanets.models.zoo import CONFIGS
from lambdanets.nn import LambdaLayer2d
from on_meta import on_meta

EVERY = list(CONFIGS)  # the MobileNets, which are based on timm's, have their own test file
# Deep models differ from these, and from the deepest, only in the number of blocks.
SHALLOW = [name for name in EVERY if not any(depth in name for depth in ("200", "270", "350", "420"))]
RUN = [*SHALLOW, "lambda_resnet420", "lambda_resnet420_c4"]
SMALL = [name for name in EVERY if "digits" in name or "cifar" in name or "mini" in name]


def images(model, batch: int = 2, side: int | None = None, **kwargs) -> torch.Tensor:
    channels, height, _ = model.pretrained_cfg["input_size"]
    side = side or min(height, 64)
    return torch.randn(batch, channels, side, side, **kwargs)


def wake(model: torch.nn.Module) -> torch.nn.Module:
    """Set the weights of the last norms, which start at zero and would hide errors in the residual branch."""
    for block in model.modules():
        if hasattr(block, "zero_init_last"):
            torch.nn.init.uniform_(block.bn3.weight, 0.5, 1.5)
    return model


@pytest.mark.parametrize("name", RUN)
def test_shapes_and_gradients_of_every_model(name):
    model = on_meta(name)
    x = images(model, device="meta")
    features = model.forward_features(x)
    side = -(-x.shape[-1] // model.feature_info[-1]["reduction"])
    assert features.shape == (2, model.num_features, side, side)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    logits = model.forward_head(features)
    assert logits.shape == (2, model.num_classes)
    logits.sum().backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", EVERY)
def test_the_default_config_names_layers_that_exist(name):
    model = on_meta(name)
    cfg = model.default_cfg
    state = model.state_dict()
    assert f"{cfg['first_conv']}.weight" in state
    assert f"{cfg['classifier']}.weight" in state
    assert state[f"{cfg['classifier']}.weight"].shape[0] == cfg["num_classes"] == model.num_classes
    assert cfg["pool_size"][0] * model.feature_info[-1]["reduction"] == cfg["input_size"][-1]
    assert model.get_classifier(name_only=True) == cfg["classifier"]
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()


@pytest.mark.parametrize("name", SHALLOW)
def test_features_only(name):
    model = create_model(name, device="meta", features_only=True)
    x = torch.empty(2, model.pretrained_cfg["input_size"][0], 64, 64, device="meta")
    with torch.no_grad():
        maps = model(x)
    assert len(maps) == len(model.feature_info.channels())
    for tensor, channels, reduction in zip(
        maps, model.feature_info.channels(), model.feature_info.reduction(), strict=True
    ):
        assert tensor.shape == (2, channels, 64 // reduction, 64 // reduction)


@pytest.mark.parametrize("name", EVERY)
def test_every_parameter_belongs_to_a_group_and_groups_follow_the_depth(name):
    model = on_meta(name)
    for coarse, number in ((True, len(model.config.depths)), (False, sum(model.config.depths))):
        groups = group_parameters(model, model.group_matcher(coarse=coarse))
        assert sorted(groups) == list(range(number + 2))
        assert set(groups[number + 1]) == {"fc.weight", "fc.bias"}
        assert all(key.startswith(("conv1", "bn1", "maxpool")) for key in groups[0])
        assert sum(len(keys) for keys in groups.values()) == len(list(model.parameters()))


@pytest.mark.parametrize("name", EVERY)
def test_the_position_tables_have_no_weight_decay(name):
    model = on_meta(name)
    tables = {id(parameter) for name, parameter in model.named_parameters() if ".positions" in name}
    assert {id(m.positions) for m in model.modules() if isinstance(m, LambdaLayer2d)} <= tables
    spared, decayed = param_groups_weight_decay(model, 0.1, no_weight_decay_list=model.no_weight_decay())
    assert spared["weight_decay"] == 0
    assert tables <= {id(parameter) for parameter in spared["params"]}
    assert not tables & {id(parameter) for parameter in decayed["params"]}
    assert len(tables) == len(model.no_weight_decay())


@pytest.mark.parametrize("name", [*SMALL, "lambda_resnet50"])
def test_every_parameter_gets_a_gradient(name):
    torch.manual_seed(0)
    model = wake(create_model(name, num_classes=5))
    out = model(images(model, side=64 if name == "lambda_resnet50" else None))
    assert out.isfinite().all()
    out.mul(torch.randn_like(out)).sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.count_nonzero() > 0, key


@pytest.mark.parametrize("name", SMALL)
def test_a_newly_initialised_block_is_the_identity(name):
    model = create_model(name).eval()
    block = next(block for block in model.layer1 if block.downsample is None)
    x = torch.rand(2, block.conv1.in_channels, 6, 6)
    torch.testing.assert_close(block(x), x)


@pytest.mark.parametrize("name", SMALL)
def test_checkpointing_changes_neither_outputs_nor_gradients(name):
    model = wake(create_model(name, num_classes=5))
    x = images(model)

    def run():
        model.zero_grad()
        out = model(x)
        out.square().sum().backward()
        return out, [parameter.grad.clone() for parameter in model.parameters()]

    out, gradients = run()
    model.set_grad_checkpointing()
    again, checkpointed = run()
    assert model.grad_checkpointing
    torch.testing.assert_close(again, out, rtol=0, atol=0)
    torch.testing.assert_close(checkpointed, gradients)
    model.eval()
    maps = model.forward_intermediates(x, intermediates_only=True)
    model.set_grad_checkpointing(False)
    torch.testing.assert_close(model.forward_intermediates(x, intermediates_only=True), maps, rtol=0, atol=0)


@pytest.mark.parametrize("name", SMALL)
def test_the_head_can_be_replaced_and_removed(name):
    model = create_model(name, num_classes=5, dtype=torch.float64).eval()
    x = images(model, dtype=torch.float64)
    features = model.forward_features(x)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    assert model.num_classes == 3
    assert model.fc.weight.dtype == torch.float64
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), features.mean((2, 3)))
    model.reset_classifier(0, "")
    torch.testing.assert_close(model(x), features)
    model.reset_classifier(4, "catavgmax")
    assert model(x).shape == (2, 4)
    assert model.head_hidden_size == 2 * model.num_features
    bare = create_model(name, num_classes=0, global_pool="", dtype=torch.float64).eval()
    assert bare(x).shape == features.shape


@pytest.mark.parametrize("name", SMALL)
def test_intermediates_equal_features_only(name):
    model = wake(create_model(name)).eval()
    x = images(model)
    last, maps = model.forward_intermediates(x)
    torch.testing.assert_close(last, model.forward_features(x))
    torch.testing.assert_close(maps[-1], last)
    backbone = timm.create_model(name, features_only=True).eval()
    backbone.load_state_dict(
        {key: value for key, value in model.state_dict().items() if not key.startswith("fc.")}
    )
    torch.testing.assert_close(backbone(x), maps)
    getter = create_model(name, features_only=True, feature_cls="getter", out_indices=(-2,)).eval()
    getter.model.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(getter(x), [maps[-2]])
    some = model.forward_intermediates(x, indices=(0, 2), intermediates_only=True) if len(maps) > 2 else None
    if some is not None:
        torch.testing.assert_close(some, [maps[0], maps[2]])
    assert len(model.forward_intermediates(x, indices=1, intermediates_only=True)) == 1
    for wrong in ((len(maps),), len(maps) + 1, 0, ()):
        with pytest.raises(ValueError, match=f"indices must name some of the {len(maps)} feature maps"):
            model.forward_intermediates(x, indices=wrong)


@pytest.mark.parametrize("name", SMALL)
def test_pruning_keeps_the_features_asked_for(name):
    reference = wake(create_model(name)).eval()
    x = images(reference)
    maps = reference.forward_intermediates(x, intermediates_only=True)
    for index in range(len(maps)):
        model = create_model(name).eval()
        model.load_state_dict(reference.state_dict())
        before = sum(parameter.numel() for parameter in model.parameters())
        assert model.prune_intermediate_layers([index]) == [index]
        kept = model.forward_intermediates(x, indices=[index], intermediates_only=True, stop_early=True)
        torch.testing.assert_close(kept, [maps[index]])
        assert sum(parameter.numel() for parameter in model.parameters()) < before
        assert model.num_features == maps[index].shape[1]


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(13, 40), (8, 8), (65, 33)])
def test_any_height_and_width(name, size):
    model = create_model(name).eval()
    x = torch.randn(1, model.pretrained_cfg["input_size"][0], *size)
    with torch.no_grad():
        features = model.forward_features(x)
    reduction = model.feature_info[-1]["reduction"]
    assert features.shape[2:] == tuple(-(-side // reduction) for side in size)
    assert features.isfinite().all()


@pytest.mark.parametrize("in_chans", [1, 4])
@pytest.mark.parametrize("name", ["lambda_resnet_digits", "lambda_resnet_cifar", "lambda_resnet_mini"])
def test_any_number_of_channels(name, in_chans):
    model = create_model(name, in_chans=in_chans)
    assert model(torch.randn(2, in_chans, 32, 32)).shape[0] == 2
    assert model.in_chans == in_chans


@pytest.mark.parametrize("name", SMALL)
def test_state_dict_round_trip(name, tmp_path):
    model = wake(create_model(name)).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other = create_model(name).eval()
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    x = images(model)
    torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", SMALL)
def test_a_model_built_on_meta_can_be_initialised(name):
    torch.manual_seed(3)
    model = create_model(name)
    torch.manual_seed(4)
    model.init_weights()
    empty = create_model(name, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for tensor in empty.state_dict().values():
            tensor.fill_(float("nan") if tensor.is_floating_point() else 77)
    torch.manual_seed(4)
    empty.init_weights()
    torch.testing.assert_close(empty.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_channels_last_is_kept():
    model = create_model("lambda_resnet_cifar").to(memory_format=torch.channels_last).eval()
    x = images(model).to(memory_format=torch.channels_last)
    with torch.no_grad():
        features = model.forward_features(x)
        expected = model.forward_features(x.contiguous())
    assert features.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_trains_without_nan(dtype):
    model = wake(create_model("lambda_resnet_digits"))
    with torch.autocast("cpu", dtype=dtype):
        loss = torch.nn.functional.cross_entropy(model(images(model, batch=4)), torch.arange(4))
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.slow
def test_a_model_compiles_to_one_graph():
    model = wake(create_model("lambda_resnet_digits")).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x = images(model)
    torch.testing.assert_close(compiled(x), model(x))


def test_torch_fx_takes_the_lambda_layer_as_a_leaf() -> None:
    options = {"features_only": True, "out_indices": (1, 2)}
    by_fx = timm.create_model("lambda_resnet_cifar", feature_cls="fx", **options).eval()
    by_hand = timm.create_model("lambda_resnet_cifar", **options).eval()
    by_fx.load_state_dict(by_hand.state_dict(), strict=False)
    x = torch.randn(1, 3, 32, 32)
    for mine, other in zip(by_fx(x), by_hand(x), strict=True):
        assert mine.shape == other.shape


@pytest.mark.parametrize("name", SMALL)
def test_torchvisions_feature_extractor_finds_the_nodes_of_the_networks(name: str) -> None:
    model = create_model(name).eval()
    x = images(model)
    nodes = ["layer2", "layer2.0.conv2"]
    if isinstance(model.get_submodule(nodes[1]), LambdaLayer2d):
        nodes.append("layer2.0.conv2.norm_values")
    traced = create_feature_extractor(model, nodes)(x)
    kept = {}
    for node in nodes:
        model.get_submodule(node).register_forward_hook(lambda _, args, y, node=node: kept.update({node: y}))
    model(x)
    for node in nodes:
        torch.testing.assert_close(traced[node], kept[node])


def test_torchscript_computes_the_same_as_a_network() -> None:
    model = wake(create_model("lambda_resnet_digits", drop_rate=0.1)).eval()
    x = images(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch.jit.script
        script = torch.jit.script(model)
    assert list(script.state_dict()) == list(model.state_dict())
    torch.testing.assert_close(script(x), model(x))
