from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lambdanets.models import create_model
from lambdanets.recipes import get_recipe, list_recipes, miniature
from lambdanets.train import RunConfig, from_json, load_run, to_json
from lambdanets.train.engine import train


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
    assert list_recipes() == ["digits", "cifar", "folder"]
    for name in list_recipes():
        assert get_recipe(name).recipe == name


def test_an_unknown_recipe_is_told_with_its_nearest() -> None:
    with pytest.raises(ValueError, match="there is no recipe 'digit'; did you mean 'digits'"):
        get_recipe("digit")
    with pytest.raises(ValueError, match="known: digits, cifar, folder"):
        get_recipe("xyz")


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_names_a_model_that_exists(name: str) -> None:
    config = get_recipe(name)
    create_model(config.model.name, device="meta", in_chans=config.data.in_chans, **config.model.options)
    assert from_json(RunConfig, to_json(config)) == config


@pytest.mark.parametrize("name", list_recipes())
def test_a_miniature_runs(name: str, photos: Path, tmp_path: Path) -> None:
    config = miniature(get_recipe(name))
    if name != "digits":
        config = replace(config, data=replace(config.data, source=f"folder:{photos}"))
    result = train(config, run_dir=tmp_path / "run")
    assert [row["epoch"] for row in result.history] == [1, 2]
    assert all(np.isfinite(row["train_loss"]) for row in result.history)
    run = load_run(tmp_path / "run")
    assert len(run.classes) == (10 if name == "digits" else 2)
    run.model()
