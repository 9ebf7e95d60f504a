"""`export` of whole networks and runs; tests/cli and test_network.py run the files in fresh interpreters."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

from lambdanets import create_model
from lambdanets.data.transforms import eval_transform
from lambdanets.exporting import ExportError
from lambdanets.nn import LambdaLayer2d
from lambdanets.recipes import digits, miniature
from lambdanets.train import export, load_run, override
from lambdanets.train.engine import train


def awake(name: str, **options: Any) -> nn.Module:
    """A network whose residual branches count, as after some training."""
    network = create_model(name, **options).eval()
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    return network


def check(file: Path, network: nn.Module, images: torch.Tensor) -> None:
    with torch.no_grad():
        truth = network(images)
        if file.suffix == ".onnx":
            session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
            found = torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
        else:
            found = torch.export.load(file).module()(images)
    assert (found - truth).square().mean().sqrt() < 1e-5 * truth.square().mean().sqrt()


def test_shared_tables_of_intra_depth(tmp_path: Path) -> None:
    options = {"widths": (8, 16, 16), "stem_width": 8, "depths": (1, 1, 3), "scope": 3, "dim_u": 2}
    network = awake("lambda_resnet_cifar", num_classes=7, shared_positions=True, **options)
    tables = [layer.positions for layer in network.modules() if isinstance(layer, LambdaLayer2d)]
    assert len(tables) == 2
    assert tables[0] is tables[1]
    # Images of one reduction, whose last map is a single position, are traced larger.
    made = export(network, tmp_path / "n.onnx", format="onnx", dynamic_size=True, size=4)
    assert made.inputs == {"images": ("batch", 3, "height", "width")}
    compared = [sizes for (sizes,) in made.compared]
    assert compared == [(2, 3, 16, 16), (1, 3, 12, 20), (3, 3, 12, 20), (1, 3, 4, 4)]
    assert 0 < made.difference < 1e-4 * made.largest
    check(made.file, network, torch.randn(5, 3, 28, 44))


def test_mobilenet_of_one_batch_size(tmp_path: Path) -> None:
    network = awake("mobilenetv2_lambda", num_classes=5)
    made = export(network, tmp_path / "n.pt2", format="torch", size=64, batch_size=2)
    assert made.inputs == {"images": (2, 3, 64, 64)}
    check(made.file, network, torch.randn(2, 3, 64, 64))


def test_a_run_in_bfloat16_gives_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = override(
        miniature(digits()), "engine.precision=bf16-mixed", "engine.epochs=1", "engine.max_batches=2"
    )
    config = override(config, "data.crop_pct=0.8")
    run = load_run(train(config, run_dir=tmp_path / "run").directory)
    made = export(run, tmp_path / "photos.onnx", format="onnx", weights="last", size=10)
    session = onnxruntime.InferenceSession(made.file, providers=["CPUExecutionProvider"])
    assert [each.type for each in (*session.get_inputs(), *session.get_outputs())] == ["tensor(float)"] * 2
    check(made.file, run.model("last"), torch.randn(4, 1, 10, 10))
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["input_size"]) == [1, 10, 10]
    assert tuple(json.loads(facts["classes"])) == run.classes

    # The program on the page prepares a photo as `predict` does.
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (31, 45, 3), np.uint8))
    photo.getexif()[0x0112] = 6  # a quarter turn
    photo.save(tmp_path / "photo.jpg", exif=photo.getexif())
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(next(block for block in blocks if '"photo.jpg"' in block), names)
    with Image.open("photo.jpg") as photo:
        expected = eval_transform(override(run.config, "data.image_size=10").data)(photo)
    assert np.abs(names["images"][0] - expected.numpy()).max() < 1e-5


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    file = tmp_path / "n.pt2"
    with pytest.raises(ExportError, match="Linear does not state which images it takes"):
        export(nn.Linear(3, 2), file, format="torch")
    vit = create_model("vit_tiny_patch16_224")
    with pytest.raises(ExportError, match=r"^the network cannot take inputs of shape \(1, 3, 48, 80\): "):
        export(vit, file, format="torch", size=64, dynamic_size=True)
    with pytest.raises(
        ExportError, match=r"'torch' takes only images of more than 16 pixels, and those of vit_tiny.* 16:"
    ):
        export(vit, file, format="torch", size=16, dynamic_size=True)
    assert list(tmp_path.iterdir()) == []
