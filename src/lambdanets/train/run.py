"""A run folder: the paths inside it, and its configuration, classes and weights."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal

from torch import Tensor, nn

from lambdanets.models.shipped import find_run
from lambdanets.models.tensor_files import DamagedFileError, read_safetensors
from lambdanets.models.weights import check_finite
from lambdanets.train.config import Config, RunConfig, load_classes, load_config
from lambdanets.train.errors import CheckpointError, RunError
from lambdanets.utils.log import logger


@dataclass(frozen=True)
class RunFiles:
    """The paths inside a run folder; the folder may be moved."""

    directory: Path

    @property
    def lock(self) -> Path:
        """Locked by the training process, and removed at the end."""
        return self.directory / ".lock"

    @property
    def config(self) -> Path:
        return self.directory / "config.json"

    @property
    def classes(self) -> Path:
        return self.directory / "classes.json"

    @property
    def skipped(self) -> Path:
        """Images and annotations that were left out, one sentence per line; missing if there were none."""
        return self.directory / "skipped.txt"

    @property
    def image_sizes(self) -> Path:
        """Image sizes of a detector's training set."""
        return self.directory / "image_sizes.json"

    @property
    def metrics(self) -> Path:
        return self.directory / "metrics.csv"

    @property
    def tensorboard(self) -> Path:
        return self.directory / "tensorboard"

    @property
    def loggers(self) -> Path:
        """Identities of the run in wandb and MLflow, by name; missing if it logs to neither."""
        return self.directory / "loggers.json"

    @property
    def curves(self) -> Path:
        return self.directory / "curves.png"

    @property
    def confusion(self) -> Path:
        return self.directory / "confusion.png"

    @property
    def class_table(self) -> Path:
        """Precision and recall of each class, of a classifier of several labels."""
        return self.directory / "classes.csv"

    @property
    def class_figure(self) -> Path:
        """Average precision of each class, of a classifier of several labels."""
        return self.directory / "classes.png"

    @property
    def sheet(self) -> Path:
        """Contact sheet of a detector: ground truth beside predictions."""
        return self.directory / "sheet.png"

    @property
    def samples(self) -> Path:
        """Texts that a language model wrote, one for each validation."""
        return self.directory / "samples.txt"

    @property
    def precision_recall(self) -> Path:
        return self.directory / "precision_recall.png"

    @property
    def found(self) -> Path:
        """Folder of the detections of the best validation, in COCO's results format."""
        return self.directory / "results"

    @property
    def per_class(self) -> Path:
        return self.directory / "classes.csv"

    @property
    def weights(self) -> Path:
        return self.directory / "weights.safetensors"

    @property
    def summary(self) -> Path:
        return self.directory / "summary.txt"

    @property
    def last(self) -> Path:
        return self.directory / "checkpoints" / "last.ckpt"

    @property
    def previous(self) -> Path:
        return self.directory / "checkpoints" / "previous.ckpt"

    @property
    def best(self) -> Path:
        return self.directory / "checkpoints" / "best.ckpt"

    @property
    def nonfinite(self) -> Path:
        """Folder of the report on a step with a NaN or infinite loss."""
        return self.directory / "nonfinite"

    @property
    def checkpoints(self) -> list[Path]:
        """Checkpoints to continue from, the newest first."""
        return [self.last, self.previous, self.best]

    @property
    def results(self) -> list[Path]:
        """Results of training so far, damaged checkpoints that were set aside included."""
        files = [self.metrics, self.weights, *sorted(self.last.parent.glob("*.ckpt*"))]
        return [file for file in files if file.exists()]


NETWORK, AVERAGE = "network.", "average."  # prefixes of the trained and the averaged weights in a checkpoint


@dataclass(frozen=True)
class Run(Generic[Config]):
    """An opened run folder, finished or not.

    Attributes:
        config: The configuration of the run.
        classes: Class names, in the order of the logits.
        directory: The run folder.
    """

    config: Config
    classes: tuple[str, ...]
    directory: Path

    @property
    def files(self) -> RunFiles:
        """The paths inside the folder."""
        return RunFiles(self.directory)

    def history(self) -> list[dict[str, float]]:
        """Return the rows of `metrics.csv`; empty before the end of the first epoch."""
        if not self.files.metrics.exists():
            return []
        with self.files.metrics.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [{name: float(value) for name, value in row.items() if value} for row in rows]

    def model(self, which: Literal["best", "last"] = "best") -> nn.Module:
        """Return the network in evaluation mode, with the weights of the best or of the last epoch.

        If the run keeps an average of the weights, these are the average's.

        Raises:
            RunError: There are no such weights yet, or they belong to another model or number of classes.
            CheckpointError: The checkpoint is damaged.
            WeightsError: The weights hold NaN or infinity.
        """
        if which not in ("best", "last"):
            raise RunError(f"which is 'best' or 'last'; got {which!r}")
        weights = self._weights(which)
        network = self.config.network(len(self.classes), loads_weights=True)
        load_run_weights(network, weights, self)
        return network.eval()

    def save_for_hub(self, folder: str | Path, which: Literal["best", "last"] = "best") -> Path:
        """Write the network for the Hugging Face hub, with its classes, the form of its inputs and a card.

        A classifier of images is written in timm's format, a network of another task as a run.

        Args:
            folder: The folder; created if missing.
            which: Weights of the best or of the last epoch.

        Returns:
            The folder.

        Raises:
            RunError: There are no such weights yet, or they do not fit.
        """
        from lambdanets.train.hub import save_run_for_hub

        return save_run_for_hub(self, folder, which)

    def push_to_hub(
        self, repository: str, *, which: Literal["best", "last"] = "best", private: bool = False
    ) -> str:
        """Upload what `save_for_hub` writes to the Hugging Face hub; the repository is created if needed.

        Args:
            repository: OWNER/NAME.
            which: Weights of the best or of the last epoch.
            private: Create the repository as a private one.

        Returns:
            The address of the commit.

        Raises:
            RunError: As `save_for_hub`, or the upload failed.
        """
        from lambdanets.train.hub import push_to_hub

        return push_to_hub(self, repository, which=which, private=private)

    def _weights(self, which: str) -> dict[str, Tensor]:
        """Return the weights of the best or last epoch by name, those of the average if the run keeps one."""
        from lambdanets.train.checkpoint import load_checkpoint

        if which == "best" and self.files.weights.exists():
            try:
                return read_safetensors(self.files.weights)
            except DamagedFileError as error:
                if not self.files.best.exists():
                    raise RunError(f"{error}, and there is no {self.files.best}") from error
                logger.warning(f"{error}; the weights come from {self.files.best}")
        path = self.files.best if which == "best" else self.files.last
        if not path.exists():
            if which == "best" and self.files.last.exists():
                raise RunError(
                    f"{self.directory} has no best weights yet: no epoch was validated; --weights last takes "
                    "the newest"
                )
            raise RunError(f"{self.directory} has no {which} weights yet: no epoch has ended")
        try:
            states = load_checkpoint(path)["state_dict"]
        except CheckpointError as error:
            if which == "last" or not self.files.last.exists():
                raise
            raise type(error)(f"{error}; --weights last takes those of the last epoch") from error
        prefix = AVERAGE if any(name.startswith(AVERAGE) for name in states) else NETWORK
        return {name.removeprefix(prefix): value for name, value in states.items() if name.startswith(prefix)}


def load_run_weights(network: nn.Module, weights: dict[str, Tensor], run: Run[Any]) -> None:
    """Load the weights of a run into a network.

    Raises:
        RunError: The weights belong to another model, or to another number of classes.
        WeightsError: The weights hold NaN or infinity.
    """
    mine = network.state_dict()
    shared = [name for name in mine if name in weights]
    if set(mine) != set(weights):
        raise RunError(
            f"the weights in {run.directory} are not of {run.config.model.name!r}: "
            f"{len(set(mine) - set(weights))} of its {len(mine)} tensors are missing and "
            f"{len(set(weights) - set(mine))} are unknown; config.json names another model than was trained"
        )
    wrong = [name for name in shared if mine[name].shape != weights[name].shape]
    if wrong:
        name = wrong[0]
        have, need = tuple(weights[name].shape), tuple(mine[name].shape)
        if len(have) == len(need) and have[1:] == need[1:] and need[0] == len(run.classes):
            raise RunError(
                f"the weights in {run.directory} are for {have[0]} classes, classes.json names {need[0]}; "
                "the folder mixes two runs"
            )
        raise RunError(
            f"the weights in {run.directory} are not of {run.config.model.name!r} with its options: "
            f"{name} has the shape {have}, the model needs {need}"
        )
    check_finite(weights, network, run.directory)
    network.load_state_dict(weights)


def load_run(path: str | Path, kind: type[Config] = RunConfig) -> Run[Config]:
    """Open a run folder.

    Args:
        path: The folder that `train` wrote; it may have been moved. Or the name of a trained network in the
            package.
        kind: The configuration class of the run's task.

    Raises:
        RunError: The folder is not a run, or its configuration or classes cannot be read.

    Example:
        >>> load_run("runs/digits").model()
    """
    directory = find_run(path)
    files = RunFiles(directory)
    if not directory.is_dir():
        raise RunError(f"{directory} is no run: there is no such folder")
    missing = [file.name for file in (files.config, files.classes) if not file.is_file()]
    if missing:
        raise RunError(f"{directory} is no run: it has no {' and no '.join(missing)}")
    return Run(load_config(files.config, kind), load_classes(files.classes), directory)
