"""`lambdanets train`: a recipe, changed here and there, to a finished run folder."""

import os
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from shlex import quote
from typing import Annotated

import torch
from tyro import conf

from lambdanets.cli.errors import UsageError, check_name, usage
from lambdanets.cli.options import shown
from lambdanets.models import create_model
from lambdanets.recipes import get_recipe, list_recipes
from lambdanets.train import ModelConfig, RunConfig, load_config, override

STARTED = "LAMBDANETS_STARTED"  # tells the processes that Lightning starts the name of the one run folder


def run(
    recipe: Annotated[str | None, conf.Positional, shown("RECIPE")] = None,
    *,
    model: Annotated[str | None, shown("NAME", "the recipe's")] = None,
    data: Annotated[str | None, shown("SOURCE", "the recipe's")] = None,
    out: Annotated[Path | None, shown("FOLDER", "runs/DATE-RECIPE")] = None,
    resume: Annotated[Path | None, shown("RUN")] = None,
    epochs: Annotated[int | None, shown("N", "the recipe's")] = None,
    batch_size: Annotated[int | None, shown("N", "the recipe's")] = None,
    seed: Annotated[int | None, shown("N", "the recipe's")] = None,
    devices: Annotated[str | None, shown("N | auto", "the recipe's")] = None,
    num_nodes: Annotated[int | None, shown("N", "the recipe's")] = None,
    set: Annotated[tuple[str, ...], conf.UseAppendAction, shown("PATH=VALUE")] = (),
) -> int:
    """Train a recipe, or continue a run.

    Everything is left in one folder: configuration, metrics, curves, confusion matrix, checkpoints, summary.
    Ctrl-C stops cleanly; `lambdanets train --resume RUN` then continues as if nothing had happened.

    Args:
        recipe: Name of a recipe; `lambdanets list` has them all.
        model: Another model than the recipe's.
        data: Other images: digits, folder:PATH, or a name of timm such as torch/cifar10:PATH.
        out: The run folder.
        resume: A run folder to continue; it needs no recipe.
        epochs: Passes over the training images.
        batch_size: Images in a step of one process.
        seed: Of everything random.
        devices: Devices per node.
        num_nodes: Nodes.
        set: Any other field of the configuration, such as optimizer.lr=0.8; may be repeated.
    """
    if resume is not None and out is not None:
        raise UsageError("--out and --resume name the same folder: a resumed run stays in its own.")
    if recipe is None and resume is None:
        raise UsageError(f"name a recipe ({', '.join(list_recipes())}) or a run to --resume.")
    if recipe is not None:
        check_name("recipe", recipe, list_recipes())
    shortcuts = {
        "data.source": data,
        "data.batch_size": batch_size,
        "engine.epochs": epochs,
        "engine.devices": devices,
        "engine.num_nodes": num_nodes,
        "seed": seed,
    }
    changes = [f"{path}={value}" for path, value in shortcuts.items() if value is not None] + [*set]
    config = None
    if recipe is not None or changes or model is not None:
        base = get_recipe(recipe) if recipe is not None else load_config(Path(resume or "", "config.json"))
        with usage():
            config = override(_with_model(base, model), *changes)
            _check_model(config.model)
    directory = resume or out or _new_directory(recipe or "")

    from lightning.pytorch.utilities import rank_zero_only

    from lambdanets.train import train

    try:
        result = train(config, run_dir=directory, resume=resume is not None)
    except KeyboardInterrupt:
        # Before the first step; from there on training itself stops cleanly and says how to go on.
        if (directory / "config.json").exists():
            hint = f"lambdanets train --resume {quote(str(directory))}"
            print(f"lambdanets: stopped. Continue with: {hint}", file=sys.stderr)
        raise
    finally:
        os.environ.pop(STARTED, None)
    if rank_zero_only.rank == 0:
        hint = f"lambdanets predict {quote(str(directory))} --samples 20"
        print(f"\n{result.summary.rstrip()}\n\nSee what it learned: {hint}")
    return 0


def _with_model(config: RunConfig, name: str | None) -> RunConfig:
    """The options of a recipe's model mean nothing to another one."""
    if name is None or name == config.model.name:
        return config
    return replace(config, model=ModelConfig(name=name))


def _check_model(config: ModelConfig) -> None:
    """Build the model without memory: a wrong name or option should be told before the images are read."""
    try:
        options = {**config.options, "pretrained": False}
        with torch.device("meta"):
            create_model(config.name, **options)
    except TypeError as error:
        raise UsageError(f"model.options do not fit {config.name!r}: {error}") from error


def _new_directory(recipe: str) -> Path:
    processes = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1)
    if processes > 1 and STARTED not in os.environ:
        # Every process would name the folder by its own clock.
        raise UsageError(f"{processes} processes were launched: name the run folder with --out runs/NAME.")
    started = os.environ.setdefault(STARTED, f"{datetime.now():%Y-%m-%d-%H%M%S}")
    return Path("runs") / f"{started}-{recipe}"
