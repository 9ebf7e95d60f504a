"""`lambdanets push`: a run with its model card on the Hugging Face hub, or in a folder of its form."""

from pathlib import Path
from typing import Annotated, Literal

from tyro import conf

from lambdanets.cli.console import stderr, stdout
from lambdanets.cli.errors import UsageError
from lambdanets.cli.options import shown
from lambdanets.cli.tasks import run_verb, task_of


def run(
    run: Annotated[Path, conf.Positional, shown("RUN")],
    repository: Annotated[str | None, conf.Positional, shown("OWNER/NAME")] = None,
    *,
    folder: Annotated[Path | None, shown("FOLDER")] = None,
    private: bool = False,
    weights: Literal["best", "last"] = "best",
) -> int:
    """Upload a run with a model card to the Hugging Face hub, or write the folder alone.

    It needs a token of the hub: `hf auth login`, or the variable HF_TOKEN. hf-hub:OWNER/NAME then gives the
    weights of another run with --weights. A classifier of images also opens in timm under this name, after
    `import lambdanets`; networks of other tasks are uploaded as runs, without paths, and the other commands
    take the downloaded folder.

    Args:
        run: Folder of a run.
        repository: Repository on the hub, which is created if it does not exist.
        folder: Write the files to a folder, to look at them, instead of uploading them.
        private: Create the repository as a private one.
        weights: Weights of the run's best epoch by validation, or of its last epoch.
    """
    if (repository is None) == (folder is None):
        raise UsageError("name a repository OWNER/NAME, or a --folder to write to, but not both.")
    if repository is not None and (repository.count("/") != 1 or not all(repository.split("/"))):
        raise UsageError(f"a repository is OWNER/NAME, not {repository!r}.")
    if folder is not None and private:
        raise UsageError("--private is for an upload, and --folder writes to a folder.")
    return run_verb("push", run, repository=repository, folder=folder, private=private, weights=weights)


def push_run(
    run: Path,
    *,
    repository: str | None,
    folder: Path | None,
    private: bool,
    weights: Literal["best", "last"],
) -> int:
    """Upload a run of any task; the arguments are those of `lambdanets push`."""
    from lambdanets.train import RunConfig, load_run

    opened = load_run(run, task_of(run).config_class())
    if folder is not None:
        stdout().print(f"written: {opened.save_for_hub(folder, weights)}", soft_wrap=True)
    else:
        stdout().print(opened.push_to_hub(repository or "", which=weights, private=private), soft_wrap=True)
    if isinstance(opened.config, RunConfig) and (channels := opened.config.data.in_chans) != 3:
        stderr().print(
            f"lambdanets: the model takes images of {channels} channel{'s' * (channels != 1)}: timm and "
            "lambdanets open it; the pipeline of transformers, which converts images to RGB, does not."
        )
    return 0
