"""Training: typed configurations, exact resume, and the run folder.

`config` describes a run, `engine` carries it out with the `Learner` of a task, `saving` and `resume` make it
resumable, and `run` opens its folder. Lightning is imported when `train` is first used; configurations and
recipes do not need it.
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
from lambdanets.train.initial_weights import start_from as start_from
from lambdanets.train.optim import OptimizerConfig as OptimizerConfig
from lambdanets.train.optim import ScheduleConfig as ScheduleConfig
from lambdanets.train.run import Run as Run
from lambdanets.train.run import load_run as load_run
from lambdanets.train.serialization import from_json as from_json
from lambdanets.train.serialization import override as override
from lambdanets.train.serialization import to_json as to_json

if TYPE_CHECKING:
    from lambdanets.evaluate.measurement import evaluate as evaluate
    from lambdanets.exporting.classifier import export_classifier
    from lambdanets.train.engine import train as train
    from lambdanets.train.reporting import RunResult as RunResult

    export = export_classifier

_LAZY = {
    "train": ("lambdanets.train.engine", "train"),
    "RunResult": ("lambdanets.train.reporting", "RunResult"),
    # Public names that packages above this one define.
    "evaluate": ("lambdanets.evaluate.measurement", "evaluate"),
    "export": ("lambdanets.exporting.classifier", "export_classifier"),
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        module, attribute = _LAZY[name]
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
