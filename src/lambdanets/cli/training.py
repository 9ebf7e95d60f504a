"""`lambdanets train`: a recipe, changed here and there, to a finished run folder."""

import os
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import torch
from tyro import conf

from lambdanets.cli.errors import UsageError, check_name, impossible, usage
from lambdanets.cli.options import shown
from lambdanets.data.sources import find_source
from lambdanets.data.sources.protocol import StreamedSource
from lambdanets.detection import DetectionConfig
from lambdanets.models.weights import weights_for
from lambdanets.recipes import get_recipe, list_recipes
from lambdanets.train import RunConfig, load_config, override
from lambdanets.train.config import stored_task
from lambdanets.train.optim import create_optimizer
from lambdanets.wording import printable_lines

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

    Everything is left in one folder: configuration, metrics, curves, checkpoints, summary; of a classifier
    its confusion matrix, of a detector what it found.
    Ctrl-C stops cleanly; `lambdanets train --resume RUN` then continues as if nothing had happened.

    Args:
        recipe: Name of a recipe; `lambdanets list` has them all.
        model: Another model than the recipe's.
        data: Other images: digits, folder:PATH, tar:PATH, torch/cifar10:PATH, ... (`lambdanets list`); for
            a detector coco:FOLDER or coco:ANNOTATIONS.json.
        out: The run folder.
        resume: A run folder to continue; it needs no recipe and keeps its own configuration.
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
        base = _stored(resume, recipe) if resume is not None else get_recipe(recipe or "")
        with usage():
            config = override(base if model is None else base.with_model(model), *changes)
            _check_parts(config, starts=resume is None)
    directory = resume or out or _new_directory(recipe or "")

    from lightning.pytorch.utilities import rank_zero_only

    train = _train(config, resume)
    try:
        result = train(config, run_dir=directory, resume=resume is not None)
    except KeyboardInterrupt:
        # Before the first step; from there on training itself stops cleanly and says how to go on.
        if (directory / "config.json").exists():
            hint = f"lambdanets train --resume {quote(str(directory))}"
            print(printable_lines(f"lambdanets: stopped. Continue with: {hint}"), file=sys.stderr)
        raise
    finally:
        os.environ.pop(STARTED, None)
    if rank_zero_only.rank == 0:
        print(printable_lines(f"\n{result.summary.rstrip()}\n\nSee what it learned: {next_step(directory)}"))
    return 0


def next_step(run: Path) -> str:
    """The command that shows what a run learned; samples cannot be picked from a stream."""
    name = quote(str(run))
    if isinstance(find_source(_stored(run, None).data.source), StreamedSource):
        return f"lambdanets eval {name}"
    return f"lambdanets predict {name} --samples 20"


def _train(config: RunConfig | DetectionConfig | None, run: Path | None) -> Callable[..., Any]:
    """The function that trains what a configuration describes, or the one in the folder of a run."""
    task = config.TASK if config is not None else stored_task(run) if run is not None else None
    if task == DetectionConfig.TASK:
        from lambdanets.detection import train
    else:
        from lambdanets.train import train
    return train


def _stored(run: Path, recipe: str | None) -> RunConfig | DetectionConfig:
    kind = DetectionConfig if stored_task(run) == DetectionConfig.TASK else RunConfig
    config = load_config(run / "config.json", kind)
    if recipe is not None and recipe != config.recipe:
        raise UsageError(f"{run} is a run of the recipe {config.recipe!r}, not of {recipe!r}.")
    return config


def _check_parts(config: RunConfig | DetectionConfig, *, starts: bool) -> None:
    """Build network and optimiser, and run it, without memory; for a new run, look at its weights too.

    A wrong name, option, size or file of weights should be told before the images are read.
    """
    name = config.model.name
    with torch.device("meta"):
        with impossible(f"model.options do not fit {name!r}"):
            network: Any = config.network(2, loads_weights=True)
        if isinstance(config, RunConfig):
            channels, size = config.data.in_chans, config.data.image_size
            with impossible(f"{name!r} cannot take images of {channels} x {size} x {size}"), torch.no_grad():
                network.eval()(torch.empty(1, channels, size, size))
        create_optimizer(network, config.optimizer)
    if starts and config.model.weights is not None:
        trunk = network if isinstance(config, RunConfig) else network.backbone.body
        weights_for(trunk, config.model.weights, head="replace")


def _new_directory(recipe: str) -> Path:
    processes = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1)
    if processes > 1 and STARTED not in os.environ:
        # Every process would name the folder by its own clock.
        raise UsageError(f"{processes} processes were launched: name the run folder with --out runs/NAME.")
    started = os.environ.setdefault(STARTED, f"{datetime.now():%Y-%m-%d-%H%M%S}")
    return Path("runs") / f"{started}-{recipe}"
