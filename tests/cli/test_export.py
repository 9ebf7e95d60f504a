"""`lambdanets export`: files of a run and of a model, run where this package is not."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from elsewhere import run_elsewhere
from lambdanets.data.sources.digits import read_digits
from lambdanets.exporting import onnx_format
from lambdanets.train import load_run
from photo_sets import NAME

Command = Callable[..., subprocess.CompletedProcess[str]]


def digits(count: int) -> np.ndarray:
    """Scanned digits as the network of the recipe takes them."""
    images = read_digits()[0][:count, None] / 16
    return ((images - 0.305) / 0.376).astype(np.float32)


def logits(run: Path, images: np.ndarray, which: str = "best") -> np.ndarray:
    with torch.no_grad():
        return load_run(run).model(which)(torch.from_numpy(images)).numpy()


def test_onnx_of_a_run_takes_any_images(command: Command, trained: Path, tmp_path: Path) -> None:
    done = command("export", trained, "--dynamic-size", "--out", "out/d.onnx", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    first, second = done.stdout.splitlines()
    assert first == "out/d.onnx: images batchx1xheightxwidth"
    assert second.startswith("largest difference from the network: ")
    assert second.endswith("(random images, 2x1x8x8, 1x1x6x10, 3x1x6x10)")
    file = tmp_path / "out" / "d.onnx"
    assert list(file.parent.iterdir()) == [file]
    images = digits(40)
    found = run_elsewhere(file, images=images)
    truth = logits(trained, images)
    assert np.abs(found["logits"] - truth).max() < 1e-5 * np.abs(truth).max()
    facts = {name[6:]: json.loads(str(value)) for name, value in found.items() if name.startswith("facts/")}
    assert facts == {
        "model": "lambda_resnet_digits",
        "classes": [str(digit) for digit in range(10)],
        "input_size": [1, 8, 8],
        "mean": [0.305],
        "std": [0.376],
        "crop_pct": 1.0,
        "interpolation": load_run(trained).config.data.interpolation,
        "activation": "softmax",
    }
    tall = np.random.default_rng(0).normal(size=(5, 1, 11, 7)).astype(np.float32)
    truth = logits(trained, tall)
    assert np.abs(run_elsewhere(file, images=tall)["logits"] - truth).max() < 1e-5 * np.abs(truth).max()


def test_torch_of_a_run_lies_in_its_folder(inside: Command, two_minds: Path) -> None:
    done = inside("export", two_minds, "--format", "torch", "--weights", "last")
    assert done.returncode == 0, done.stderr
    images = digits(7)
    found = run_elsewhere(two_minds / "network.pt2", images=images)
    np.testing.assert_allclose(found["logits"], logits(two_minds, images, "last"), rtol=0, atol=1e-4)
    assert np.abs(found["logits"] - logits(two_minds, images)).max() > 1
    assert json.loads(str(found["facts/classes"])) == [str(digit) for digit in range(10)]
    again = inside("export", two_minds, "--format", "torch")
    assert again.returncode == 1
    assert again.stderr == (
        f"lambdanets: {two_minds}/network.pt2 exists already; remove it or name another file\n"
    )


def test_a_model_with_weights_of_a_file(inside: Command, tmp_path: Path) -> None:
    network, weights = timm.create_model(NAME).eval(), tmp_path / "model.safetensors"
    save_file(network.state_dict(), weights)
    words = ("--checkpoint", weights, "--size", 64, "--batch-size", 3, "--format", "torch")
    done = inside("export", NAME, *words, "--out", tmp_path / "m.pt2")
    assert done.returncode == 0, done.stderr
    assert "m.pt2: images 3x3x64x64\n" in done.stdout
    images = torch.randn(3, 3, 64, 64)
    found = run_elsewhere(tmp_path / "m.pt2", images=images.numpy())
    with torch.no_grad():
        truth = network(images).numpy()
    assert np.abs(found["logits"] - truth).max() < 1e-5 * np.abs(truth).max()
    assert len(json.loads(str(found["facts/classes"]))) == 1000
    assert json.loads(str(found["facts/input_size"])) == [3, 64, 64]


def test_what_is_wrong_is_a_sentence(
    inside: Command, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*words: object, code: int) -> str:
        done = inside("export", *words)
        assert done.returncode == code, done.stderr
        assert done.stderr.count("\n") == 1
        assert list(tmp_path.glob("out*")) == []
        return done.stderr

    out = ("--out", tmp_path / "out.pt2")
    torch_form = ("--format", "torch", *out)
    assert "invalid choice" in refused(trained, "--format", "tf", *out, code=2)
    assert "goes with the name of a model" in refused(trained, "--checkpoint", "w", *torch_form, code=2)
    assert "a model takes --checkpoint" in refused(NAME, "--weights", "last", *torch_form, code=2)
    assert "no trained weights of lambda_resnet50" in refused("lambda_resnet50", *torch_form, code=1)
    assert "ends in .onnx" in refused(trained, "--format", "onnx", *out, code=1)
    assert "format 'torch' has none" in refused(trained, "--opset", 20, *torch_form, code=1)
    assert "size must be at least 1" in refused(trained, "--size", 0, *torch_form, code=1)
    assert "is no run" in refused(tmp_path / "gone", *torch_form, code=1)
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "classes.json"):
        shutil.copy(trained / name, bare / name)
    assert "has no best weights yet" in refused(bare, *torch_form, code=1)
    monkeypatch.setattr(onnx_format, "find_spec", lambda name: None)
    words = (trained, "--format", "onnx", "--out", tmp_path / "out.onnx")
    assert "needs onnx and onnxscript and onnxruntime: pip install" in refused(*words, code=1)
