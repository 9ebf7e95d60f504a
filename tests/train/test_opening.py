"""The first lines of a run: what it will do, and an estimate of its time."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lambdanets import LambdaLayer2d
from lambdanets.data import DataConfig
from lambdanets.train import ModelConfig, RunConfig, override, train
from lambdanets.train.checkpoint import RunState
from lambdanets.train.classifier import Classifier
from lambdanets.train.config import Wording
from lambdanets.train.opening import (
    Opening,
    describe_devices,
    describe_model,
    format_estimate,
    note_on_validation,
)


def opening(text: str) -> dict[str, str]:
    """Return the lines of the first block of a run's output by their names."""
    block, _, _ = text.partition("\n\n")
    return dict(re.split(" +", line, maxsplit=1) for line in block.splitlines())


def test_a_run_begins_with_what_it_will_do(tiny: RunConfig, tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "a run"
    config = override(tiny, "engine.epochs=1", "engine.max_batches=6", "engine.accumulate=3")
    train(config, run_dir=run)
    lines = opening(capsys.readouterr().out)
    assert list(lines) == ["recipe", "model", "data", "device", "steps", "folder", "stop"]
    assert lines["recipe"] == config.recipe
    assert re.fullmatch(rf"{config.model.name}, 0.0\d M parameters.*, from random weights", lines["model"])
    sizes = re.fullmatch(
        r"digits: ([\d,]+) training and ([\d,]+) validation images, 10 classes of (\d+) \(8\) to (\d+) "
        r"\(\d\) training images",
        lines["data"],
    )
    assert sizes
    train_size, val_size, least, most = (int(size.replace(",", "")) for size in sizes.groups())
    assert train_size + val_size == 1797
    assert least <= train_size / 10 <= most
    threads = torch.get_num_threads()
    assert lines["device"] == f"CPU, {threads} thread{'s' * (threads > 1)}, precision 32"
    assert lines["steps"] == f"1 epoch of 2 steps of {3 * config.data.batch_size} images"
    assert lines["folder"] == str(run)
    assert lines["stop"].endswith(f"lambdanets train --resume '{run}'")


def learner(network: nn.Module, *changes: str) -> Classifier:
    config = RunConfig(recipe="tiny", model=ModelConfig(name="net"), data=DataConfig())
    return Classifier(network, override(config, *changes), classes=["cats", "dogs"], state=RunState())


def test_the_model_line_counts_parameters_and_layers() -> None:
    network = nn.Sequential(nn.Linear(1000, 999), LambdaLayer2d(8, scope=3, norm=None))
    layer = sum(each.numel() for each in network[1].parameters())
    total = f"{(1_000_000 - 1 + layer) / 1e6:.2f} M parameters"
    assert describe_model(learner(network)) == f"net, {total}, 1 lambda layer, from random weights"
    network[0].requires_grad_(False)
    text = describe_model(learner(network, "model.weights=runs/other"))
    assert text == f"net, {total} (0.00 M of them trained), 1 lambda layer, from runs/other"
    pretrained = describe_model(learner(nn.Identity(), "model.options.pretrained=true"))
    assert pretrained == "net, 0.00 M parameters, from the published weights"


@pytest.mark.parametrize(
    ("targets", "text"),
    [([0, 0, 1, 1], " of 2 training images"), ([1, 1, 1, 0], " of 1 (cats) to 3 (dogs) training images")],
)
def test_the_smallest_and_the_largest_class(targets: list[int], text: str) -> None:
    splits = SimpleNamespace(train=SimpleNamespace(targets=np.array(targets)))
    assert learner(nn.Identity()).format_class_sizes(splits) == text
    assert learner(nn.Identity()).format_class_sizes(SimpleNamespace(train=SimpleNamespace())) == ""


def test_few_validation_samples_are_noted() -> None:
    assert note_on_validation(20, Wording()) == {}
    note = note_on_validation(2, Wording(samples="recordings"))["note"]
    assert note == "2 validation recordings are few: the figures will depend on chance"
    assert note_on_validation(1, Wording())["note"].startswith("1 validation image is few")


def test_several_processes_on_several_nodes() -> None:
    trainer: Any = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device("meta")), world_size=8, num_nodes=2
    )
    assert (
        describe_devices(trainer, "bf16-mixed") == "8 processes, each on meta, 2 nodes, precision bf16-mixed"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "1 s"),
        (44, "44 s"),
        (95, "2 min"),
        (720, "12 min"),
        (5400, "1.5 h"),
        (86400, "24 h"),
        (3e5, "3.5 days"),
    ],
)
def test_an_estimate_has_two_digits(seconds: float, text: str) -> None:
    assert format_estimate(seconds) == text


def test_the_time_is_estimated_once_from_the_first_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Batches of 4 s: 100 in each of 10 epochs, with 30 batches of validation at a third of the time."""
    clock = 1000.0
    monkeypatch.setattr("lambdanets.train.opening.time", SimpleNamespace(monotonic=lambda: clock))
    module = learner(nn.Identity(), "engine.epochs=10", "engine.validate_every=5")
    module.state.batches_per_epoch = 100
    trainer: Any = SimpleNamespace(current_epoch=0, num_val_batches=[30])
    callback = Opening(module, tmp_path)
    for number in range(1, 60):
        clock += 30 if number == 1 else 4  # the first batch is slow
        module.state.batches_done = number
        callback.on_train_batch_end(trainer, module, None, None, number - 1)
    (line,) = capsys.readouterr().out.splitlines()
    seconds = (1000 - 5 + 2 * 30 / 3) * 4
    assert line == f"time    about {format_estimate(seconds)} left, by the first steps"


def test_a_short_first_epoch_needs_no_estimate(tmp_path: Path, capsys: Any) -> None:
    module = learner(nn.Identity())
    callback, trainer = Opening(module, tmp_path), Any
    callback.on_train_epoch_end(trainer, module)
    module.state.batches_done = 50
    callback.on_train_batch_end(trainer, module, None, None, 49)
    assert capsys.readouterr().out == ""
