"""Creation by name, suggestions for mistyped names and options, registration in timm."""

import types

import pytest
import timm
import torch
from timm.models import model_entrypoint

from lambdanets.models import create_model, list_models, model_info
from lambdanets.models.registry import register
from lambdanets.models.zoo import CONFIGS
from lambdanets.nn import LambdaLayer2d


def test_timm_creates_the_same_class_with_the_same_parameters():
    ours = create_model("lambda_resnet_digits", num_classes=3)
    theirs = timm.create_model("lambda_resnet_digits", num_classes=3)
    assert type(ours) is type(theirs)
    theirs.load_state_dict(ours.state_dict())


def test_models_of_timm_can_be_created_too():
    model = create_model("test_resnet", num_classes=3)
    assert model.num_classes == 3


@pytest.mark.parametrize(
    ("typo", "meant"), [("lambda_resnet15", "lambda_resnet152"), ("resnet50_lamda", "resnet50_lambda")]
)
def test_a_mistyped_name_gets_a_suggestion(typo, meant):
    with pytest.raises(ValueError, match=f"no model named '{typo}'; did you mean .*{meant}"):
        create_model(typo)


def test_a_name_unlike_those_of_this_package_is_looked_up_in_timm():
    with pytest.raises(ValueError, match="mobilevit"):
        create_model("mobilevit_ss")


def test_a_name_unlike_all_others_gets_no_suggestion():
    with pytest.raises(ValueError, match=r"no model named 'qqqqqqqq'$"):
        create_model("qqqqqqqq")


def test_a_mistyped_option_gets_a_suggestion():
    with pytest.raises(ValueError, match=r"has no option 'drop_pth_rate'; did you mean drop_path_rate"):
        create_model("lambda_resnet_digits", drop_pth_rate=0.1)


def test_trained_weights_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="no trained weights of lambda_resnet50"):
        create_model("lambda_resnet50", pretrained=True, device="meta")


def test_weights_from_a_file_are_loaded_as_in_timm(tmp_path):
    model = create_model("lambda_resnet_digits", num_classes=3)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    overlay = {"file": str(tmp_path / "weights.pt"), "num_classes": 3}
    other = create_model(
        "lambda_resnet_digits", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=3
    )
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"output_stride": 4}, "output_stride must be 8, 16 or 32, got 4"),
        ({"operator": "lamda"}, "operator must be one of conv, lambda, attention, .*, got 'lamda'"),
        ({"normalize": "l1"}, "unknown normalize 'l1'"),
        ({"scope": "gobal"}, "scope must be a number of positions or 'global', got 'gobal'"),
        ({"squeeze_excite": ((2,), False)}, "squeeze_excite of stage 0 must name blocks 0 to 1"),
        ({"squeeze_reduction": 0}, "squeeze_reduction must be at least 1"),
        ({"operator": "local_attention", "scope": "global", "num_heads": 8}, "operator='attention'"),
        ({"content": False, "position": False}, "leave nothing to compute"),
        ({"scope": 0}, "scope"),
        ({"num_heads": 5}, "num_heads"),
    ],
)
def test_an_invalid_value_is_refused(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        create_model("lambda_resnet_digits", **options)


def test_list_models_is_filtered_and_in_natural_order():
    assert list_models("lambda_resnet[0-9]??") == [
        f"lambda_resnet{depth}" for depth in (101, 152, 200, 270, 350, 420)
    ]
    assert list_models("lambda_resnet*")[:2] == ["lambda_resnet50", "lambda_resnet50_c4"]
    assert "lambda_resnet26t" in timm.list_models("lambda*")
    assert "lambda_resnet26t" not in list_models()
    assert list_models("no such model") == []


def test_a_name_of_timm_is_refused_and_nothing_is_registered():
    theirs = model_entrypoint("resnet50")
    config = CONFIGS["lambda_resnet_digits"]
    with pytest.raises(ValueError, match=r"'resnet50' is taken in timm's registry by timm\.models\.resnet"):
        register({"a_name_of_ours": config, "resnet50": config}, __name__)
    assert model_entrypoint("resnet50") is theirs
    assert "a_name_of_ours" not in timm.list_models()
    assert "resnet50" not in list_models()


def test_the_entry_points_can_be_imported_as_in_timm():
    from lambdanets.models import zoo

    assert isinstance(zoo.lambda_resnet152, types.FunctionType)
    assert zoo.lambda_resnet_digits(num_classes=7, device="meta").num_classes == 7


@pytest.mark.parametrize("none", [None, "none"])
def test_none_as_an_ablation_reaches_the_layers(none: str | None) -> None:
    """timm drops options that are None."""
    model = create_model("lambda_resnet_digits", norm=none, normalize=none, device="meta")
    layers = [layer for layer in model.modules() if isinstance(layer, LambdaLayer2d)]
    assert layers
    assert {(layer.norm, layer.normalize) for layer in layers} == {(None, "none")}


@pytest.mark.parametrize(
    ("name", "parameters", "image", "words"),
    [
        (
            "lambda_resnet152",
            51_404_696,
            (3, 256, 256),
            "lambda in layer3 (6 of 36), layer4",
        ),
        ("lambda_resnet_digits", 43_394, (1, 8, 8), "scope 7"),
        ("resnet50_lambda_u4", 16_040_360, (3, 224, 224), "scope 7, u 4"),
        ("resnet50_conv", 25_557_032, (3, 224, 224), "convolutions alone"),
        ("resnet_cifar_conv", 788_810, (3, 32, 32), "convolutions alone"),
        ("resnet50_se", 28_088_024, (3, 224, 224), "squeeze-and-excitation 1/16"),
        ("resnet50_axial", 21_870_584, (3, 224, 224), "axial in layer1, layer2, layer3, layer4"),
        ("mobilenetv2_lambda", 3_208_360, (3, 224, 224), "lambda in the 10th and the 16th"),
    ],
)
def test_a_model_is_described(name: str, parameters: int, image: tuple[int, ...], words: str) -> None:
    info = model_info(name)
    assert (info.name, info.parameters, info.image) == (name, parameters, image)
    assert words in info.description


def test_models_of_timm_have_no_description_here() -> None:
    with pytest.raises(KeyError):
        model_info("resnet50")
