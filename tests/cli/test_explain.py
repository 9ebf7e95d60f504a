"""`lambdanets explain` for classifiers; other tasks are in test_detecting, test_audio and test_text."""

import json
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lambdanets import create_model

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "photo.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_a_run_is_explained_in_every_format(
    inside: Command, trained: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = inside("explain", trained, photo)
    assert done.returncode == 0, done.stderr
    assert "photo.jpg: " in done.stdout
    assert "kB: photo.html" in done.stdout
    assert f"best weights of {trained}" in (tmp_path / "photo.html").read_text()
    for suffix in ("npz", "json", "png"):
        options = ("--query", "0.2,0.7", "--heads", "0,1") if suffix == "png" else ()
        done = inside("explain", trained, photo, "--out", f"photo.{suffix}", *options)
        assert done.returncode == 0, done.stderr
    plain = json.loads((tmp_path / "photo.json").read_text())
    assert plain["error"] <= 1e-5
    assert len(plain["labels"]) == 5
    assert all(each["name"] in done.stdout for each in plain["layers"])
    with np.load(tmp_path / "photo.npz") as arrays:
        assert f"{plain['layers'][0]['name']}/q" in arrays


def test_a_trained_network_of_the_package_is_explained_by_its_name(
    inside: Command, photo: Path, tmp_path: Path
) -> None:
    done = inside("explain", "lambda_resnet_digits", photo, "--out", tmp_path / "photo.json")
    assert done.returncode == 0, done.stderr
    plain = json.loads((tmp_path / "photo.json").read_text())
    assert {each["label"] for each in plain["labels"]} <= set("0123456789")
    assert plain["error"] <= 1e-5


def test_a_model_is_explained_by_its_name(inside: Command, photo: Path, tmp_path: Path) -> None:
    """timm's own network, in timm's own layers."""
    torch.manual_seed(0)
    torch.save(create_model("lambda_resnet26t").state_dict(), tmp_path / "weights.pt")
    done = inside(
        "explain", "lambda_resnet26t", photo, "--checkpoint", tmp_path / "weights.pt", "--size", 64,
        "--layers", "stages.3.*", "--out", tmp_path / "photo.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    layers = json.loads((tmp_path / "photo.json").read_text())["layers"]
    assert [(each["name"], each["grid"]) for each in layers] == [
        ("stages.3.0.self_attn", [4, 4]),
        ("stages.3.1.self_attn", [2, 2]),
    ]
    assert max(each["error"] for each in layers) <= 1e-5


@pytest.mark.skipif(find_spec("captum") is None, reason="captum is not installed")
@pytest.mark.parametrize("method", ["gradients", "integrated-gradients", "occlusion"])
def test_approximations_across_layers_are_labelled(
    inside: Command, trained: Path, photo: Path, tmp_path: Path, method: str
) -> None:
    page = tmp_path / "photo.html"
    done = inside("explain", trained, photo, "--out", page, "--approximate", method)
    assert done.returncode == 0, done.stderr
    assert f'"approximations":[{{"method":"{method.replace("-", " ")}"' in page.read_text()


@pytest.mark.skipif(find_spec("captum") is not None, reason="captum is installed")
def test_without_captum_the_error_names_the_extra(
    inside: Command, trained: Path, photo: Path, tmp_path: Path
) -> None:
    done = inside("explain", trained, photo, "--out", tmp_path / "a.html", "--approximate", "occlusion")
    assert done.returncode == 1
    assert 'needs captum, which is not installed: pip install "lambdanets[explain]"' in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "name an image after the run"),
        (("{folder}",), "is a folder: name an image"),
        (("{photo}", "--out", "maps.gif"), r"--out ends in .html, .png, .npz, .json; got 'maps.gif'"),
        (("{photo}", "--layers", "conv9"), "there is no lambda layer 'conv9'"),
        (("{photo}", "--query", "0.5,2"), "--query takes fractions from 0 to 1"),
        (("{photo}", "--query", "a,b"), "--query takes fractions from 0 to 1"),
        (("{photo}", "--out", "a.png", "--query", "0.5"), "a query is 2 fractions"),
        (("{photo}", "--heads", "first"), "--heads takes numbers from 0"),
        (("{photo}", "--out", "a.png", "--heads", "99"), "has the heads 0 to 3, got 99"),
        (("{photo}", "--text", "a"), "--text is for runs of a language model"),
        (("{photo}", "--threshold", "0.5"), "--threshold is for runs of a detector"),
        (("{photo}", "--out", "a.png", "--approximate", "occlusion"), "--approximate is for the page"),
        (("{photo}", "--size", "0"), "--size must be at least 1"),
    ],
)
def test_wrong_use_is_one_sentence(
    inside: Command, trained: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    given = [word.format(folder=tmp_path, photo=photo) for word in words]
    done = inside("explain", trained, *given)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_model_without_lambda_layers_is_refused(inside: Command, photo: Path, tmp_path: Path) -> None:
    torch.save(create_model("resnet10t").state_dict(), tmp_path / "weights.pt")
    done = inside(
        "explain", "resnet10t", photo, "--checkpoint", tmp_path / "weights.pt", "--out", tmp_path / "a.html"
    )
    assert done.returncode == 2
    assert "ResNet has no lambda layer" in done.stderr
