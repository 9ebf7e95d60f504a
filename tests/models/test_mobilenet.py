"""MobileNet-v2 and its two lightweight lambda blocks: Table 17, and timm's interface of a backbone."""

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from lambdanets.models import create_model
from lambdanets.nn import LambdaLayer2d
from lambdanets.nn.blocks import LightweightBottleneck

NAMES = ["mobilenetv2_conv", "mobilenetv2_lambda"]


def test_the_baseline_is_that_of_timm():
    ours, theirs = create_model("mobilenetv2_conv"), timm.create_model("mobilenetv2_100")
    ours.load_state_dict(theirs.state_dict())
    assert sum(p.numel() for p in ours.parameters()) == 3_504_872
    assert ours.pretrained_cfg["architecture"] == "mobilenetv2_conv"
    assert not ours.pretrained_cfg["url"]


def test_table_17():
    model = create_model("mobilenetv2_lambda", kernel="conv").eval()
    count = sum(p.numel() for p in model.parameters())
    # By hand: two blocks of the baseline go; each light block has two pointwise convolutions, queries of 32
    # channels, keys of 8, values of c / 4, a table of 5 * 5 * 8, and norms.
    gone = (2 * 64 * 384 + 9 * 384 + 4 * 384 + 2 * 64) + (2 * 160 * 960 + 9 * 960 + 4 * 960 + 2 * 160)
    light = [2 * c * c + c * (32 + 8 + c // 4) + 200 + 2 * (32 + c // 4) + 3 * 2 * c for c in (64, 160)]
    assert count == 3_504_872 - gone + sum(light)
    assert count / 1e6 == pytest.approx(3.21, abs=0.005)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(1, 3, 224, 224))
    assert counter.get_total_flops() / 1e6 == pytest.approx(563, abs=0.5)


def test_the_10th_and_the_16th_bottleneck_are_replaced_and_nothing_else():
    model, timms = create_model("mobilenetv2_lambda"), timm.create_model("mobilenetv2_100")
    blocks = [block for stage in model.blocks for block in stage]
    assert len(blocks) == 17
    light = [index for index, block in enumerate(blocks, 1) if isinstance(block, LightweightBottleneck)]
    assert light == [10, 16]
    rest = {
        k: t.shape for k, t in model.state_dict().items() if not k.startswith(("blocks.3.3", "blocks.5.2"))
    }
    assert rest.items() <= {k: t.shape for k, t in timms.state_dict().items()}.items()


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_gradient_with_checkpointing_too(name):
    model = create_model(name, num_classes=5, drop_path_rate=0.1)
    x = torch.randn(2, 3, 64, 48)
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        y = model(x)
        assert y.shape == (2, 5)
        (y * torch.randn_like(y)).sum().backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize(
    "options", [{}, {"feature_cls": "getter"}, {"output_stride": 8}, {"out_indices": (1, 2)}]
)
@pytest.mark.parametrize("name", NAMES)
def test_features_only(name, options):
    model = create_model(name, features_only=True, device="meta", **options)
    maps = model(torch.empty(1, 3, 64, 64, device="meta"))
    channels, reductions = model.feature_info.channels(), model.feature_info.reduction()
    assert [t.shape[1:] for t in maps] == [
        (c, 64 // r, 64 // r) for c, r in zip(channels, reductions, strict=True)
    ]
    layers = [m for m in model.modules() if isinstance(m, LambdaLayer2d)]
    assert len(layers) == (2 if name == "mobilenetv2_lambda" else 0)
    if "output_stride" in options and layers:
        assert [layer.dilation for layer in layers] == [(2, 2), (4, 4)]


@pytest.mark.parametrize("name", NAMES)
def test_the_head_can_be_replaced_and_the_state_saved(name):
    model = create_model(name).eval()
    other = create_model(name).eval()
    other.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 33, 64)
    torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)
    model.reset_classifier(3)
    assert model(x).shape == (1, 3)
    model.reset_classifier(0, "")
    torch.testing.assert_close(model(x), model.forward_features(x))


def test_options_of_the_lambda_layers_and_mistakes():
    model = create_model("mobilenetv2_lambda", dim_k=32, scope=3, dtype=torch.float64)
    assert model.blocks[3][3].operator.positions.shape == (3, 3, 32, 1)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    with pytest.raises(ValueError, match="mobilenetv2_lambda has no option 'scop'; did you mean scope"):
        create_model("mobilenetv2_lambda", scop=3)
    with pytest.raises(
        ValueError, match="mobilenetv2_conv has no option 'num_clases'; did you mean num_classes"
    ):
        create_model("mobilenetv2_conv", num_clases=3)
    with pytest.raises(ValueError, match="no trained weights of mobilenetv2_lambda"):
        create_model("mobilenetv2_lambda", pretrained=True)
    with pytest.raises(ValueError, match="'getter' returns the same"):
        create_model("mobilenetv2_lambda", features_only=True, feature_cls="fx")
