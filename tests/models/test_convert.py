"""Conversion of layers of lucidrains and d-li14, and of networks of d-li14: exact, or refused."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.resnet import Bottleneck as TorchvisionBottleneck
from torchvision.models.resnet import ResNet as TorchvisionResNet

from closeness import assert_close
from foreign import DLi14, LambdaLayer, awake, saved
from lambdanets import LambdaLayer2d, accelerate
from lambdanets.models import WeightsError, create_model, load_weights

DIM = 24
LUCIDRAINS = {
    "local": {"dim_k": 5, "r": 3, "heads": 3},
    "local-u": {"dim_k": 5, "r": 9, "heads": 3, "dim_u": 2, "dim_out": 12},
    "relative-u": {"dim_k": 3, "n": 5, "heads": 2, "dim_u": 4, "dim_out": 14},
}
OURS = {"heads": "num_heads", "r": "scope", "n": "grid", "dk": "dim_k", "Nh": "num_heads", "du": "dim_u"}


def pair(kind: type[nn.Module], options: dict[str, Any], **more: Any) -> tuple[nn.Module, LambdaLayer2d]:
    """Return a layer of another package, as after training, and one of this package of the same sizes."""
    sizes = {OURS.get(name, name): value for name, value in options.items()}
    return awake(kind(DIM, **options)).double(), LambdaLayer2d(DIM, **sizes, **more).double()


PAIRS = [
    *((LambdaLayer, options) for options in LUCIDRAINS.values()),
    (DLi14, {"dk": 5, "Nh": 3, "r": 3}),
    (DLi14, {"dk": 5, "Nh": 2, "r": 9, "du": 2}),
]


@pytest.mark.parametrize(("kind", "options"), PAIRS)
@pytest.mark.parametrize("training", [False, True])
def test_a_layer_converts_exactly(tmp_path: Path, kind: type, options: dict, training: bool) -> None:
    theirs, ours = pair(kind, options, position_bias=True)
    load_weights(nn.Sequential(ours), saved(nn.Sequential(theirs), tmp_path / "w.safetensors"))
    bare = copy.deepcopy(ours).requires_grad_(False)
    for value in bare.parameters():
        value.zero_()
    load_weights(bare, saved(theirs, tmp_path / "bare.pt"))
    x = torch.randn(2, DIM, 5, 5, dtype=torch.float64)
    exact = theirs.train(training)(x)
    assert_close(ours.train(training)(x), exact)
    assert_close(bare.train(training)(x), exact)


@pytest.mark.parametrize(("kind", "options"), PAIRS)
def test_a_layer_without_position_bias_loads_only_weights_without_one(
    tmp_path: Path, kind: type, options: dict
) -> None:
    theirs, ours = pair(kind, options)
    convolution = getattr(theirs, "pos_conv", None) or getattr(theirs, "lambda_conv", None)
    if convolution is not None:
        path = saved(theirs, tmp_path / "w.pt")
        with pytest.raises(
            WeightsError, match=r"not convert exactly: .* has a bias, .*position_bias=True \(the"
        ):
            load_weights(ours, path)
        nn.init.zeros_(convolution.bias)
    load_weights(ours, saved(theirs, tmp_path / "w.pt"))
    x = torch.randn(2, DIM, 5, 5, dtype=torch.float64)
    assert_close(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("more", [{"normalize": "l2"}, {"dilation": 2}])
def test_a_layer_that_computes_something_else_is_refused(tmp_path: Path, more: dict[str, Any]) -> None:
    theirs, ours = pair(LambdaLayer, LUCIDRAINS["local"], position_bias=True, **more)
    with pytest.raises(WeightsError, match=r"do not convert exactly: lucidrains.*\(the layer\)"):
        load_weights(ours, saved(theirs, tmp_path / "w.pt"))


@pytest.mark.parametrize("more", [{"num_heads": 6}, {"scope": 5}, {"norm": None}, {"content": False}])
def test_a_layer_of_other_sizes_is_refused(tmp_path: Path, more: dict[str, Any]) -> None:
    theirs = awake(LambdaLayer(DIM, **LUCIDRAINS["local"]))
    ours = LambdaLayer2d(DIM, **({"dim_k": 5, "num_heads": 3, "scope": 3, "position_bias": True} | more))
    with pytest.raises(WeightsError, match=r"embeddings|are missing|are unknown|has the shape"):
        load_weights(ours, saved(theirs, tmp_path / "w.pt"))


def resnet_of_d_li14(layers: list[int]) -> nn.Module:
    """Return torchvision's ResNet with the layer of d-li14 in place of all 3x3 convolutions."""
    model = TorchvisionResNet(TorchvisionBottleneck, layers, num_classes=7)
    for block in model.modules():
        if isinstance(block, TorchvisionBottleneck):
            block.conv2 = DLi14(block.conv2.out_channels, stride=block.conv2.stride[0])
    return awake(model).double().eval()


AS_D_LI14 = {"position_bias": True, "pool_padding": True}


def test_a_resnet_of_d_li14_loads_into_one_of_this_package(tmp_path: Path) -> None:
    theirs = resnet_of_d_li14([1, 2, 2, 1])
    path = saved(
        {"state_dict": {f"module.{name}": value for name, value in theirs.state_dict().items()}},
        tmp_path / "lambda.pth.tar",
    )
    options = {"depths": (1, 2, 2, 1), **AS_D_LI14}
    ours = create_model("resnet50_lambda", num_classes=7, **options).double().eval()
    load_weights(ours, path)
    x = torch.randn(2, 3, 96, 65, dtype=torch.float64)
    with torch.no_grad():
        exact = theirs(x)
        assert_close(ours(x), exact)
        assert_close(accelerate(theirs)(x), exact)
    other = create_model("resnet50_lambda", num_classes=3, **options)
    assert load_weights(other, path, head="replace") == ("fc.weight", "fc.bias")


def test_a_resnet_of_d_li14_does_not_load_into_a_model_that_differs(tmp_path: Path) -> None:
    path = saved(resnet_of_d_li14([1, 1, 1, 1]), tmp_path / "w.pt")
    options = {"depths": (1, 1, 1, 1), "num_classes": 7}
    both = r"position_bias=True \(layer1\.0\.conv2 and 3 more\); .*pool_padding=True \(layer2\.0\.conv2 and 2"
    with pytest.raises(WeightsError, match=both):
        load_weights(create_model("resnet50_lambda", **options), path)
    with pytest.raises(WeightsError, match=r"create_model\('resnet50_lambda', position_bias=True, pool_pad"):
        load_weights(create_model("resnet50_conv", **options), path)


def test_the_trunk_of_d_li14_has_the_names_of_this_package() -> None:
    with torch.device("meta"):
        theirs = TorchvisionResNet(TorchvisionBottleneck, [3, 4, 6, 3])
        ours = create_model("resnet50_lambda", **AS_D_LI14)
    trunks = [
        {name: tuple(value.shape) for name, value in model.state_dict().items() if ".conv2." not in name}
        for model in (theirs, ours)
    ]
    assert trunks[0] == trunks[1]
    assert sum(parameter.numel() for parameter in ours.parameters()) == 14_995_592 + 16 * 16
