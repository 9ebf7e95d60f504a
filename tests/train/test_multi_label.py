"""Classifiers of several labels: figures by their definitions, files of a run, exact resume."""

import csv
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from label_sets import NAMES, average_precision, f1, write_labelled
from lambdanets.data import DataConfig, open_split
from lambdanets.data.image_set import ImageSet
from lambdanets.train import RunConfig, RunResult, TrainingInterrupted, load_run, override
from lambdanets.train.engine import train
from lambdanets.train.multi_label import label_csv, label_figures, label_table
from runs import assert_same_end, interrupt


@pytest.fixture(scope="module")
def config(tiny: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    path = write_labelled(tmp_path_factory.mktemp("set") / "images")
    data = DataConfig(
        source=f"csv:{path}", image_size=8, in_chans=1, mean=(0.3,), std=(0.3,), batch_size=8, workers=0,
        val_fraction=0.4, multi_label=True,
    )  # fmt: skip
    return override(replace(tiny, data=data), "engine.max_val_batches=None", "loss.class_weights=balanced")


@pytest.fixture(scope="module")
def run(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return train(config, run_dir=tmp_path_factory.mktemp("runs") / "labels")


def test_the_figures_are_those_of_the_network(run: RunResult, config: RunConfig) -> None:
    opened = load_run(run.directory)
    images, classes = open_split(opened.config.data, classes=opened.classes)
    assert classes == NAMES
    assert isinstance(images, ImageSet)
    inputs, targets = images.batch(range(len(images)))
    with torch.inference_mode():
        logits = opened.model()(inputs).double()
    truths, scores = targets.numpy(), logits.sigmoid().numpy()
    precisions = [average_precision(scores[:, k], truths[:, k]) for k in range(3)]
    chosen = scores > 0.5
    shares = [f1(chosen[:, k], truths[:, k]) for k in range(3)]
    expected = {"val_map": np.mean(precisions), "val_f1": f1(chosen, truths), "val_macro_f1": np.mean(shares)}
    expected["val_loss"] = -(truths * np.log(scores) + (1 - truths) * np.log(1 - scores)).mean()
    for name, value in expected.items():
        assert run.best[name] == pytest.approx(value, abs=1e-5), name
    with (run.directory / "classes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == list(NAMES)
    for k, row in enumerate(rows):
        assert int(row["positives"]) == truths[:, k].sum()
        assert float(row["average_precision"]) == pytest.approx(precisions[k], abs=1e-5)
        assert float(row["f1"] or 0) == pytest.approx(shares[k], abs=1e-5)
    best = max(run.history, key=lambda row: (row["val_map"], -row["val_loss"]))
    assert run.best_epoch == best["epoch"]


def test_a_run_leaves_a_table_in_place_of_the_confusion_matrix(run: RunResult) -> None:
    assert "mean average precision, F1" in run.summary
    names = {path.name for path in run.directory.iterdir()}
    assert {"classes.csv", "classes.png", "curves.png"} < names
    assert "confusion.png" not in names
    header = (run.directory / "metrics.csv").read_text().splitlines()[0]
    assert "train_loss,train_right,val_loss,val_map,val_f1,val_macro_f1" in header
    with safe_open(run.directory / "weights.safetensors", "pt") as file:
        assert file.metadata()["activation"] == "sigmoid"


def test_a_run_continues_exactly(
    config: RunConfig, run: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(monkeypatch, signal.SIGTERM, batch=5)
    with pytest.raises(TrainingInterrupted):
        train(config, run_dir=tmp_path / "run")
    train(run_dir=tmp_path / "run", resume=True)
    assert_same_end(run.directory, tmp_path / "run")
    assert (tmp_path / "run" / "classes.csv").read_text() == (run.directory / "classes.csv").read_text()


def test_classes_without_positives_are_left_out_of_the_means() -> None:
    # True positives, false positives, true negatives, false negatives, positives; in torchmetrics' order.
    counts = torch.tensor([[3, 1, 5, 1, 4], [0, 2, 8, 0, 0], [1, 0, 8, 1, 2]])
    table = label_table(counts, torch.tensor([0.8, float("nan"), 0.6]))
    figures = {name: float(value) for name, value in label_figures(table).items()}
    assert figures == pytest.approx({"map": 0.7, "f1": 8 / 13, "macro_f1": (6 / 8 + 2 / 3) / 2})
    assert label_csv(table, ("a", "b", "c")).splitlines()[2] == "b,0,,0,,0"
    assert label_figures(table[1:2])["map"] == 0
