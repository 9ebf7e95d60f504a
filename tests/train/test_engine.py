"""A run from its configuration to its folder."""

import csv
import errno
import json
import math
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import nn

from lambdanets.train import (
    CheckpointError,
    NonFiniteLossError,
    RunConfig,
    RunError,
    RunResult,
    load_config,
    override,
)
from lambdanets.train.checkpoint import RunState, load_checkpoint
from lambdanets.train.classifier import Classifier
from lambdanets.train.config import EngineConfig
from lambdanets.train.engine import train
from lambdanets.train.learner import seed_generators, step_seed
from lambdanets.train.optim import OptimizerConfig
from lambdanets.train.progress import LiveProgress
from lambdanets.train.resume import resolve_config
from lambdanets.train.run import RunFiles


def test_a_run_leaves_every_file(tiny: RunConfig, finished: RunResult) -> None:
    folder = finished.directory
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    logged = {name for name in names if name.startswith("tensorboard/")}
    assert sum(name.startswith("tensorboard/events") for name in logged) == 1
    assert names - logged == {
        "config.json", "classes.json", "metrics.csv", "summary.txt", "curves.png", "confusion.png",
        "weights.safetensors", "checkpoints/last.ckpt", "checkpoints/previous.ckpt", "checkpoints/best.ckpt",
    }  # fmt: skip
    assert load_config(folder / "config.json") == RunConfig(**vars(tiny) | {"data": tiny.data.resolved()})
    assert json.loads((folder / "classes.json").read_text()) == [str(digit) for digit in range(10)]
    for name in ("curves.png", "confusion.png"):
        with Image.open(folder / name) as image:
            assert min(image.size) > 400
            assert len(image.getcolors(1 << 24) or []) > 20


def test_metrics_are_one_tidy_row_per_epoch(finished: RunResult) -> None:
    with (finished.directory / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [row["step"] for row in rows] == ["4", "8", "12"]
    for row in rows:
        values = {name: float(value) for name, value in row.items()}
        assert 0 <= values["val_top1"] <= values["val_top5"] <= 1
        assert values["train_loss"] > 0
        assert values["images_per_second"] > 0
        assert values["images_per_cpu_second"] > 0
        assert 0 <= values["data_wait"] < 1
    best = max(rows, key=lambda row: (float(row["val_top1"]), -float(row["val_loss"])))
    assert finished.best_epoch == int(best["epoch"])
    assert finished.best["val_top1"] == pytest.approx(float(best["val_top1"]), abs=1e-6)


def test_the_summary_says_what_a_person_asks(finished: RunResult) -> None:
    text = (finished.directory / "summary.txt").read_text()
    assert text == finished.summary
    for part in (
        "lambda_resnet_digits",
        f"{finished.parameters:,} parameters",
        "images/s",
        "validation accuracy",
    ):
        assert part in text
    assert str(finished.directory) in text


def test_checkpoints_hold_tensors_and_plain_types_alone(finished: RunResult) -> None:
    for name in ("last", "previous", "best"):
        path = finished.directory / "checkpoints" / f"{name}.ckpt"
        content = torch.load(path, weights_only=True)
        assert content["run_state"]["batches_done"] > 0


def test_the_best_weights_are_the_best_checkpoint(finished: RunResult) -> None:
    best = load_checkpoint(finished.directory / "checkpoints" / "best.ckpt")
    assert best["run_state"]["best_epoch"] == finished.best_epoch
    with safe_open(finished.directory / "weights.safetensors", "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    assert metadata["model"] == "lambda_resnet_digits"
    assert metadata["num_classes"] == "10"
    form = {name: json.loads(metadata[name]) for name in ("in_chans", "mean", "std", "crop_pct")}
    assert form == {"in_chans": 1, "mean": [0.305], "std": [0.376], "crop_pct": 1.0}
    assert metadata["interpolation"] == "bicubic"
    assert json.loads(metadata["classes"]) == [str(digit) for digit in range(10)]
    states = {
        n.removeprefix("network."): t for n, t in best["state_dict"].items() if n.startswith("network.")
    }
    assert tensors.keys() == states.keys()
    assert all(torch.equal(tensors[name], states[name]) for name in states)


def test_a_seed_makes_a_run_repeatable(tiny: RunConfig, finished: RunResult, tmp_path: Path) -> None:
    short = override(tiny, "engine.epochs=1", "schedule.name=constant", "engine.save_steps=None")
    ends = []
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        result = train(override(short, f"seed={seed}"), run_dir=tmp_path / name)
        ends.append((result.history[0]["train_loss"], result.history[0]["val_loss"]))
    assert ends[0] == ends[1]
    assert ends[0] != ends[2]


def test_each_batch_and_device_has_its_own_randomness() -> None:
    seeds = {step_seed(seed, batch, rank) for seed in range(3) for batch in range(50) for rank in range(3)}
    assert len(seeds) == 450
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeding_for_a_step_is_torchs_own() -> None:
    torch.manual_seed(2**62 + 3)
    expected = torch.randn(5)
    seed_generators(2**62 + 3, torch.device("cpu"))
    assert torch.equal(torch.randn(5), expected)


def test_training_is_quiet_and_speaks_one_line_per_epoch(tiny: RunConfig, folder: Path, capfd: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(override(tiny, "engine.epochs=2"), run_dir=folder)
    said = capfd.readouterr()
    opening, _, after = said.out.partition("\n\n")
    assert opening.startswith("recipe ")
    lines = after.splitlines()
    assert [line[:9] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    assert " val " in lines[0]
    assert "left" in lines[0]
    assert said.err == ""


@pytest.mark.parametrize("saves", [None, 1])
def test_a_loss_that_explodes_stops_the_run(tiny: RunConfig, folder: Path, saves: int | None) -> None:
    config = override(tiny, "optimizer.lr=1e30", "schedule.warmup_epochs=0", f"engine.save_steps={saves}")
    with pytest.raises(NonFiniteLossError) as caught:
        train(config, run_dir=folder)
    assert caught.value.epoch == 1
    assert caught.value.step < 3
    assert caught.value.learning_rate > 1e29
    said = str(caught.value)
    assert f"at step {caught.value.step} (epoch 1, learning rate" in said
    # What the first steps saved, if anything, can still be used.
    kept = list(folder.rglob("*.ckpt"))
    assert ("there is no checkpoint yet" in said) == (not kept)
    assert bool(kept) == (saves is not None)
    if not kept:  # what failed before it saved anything does not block its folder
        slower = override(config, "optimizer.lr=0.1")
        assert resolve_config(slower, RunFiles(folder), RunConfig, resume=False).optimizer.lr == 0.1
    for path in kept:
        states = load_checkpoint(path)["state_dict"].values()
        assert all(tensor.isfinite().all() for tensor in states)


def test_a_nan_leaves_the_last_good_checkpoint(
    tiny: RunConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Classifier.forward

    def poisoned(self: Classifier, images: torch.Tensor) -> torch.Tensor:
        return original(self, images) * (float("nan") if self.state.batches_done == 5 else 1.0)

    monkeypatch.setattr(Classifier, "forward", poisoned)
    with pytest.raises(NonFiniteLossError, match=r"became nan at step 5 \(epoch 2.*last\.ckpt"):
        train(tiny, run_dir=folder)
    monkeypatch.undo()
    assert load_checkpoint(folder / "checkpoints" / "last.ckpt")["run_state"]["batches_done"] == 5
    train(run_dir=folder, resume=True)


def test_a_full_disk_keeps_the_previous_checkpoint(
    tiny: RunConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = torch.save, []

    def save(content: Any, file: Any) -> None:
        calls.append(content["run_state"]["batches_done"])
        if calls[-1] == 6:
            file.write(bytes(1000))
            raise OSError(errno.ENOSPC, "No space left on device")
        original(content, file)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(CheckpointError, match=r"the disk is full: .*last\.ckpt could not be saved"):
        train(tiny, run_dir=folder)
    assert load_checkpoint(folder / "checkpoints" / "last.ckpt")["run_state"]["batches_done"] == 5
    assert not list(folder.rglob(".*.tmp"))
    monkeypatch.undo()
    assert len(train(run_dir=folder, resume=True).history) == 3


@pytest.mark.parametrize(
    "options",
    [
        ("engine.precision=bf16-mixed", "engine.channels_last=True"),
        ("engine.deterministic=True", "optimizer.layer_decay=0.8"),
    ],
)
def test_engine_options_train(tiny: RunConfig, folder: Path, options: tuple[str, ...]) -> None:
    result = train(override(tiny, "engine.epochs=1", *options), run_dir=folder)
    torch.use_deterministic_algorithms(False)
    assert result.history[0]["train_loss"] < 10


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("optimizer.options.foo=1", "optimizer settings do not fit 'sgd'.*foo"),
        ("engine.devices=0", "engine settings cannot be used here"),
        ("engine.strategy=nothing", "engine settings cannot be used here"),
    ],
)
def test_what_cannot_be_built_is_told_and_leaves_no_folder(
    tiny: RunConfig, folder: Path, wrong: str, sentence: str
) -> None:
    with pytest.raises(RunError, match=sentence) as caught:
        train(override(tiny, wrong), run_dir=folder)
    assert "\n" not in str(caught.value)
    assert not folder.exists()


def test_images_that_a_network_refuses_are_told(tiny: RunConfig) -> None:
    class Picky(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise AssertionError("Input height (8) doesn't match model (224).")

    module = Classifier(Picky(), tiny, classes=[*"0123456789"], state=RunState())
    with pytest.raises(RunError, match=r"cannot take images of 1x8x8: Input height"):
        module(torch.zeros(2, 1, 8, 8))


def test_an_epoch_is_saved_before_it_is_shown(
    tiny: RunConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> None:
        raise OSError("nobody looks")

    monkeypatch.setattr(LiveProgress, "on_train_epoch_end", broken)
    with pytest.raises(OSError, match="nobody looks"):
        train(override(tiny, "engine.save_steps=None", "engine.max_batches=2"), run_dir=folder)
    assert load_checkpoint(folder / "checkpoints" / "last.ckpt")["run_state"]["batches_done"] == 2
    assert (folder / "weights.safetensors").exists()


def test_of_equal_accuracies_the_lower_loss_is_the_best(
    tiny: RunConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(self: Classifier) -> None:
        loss = {1: 1.0, 2: 0.5, 3: 0.7}[self.state.position[0]]
        self.val_metrics = {"val_loss": loss, "val_top1": 0.5, "val_top5": 1.0}

    monkeypatch.setattr(Classifier, "on_validation_epoch_end", measured)
    result = train(override(tiny, "engine.max_batches=1"), run_dir=folder)
    assert (result.best_epoch, result.best["val_top1"]) == (2, 0.5)


def test_a_seed_is_one_that_torch_takes(tiny: RunConfig) -> None:
    assert override(tiny, f"seed={2**63 - 1}").seed == 2**63 - 1
    for seed, reason in ((-1, "seed is from 0"), (2**63, r"seed is a number below 2\*\*63")):
        with pytest.raises(ValueError, match=reason):
            override(tiny, f"seed={seed}")


@pytest.mark.parametrize("good", [0, 3])
def test_without_events_for_tensorboard_the_run_goes_on(
    tiny: RunConfig, finished: RunResult, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, good: int
) -> None:
    """The disk is full at the first event, or later."""
    write, left = RecordWriter.write, [good]

    def full(self: RecordWriter, data: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, data)

    monkeypatch.setattr(RecordWriter, "write", full)
    result = train(tiny, run_dir=folder)
    said = capfd.readouterr()
    assert said.out.count(f"TensorBoard's events cannot be written in {folder / 'tensorboard'} (") == 1
    assert said.err == ""
    assert result.best["val_loss"] == finished.best["val_loss"]


def test_a_folder_that_is_moved_while_the_run_goes_on_ends_it(
    tiny: RunConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = folder.with_name("moved")
    monkeypatch.setattr(Classifier, "on_validation_epoch_start", lambda self: folder.rename(moved))
    with pytest.raises(CheckpointError, match="was moved or removed during the run"):
        train(override(tiny, "engine.save_steps=None"), run_dir=folder)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("changed", "where"),
    [
        ({"optimizer": OptimizerConfig(lr=math.nan)}, r"optimizer\.lr"),
        ({"optimizer": OptimizerConfig(options={"betas": (0.9, math.inf)})}, r"optimizer\.options\.betas"),
        ({"engine": EngineConfig(clip_grad=math.nan)}, r"engine\.clip_grad"),
    ],
)
def test_numbers_of_a_configuration_are_finite(tiny: RunConfig, changed: dict[str, Any], where: str) -> None:
    with pytest.raises(ValueError, match=rf"^{where} is a finite number; got (nan|inf)$"):
        replace(tiny, **changed)
