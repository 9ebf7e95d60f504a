"""A run on the Hugging Face hub: its folder there, with a model card, and the upload."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from safetensors import safe_open

from lambdanets.models import save_for_hub
from lambdanets.train.checkpoint import save_weights, write_text
from lambdanets.train.config import RunConfig, dump_config
from lambdanets.train.errors import RunError
from lambdanets.train.run import Run, RunFiles
from lambdanets.utils.text import first_line, join_some, json_text

CARD = """\
---
library_name: {library}
pipeline_tag: {pipeline}
tags:
{tags}
---
# {title}

`{model}`, {kind} with {parameters:,} parameters and {classes}, trained with lambdanets.

## Use

{use}

| | |
|---|---|
{facts}

## Training

Recipe `{recipe}`, {epochs} epochs, seed {seed}{data}. {figures}

## {heading}

{names}
"""
FIGURES = """\
The figures are those of
epoch {number} on the validation data{chosen}. They say nothing about data of another origin.

| validation | |
|---|---:|
{rows}"""
TIMM_USE = """\
```python
import lambdanets  # registers the model in timm
import timm

model = timm.create_model("hf-hub:{repository}", pretrained=True).eval()
```

`timm.data.create_transform(**timm.data.resolve_data_config(model=model))` prepares an image:"""
RUN_USE = """\
```
hf download {repository} --local-dir {folder}
lambdanets {use}
lambdanets train {recipe} --weights hf-hub:{repository} --data {source}    # a new run from these weights
```

The downloaded folder is that of a run, without its data. The inputs have this form:"""


def model_card(run: Run[Any], repository: str, which: Literal["best", "last"] = "best") -> str:
    """Return the text of the model card of a run: use, training, validation figures and classes.

    Args:
        run: The run.
        repository: OWNER/NAME of the repository.
        which: Weights of the best or of the last epoch.

    Raises:
        RunError: No epoch has ended yet.
    """
    config, data, hub = run.config, run.config.data.resolved(), run.config.HUB
    row = _row(run, which)
    network = config.network(len(run.classes), loads_weights=True)
    title = repository.rpartition("/")[2]
    names = {"repository": repository, "folder": title, "recipe": config.recipe, "source": hub.source}
    if isinstance(config, RunConfig):
        library, use = "timm", TIMM_USE.format(**names)
        size = "x".join(map(str, (data.in_chans, data.image_size, data.image_size)))
        facts = {
            "input": size, "resizing": data.interpolation, "part of the side that is kept": data.crop_pct,
            "mean": data.mean, "standard deviation": data.std,
        }  # fmt: skip
        if data.multi_label:
            facts["probability of a label"] = "the sigmoid of its logit"
    else:
        library, use = "lambdanets", RUN_USE.format(**names, use=hub.use.format(folder=title))
        facts = {name: getattr(data, name) for name in hub.facts}
    kind = config.WORDING.classes
    return CARD.format(
        library=library,
        pipeline=hub.pipeline,
        tags="\n".join(f"- {tag}" for tag in dict.fromkeys((hub.pipeline, library, "lambdanets"))),
        title=title,
        kind=hub.kind,
        model=config.model.name,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        classes=f"{len(run.classes)} {kind[len(run.classes) > 1]}",
        use=use,
        facts="\n".join(f"| {name} | `{value}` |" for name, value in facts.items()),
        recipe=config.recipe,
        epochs=int(run.history()[-1]["epoch"]),
        seed=config.seed,
        data=_data(run),
        figures=_figures(row, chosen=which == "best"),
        heading=kind[1].capitalize(),
        names=join_some(run.classes, 100, form=_as_code),
    )


def save_run_for_hub(
    run: Run[Any],
    folder: str | Path,
    which: Literal["best", "last"] = "best",
    repository: str = "OWNER/NAME",
) -> Path:
    """Write a run in the format of the hub, with a model card, README.md.

    A classifier of images has the format of timm's models there: weights and timm's config.json. Networks of
    other tasks have that of a run: weights, configuration without paths, and classes or vocabulary.

    Args:
        run: The run.
        folder: The folder; created if missing.
        which: Weights of the best or of the last epoch.
        repository: Name of the repository in the model card.

    Returns:
        The folder.

    Raises:
        RunError: There are no such weights yet, or the folder is that of the run, whose files would change.
    """
    if Path(folder).resolve() == run.directory.resolve():
        raise RunError(f"{folder} is the folder of the run, whose files would be replaced: give another one")
    written, card = Path(folder), model_card(run, repository, which)
    if isinstance(run.config, RunConfig):
        data = run.config.data.resolved()
        images = {
            "input_size": (data.in_chans, data.image_size, data.image_size),
            "mean": data.mean,
            "std": data.std,
            "crop_pct": data.crop_pct,
            "interpolation": data.interpolation,
        }
        save_for_hub(
            run.model(which), written, labels=run.classes, images=images, multi_label=data.multi_label
        )
    else:
        _save_as_run(run, RunFiles(written), which)
    write_text(written / "README.md", card)
    return written


def _save_as_run(run: Run[Any], files: RunFiles, which: Literal["best", "last"]) -> None:
    """Write the files of a run that another machine needs to use its network."""
    weights, config = run.model(which).state_dict(), run.config
    files.directory.mkdir(parents=True, exist_ok=True)
    metadata = config.weights_metadata(run.classes) | {"epoch": str(int(_row(run, which)["epoch"]))}
    save_weights(weights, files.weights, metadata)
    without_paths = replace(
        config, model=replace(config.model, weights=None), data=config.data.without_paths()
    )
    write_text(files.config, dump_config(without_paths))
    write_text(files.classes, json_text(run.classes, indent=1) + "\n")
    if run.files.image_sizes.exists():
        write_text(files.image_sizes, run.files.image_sizes.read_text(encoding="utf-8"))


def push_to_hub(
    run: Run[Any],
    repository: str,
    *,
    which: Literal["best", "last"] = "best",
    private: bool = False,
) -> str:
    """Upload a run with its model card to the Hugging Face hub; the repository is created if needed.

    Args:
        run: The run.
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


def _figures(row: dict[str, float], *, chosen: bool) -> str:
    """Return the validation figures of an epoch as a table, with a sentence on them."""
    names = [name for name in row if name.startswith("val_")]
    if not names:
        return f"Epoch {int(row['epoch'])}, whose weights these are, was not validated."
    return FIGURES.format(
        number=int(row["epoch"]),
        chosen=", by which this epoch was chosen" if chosen else "",
        rows="\n".join(f"| {name.removeprefix('val_')} | {row[name]:.4f} |" for name in names),
    )


def _as_code(name: str) -> str:
    """Return the name of a class or token as code in Markdown; blank and unprintable ones as Python's."""
    return f"`{name}`" if name.isprintable() and name.strip() and "`" not in name else f"`` {name!r} ``"


def _data(run: Run[Any]) -> str:
    """Return the data of a run from its summary, to follow the settings; "" before its end."""
    if not run.files.summary.exists():
        return ""
    lines = run.files.summary.read_text(encoding="utf-8").splitlines()
    text = next((line for line in lines if line.startswith("data ")), "")
    # Without the source, which may be a path of this machine.
    found = text.removeprefix("data").strip().removeprefix(f"{run.config.data.source}: ")
    return f", on {found}" if found else ""


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
