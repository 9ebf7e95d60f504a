"""The published variants: sizes, names, and the patterns of the paper's tables."""

from dataclasses import replace

import pytest
import timm
import torch

from lambdanets.models import ResNet, ResNetConfig, create_model, list_models, model_info
from lambdanets.models.resnet import count_parameters
from lambdanets.models.shipped import shipped_models
from lambdanets.models.zoo import CONFIGS
from lambdanets.nn import LambdaLayer2d
from on_meta import on_meta


def parameters(model: ResNet) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def lambda_blocks(name: str, layer: str) -> list[int]:
    stage = on_meta(name).get_submodule(layer)
    return [index for index, block in enumerate(stage) if isinstance(block.conv2, LambdaLayer2d)]


def test_the_lambda_resnet50_of_table_3_has_the_published_number_of_parameters_to_the_digit():
    assert parameters(on_meta("resnet50_lambda")) == 14_995_592


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_counted_without_building_the_whole_model_are_those_of_the_whole_model(name):
    assert model_info(name).parameters == parameters(on_meta(name))


@pytest.mark.parametrize(
    "options",
    [
        {"scope": "global", "depths": (2, 4, 2, 2)},
        {"shared_positions": True},
        {"operator": "axial", "operator_blocks": ((1,), (0, 2), (), "all"), "num_heads": 8},
        {
            "operator": "conv",
            "operator_blocks": ((), (), (), ()),
            "squeeze_excite": (True, (1, 2), (), False),
        },
    ],
    ids=str,
)
def test_parameters_are_counted_with_options_too(options):
    config = replace(CONFIGS["resnet50_lambda"], **options)
    whole = ResNet(config, num_classes=7, in_chans=1, device="meta")
    assert count_parameters(config, num_classes=7, in_chans=1) == parameters(whole)


# In millions: one decimal is the paper's, two are computed from the architecture by hand.
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("resnet50_conv", 25.557),
        ("resnet50_se", 28.088),
        ("resnet50_se", 28.1),
        ("resnet50_local_attention", 18.04),
        ("resnet50_local_attention", 18.0),
        ("resnet101_rs", 44.61),
        ("resnet101_rs", 44.6),
        ("resnet101_rs_se", 63.62),
        ("resnet101_rs_se", 63.6),
        ("resnet152_rs", 60.25),
        ("resnet152_rs", 60.2),
        ("resnet152_rs_se", 86.62),
        ("resnet152_rs_se", 86.6),
        ("resnet50_lambda_u4", 16.04),
        ("resnet50_lccc", 25.49),
        ("resnet50_llcc", 24.99),
        ("resnet50_lllc", 21.73),
        ("resnet50_clll", 15.06),
        ("resnet50_cccl", 18.83),
        ("resnet50_ccll", 15.56),
        ("lambda_resnet50", 18.96),
        ("lambda_resnet101", 36.87),
        ("lambda_resnet101", 36.9),
        ("lambda_resnet152", 51.41),
        ("lambda_resnet152", 51.4),
        ("lambda_resnet200", 57.99),
        ("lambda_resnet270", 81.37),
        ("lambda_resnet350", 105.5),
        ("lambda_resnet420", 124.4),
        ("lambda_resnet101_c4", 25.98),
        ("lambda_resnet152_c4", 35.08),
        ("lambda_resnet200_c4", 41.67),
    ],
)
def test_parameters_in_millions(name, millions):
    digits = len(str(millions).split(".")[1])
    assert parameters(on_meta(name)) / 1e6 == pytest.approx(millions, abs=0.6 * 10**-digits)


# Table 9, except for the rows that the paper itself does not reproduce (see docs/decisions.md).
@pytest.mark.parametrize(
    ("dim_k", "num_heads", "dim_u", "millions"),
    [
        (8, 4, 1, 14.78),
        (32, 4, 1, 15.43),
        (8, 8, 1, 14.74),
        (16, 8, 1, 15.08),
        (32, 8, 1, 15.76),
        (8, 8, 4, 15.26),
        (8, 8, 8, 16.04),
    ],
)
def test_the_ablations_of_depth_heads_and_intra_depth_are_options(dim_k, num_heads, dim_u, millions):
    scope = 23 if dim_u == 1 else 7
    options = {"dim_k": dim_k, "num_heads": num_heads, "dim_u": dim_u, "scope": scope}
    assert parameters(create_model("resnet50_lambda", device="meta", **options)) / 1e6 == pytest.approx(
        millions, abs=0.006
    )


@pytest.mark.parametrize(
    ("name", "c4"),
    [
        ("lambda_resnet50", [3]),
        ("lambda_resnet101", [6, 12, 18]),
        ("lambda_resnet152", [5, 10, 15, 20, 25, 30]),
        ("lambda_resnet200", [5, 10, 15, 20, 25, 30]),
        ("lambda_resnet270", [8, 16, 24, 32, 40, 48]),
        ("lambda_resnet350", [10, 20, 30, 40, 50, 60]),
        ("lambda_resnet420", [10, 20, 30, 40, 50, 60, 70, 80]),
    ],
)
def test_the_hybrids_hold_lambda_layers_where_table_18_says(name, c4):
    depth = {"lambda_resnet50": 3, "lambda_resnet101": 3, "lambda_resnet152": 3, "lambda_resnet200": 3}.get(
        name, 4
    )
    assert [lambda_blocks(name, f"layer{stage}") for stage in (1, 2, 3)] == [[], [], c4]
    assert lambda_blocks(name, "layer4") == list(range(depth))


@pytest.mark.parametrize("name", ["lambda_resnet152", "lambda_resnet152_c4"])
def test_hybrids_squeeze_and_excite_in_c2_and_c3_alone(name):
    model = on_meta(name)
    for stage, expected in (
        (model.layer1, True),
        (model.layer2, True),
        (model.layer3, False),
        (model.layer4, False),
    ):
        assert {block.se is not None for block in stage} == {expected}
    gate = model.layer2[0].se
    assert tuple(gate.fc1.weight.shape) == (128, 512, 1, 1)
    assert gate.fc1.bias is not None


def test_a_block_with_a_lambda_layer_never_has_squeeze_and_excitation():
    model = create_model("lambda_resnet50", squeeze_excite=(True, True, True, True), device="meta")
    assert [block.se is None for block in model.layer3] == [False, False, False, True, False, False]
    assert all(block.se is None for block in model.layer4)


def test_the_stage_patterns_of_table_13():
    for name in list_models("resnet50_[cl][cl][cl][cl]"):
        letters = name.removeprefix("resnet50_")
        held = [bool(lambda_blocks(name, f"layer{stage}")) for stage in (1, 2, 3, 4)]
        assert "".join("l" if lambdas else "c" for lambdas in held) == letters
    assert len(list_models("resnet50_[cl][cl][cl][cl]")) == 8
    assert CONFIGS["resnet50_llll"] == CONFIGS["resnet50_lambda"]
    assert CONFIGS["resnet50_cccc"] == CONFIGS["resnet50_conv"]


@pytest.mark.parametrize("size", ["digits", "cifar", "mini"])
def test_the_small_models_have_a_counterpart_with_convolutions(size):
    ours = on_meta(f"lambda_resnet_{size}").state_dict()
    counterpart = on_meta(f"resnet_{size}_conv")
    assert not any(isinstance(module, LambdaLayer2d) for module in counterpart.modules())

    def trunk(state):
        return {name: tensor.shape for name, tensor in state.items() if ".conv2." not in name}

    assert trunk(ours) == trunk(counterpart.state_dict())
    assert any(".conv2.positions" in name for name in ours)


def test_the_mini_network_is_for_a_cpu():
    assert 3e6 < parameters(on_meta("lambda_resnet_mini")) < 8e6
    assert 3e6 < parameters(on_meta("resnet_mini_conv")) < 8e6


def test_every_model_is_in_timm():
    names = list_models()
    others = {"mobilenetv2_conv", "mobilenetv2_lambda", "lambda_audio", "lambda_audio_small"}
    assert set(names) == {*CONFIGS, *others}
    assert set(names) <= set(timm.list_models())
    for name in names:
        cfg = timm.get_pretrained_cfg(name)
        assert cfg is not None
        assert bool(cfg.has_weights) == (name in shipped_models())
        assert cfg.input_size[0] == len(cfg.mean) == len(cfg.std)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"widths": (64, 128)}, "widths must have one entry for each of the 4 stages"),
        ({"operator_blocks": ((), (), (6,), ())}, "stage 2 must name blocks 0 to 5"),
        ({"stem": "conv5"}, "stem must be one of conv7, deep, conv3"),
        ({"shortcut": "max"}, "shortcut must be one of"),
    ],
)
def test_a_contradictory_config_is_refused(change, complaint):
    with pytest.raises(ValueError, match=complaint):
        ResNetConfig(depths=(3, 4, 6, 3), **change)


def test_the_dtype_reaches_every_parameter():
    model = create_model("lambda_resnet_digits", dtype=torch.float64)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
