"""Loggers by name: where the metrics of a run go besides its own files."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from lambdanets.train.checkpoint import write_text
from lambdanets.train.config import BaseConfig
from lambdanets.train.errors import RunError
from lambdanets.train.progress import log_once
from lambdanets.train.run import RunFiles
from lambdanets.train.serialization import flatten
from lambdanets.utils.files import parse_json
from lambdanets.utils.text import first_line

PROJECT = "lambdanets"  # name of the project or experiment, where no environment variable gives one


class EventLog(TensorBoardLogger):
    """TensorBoard events; a run continues without them if they cannot be written."""

    def __init__(self, files: RunFiles, purge_step: int) -> None:
        super().__init__(files.directory, name="", version=files.tensorboard.name, purge_step=purge_step)
        self._failed = False

    @property
    def experiment(self) -> Any:
        # Lightning reads this property before anything is logged.
        with self._optional():
            return super().experiment

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if not self._failed:
            with self._optional():
                super().log_metrics(metrics, step)

    def save(self) -> None:
        if not self._failed:
            with self._optional():
                super().save()

    def finalize(self, status: str) -> None:
        if not self._failed:
            with self._optional():
                super().finalize(status)

    @contextmanager
    def _optional(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            # Lightning wraps the error in a ValueError, and the writer repeats the first error of its thread.
            if not self._failed:
                reason = first_line(error.__cause__ or error)
                log_once(
                    f"TensorBoard's events cannot be written in {self.log_dir} ({reason}); the run goes on"
                )
            self._failed = True


def _wandb(files: RunFiles, identity: str | None) -> Logger:
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    name = files.directory.resolve().name
    return WandbLogger(name=name, save_dir=files.directory, project=project, id=identity, resume="allow")


def _mlflow(files: RunFiles, identity: str | None) -> Logger:
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    name = files.directory.resolve().name
    return MLFlowLogger(
        experiment, name, tracking_uri=import_module("mlflow").get_tracking_uri(), run_id=identity
    )


# Name in `engine.loggers` -> function of the run folder and the identity of the run there, if it has one.
REMOTE: Mapping[str, Callable[[RunFiles, str | None], Logger]] = {"wandb": _wandb, "mlflow": _mlflow}


def create_loggers(config: BaseConfig, files: RunFiles, purge_step: int) -> list[Logger]:
    """Return the loggers that `engine.loggers` names.

    Args:
        config: The configuration of the run.
        files: The run folder.
        purge_step: Step from which on events of TensorBoard are removed, because they are logged again.

    Raises:
        RunError: The package of a logger is not installed, or the logger cannot start.
    """
    identities = _identities(files)
    loggers: list[Logger] = []
    for name in config.engine.logger_names():
        if name == "tensorboard":
            loggers.append(EventLog(files, purge_step))
            continue
        try:
            loggers.append(REMOTE[name](files, identities.get(name)))
        except ModuleNotFoundError as error:
            raise RunError(
                f"engine.loggers names {name}, which is not installed: pip install {name}"
            ) from error
        except Exception as error:  # both have classes of errors of their own
            raise RunError(f"engine.loggers: {name} cannot start: {first_line(error)}") from error
    return loggers


def register_run(loggers: Sequence[Logger], config: BaseConfig, files: RunFiles) -> None:
    """Send the configuration to wandb and MLflow, and store the identities of the run there.

    Raises:
        RunError: A logger cannot start, for example because no user is logged in.
    """
    identities, known = {}, _identities(files)
    for logger in loggers:
        if isinstance(logger, EventLog):
            continue
        name = "wandb" if isinstance(logger, WandbLogger) else "mlflow"
        try:
            # MLflow refuses other values of parameters, such as the epochs of a run that is trained longer.
            if name == "wandb" or name not in known:
                logger.log_hyperparams(flatten(config))
            identities[name] = str(logger.run_id if isinstance(logger, MLFlowLogger) else logger.version)
        except Exception as error:  # as above
            raise RunError(f"engine.loggers: {name} cannot start: {first_line(error)}") from error
    if identities:
        write_text(files.loggers, json.dumps(known | identities, indent=1) + "\n")


def _identities(files: RunFiles) -> dict[str, Any]:
    try:
        return dict(parse_json(files.loggers.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}
