"""Text: language models that are trained on `text:` sources, measured in bits, and continue a prompt.

Modules with slow imports, such as Lightning, are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lambdanets.text.config import LanguageModelConfig as LanguageModelConfig
from lambdanets.text.config import SamplingConfig as SamplingConfig
from lambdanets.text.config import TextConfig as TextConfig

if TYPE_CHECKING:
    from lambdanets.text.generation import generate as generate
    from lambdanets.text.measurement import TextScores as TextScores
    from lambdanets.text.measurement import evaluate as evaluate
    from lambdanets.text.measurement import measure as measure
    from lambdanets.text.training import load_run as load_run
    from lambdanets.text.training import train as train

_LAZY = {
    "TextScores": "lambdanets.text.measurement",
    "evaluate": "lambdanets.text.measurement",
    "generate": "lambdanets.text.generation",
    "load_run": "lambdanets.text.training",
    "measure": "lambdanets.text.measurement",
    "train": "lambdanets.text.training",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
