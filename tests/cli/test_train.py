"""`lambdanets train`: the files of a run, stopping and resuming."""

import csv
import json
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lambdanets.cli.run_settings import next_step
from lambdanets.recipes import get_recipe
from lambdanets.train import load_run
from lambdanets.train.serialization import flatten
from preloaded import Preloaded

Command = Callable[..., subprocess.CompletedProcess[str]]


def epochs(folder: Path) -> list[int]:
    with (folder / "metrics.csv").open() as file:
        return [int(float(row["epoch"])) for row in csv.DictReader(file)]


def test_a_run_has_a_name_of_its_own_and_everything_in_it(trained: Path) -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-\d{6}-digits", trained.name)
    files = {path.relative_to(trained).as_posix() for path in trained.rglob("*") if path.is_file()}
    assert files >= {
        "config.json",
        "classes.json",
        "metrics.csv",
        "curves.png",
        "confusion.png",
        "summary.txt",
        "weights.safetensors",
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
    }
    assert epochs(trained) == [1, 2]


def test_options_and_settings_reach_the_run(trained: Path) -> None:
    config = json.loads((trained / "config.json").read_text())
    assert config["recipe"] == "digits"
    assert (config["seed"], config["data"]["batch_size"], config["engine"]["epochs"]) == (3, 32, 2)
    assert (config["data"]["val_fraction"], config["engine"]["max_batches"]) == (0.05, 12)
    assert config["schedule"]["warmup_epochs"] == 0


@pytest.mark.parametrize("recipe", ["digits", "nuclei", "audio", "text"])
def test_help_lists_every_field_of_a_recipe_with_its_value(
    inside: Command, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = inside("train", recipe, "--help")
    assert shown.returncode == 0
    assert "--batch-size N" in shown.stdout
    for path, value in flatten(get_recipe(recipe)).items():
        if path == "recipe":
            continue
        assignments = (
            [f"{path}.{key}={item}" for key, item in value.items()] if isinstance(value, dict) else []
        )
        for assignment in assignments or [f"{path}.NAME=VALUE" if value == {} else f"{path}={value}"]:
            assert re.search(rf"^  {re.escape(shlex.quote(assignment))}( |$)", shown.stdout, re.MULTILINE)
    fields = shown.stdout[shown.stdout.index("fields of --set") :]
    assert re.search(r"engine.ema=\S+ +\(float or None\) Decay of an exponential moving", fields)
    lines = fields.splitlines()
    assert not [line for line in lines if line != line.rstrip()]
    assert max(len(line) for line in lines if line.count(" ") > 2) <= 80


def test_help_without_a_recipe_says_how_to_list_the_fields(inside: Command) -> None:
    shown = inside("train", "--help").stdout
    assert "`lambdanets train RECIPE --help`" in shown
    assert "engine.ema" not in shown


def test_a_finished_run_prints_its_summary_and_the_next_command(trained: Path) -> None:
    printed = (trained / "printed.txt").read_text()
    assert (trained / "summary.txt").read_text().strip() in printed
    assert f"lambdanets predict runs/{trained.name} --samples 20" in printed


def test_the_next_command_for_a_streamed_source_is_eval(trained: Path, tmp_path: Path) -> None:
    config = json.loads((trained / "config.json").read_text())
    for source, words in (
        ("hfids/pets", f"eval {tmp_path}"),
        ("wds/pets:/pets", f"eval {tmp_path}"),
        ("hfds/pets", f"predict {tmp_path} --samples 20"),
    ):
        config["data"]["source"] = source
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert next_step(tmp_path) == f"lambdanets {words}"


def test_a_finished_run_has_nothing_to_resume(inside: Command, trained: Path) -> None:
    weights = (trained / "weights.safetensors").read_bytes()
    done = inside("train", "--resume", trained)
    assert done.returncode == 0
    assert "complete" in done.stdout
    assert (trained / "weights.safetensors").read_bytes() == weights
    assert epochs(trained) == [1, 2]


def test_the_configuration_of_a_run_starts_another(inside: Command, trained: Path, tmp_path: Path) -> None:
    """With the same results; other options change it."""
    same, other = tmp_path / "same", tmp_path / "other"
    for folder, changes in ((same, ()), (other, ("--epochs", "1", "--set", "optimizer.lr=0.01"))):
        done = inside("train", "--config", trained / "config.json", "--out", folder, *changes)
        assert done.returncode == 0, done.stderr
    assert (same / "config.json").read_text() == (trained / "config.json").read_text()
    assert (same / "weights.safetensors").read_bytes() == (trained / "weights.safetensors").read_bytes()
    before, after = (flatten(load_run(folder).config) for folder in (trained, other))
    assert {path for path in before if before[path] != after[path]} == {"engine.epochs", "optimizer.lr"}
    assert epochs(other) == [1]


def test_no_run_is_written_over(inside: Command, trained: Path) -> None:
    done = inside("train", "digits", "--out", trained)
    assert done.returncode == 1
    assert "holds a run already" in done.stderr


def test_a_recipe_named_with_a_run_does_not_undo_its_settings(inside: Command, trained: Path) -> None:
    done = inside("train", "digits", "--resume", trained, "--set", "data.workers=1")
    assert done.returncode == 0, done.stderr
    assert "complete" in done.stdout
    other = inside("train", "cifar", "--resume", trained)
    assert other.returncode == 2
    assert "is a run of the recipe 'digits', not of 'cifar'" in other.stderr


def test_a_resumed_run_stays_what_it_is(inside: Command, trained: Path) -> None:
    done = inside("train", "--resume", trained, "--set", "optimizer.lr=9")
    assert done.returncode == 1
    assert "optimizer.lr" in done.stderr


@pytest.mark.slow
def test_ctrl_c_stops_and_resume_finishes(
    start: Callable[..., Preloaded], command: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    settings = ["engine.max_batches=8", "engine.threads=1", "data.val_fraction=0.05"]
    changes = [word for setting in settings for word in ("--set", setting)]
    process = start("train", "digits", "--epochs", 4, "--batch-size", 16, *changes, "--out", folder)
    until = time.monotonic() + 120
    while "\nepoch" not in process.printed() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert f"--resume {folder}" in errors
    assert "Traceback" not in errors
    assert len(epochs(folder)) < 4
    done = command("train", "--resume", folder)
    assert done.returncode == 0, done.stderr
    assert epochs(folder) == [1, 2, 3, 4]


def test_weights_are_looked_at_before_the_images(inside: Command, trained: Path, tmp_path: Path) -> None:
    words = ("train", "digits", "--out", tmp_path / "run", "--data", "folder:nowhere", "--set")
    missing = inside(*words, "model.weights=nowhere")
    assert missing.returncode == 2
    assert "there are no weights nowhere: no such file or folder" in missing.stderr
    other = inside(*words, f"model.weights={trained}", "--model", "lambda_resnet_cifar")
    assert other.returncode == 2
    assert "not those of lambda_resnet_cifar" in other.stderr
    assert "look like those of lambda_resnet_digits" in other.stderr
    fit = inside(*words, f"model.weights={trained}")
    assert fit.returncode == 1
    assert "there is no folder" in fit.stderr
    assert not (tmp_path / "run").exists()
