"""The verbs on a run of several labels, and test-time augmentation."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from label_sets import NAMES, average_precision, write_labelled
from lambdanets.data import open_split
from lambdanets.data.image_set import ImageSet
from lambdanets.evaluate.views import FlipAveraged
from lambdanets.recipes import digits, miniature
from lambdanets.train import load_run, override
from lambdanets.train.engine import train

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labelled(tmp_path_factory.mktemp("set") / "images")


@pytest.fixture(scope="module")
def run(table: Path) -> Path:
    config = override(
        miniature(digits()), f"data.source=csv:{table}", "data.multi_label=true", "data.val_fraction=0.4",
        "data.image_size=8", "data.batch_size=8", "engine.max_val_batches=None", "engine.max_batches=4",
    )  # fmt: skip
    return train(config, run_dir=table.parent.parent / "run").directory


def outputs(run: Path, *, flip: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities of the validation images and their labels, both [n, classes]."""
    opened = load_run(run)
    images, _ = open_split(opened.config.data, classes=opened.classes)
    assert isinstance(images, ImageSet)
    inputs, targets = images.batch(range(len(images)))
    network = opened.model()
    with torch.inference_mode():
        found = network(inputs).sigmoid()
        if flip:
            found = (found + network(inputs.flip(3)).sigmoid()) / 2
    return found.double().numpy(), targets.numpy()


@pytest.mark.parametrize("flip", [False, True])
def test_eval(inside: Command, run: Path, tmp_path: Path, flip: bool) -> None:
    files = ("--per-class", tmp_path / "classes.csv", "--json", tmp_path / "figures.json")
    done = inside("eval", run, *files, *(["--tta", "flip"] if flip else []))
    assert done.returncode == 0, done.stderr
    scores, truths = outputs(run, flip=flip)
    precisions = [average_precision(scores[:, k], truths[:, k]) for k in range(3)]
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["map"] == pytest.approx(np.mean(precisions), abs=1e-5)
    loss = -(truths * np.log(scores) + (1 - truths) * np.log(1 - scores)).mean()
    assert figures["loss"] == pytest.approx(loss, abs=1e-5)
    with (tmp_path / "classes.csv").open(newline="") as file:
        rows = {row["class"]: float(row["average_precision"]) for row in csv.DictReader(file)}
    assert rows == pytest.approx(dict(zip(NAMES, precisions, strict=True)), abs=1e-5)
    assert re.search(rf"mean average precision\W+{100 * np.mean(precisions):.2f}%", done.stdout)


def test_predict(inside: Command, run: Path, table: Path, tmp_path: Path) -> None:
    scores, truths = outputs(run)
    done = inside(
        "predict",
        run,
        "--samples",
        99,
        "--json",
        tmp_path / "all.json",
        "--threshold",
        0.4,
        "--out",
        tmp_path / "a.png",
    )
    assert done.returncode == 0, done.stderr
    entries = json.loads((tmp_path / "all.json").read_text())
    assert len(entries) == len(scores)
    right = 0
    for entry, row, truth in zip(entries, scores, truths, strict=True):
        ranked = [k for k in np.argsort(-row) if row[k] >= 0.4]
        assert entry["labels"] == [NAMES[k] for k in ranked]
        assert entry["probabilities"] == pytest.approx([row[k] for k in ranked], abs=1e-5)
        assert entry["truth"] == [NAMES[k] for k in range(3) if truth[k]]
        right += set(ranked) == set(np.flatnonzero(truth))
    assert f"{right} of {len(entries)} correct" in done.stdout
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.height > 400
    done = inside(
        "predict",
        run,
        table.parent,
        "--csv",
        tmp_path / "rows.csv",
        "--threshold",
        1.0,
        "--out",
        tmp_path / "b.png",
    )
    assert done.returncode == 0, done.stderr
    with (tmp_path / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60
    assert {row["label"] for row in rows} == {""}


def test_what_is_refused(inside: Command, run: Path, table: Path, trained: Path, tmp_path: Path) -> None:
    refusals = {
        ("eval", run, "--errors", tmp_path / "e.csv"): "--errors is for images with one label each",
        ("eval", run, "--csv", tmp_path / "t.csv"): "--csv is for images with one label each",
        ("eval", run, "--data", f"folder:{table.parent}"): "come from a table, csv:FILE.csv",
        ("predict", run, "--samples", 2, "--threshold", 2): "--threshold is a probability from 0 to 1",
        ("predict", trained, "--samples", 2, "--threshold", 0.5): "--threshold is for several labels",
        ("pseudo-label", run, "--data", f"folder:{table.parent}", "--out", tmp_path / "l"):
            "one label for each image",
    }  # fmt: skip
    for words, sentence in refusals.items():
        done = inside(*words)
        assert done.returncode != 0
        assert sentence in " ".join(done.stderr.split()), done.stderr


def test_export_names_the_activation(inside: Command, run: Path, tmp_path: Path) -> None:
    done = inside("export", run, "--format", "torch", "--out", tmp_path / "n.pt2")
    assert done.returncode == 0, done.stderr
    metadata = {"activation": ""}
    torch.export.load(tmp_path / "n.pt2", extra_files=metadata)
    assert json.loads(metadata["activation"]) == "sigmoid"


def test_probabilities_are_averaged_over_mirror_images(
    inside: Command, trained: Path, tmp_path: Path
) -> None:
    network = load_run(trained).model()
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = (network(images).softmax(1) + network(images.flip(3)).softmax(1)) / 2
        torch.testing.assert_close(FlipAveraged(network)(images).softmax(1), expected)
    figures = {}
    for name, words in {"plain": (), "flip": ("--tta", "flip")}.items():
        done = inside("eval", trained, *words, "--json", tmp_path / f"{name}.json")
        assert done.returncode == 0, done.stderr
        figures[name] = json.loads((tmp_path / f"{name}.json").read_text())
        sheet = ("--json", tmp_path / "p.json", "--out", tmp_path / "p.png")
        done = inside("predict", trained, "--samples", 40, "--top", 1, *words, *sheet)
        entries = json.loads((tmp_path / "p.json").read_text())
        figures[name]["mean"] = float(np.mean([entry["probabilities"][0] for entry in entries]))
    assert figures["plain"]["loss"] != figures["flip"]["loss"]
    assert figures["plain"]["mean"] != figures["flip"]["mean"]
    assert figures["flip"]["weights"] == "best weights, averaged over mirror images"
