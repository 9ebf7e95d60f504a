"""Recipes: their names, their miniatures, and the numbers of the paper."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from torch import nn

from lambdanets import recipes
from lambdanets.audio import AudioConfig
from lambdanets.audio import load_run as load_audio
from lambdanets.audio import train as train_audio
from lambdanets.cli import main
from lambdanets.detection import DetectionConfig
from lambdanets.detection import load_run as load_detector
from lambdanets.detection import train as train_detector
from lambdanets.recipes import get_recipe, list_recipes, miniature, registry
from lambdanets.text import TextConfig, generate
from lambdanets.text import load_run as load_language_model
from lambdanets.text import train as train_language_model
from lambdanets.train import from_json, load_run, override, start_from, to_json
from lambdanets.train.engine import train
from lambdanets.train.optim import create_optimizer
from lambdanets.train.trainer import accumulation_steps
from object_sets import write_objects


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of small pictures, one folder each."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for name, colour in (("sea", (20, 60, 160)), ("sand", (200, 180, 120))):
        (folder / name).mkdir()
        for number in range(12):
            pixels = generator.normal(colour, 20, (40, 48, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def test_the_recipes() -> None:
    assert list_recipes()[:6] == ["audio", "cifar", "coco", "digits", "finetune", "folder"]
    for name in list_recipes():
        assert get_recipe(name).recipe == name


MINE = '''
from lambdanets.recipes import recipe
from lambdanets.train import ModelConfig, RunConfig


@recipe("mine")
def mine() -> RunConfig:
    """My photos.

    Expect: 90 %.
    """
    return RunConfig(recipe="mine", model=ModelConfig(name="lambda_resnet_mini"))
'''


def test_a_recipe_is_added_by_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.setattr(recipes, "__path__", [*recipes.__path__, str(tmp_path)])
    monkeypatch.setattr(registry, "RECIPES", dict(registry.RECIPES))
    registry.import_recipes(recipes.__path__)
    assert list_recipes()[-1] == "mine"
    assert get_recipe("mine").model.name == "lambda_resnet_mini"
    assert recipes.describe("mine").sections == {"Expect": "90 %."}
    assert main(["list", "mine"]) == 0
    assert re.search(r"mine +lambda_resnet_mini", capsys.readouterr().out)


def test_an_unknown_recipe_is_an_error_with_similar_names() -> None:
    with pytest.raises(ValueError, match="there is no recipe 'digit'; did you mean digits"):
        get_recipe("digit")
    with pytest.raises(ValueError, match="known: audio, cifar, coco, digits, finetune, folder"):
        get_recipe("xyz")


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_names_a_model_that_exists(name: str) -> None:
    config = get_recipe(name)
    with torch.device("meta"):
        config.network(10)
    assert from_json(type(config), to_json(config)) == config


@pytest.mark.parametrize("name", list_recipes())
def test_a_miniature_runs(name: str, photos: Path, tmp_path: Path) -> None:
    config = miniature(get_recipe(name))
    if isinstance(config, DetectionConfig):
        detects(config, tmp_path)
        return
    if isinstance(config, AudioConfig):
        hears(config, tmp_path)
        return
    if isinstance(config, TextConfig):
        writes(config, tmp_path)
        return
    if registry.RECIPES[name].needs_weights:
        first = override(miniature(get_recipe("folder")), f"data.source=folder:{photos}")
        train(first, run_dir=tmp_path / "first")
        config, _ = start_from(config, str(tmp_path / "first"))
    if name != "digits":
        config = replace(config, data=replace(config.data, source=f"folder:{photos}"))
    result = train(config, run_dir=tmp_path / "run")
    assert [row["epoch"] for row in result.history] == [1, 2]
    assert all(np.isfinite(row["train_loss"]) for row in result.history)
    assert all(("raw_top1" in row) == name.startswith("imagenet") for row in result.history)
    run = load_run(tmp_path / "run")
    assert len(run.classes) == (10 if name == "digits" else 2)
    run.model()


def detects(config: DetectionConfig, folder: Path) -> None:
    source = write_objects(folder / "objects", train=4, val=3)
    config = replace(config, data=replace(config.data, source=f"coco:{source}"))
    result = train_detector(config, run_dir=folder / "run")
    assert [row["epoch"] for row in result.history] == [1, 2]
    assert all(np.isfinite(row["train_loss"]) for row in result.history)
    load_detector(folder / "run").model()


def hears(config: AudioConfig, folder: Path) -> None:
    sound_sets = pytest.importorskip("sound_sets", reason="soundfile or torchaudio is not installed")
    source = sound_sets.write_tones(folder / "tones", train=6, val=2)
    config = replace(config, data=replace(config.data, source=f"audio:{source}"))
    result = train_audio(config, run_dir=folder / "run")
    assert [row["epoch"] for row in result.history] == [1, 2]
    assert all(np.isfinite(row["train_loss"]) for row in result.history)
    load_audio(folder / "run").model()


def writes(config: TextConfig, folder: Path) -> None:
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 20)
    config = replace(config, data=replace(config.data, source=f"text:{folder / 'text.txt'}"))
    result = train_language_model(config, run_dir=folder / "run")
    assert [row["epoch"] for row in result.history] == [1, 2]
    assert len(load_language_model(folder / "run").classes) == 28
    assert len(list(generate(load_language_model(folder / "run"), tokens=5))) == 6


# Table 20 of the paper: depth, sizes; magnitude of RandAugment, dropout, stochastic depth.
TABLE_20 = (
    (50, (128, 160), 10, 0.2, 0.0),
    (101, (160,), 10, 0.3, 0.0),
    (101, (192,), 15, 0.2, 0.0),
    (152, (192,), 15, 0.3, 0.0),
    (152, (224, 256, 288), 15, 0.3, 0.1),
    (270, (256,), 15, 0.3, 0.1),
    (350, (256, 288, 320), 15, 0.3, 0.2),
    (420, (320,), 15, 0.3, 0.2),
)


def test_350_epochs_are_those_of_table_20() -> None:
    names = [name for name in list_recipes() if name.startswith("imagenet-350-")]
    expected = {
        f"imagenet-350-{depth}@{size}": (depth, size, *rest)
        for depth, sizes, *rest in TABLE_20
        for size in sizes
    }
    assert names == list(expected)
    for name, (depth, size, magnitude, dropout, stochastic_depth) in expected.items():
        config = get_recipe(name)
        assert config.model.name == f"lambda_resnet{depth}"
        assert config.model.options == {"drop_rate": dropout, "drop_path_rate": stochastic_depth}
        assert config.data.image_size == size
        assert (config.engine.epochs, config.optimizer.weight_decay) == (350, 4e-5)
        ops = rand_augment_transform(config.data.augment.rand_augment, {})
        assert len(ops.ops) > 10
        assert ops.num_layers == 2
        assert {(op.magnitude, op.magnitude_max) for op in ops.ops} == {(magnitude, magnitude)}


@pytest.mark.parametrize("name", ["imagenet-90", "imagenet-350-152@224"])
def test_a_step_of_4096_images_starts_at_1_6(name: str) -> None:
    """0.1 x 4096 / 256: appendix E.2, and ResNet-RS."""
    config = get_recipe(name)
    images = config.engine.global_batch or 0
    assert images == 4096
    assert config.optimizer.lr * images / (config.optimizer.lr_batch or 1) == pytest.approx(1.6)
    assert (config.optimizer.momentum, config.schedule.warmup_epochs) == (0.9, 5)
    assert (config.loss.label_smoothing, config.engine.ema) == (0.1, 0.9999)
    for world_size in (1, 8, 32, 64):
        assert accumulation_steps(config, world_size) * world_size * config.data.batch_size == 4096
    optimizer = create_optimizer(nn.Linear(2, 2), config.optimizer)
    assert isinstance(optimizer, torch.optim.SGD)
    assert not optimizer.defaults["nesterov"]
