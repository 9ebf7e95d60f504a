"""A run folder, opened: its configuration, its classes, its weights."""

import csv
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal

from torch import Tensor, nn

from lambdanets.models import save_for_hub
from lambdanets.models.tensor_files import DamagedFileError, read_safetensors
from lambdanets.models.weights import check_finite
from lambdanets.train.config import Config, RunConfig, load_classes, load_config
from lambdanets.train.errors import CheckpointError, RunError
from lambdanets.train.layout import RunFiles
from lambdanets.utils.text import printable

NETWORK, AVERAGE = "network.", "average."  # of the trained weights and their average in a checkpoint


@dataclass(frozen=True)
class Run(Generic[Config]):
    """A finished or unfinished run.

    Attributes:
        config: what the run is a function of.
        classes: names of the classes, in the order of the logits.
        directory: the run folder.
    """

    config: Config
    classes: tuple[str, ...]
    directory: Path

    @property
    def files(self) -> RunFiles:
        """The paths inside the folder."""
        return RunFiles(self.directory)

    def history(self) -> list[dict[str, float]]:
        """The rows of `metrics.csv`; empty before the first epoch has ended."""
        if not self.files.metrics.exists():
            return []
        with self.files.metrics.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [{name: float(value) for name, value in row.items() if value} for row in rows]

    def model(self, which: Literal["best", "last"] = "best") -> nn.Module:
        """The network in evaluation mode, with the weights of the best or of the last epoch.

        Where the run keeps an average of the weights, these are the average's.

        Raises:
            RunError: there are no such weights yet, or they are of another model or number of classes.
            CheckpointError: the checkpoint is damaged.
            WeightsError: the weights hold NaN or infinity.
        """
        if which not in ("best", "last"):
            raise RunError(f"which is 'best' or 'last'; got {which!r}")
        weights = self._weights(which)
        network = self.config.network(len(self.classes), loads_weights=True)
        fit_weights(network, weights, self)
        return network.eval()

    def save_for_hub(self, folder: str | Path, which: Literal["best", "last"] = "best") -> Path:
        """Write the network as `lambdanets.models.save_for_hub` does, with the run's classes and images.

        Args:
            folder: where; made if it is not there.
            which: the weights of the best or of the last epoch.

        Returns:
            The folder.

        Raises:
            RunError: there are no such weights yet, or they do not fit.
        """
        data = self.config.data.resolved()
        images = {
            "input_size": (data.in_chans, data.image_size, data.image_size),
            "mean": data.mean,
            "std": data.std,
            "crop_pct": data.crop_pct,
            "interpolation": data.interpolation,
        }
        return save_for_hub(self.model(which), folder, labels=self.classes, images=images)

    def _weights(self, which: str) -> dict[str, Tensor]:
        from lambdanets.train.checkpoint import load_checkpoint

        if which == "best" and self.files.weights.exists():
            try:
                return read_safetensors(self.files.weights)
            except DamagedFileError as error:
                if not self.files.best.exists():
                    raise RunError(f"{error}, and there is no {self.files.best}") from error
                print(printable(f"{error}; the weights come from {self.files.best}"), file=sys.stderr)
        path = self.files.best if which == "best" else self.files.last
        if not path.exists():
            raise RunError(f"{self.directory} has no {which} weights yet: no epoch has ended")
        try:
            states = load_checkpoint(path)["state_dict"]
        except CheckpointError as error:
            if which == "last" or not self.files.last.exists():
                raise
            raise type(error)(f"{error}; --weights last takes those of the last epoch") from error
        part = AVERAGE if any(name.startswith(AVERAGE) for name in states) else NETWORK
        return {name.removeprefix(part): value for name, value in states.items() if name.startswith(part)}


def fit_weights(network: nn.Module, weights: dict[str, Tensor], run: Run[Any]) -> None:
    """Load weights into a network, or say in one sentence why they do not fit.

    Raises:
        RunError: they are of another number of classes or of another model.
        WeightsError: they hold NaN or infinity.
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
        path: the folder that `train` wrote, wherever it lies now.
        kind: what the run learnt.

    Raises:
        RunError: the folder is no run, or its configuration or its classes cannot be read.
    """
    directory = Path(path)
    files = RunFiles(directory)
    if not directory.is_dir():
        raise RunError(f"{directory} is no run: there is no such folder")
    missing = [file.name for file in (files.config, files.classes) if not file.is_file()]
    if missing:
        raise RunError(f"{directory} is no run: it has no {' and no '.join(missing)}")
    return Run(load_config(files.config, kind), load_classes(files.classes), directory)
