"""Channels-last weights: the same values, the same results within rounding, in every kind of network."""

import copy

import pytest
import timm
import torch
from torch.nn.functional import cross_entropy

import lambdanets
from closeness import error
from lambdanets import create_model
from lambdanets.models import to_channels_last

NETWORKS = (
    "lambda_resnet_digits",
    "lambda_resnet_mini",
    "resnet_cifar_attention",
    "mobilenetv2_lambda",
    "lambda_resnet26t",
    "test_efficientnet",
    "test_vit",
)


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_and_gradients_agree(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7, drop_path_rate=0.0).double()
    other = to_channels_last(copy.deepcopy(model))
    channels, size, _ = model.pretrained_cfg["input_size"]
    images = torch.randn(2, channels, size, size, dtype=torch.float64)
    found = []
    for network, given in ((model, images), (other, images.contiguous(memory_format=torch.channels_last))):
        logits = network.train()(given)
        cross_entropy(logits, torch.tensor([1, 4])).backward()
        with torch.no_grad():
            found.append((logits, network.eval()(given), [p.grad for p in network.parameters()]))
    expected, actual = found
    assert error(actual[0], expected[0]) < 1e-9
    assert error(actual[1], expected[1]) < 1e-9
    whole = [torch.cat([g.flatten() for g in gradients]) for *_, gradients in found]
    assert error(whole[1], whole[0]) < 1e-8
    with torch.no_grad():  # the weights' format is enough: convolutions return it
        assert error(other(images), expected[1]) < 1e-9


@pytest.mark.parametrize("name", ["lambda_resnet_digits", "lambda_resnet26t"])
def test_a_state_dict_goes_either_way(name: str) -> None:
    model = timm.create_model(name)
    stored = {key: value.clone() for key, value in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    assert to_channels_last(model) is model
    assert all(parameters[key] is value for key, value in model.named_parameters())
    convolutions = [module.weight for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in convolutions)
    torch.testing.assert_close(dict(model.state_dict()), stored, rtol=0, atol=0, check_stride=False)
    other = timm.create_model(name)
    strides = {key: value.stride() for key, value in other.state_dict().items()}
    other.load_state_dict(model.state_dict())
    assert {key: value.stride() for key, value in other.state_dict().items()} == strides
    torch.testing.assert_close(dict(other.state_dict()), stored, rtol=0, atol=0)
    model.load_state_dict(stored)
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in convolutions)


def test_accelerate_before_and_after() -> None:
    torch.manual_seed(0)
    model = timm.create_model("lambda_resnet26rpt_256", num_classes=3).double().eval()
    images = torch.randn(1, 3, 256, 256, dtype=torch.float64)
    with torch.no_grad():
        expected = model(images)
        first = to_channels_last(lambdanets.accelerate(copy.deepcopy(model)))(images)
        last = lambdanets.accelerate(to_channels_last(copy.deepcopy(model)))(images)
    assert error(first, expected) < 1e-9
    assert error(last, expected) < 1e-9


def test_the_moving_average_keeps_the_format() -> None:
    model = to_channels_last(create_model("lambda_resnet_digits"))
    average = copy.deepcopy(model)
    pairs = zip(model.state_dict().values(), average.state_dict().values(), strict=True)
    assert all(one.stride() == other.stride() for one, other in pairs)


def test_strides_are_those_of_pytorch() -> None:
    """Also of 1x1 weights, whose formats differ in strides alone: DDP copies gradients of other strides."""
    model = create_model("lambda_resnet_digits")
    expected = copy.deepcopy(model).to(memory_format=torch.channels_last)
    found = to_channels_last(model)
    assert [p.stride() for p in found.parameters()] == [p.stride() for p in expected.parameters()]
