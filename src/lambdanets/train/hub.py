"""A run on the Hugging Face hub: its folder there, with a model card, and the upload."""

import tempfile
from pathlib import Path
from typing import Any, Literal

from safetensors import safe_open

from lambdanets.models import save_for_hub
from lambdanets.train.checkpoint import write_text
from lambdanets.train.config import RunConfig
from lambdanets.train.errors import RunError
from lambdanets.train.run import Run
from lambdanets.utils.text import first_line, join_some

CARD = """\
---
library_name: timm
pipeline_tag: image-classification
tags:
- image-classification
- timm
- lambdanets
---
# {title}

`{model}`, an image classifier with {parameters:,} parameters and {classes}, trained with lambdanets.

## Use

```python
import lambdanets  # registers the model in timm
import timm

model = timm.create_model("hf-hub:{repository}", pretrained=True).eval()
```

`timm.data.create_transform(**timm.data.resolve_data_config(model=model))` prepares an image:

| | |
|---|---|
{facts}

## Training

Recipe `{recipe}`, {epochs} epochs, seed {seed}. The figures are those of epoch {number} on the validation
images{chosen}. They say nothing about images of another origin.

{metrics}

## Classes

{names}
"""


def model_card(run: Run[Any], repository: str, which: Literal["best", "last"] = "best") -> str:
    """Return the text of the model card of a run: use, training, validation figures and classes.

    Args:
        run: The run.
        repository: OWNER/NAME of the repository.
        which: Weights of the best or of the last epoch.

    Raises:
        RunError: No epoch has ended yet.
    """
    config, data = run.config, run.config.data.resolved()
    row = _row(run, which)
    network = config.network(len(run.classes), loads_weights=True)
    size = "x".join(map(str, (data.in_chans, data.image_size, data.image_size)))
    facts = {
        "input": size, "resizing": data.interpolation, "part of the side that is kept": data.crop_pct,
        "mean": data.mean, "standard deviation": data.std,
    }  # fmt: skip
    if data.multi_label:
        facts["probability of a label"] = "the sigmoid of its logit"
    figures = {name.removeprefix("val_"): row[name] for name in row if name.startswith("val_")}
    return CARD.format(
        title=repository.rpartition("/")[2],
        repository=repository,
        model=config.model.name,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        classes=f"{len(run.classes)} classes",
        facts="\n".join(f"| {name} | `{value}` |" for name, value in facts.items()),
        recipe=config.recipe,
        epochs=int(run.history()[-1]["epoch"]),
        seed=config.seed,
        number=int(row["epoch"]),
        chosen=", by which this epoch was chosen" if which == "best" else "",
        metrics="\n".join(
            ["| validation | |", "|---|---:|", *(f"| {name} | {figures[name]:.4f} |" for name in figures)]
        ),
        names=join_some(run.classes, 100, form=lambda name: f"`{name}`"),
    )


def save_run_for_hub(
    run: Run[Any],
    folder: str | Path,
    which: Literal["best", "last"] = "best",
    repository: str = "OWNER/NAME",
) -> Path:
    """Write a classifier in the format of the hub: weights, timm's config.json, and a model card, README.md.

    Args:
        run: A run of image classification.
        folder: The folder; created if missing.
        which: Weights of the best or of the last epoch.
        repository: Name of the repository in the model card.

    Returns:
        The folder.

    Raises:
        RunError: There are no such weights yet, or the run is of another task.
    """
    if not isinstance(run.config, RunConfig):
        raise RunError(f"the hub's format is for image classifiers, and {run.directory} is none")
    data = run.config.data.resolved()
    images = {
        "input_size": (data.in_chans, data.image_size, data.image_size),
        "mean": data.mean,
        "std": data.std,
        "crop_pct": data.crop_pct,
        "interpolation": data.interpolation,
    }
    card = model_card(run, repository, which)
    written = save_for_hub(
        run.model(which), folder, labels=run.classes, images=images, multi_label=data.multi_label
    )
    write_text(written / "README.md", card)
    return written


def push_to_hub(
    run: Run[Any],
    repository: str,
    *,
    which: Literal["best", "last"] = "best",
    private: bool = False,
) -> str:
    """Upload a classifier with its model card to the Hugging Face hub; the repository is created if needed.

    Args:
        run: A run of image classification.
        repository: OWNER/NAME.
        which: Weights of the best or of the last epoch.
        private: Create the repository as a private one.

    Returns:
        The address of the commit.

    Raises:
        RunError: There are no such weights yet, or the upload failed.
    """
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as temporary:
        folder = save_run_for_hub(run, Path(temporary), which, repository)
        api = HfApi()
        try:
            api.create_repo(repository, private=private, exist_ok=True)
            title = f"{run.config.model.name}, {which} epoch"
            commit: Any = api.upload_folder(repo_id=repository, folder_path=folder, commit_message=title)
        except Exception as error:  # the classes of its HTTP library differ between versions
            raise RunError(f"{repository} cannot be uploaded: {first_line(error)}") from error
    return str(commit)


def _row(run: Run[Any], which: str) -> dict[str, float]:
    """Return the row of metrics.csv that belongs to the weights of the best or of the last epoch."""
    history = run.history()
    if not history:
        raise RunError(f"{run.directory} has no results yet: no epoch has ended")
    if which == "last" or not run.files.weights.exists():
        return history[-1]
    with safe_open(run.files.weights, framework="pt") as file:
        epoch = int(file.metadata()["epoch"])
    return next(row for row in history if row["epoch"] == epoch)
