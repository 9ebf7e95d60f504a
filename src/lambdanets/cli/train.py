"""`lambdanets train`: trains a recipe, or continues a run."""

import os
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from shlex import quote
from typing import Annotated

from tyro import conf

from lambdanets.cli.errors import UsageError, check_name
from lambdanets.cli.options import shown
from lambdanets.utils.text import printable_lines

STARTED = "LAMBDANETS_STARTED"  # time in the name of the run folder, for the processes that Lightning starts


def run(
    recipe: Annotated[str | None, conf.Positional, shown("RECIPE")] = None,
    *,
    model: Annotated[str | None, shown("NAME", "the recipe's")] = None,
    data: Annotated[str | None, shown("SOURCE", "the recipe's")] = None,
    out: Annotated[Path | None, shown("FOLDER", "runs/DATE-RECIPE")] = None,
    resume: Annotated[Path | None, shown("RUN")] = None,
    weights: Annotated[str | None, shown("RUN | FILE | hf-hub:OWNER/NAME | pretrained")] = None,
    config: Annotated[Path | None, shown("FILE")] = None,
    epochs: Annotated[int | None, shown("N", "the recipe's")] = None,
    batch_size: Annotated[int | None, shown("N", "the recipe's")] = None,
    seed: Annotated[int | None, shown("N", "the recipe's")] = None,
    devices: Annotated[str | None, shown("N | auto", "the recipe's")] = None,
    num_nodes: Annotated[int | None, shown("N", "the recipe's")] = None,
    set: Annotated[tuple[str, ...], conf.UseAppendAction, shown("PATH=VALUE")] = (),
) -> int:
    """Train a recipe, or continue a run.

    The folder of a run has its configuration, metrics, curves, checkpoints and summary; that of a classifier
    also a confusion matrix, with a sheet of spectrograms if it classifies recordings, that of a detector a
    sheet of its detections, that of a language model texts that it wrote. Ctrl-C saves the run and stops it;
    `lambdanets train --resume RUN` continues it with the same results as if it had not been stopped.

    Args:
        recipe: Name of a recipe; `lambdanets list` lists them.
        model: Model to train.
        data: Data source: digits, folder:PATH, tar:PATH, torch/cifar10:PATH, ... (`lambdanets list`
            lists the kinds); for a detector coco:FOLDER or coco:ANNOTATIONS.json; for recordings
            audio:FOLDER; for a language model text:FILE or text:FOLDER.
        out: Folder of the run.
        resume: Folder of a run to continue, with its own configuration and without a recipe. A larger
            --epochs trains it longer, also after its end.
        weights: Trained weights to start from: a run, a file, a model on the Hugging Face hub, or
            timm's of the model. They also give the model, if --model does not, and the form of
            the images. Without a recipe a new run has the configuration of RUN.
        config: Train a new run with the configuration in a file, a run's config.json, instead of a recipe.
        epochs: Passes over the training data; with data.windows, that many windows of text.
        batch_size: Images, recordings or windows of text in a batch of one device.
        seed: Seed of all random numbers.
        devices: Number of devices of a node.
        num_nodes: Number of nodes.
        set: Any other field of the configuration, such as optimizer.lr=0.8; may be repeated.
            `lambdanets train RECIPE --help` lists all of them.
    """
    # --help must not wait for PyTorch.
    from lambdanets.cli.run_settings import make_settings, next_step, train_function
    from lambdanets.recipes import list_recipes

    if resume is not None and out is not None:
        raise UsageError("--out and --resume exclude each other: a resumed run stays in its folder.")
    if out is not None and out.exists() and not out.is_dir():
        raise UsageError(f"--out is the folder of the run, and {out} is a file.")
    if resume is not None and weights is not None:
        raise UsageError("--weights and --resume exclude each other: a resumed run has its own weights.")
    if config is not None and (recipe is not None or resume is not None):
        other = "--resume" if recipe is None else f"the recipe {recipe}"
        raise UsageError(f"--config and {other} exclude each other: each is a whole configuration.")
    if recipe is None and resume is None and config is None and weights is None:
        recipes = ", ".join(list_recipes())
        raise UsageError(f"name a recipe ({recipes}), a run to --resume, or a run's config.json as --config.")
    if recipe is not None:
        check_name("recipe", recipe, list_recipes())
    shortcuts = {
        "data.source": ("--data", data),
        "data.batch_size": ("--batch-size", batch_size),
        "engine.epochs": ("--epochs", epochs),
        "engine.devices": ("--devices", devices),
        "engine.num_nodes": ("--num-nodes", num_nodes),
        "seed": ("--seed", seed),
    }
    shortcuts = {path: pair for path, pair in shortcuts.items() if pair[1] is not None}
    for change in set:
        path = change.partition("=")[0].strip()
        if path in shortcuts:
            raise UsageError(f"{shortcuts[path][0]} and --set {path} are the same; keep one.")
    changes = [f"{path}={value}" for path, (_, value) in shortcuts.items()] + [*set]
    settings, taken = None, ""
    if resume is None or recipe is not None or changes or model is not None:
        settings, taken = make_settings(recipe, resume, config, weights=weights, model=model, changes=changes)
    directory = resume or out or _new_directory(settings.recipe if settings else "")

    from lightning.pytorch.utilities import rank_zero_only

    if taken and rank_zero_only.rank == 0:
        print(printable_lines(taken))
    train = train_function(settings, resume)
    try:
        result = train(settings, run_dir=directory, resume=resume is not None)
    except KeyboardInterrupt:
        # Ctrl-C before the first step; afterwards training itself prints the command to continue.
        if (directory / "config.json").exists():
            hint = f"lambdanets train --resume {quote(str(directory))}"
            print(printable_lines(f"lambdanets: stopped. Continue with: {hint}"), file=sys.stderr)
        raise
    finally:
        os.environ.pop(STARTED, None)
    if rank_zero_only.rank == 0:
        print(printable_lines(f"\n{result.summary.rstrip()}\n\nSee its results: {next_step(directory)}"))
    return 0


def help_more(words: Sequence[str]) -> None:
    """Print the fields of the recipe that is named beside --help."""
    if named := [word for word in words if not word.startswith("-")]:
        from lambdanets.cli.fields import print_fields
        from lambdanets.recipes import get_recipe, list_recipes

        if named[0] in list_recipes():
            print_fields(get_recipe(named[0]))


def _new_directory(recipe: str) -> Path:
    processes = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1)
    if processes > 1 and STARTED not in os.environ:
        # The processes would start at different times, and so use different names.
        raise UsageError(f"{processes} processes were launched: name the run folder with --out runs/NAME.")
    started = os.environ.setdefault(STARTED, f"{datetime.now():%Y-%m-%d-%H%M%S}")
    return Path("runs") / f"{started}-{recipe}"
