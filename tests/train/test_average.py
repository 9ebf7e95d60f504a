"""The average of the weights, and steps of a given number of images."""

import copy
import csv
import signal
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lambdanets.evaluate.measurement import evaluate
from lambdanets.train import RunConfig, RunError, TrainingInterrupted, load_run, override
from lambdanets.train.average import pair_ema_tensors, update_ema
from lambdanets.train.checkpoint import load_checkpoint
from lambdanets.train.classifier import Classifier
from lambdanets.train.engine import train
from lambdanets.train.trainer import accumulation_steps
from runs import assert_same_end, interrupt


@pytest.fixture
def averaged(tiny: RunConfig) -> RunConfig:
    return override(tiny, "engine.ema=0.8")


def test_an_average_follows_weights_and_statistics() -> None:
    average, network = (nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)) for _ in range(2))
    network(torch.randn(5, 3))
    before = {name: value.clone() for name, value in average.state_dict().items()}
    update_ema(pair_ema_tensors(average, network), 0.75)
    for name, new in network.state_dict().items():
        mixed = 0.75 * before[name] + 0.25 * new if new.is_floating_point() else new
        torch.testing.assert_close(average.state_dict()[name], mixed)


def test_the_pairs_of_an_average_outlive_what_happens_to_a_network_within_an_epoch() -> None:
    average, network = (nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)) for _ in range(2))
    pairs = pair_ema_tensors(average, network)
    network.load_state_dict({name: value + 1 for name, value in network.state_dict().items()})
    average.load_state_dict({name: value - 1 for name, value in average.state_dict().items()})
    network[0].weight.data = network[0].weight.data.clone()  # pyright: ignore[reportAttributeAccessIssue]
    network(torch.randn(5, 3)).sum().backward()
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    update_ema(pairs, 0.0)
    for name, new in network.state_dict().items():
        torch.testing.assert_close(average.state_dict()[name], new)


def test_the_average_is_taken_once_a_step_and_warms_up(
    averaged: RunConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decays: list[float] = []
    monkeypatch.setattr("lambdanets.train.learner.update_ema", lambda *args: decays.append(args[-1]))
    train(override(averaged, "engine.accumulate=2", "engine.epochs=2"), run_dir=folder)
    assert decays == [min(0.8, (1 + step) / (10 + step)) for step in range(4)]


def test_both_are_validated_and_the_average_is_kept(averaged: RunConfig, folder: Path) -> None:
    result = train(override(averaged, "engine.max_val_batches=None"), run_dir=folder)
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(row["val_top1"] and row["raw_top1"] for row in rows)
    assert any(row["val_loss"] != row["raw_loss"] for row in rows)
    assert result.best["val_top1"] == max(row["val_top1"] for row in result.history)
    run = load_run(folder)
    states = load_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]
    kept = run.model("last").state_dict()
    assert all(torch.equal(value, states[f"average.{name}"]) for name, value in kept.items())
    moved = [name for name, value in kept.items() if not torch.equal(value, states[f"network.{name}"])]
    assert len(moved) > len(kept) / 2
    assert evaluate(run)["top1"] == pytest.approx(result.best["val_top1"], abs=1e-6)
    assert evaluate(run, weights="last")["loss"] == pytest.approx(result.history[-1]["val_loss"], rel=1e-4)


def test_runs_without_an_average_have_no_such_columns(finished) -> None:
    assert "raw_top1" not in (finished.directory / "metrics.csv").read_text()


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels-last"])
def test_a_stopped_run_continues_its_average(
    averaged: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels_last: bool
) -> None:
    averaged = override(averaged, f"engine.channels_last={channels_last}")
    whole = train(averaged, run_dir=tmp_path / "whole")
    interrupt(monkeypatch, signal.SIGTERM, batch=5)
    with pytest.raises(TrainingInterrupted):
        train(averaged, run_dir=tmp_path / "stopped")
    train(run_dir=tmp_path / "stopped", resume=True)
    assert_same_end(whole.directory, tmp_path / "stopped")


def test_a_step_of_many_images_is_accumulated(tiny: RunConfig, tmp_path: Path) -> None:
    """Said as a number of images or as one of batches, it is the same run."""
    ends = [
        train(override(tiny, "engine.epochs=1", how), run_dir=tmp_path / how[7:11])
        for how in ("engine.accumulate=2", "engine.global_batch=32")
    ]
    assert_same_end(ends[0].directory, ends[1].directory)


@pytest.mark.parametrize(("images", "world", "batches"), [(None, 4, 1), (64, 1, 4), (64, 2, 2), (16, 1, 1)])
def test_batches_of_a_step(tiny: RunConfig, images: int | None, world: int, batches: int) -> None:
    assert accumulation_steps(override(tiny, f"engine.global_batch={images}"), world) == batches


@pytest.mark.parametrize(
    ("images", "world", "hint"),
    [
        (40, 1, "data.batch_size=10 would divide it"),
        (64, 3, "16 on 3 devices$"),
        (8, 1, "data.batch_size=8 would divide it"),
    ],
)
def test_a_step_that_cannot_be_dealt_out_is_refused(
    tiny: RunConfig, images: int, world: int, hint: str
) -> None:
    with pytest.raises(RunError, match=f"engine.global_batch={images} is no multiple of .*{hint}"):
        accumulation_steps(override(tiny, f"engine.global_batch={images}"), world)


def test_the_learning_rate_grows_with_the_images_of_a_step(
    tiny: RunConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    whole = Classifier.learning_rate

    def watched(module: Classifier) -> float:
        rates.append(whole(module))
        return rates[-1]

    monkeypatch.setattr(Classifier, "learning_rate", watched)
    options = ["schedule.name=constant", "schedule.warmup_epochs=0", "engine.epochs=1", "optimizer.lr=0.04"]
    train(override(tiny, *options, "optimizer.lr_batch=64", "engine.accumulate=2"), run_dir=folder)
    assert set(rates) == {0.04 * 32 / 64}


def test_momentum_of_batch_norms(tiny: RunConfig) -> None:
    network = override(tiny, "model.bn_momentum=0.003").network(10)
    assert {m.momentum for m in network.modules() if isinstance(m, _BatchNorm)} == {0.003}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("engine.ema=1.0", "engine.ema is a decay between 0 and 1"),
        ("engine.global_batch=0", "engine.global_batch is 1 or more"),
        ("engine.threads=9999999999", "engine.threads is at most 4,096; got 9,999,999,999"),
        ("engine.timeout_minutes=1e+300", "engine.timeout_minutes is at most 525,600; got 1"),
        ("optimizer.lr_batch=0", "optimizer.lr_batch is 1 or more"),
        ("model.bn_momentum=0.0", "model.bn_momentum is above 0"),
    ],
)
def test_impossible_values(tiny: RunConfig, change: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        override(tiny, change)


def test_accumulation_is_said_once(tiny: RunConfig) -> None:
    with pytest.raises(ValueError, match=r"engine\.accumulate must be 1"):
        override(tiny, "engine.accumulate=2", "engine.global_batch=64")


def test_a_shared_tensor_moves_once() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False))
    network[1].weight = network[0].weight
    average = copy.deepcopy(network)
    torch.nn.init.zeros_(average[0].weight)
    torch.nn.init.ones_(network[0].weight)
    update_ema(pair_ema_tensors(average, network), 0.75)
    assert average[1].weight.item() == 0.25
