"""The configuration of a run for `lambdanets train`, checked before the data are read."""

from collections.abc import Callable, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import torch

from lambdanets.cli.errors import UsageError, as_usage_error, usage
from lambdanets.cli.tasks import TASKS, task_of
from lambdanets.data.sources import find_source
from lambdanets.models.shipped import find_run
from lambdanets.models.weight_files import PRETRAINED, WEIGHTS_FORMS
from lambdanets.models.weights import weights_for
from lambdanets.recipes import find_recipe, get_recipe, list_recipes
from lambdanets.train import load_config, override
from lambdanets.train.config import BaseConfig, RunConfig, config_task
from lambdanets.train.initial_weights import start_from
from lambdanets.train.launch import rank_and_world_size
from lambdanets.train.optim import create_optimizer


def make_settings(
    recipe: str | None,
    resume: Path | None,
    file: Path | None,
    *,
    weights: str | None,
    model: str | None,
    changes: Sequence[str],
) -> tuple[BaseConfig, str]:
    """Return the configuration of a run, changed by the options, and a line on what it has from its weights.

    Args:
        recipe: Name of a recipe.
        resume: Folder of a run to continue.
        file: A configuration, in the form of a run's config.json.
        weights: Trained weights to start from; without a recipe and a file, a run, whose configuration is
            taken.
        model: Name of another model.
        changes: Fields in the form of `--set`.

    Raises:
        UsageError: An option does not fit, or the recipe needs data that are not there.
    """
    base, taken = _base(recipe, resume, file, weights), ""
    with usage():
        settings = override(base if model is None else base.with_model(model), *changes)
        if resume is None:
            settings, taken = _with_weights(settings, weights, changes, keeps_model=model is not None)
            if settings.model.weights is None and recipe is not None and find_recipe(recipe).needs_weights:
                raise UsageError(
                    f"the recipe {recipe} needs trained weights: add --weights with {WEIGHTS_FORMS}."
                )
        _check_parts(settings, starts=resume is None)
    own = recipe is not None and resume is None and settings.data.source == base.data.source
    # Of several processes one alone may lack the data: training itself reports that to all.
    if own and rank_and_world_size()[1] == 1:
        _check_own_data(settings)
    return settings, taken


def train_function(settings: BaseConfig | None, run: Path | None) -> Callable[..., Any]:
    """Return the function that trains a configuration, or without one continues a run."""
    return (task_of(run) if settings is None else TASKS[settings.TASK]).train_function()


def next_step(run: Path) -> str:
    """Return the command that shows results of a run."""
    return f"lambdanets {task_of(run).next_step(quote(str(run)), _stored(run, None))}"


def _base(recipe: str | None, resume: Path | None, file: Path | None, weights: str | None) -> BaseConfig:
    """Return the configuration that the options change: that of a run, a file or a recipe."""
    if resume is not None:
        return _stored(resume, recipe)
    if recipe is not None:
        return get_recipe(recipe)
    if file is None:
        run = find_run(weights or "")
        if not (run / "config.json").is_file() or not (run / "classes.json").is_file():
            raise UsageError(
                f"name a recipe ({', '.join(list_recipes())}): {weights} is no run, so it has no "
                "configuration for a new one."
            )
        return _stored(run, None)
    if file.is_dir():
        raise UsageError(f"--config is a file, such as {file / 'config.json'}, and {file} is a folder.")
    task = TASKS.get(config_task(file) or "", TASKS[RunConfig.TASK])
    return load_config(file, task.config_class())


def _with_weights(
    config: BaseConfig, weights: str | None, changes: Sequence[str], *, keeps_model: bool
) -> tuple[BaseConfig, str]:
    """Return the configuration with the settings of its initial weights, and a line that lists these."""
    given = [path.strip() for path, _, _ in (change.partition("=") for change in changes)]
    if weights is not None and "model.weights" in given:
        raise UsageError("--weights and --set model.weights are the same; keep one.")
    weights = weights or config.model.weights
    if weights is None:
        return config, ""
    return start_from(config, weights, given=[*given, *["model.name"] * keeps_model])


def _check_own_data(config: BaseConfig) -> None:
    """Raise UsageError if a recipe needs the user's data and none are where its example expects them."""
    source = find_source(config.data.source)
    if source is not None and source.layout and not Path(source.root).expanduser().exists():
        raise UsageError(
            f"the recipe {config.recipe} needs your data: "
            f"lambdanets train {config.recipe} --data {source.form}, where PATH is {source.layout}."
        )


def _stored(run: Path, recipe: str | None) -> BaseConfig:
    config = load_config(run / "config.json", task_of(run).config_class())
    if recipe is not None and recipe != config.recipe:
        raise UsageError(f"{run} is a run of the recipe {config.recipe!r}, not of {recipe!r}.")
    return config


def _check_parts(config: BaseConfig, *, starts: bool) -> None:
    """Build and run network and optimiser on the meta device, and check the initial weights of a new run.

    A wrong name, option, size or file of weights is then reported before the data are read.
    """
    name = config.model.name
    if starts:
        config.check_start()
    with torch.device("meta"):
        with as_usage_error(f"model.options do not fit {name!r}"):
            network: Any = config.network(2, loads_weights=True)
        if (example := config.example_input()) is not None:
            inputs, tensor = example
            with as_usage_error(f"{name!r} cannot take {inputs}"), torch.no_grad():
                network.eval()(tensor)
        create_optimizer(network, config.optimizer)
    weights = config.model.weights
    if starts and weights not in (None, PRETRAINED):
        part = config.pretrained_part(network)
        if part is not None:
            weights_for(part, weights, head="replace")
