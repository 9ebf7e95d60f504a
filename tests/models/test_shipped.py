"""Trained networks in the package: their files, their loading by every way, and what they reach."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import lambdanets
from lambdanets.cli.app import main
from lambdanets.cli.options import default_output
from lambdanets.cli.tasks import task_of
from lambdanets.detection import DetectionConfig, predict
from lambdanets.evaluate.measurement import evaluate
from lambdanets.models import WeightsError, shipped
from lambdanets.models.int8 import SCALE, dequantise, quantise
from lambdanets.models.shipped import shipped_models, shipped_run
from lambdanets.text import TextConfig
from lambdanets.train import load_run

NUCLEI = Path(__file__).parent / "nuclei"
PLAY = """PETRUCHIO:
And you, good sir! Pray, have you not a daughter
Call'd Katharina, fair and virtuous?

BAPTISTA:
I have a daughter, sir, called Katharina.
"""
DATA = os.environ.get("LAMBDANETS_DATA")
"""Folder with the data sets of the cards, unpacked."""
MEASURED = (
    ("nuclei", "coco:nuclei-dsb2018/annotations/instances_val.json", "mask_ap50", 0.85),
    ("lambda_audio", "audio:spoken-digits", "top1", 0.995),
    ("lambda_resnet_cifar", "folder:cifar10-jpeg/val", "top1", 0.865),
)
CARD = ("## Use", "## Data and licence", "## Training", "## Accuracy", "## Limits")
IMAGE_CLASSIFIERS = [name for name in shipped_models() if name.startswith("lambda_resnet")]


def folder_of(name: str) -> Path:
    folder = shipped_run(name)
    assert folder is not None
    return folder


@pytest.mark.parametrize("shape", [(5, 64), (3, 8, 3, 3), (2, 4, 4, 16, 1)])
def test_int8_is_at_most_half_a_scale_off(shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3
    tensor[1] *= 1e-3  # each row has its own scale
    stored = quantise({"w": tensor})
    assert stored["w"].dtype == torch.int8
    assert stored["w"].shape == tensor.shape
    limit = tensor.flatten(1).abs().amax(1) / 127 / 2
    error = (dequantise(stored)["w"] - tensor).flatten(1).abs().amax(1)
    assert (error <= limit * 1.001).all()


def test_rows_of_zeros_stay_zero_and_small_tensors_are_not_rounded() -> None:
    weights = {
        "zero": torch.zeros(2, 64),
        "bias": torch.randn(512),
        "narrow": torch.randn(512, 31),
        "count": torch.ones(2, 64, dtype=torch.long),
    }
    stored = quantise(weights)
    assert stored.keys() == weights.keys() | {"zero" + SCALE}
    for name, tensor in dequantise(stored).items():
        assert torch.equal(tensor, weights[name])
        assert tensor.dtype == weights[name].dtype


def test_float_weights_with_names_like_scales_are_left_alone() -> None:
    weights: dict[str, Tensor] = {"layer": torch.randn(2, 64), "layer.scale": torch.randn(2)}
    assert dequantise(weights).keys() == weights.keys()


@pytest.mark.parametrize("name", shipped_models())
def test_each_is_small_and_has_a_card(name: str) -> None:
    folder = folder_of(name)
    assert sum(file.stat().st_size for file in folder.iterdir()) < 5 * 2**20
    card = (folder / "README.md").read_text()
    assert [line for line in card.splitlines() if line.startswith("## ")] == list(CARD)
    assert "/" not in load_run(folder, task_of(folder).config_class()).config.data.source


def test_all_of_them_leave_the_wheel_small() -> None:
    assert sum(file.stat().st_size for file in shipped.FOLDER.rglob("*") if file.is_file()) < 12_000_000


@pytest.mark.parametrize("name", IMAGE_CLASSIFIERS)
def test_create_model_loads_what_the_run_folder_has(name: str) -> None:
    run = load_run(folder_of(name))
    network: Any = lambdanets.create_model(name, pretrained=True).eval()
    expected = run.model().state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in network.state_dict().items())
    cfg = network.pretrained_cfg
    assert tuple(cfg["label_names"]) == run.classes
    assert tuple(cfg["mean"]) == run.config.data.mean


def test_a_new_network_has_no_names_of_classes() -> None:
    network: Any = lambdanets.create_model("lambda_resnet_digits")
    assert not network.pretrained_cfg.get("label_names")
    assert not timm.get_pretrained_cfg("lambda_resnet_digits").label_names


def test_another_number_of_classes_keeps_all_but_the_head() -> None:
    network: Any = timm.create_model("lambda_resnet_digits", pretrained=True, num_classes=3)
    expected = load_run(folder_of("lambda_resnet_digits")).model().state_dict()
    assert network.fc.weight.shape == (3, expected["fc.weight"].shape[1])
    assert torch.equal(network.state_dict()["conv1.weight"], expected["conv1.weight"])


def test_a_damaged_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "lambda_resnet_digits"
    shutil.copytree(folder_of(name), tmp_path / name)
    file = tmp_path / name / shipped.WEIGHTS
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    with pytest.raises(WeightsError, match="checksum"):
        lambdanets.create_model(name, pretrained=True)


def test_digits_are_recognised() -> None:
    """The 359 validation digits chose nothing: the weights are those of the last epoch."""
    assert evaluate(load_run(folder_of("lambda_resnet_digits")))["top1"] > 0.985


def test_plays_are_predicted() -> None:
    """Lines of the last tenth of the plays, which was not trained on; uniform guesses have 4.17 nats."""
    run = load_run(folder_of("lambda_lm_mini"), TextConfig)
    tokens = torch.tensor([[run.classes.index(character) for character in PLAY]])
    with torch.no_grad():
        logits = run.model()(tokens[:, :-1])
    assert F.cross_entropy(logits[0], tokens[0, 1:]) < 1.75


def test_nuclei_are_found() -> None:
    """An image of the validation part (CC0) with 21 nuclei, annotated as a label image."""
    run = load_run(folder_of("nuclei"), DetectionConfig)
    (found,) = predict(run, [NUCLEI / "image.png"])
    objects = found.found["masks"][:, 0].numpy()
    labels = np.asarray(Image.open(NUCLEI / "labels.png"))
    masks = [labels == label for label in range(1, labels.max() + 1)]
    hits = sum(any((mask & each).sum() / (mask | each).sum() > 0.5 for each in objects) for mask in masks)
    assert len(masks) == 21
    assert hits >= 18
    assert len(objects) <= 22


@pytest.mark.parametrize(("name", "source", "figure", "least"), MEASURED)
def test_the_figures_of_the_cards(name: str, source: str, figure: str, least: float, tmp_path: Path) -> None:
    if not DATA:
        pytest.skip("LAMBDANETS_DATA names no folder with the data sets")
    kind, _, path = source.partition(":")
    assert main(["eval", name, "--data", f"{kind}:{DATA}/{path}", "--json", str(tmp_path / "f.json")]) == 0
    assert json.loads((tmp_path / "f.json").read_text())[figure] > least


@pytest.mark.parametrize("run", ["nuclei", shipped.FOLDER / "nuclei"])
def test_nothing_is_written_into_the_package(run: str | Path) -> None:
    assert default_output(run, "predictions") == Path("nuclei-predictions")
