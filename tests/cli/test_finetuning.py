"""`lambdanets train --weights`, and longer runs by `--resume RUN --epochs N`."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lambdanets.cli import run_settings

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, Path]]:
    """Configuration and folder of the runs that `train` would begin; nothing is trained."""
    calls: list[tuple[object, Path]] = []

    class Stop(ValueError):
        pass

    def stand_in(config: object, *, run_dir: Path, resume: bool) -> None:
        calls.append((config, run_dir))
        raise Stop("not trained")

    monkeypatch.setattr(
        run_settings.TASKS["classification"].__class__, "train_function", lambda self: stand_in
    )
    return calls


def test_a_recipe_takes_model_and_images_from_a_run(
    inside: Command, trained: Path, asked: list, tmp_path: Path
) -> None:
    weights = shutil.copytree(trained, tmp_path / "weights")
    done = inside("train", "finetune", "--weights", weights, "--data", "digits", "--out", tmp_path / "run")
    assert "not trained" in done.stderr
    assert "from the weights: lambda_resnet_digits; 8 pixels; 1 channel; mean 0.305; std 0.376" in done.stdout
    [(config, folder)] = asked
    assert folder == tmp_path / "run"
    assert (config.recipe, config.model.weights) == ("finetune", str(weights))
    assert (config.model.name, config.data.image_size, config.data.in_chans) == ("lambda_resnet_digits", 8, 1)
    settings = ("--set", "data.image_size=16", "--set", "data.crop_pct=0.9")
    done = inside("train", "finetune", "--weights", weights, "--data", "digits", *settings)
    assert "pixels" not in done.stdout
    assert (asked[1][0].data.image_size, asked[1][0].data.crop_pct) == (16, 0.9)
    # The field means the same.
    inside("train", "finetune", "--set", f"model.weights={weights}", "--data", "digits", *settings)
    assert asked[2][0] == asked[1][0]


def test_without_a_recipe_a_new_run_has_the_configuration_of_the_old(
    inside: Command, trained: Path, asked: list
) -> None:
    done = inside("train", "--weights", trained, "--epochs", 7)
    assert "not trained" in done.stderr
    [(config, folder)] = asked
    stored = json.loads((trained / "config.json").read_text())
    assert folder.parent == Path("runs")
    assert folder.name.endswith("-digits")
    assert (config.recipe, config.seed, config.engine.epochs) == ("digits", stored["seed"], 7)
    assert (config.data.batch_size, config.model.weights) == (stored["data"]["batch_size"], str(trained))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--weights", "RUN", "--resume", "RUN"), "--weights and --resume exclude each other"),
        (("digits", "--weights", "RUN", "--set", "model.weights=x"), "are the same; keep one"),
        (
            ("digits", "--epochs", "2", "--set", "engine.epochs=1"),
            "--epochs and --set engine.epochs are the same; keep one",
        ),
        (
            ("--weights", "RUN/weights.safetensors"),
            "weights.safetensors is no run, so it has no configuration",
        ),
        (("digits", "--weights", "nowhere"), "there are no weights nowhere: no such file or folder"),
        (("audio", "--weights", "RUN"), "is a run of classification, whose weights are not for audio"),
        (
            ("finetune",),
            "the recipe finetune needs trained weights: add --weights with the folder",
        ),
        (("finetune", "--weights", "pretrained"), "no trained weights of lambda_resnet_mini are published"),
        (
            ("finetune", "--weights", "RUN", "--set", "model.frozen_stages=9"),
            "model.frozen_stages is at most 3, the stem and the other stages of lambda_resnet_digits; got 9",
        ),
        (
            ("finetune", "--weights", "RUN", "--set", "data.in_chans=3"),
            "the weights in RUN are for images of 1 channel, and data.in_chans is 3",
        ),
        (
            ("finetune", "--weights", "RUN", "--model", "lambda_resnet_cifar"),
            "not those of lambda_resnet_cifar",
        ),
        (("digits", "--set", "model.head_epochs=1"), "needs trained weights to start from"),
    ],
)
def test_contradictions_are_one_sentence(
    inside: Command, trained: Path, asked: list, words: tuple[str, ...], sentence: str
) -> None:
    done = inside("train", *(word.replace("RUN", str(trained)) for word in words))
    assert done.returncode == 2
    assert sentence.replace("RUN", str(trained)) in done.stderr
    assert done.stderr.count("\n") == 1
    assert not asked


def test_a_finished_run_is_trained_longer(inside: Command, trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained, tmp_path / "run")
    assert "a larger --epochs trains it longer" in inside("train", "--resume", folder).stdout
    done = inside("train", "--resume", folder, "--epochs", 3)
    assert done.returncode == 0, done.stderr
    assert "3 epochs instead of 2: the next steps have the learning rates of a run of 3 epochs" in done.stdout
    assert "epoch 3/3" in done.stdout
    done = inside("train", "--resume", folder, "--epochs", 1)
    assert done.returncode == 1
    assert f"the run in {folder} has done 3 epochs already, more than engine.epochs=1" in done.stderr
    assert "nothing to resume" not in done.stdout


@pytest.mark.parametrize("same", [False, True])
def test_another_split_of_the_same_data_is_reported(
    inside: Command, trained: Path, tmp_path: Path, same: bool
) -> None:
    stored = json.loads((trained / "config.json").read_text())
    settings = (
        (f"data.val_fraction={stored['data']['val_fraction']}", f"seed={stored['seed']}") if same else ()
    )
    limits = ("engine.max_batches=1", "engine.max_val_batches=1", "engine.loggers=none", "engine.threads=1")
    words = [word for each in (*settings, *limits) for word in ("--set", each)]
    done = inside(
        "train", "finetune", "--weights", trained, "--data", "digits", "--epochs", 1, *words,
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    warning = (
        f"warning: the run in {trained} split the same data in another way (data.val_fraction was 0.05, now "
        "0.1; seed was 3, now 0): its weights may have been trained on validation images of this run"
    )
    assert (warning in done.stdout, "--set data.val_fraction=0.05 --set seed=3 takes" in done.stdout) == (
        not same,
        not same,
    )
