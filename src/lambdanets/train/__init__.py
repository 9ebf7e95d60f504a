"""Training: typed configurations, exact resume, and the run folder.

`config` describes a run, `engine` carries it out with the `Learner` of a task, `saving` and `resume` make it
resumable, and `run` opens its folder. Lightning is imported by `train`, not by a configuration or a recipe.
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
from lambdanets.train.optim import ScheduleConfig as ScheduleConfig
from lambdanets.train.run import Run as Run
from lambdanets.train.run import load_run as load_run
from lambdanets.train.serialization import from_json as from_json
from lambdanets.train.serialization import override as override
from lambdanets.train.serialization import to_json as to_json

if TYPE_CHECKING:
    from lambdanets.evaluate.exporting import export as export
    from lambdanets.evaluate.measurement import evaluate as evaluate
    from lambdanets.train.engine import train as train
    from lambdanets.train.reporting import RunResult as RunResult

_LAZY = {
    "train": "lambdanets.train.engine",
    "RunResult": "lambdanets.train.reporting",
    # Public names of the room above.
    "evaluate": "lambdanets.evaluate.measurement",
    "export": "lambdanets.evaluate.exporting",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
