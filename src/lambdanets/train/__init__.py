"""Training: typed configurations, exact resume, and the run folder.

Lightning is imported when something is trained, not when a configuration is written or a recipe is listed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lambdanets.train.config import EngineConfig as EngineConfig
from lambdanets.train.config import LossConfig as LossConfig
from lambdanets.train.config import ModelConfig as ModelConfig
from lambdanets.train.config import RunConfig as RunConfig
from lambdanets.train.config import load_config as load_config
from lambdanets.train.errors import CheckpointError as CheckpointError
from lambdanets.train.errors import NoMemoryError as NoMemoryError
from lambdanets.train.errors import NonFiniteLossError as NonFiniteLossError
from lambdanets.train.errors import RunError as RunError
from lambdanets.train.errors import TrainingInterrupted as TrainingInterrupted
from lambdanets.train.optim import OptimizerConfig as OptimizerConfig
from lambdanets.train.run import Run as Run
from lambdanets.train.run import load_run as load_run
from lambdanets.train.schedule import ScheduleConfig as ScheduleConfig
from lambdanets.train.typed import from_json as from_json
from lambdanets.train.typed import override as override
from lambdanets.train.typed import to_json as to_json

if TYPE_CHECKING:
    from lambdanets.exporting.classifier import export_classifier
    from lambdanets.train.engine import train as train
    from lambdanets.train.evaluation import evaluate as evaluate
    from lambdanets.train.summary import RunResult as RunResult

    export = export_classifier

_LAZY = {"train": "engine", "evaluate": "evaluation", "RunResult": "summary"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"lambdanets.train.{_LAZY[name]}"), name)
    if name == "export":  # a public name of the room above
        return import_module("lambdanets.exporting").export_classifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
