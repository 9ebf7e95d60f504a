"""Weights of this package in timm, and folders for the Hugging Face hub."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from timm.models import load_checkpoint
from torch import nn

from foreign import awake, saved
from lambdanets import accelerate
from lambdanets.models import ResNet, WeightsError, create_model, load_weights, save_for_hub
from preloaded import run_preloaded

MODELS = {
    "lambda_resnet_digits": {},
    "lambda_resnet_mini": {},
    "resnet_cifar_attention": {},
    "resnet_cifar_lambda": {"shared_positions": True},
    "mobilenetv2_lambda": {"in_chans": 1},
}
every_model = pytest.mark.parametrize("name", MODELS)


def made(name: str) -> nn.Module:
    return awake(create_model(name, num_classes=5, **MODELS[name])).eval()


@torch.no_grad()
def assert_equal(model: nn.Module, other: nn.Module) -> None:
    channels = next(model.parameters()).shape[1]
    x = torch.randn(2, channels, 64, 64)
    assert torch.equal(model.eval()(x), other.eval()(x))


@every_model
def test_timm_loads_the_weights_of_this_package(tmp_path: Path, name: str) -> None:
    model = made(name)
    path = str(saved({k: v.clone() for k, v in model.state_dict().items()}, tmp_path / "weights.safetensors"))
    options = {"num_classes": 5, **MODELS[name]}
    assert_equal(timm.create_model(name, checkpoint_path=path, **options), model)
    other = timm.create_model(name, **options)
    load_checkpoint(other, path)
    assert_equal(other, model)


@every_model
def test_timm_loads_weights_named_in_its_configuration(tmp_path: Path, name: str) -> None:
    model = made(name)
    path = str(saved(model, tmp_path / "w.pt"))
    channels = MODELS[name].get("in_chans", model.pretrained_cfg["input_size"][0])
    overlay = {"file": path, "num_classes": 5, "input_size": (channels, 64, 64)}
    options = {"pretrained": True, "pretrained_cfg_overlay": overlay, **MODELS[name]}
    assert_equal(timm.create_model(name, **options), model)
    assert_equal(create_model(name, **options), model)
    # With another number of classes, timm ignores the head of the weights.
    fine = create_model(name, num_classes=3, **options)
    trunk = {key: value for key, value in model.state_dict().items() if value.shape[:1] != (5,)}
    found = {key: value for key, value in fine.state_dict().items() if key in trunk}
    torch.testing.assert_close(found, trunk, rtol=0, atol=0)


def test_trained_weights_with_features_only_are_refused_by_the_mobilenet(tmp_path: Path) -> None:
    overlay = {"file": str(saved(made("mobilenetv2_lambda"), tmp_path / "w.pt"))}
    with pytest.raises(ValueError, match="weights of mobilenetv2_lambda go into the whole model"):
        create_model(
            "mobilenetv2_lambda", pretrained=True, features_only=True, pretrained_cfg_overlay=overlay
        )


def test_models_are_in_timm_after_the_import_of_this_package(tmp_path: Path) -> None:
    path = saved(create_model("lambda_resnet_digits", num_classes=3), tmp_path / "weights.safetensors")
    code = f"""
import timm
def create():
    timm.create_model("lambda_resnet_digits", num_classes=3, checkpoint_path={str(path)!r})
try:
    create()
except RuntimeError as error:
    print(error)
import lambdanets
create()
print("created")
"""
    done = run_preloaded("-c", code, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.stdout.splitlines() == ["Unknown model (lambda_resnet_digits)", "created"], done.stderr


@every_model
def test_a_folder_for_the_hub(tmp_path: Path, name: str) -> None:
    model = made(name)
    channels = next(model.parameters()).shape[1]
    images = {
        "input_size": (channels, 48, 48),
        "mean": (0.25,) * channels,
        "std": (0.5,) * channels,
        "crop_pct": 0.9,
    }
    folder = save_for_hub(model, tmp_path / "a" / "b", labels=list("abcde"), images=images)
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]
    other = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert_equal(other, model)
    for key, value in images.items():
        found = other.pretrained_cfg[key]
        assert (tuple(found) if isinstance(value, tuple) else found) == value
    assert list(other.pretrained_cfg["label_names"]) == list("abcde")
    assert create_model(f"local-dir:{folder}", pretrained=True, num_classes=3).num_classes == 3
    again = create_model(name, num_classes=5, **MODELS[name])
    load_weights(again, folder)
    assert_equal(again, model)


def test_options_and_a_new_head_are_in_the_folder(tmp_path: Path) -> None:
    options: dict[str, Any] = {"dim_k": 8, "scope": 5, "operator_blocks": ((), "all"), "drop_path_rate": 0.1}
    model = create_model("lambda_resnet_digits", in_chans=3, **options)
    model.reset_classifier(4)
    folder = save_for_hub(awake(model).eval(), tmp_path)
    assert json.loads((folder / "config.json").read_text())["num_classes"] == 4
    assert_equal(timm.create_model(f"local-dir:{folder}", pretrained=True), model)


def test_several_labels_are_a_problem_type_of_transformers(tmp_path: Path) -> None:
    folder = save_for_hub(create_model("lambda_resnet_digits"), tmp_path, multi_label=True)
    config = json.loads((folder / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"  # its pipeline then takes sigmoids
    assert timm.create_model(f"local-dir:{folder}", pretrained=True).num_classes == 10


def test_an_accelerated_model_is_written_as_timm_s(tmp_path: Path) -> None:
    model = accelerate(awake(timm.create_model("lambda_resnet26t", num_classes=3)).eval())
    other = timm.create_model(f"local-dir:{save_for_hub(model, tmp_path)}", pretrained=True)
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_a_folder_for_the_hub_opens_in_transformers(tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_classes": 3, "in_chans": 3, "dim_k": 8}
    model = awake(create_model("lambda_resnet_digits", **options)).eval()
    folder = save_for_hub(model, tmp_path / "hub", labels=["a", "b", "c"])
    config = json.loads((folder / "config.json").read_text())
    assert config["num_classes"] == 3
    # transformers calls timm.create_model(architecture, num_classes=..., **model_args).
    assert "num_classes" not in config["model_args"]
    assert {name: config["model_args"][name] for name in ("in_chans", "dim_k")} == {"in_chans": 3, "dim_k": 8}
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert file.metadata()["format"] == "pt"
    import transformers  # takes seconds

    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        classifier = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
        assert torch.equal(classifier(x).logits, model(x))
        trunk = transformers.AutoModel.from_pretrained(folder).eval()
        assert torch.equal(
            trunk(x).pooler_output, model.forward_head(model.forward_features(x), pre_logits=True)
        )
    assert classifier.config.id2label == {0: "a", 1: "b", 2: "c"}
    pipeline = transformers.pipeline("image-classification", model=str(folder))
    assert {each["label"] for each in pipeline(Image.new("RGB", (32, 32), "teal"))} == {"a", "b", "c"}


def test_a_model_of_unknown_origin_is_refused(tmp_path: Path) -> None:
    model = create_model("lambda_resnet_digits")
    with pytest.raises(WeightsError, match="labels must name the 10 classes of the model, got 2"):
        save_for_hub(model, tmp_path, labels=["a", "b"])
    with pytest.raises(WeightsError, match="ResNet does not record how it was created"):
        save_for_hub(ResNet(model.config, num_classes=10, in_chans=1), tmp_path)
    assert not list(tmp_path.iterdir())
