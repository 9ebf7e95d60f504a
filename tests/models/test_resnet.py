"""The ResNet compared with timm's, dilation, initialisation, and stochastic depth."""

from dataclasses import replace

import pytest
import timm
import torch
from timm.layers import DropPath

from lambdanets.models import ResNet, ResNetConfig, create_model
from lambdanets.models.zoo import CONFIGS
from lambdanets.nn import LambdaLayer2d

RS = ResNetConfig(
    depths=(3, 4, 6, 3),
    stem="deep",
    shortcut="pool",
    squeeze_excite=(True, True, True, True),
    operator="conv",
)


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Change the initial state of all norms, so that the omission of one would be noticed."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            for tensor in (module.bias.data, module.running_mean):
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    return model


@pytest.mark.parametrize(
    ("theirs", "config"), [("resnet50", CONFIGS["resnet50_conv"]), ("resnetrs50", RS)], ids=["vanilla", "rs"]
)
@pytest.mark.parametrize("output_stride", [32, 8])
def test_without_lambda_layers_the_network_is_timm_s_resnet(theirs, config, output_stride):
    options = {"num_classes": 3, "output_stride": output_stride}
    reference = randomise(timm.create_model(theirs, **options)).eval()
    model = ResNet(config, **options).eval()
    model.load_state_dict(reference.state_dict())
    x = torch.randn(1, 3, 65, 47)
    with torch.no_grad():
        torch.testing.assert_close(model(x), reference(x), rtol=1e-4, atol=1e-4)
    assert model.feature_info == reference.feature_info


def test_a_strided_lambda_layer_precedes_the_pooling_and_the_norm():
    model = randomise(create_model("lambda_resnet_mini")).eval()
    block = model.layer4[0]
    assert isinstance(block.conv2, LambdaLayer2d)
    x = torch.randn(2, block.conv1.in_channels, 7, 10)
    inner = torch.relu(block.bn1(block.conv1(x)))
    y = block.conv2(inner)
    assert y.shape[2:] == (7, 10)
    # The mean over the existing ones of the nine neighbours.
    ones = torch.ones(y.shape[1], 1, 3, 3)
    summed = torch.nn.functional.conv2d(y, ones, stride=2, padding=1, groups=y.shape[1])
    count = torch.nn.functional.conv2d(torch.ones_like(y), ones, stride=2, padding=1, groups=y.shape[1])
    inner = torch.relu(block.bn2(summed / count))
    expected = torch.relu(block.bn3(block.conv3(inner)) + block.downsample(x))
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("name", ["lambda_resnet_mini", "resnet_mini_conv", "lambda_resnet50"])
@pytest.mark.parametrize(
    ("output_stride", "expected"), [(32, [2, 4, 8, 16, 32]), (16, [2, 4, 8, 16, 16]), (8, [2, 4, 8, 8, 8])]
)
def test_output_stride_keeps_the_resolution(name, output_stride, expected):
    backbone = create_model(name, features_only=True, output_stride=output_stride, device="meta")
    assert backbone.feature_info.reduction() == expected
    maps = backbone(torch.empty(1, 3, 96, 64, device="meta"))
    assert [tuple(tensor.shape[2:]) for tensor in maps] == [
        (96 // stride, 64 // stride) for stride in expected
    ]


def test_output_stride_dilates_the_lambda_layers_and_shares_the_weights():
    model = create_model("resnet50_lambda", output_stride=8, device="meta")

    def dilations(layer):
        return [block.conv2.dilation[0] for block in model.get_submodule(layer)]

    assert dilations("layer2") == [1, 1, 1, 1]
    assert dilations("layer3") == [1, 2, 2, 2, 2, 2]
    assert dilations("layer4") == [2, 4, 4]
    usual = create_model("resnet50_lambda", device="meta").state_dict()
    assert {key: value.shape for key, value in model.state_dict().items()} == {
        key: value.shape for key, value in usual.items()
    }


def test_the_strided_network_is_a_subsampling_of_the_dilated_one():
    """Every other pixel of the dilated network is a pixel of the strided network."""
    # In float64, since some outputs are small differences of large numbers.
    strided = randomise(create_model("lambda_resnet_mini")).eval().double()
    dilated = create_model("lambda_resnet_mini", output_stride=16).eval().double()
    dilated.load_state_dict(strided.state_dict())
    for model in (strided, dilated):
        for block in model.layer4:
            block.conv2.content = False  # the content lambda is global: it sees the pixels in between
    x = torch.randn(2, 3, 128, 192, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(
            dilated.forward_features(x)[:, :, ::2, ::2], strided.forward_features(x), rtol=1e-4, atol=1e-4
        )


def test_convolutions_have_he_initialisation_and_lambda_layers_their_own():
    torch.manual_seed(0)
    model = create_model("lambda_resnet_mini")
    for block in (*model.layer1, *model.layer3):
        for conv in (block.conv1, block.conv3):
            assert conv.weight.detach().std() == pytest.approx((2 / conv.out_channels) ** 0.5, rel=0.05)
        assert block.bn3.weight.count_nonzero() == 0
    layer = model.layer3[1].conv2
    assert layer.positions.detach().std() == pytest.approx(1, rel=0.02)
    assert layer.to_queries.weight.detach().std() == pytest.approx((16 * 128) ** -0.5, rel=0.05)
    assert layer.to_keys.weight.detach().std() == pytest.approx(128**-0.5, rel=0.1)
    assert layer.norm_values.weight.eq(1).all()


def test_drop_path_rises_with_the_depth_and_acts_only_in_training():
    model = randomise(create_model("lambda_resnet_mini", drop_path_rate=0.5))
    rates = [
        block.drop_path.drop_prob if block.drop_path is not None else 0.0
        for stage in (model.layer1, model.layer2, model.layer3, model.layer4)
        for block in stage
    ]
    assert rates == pytest.approx([0.05 * index for index in range(11)])
    plain = create_model("lambda_resnet_mini")
    assert not any(isinstance(module, DropPath) for module in plain.modules())
    plain.load_state_dict(model.state_dict())
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), plain.eval()(x))
        model.train()
        block = model.layer4[1]
        features = torch.rand(64, block.conv1.in_channels, 2, 2)
        kept = (block(features) - features).flatten(1).abs().amax(1) > 0
    assert 10 < kept.sum() < 54


def test_dropout_before_the_classifier():
    model = create_model("lambda_resnet_digits", drop_rate=0.5)
    features = torch.ones(8, model.num_features, 2, 2)
    assert (model.forward_head(features, pre_logits=True) == 0).float().mean() == pytest.approx(0.5, abs=0.15)
    model.eval()
    assert model.forward_head(features, pre_logits=True).eq(1).all()


def test_options_change_the_config():
    model = create_model("resnet50_lambda", scope=7, dim_k=8, kernel="conv", device="meta")
    assert model.config == replace(CONFIGS["resnet50_lambda"], scope=7, dim_k=8, kernel="conv")
    layer = model.layer1[0].conv2
    assert tuple(layer.positions.shape) == (7, 7, 8, 1)
    assert layer.kernel == "conv"
