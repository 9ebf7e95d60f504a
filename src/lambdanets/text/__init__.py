"""Text: language models that are trained on `text:` sources, measured in bits, and continue a prompt.

Modules with slow imports, such as Lightning, are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lambdanets.text.config import LanguageModelConfig as LanguageModelConfig
from lambdanets.text.config import SamplingConfig as SamplingConfig
from lambdanets.text.config import TextConfig as TextConfig

if TYPE_CHECKING:
    from lambdanets.exporting.language_model import export_language_model
    from lambdanets.text.generation import generate as generate
    from lambdanets.text.measurement import TextScores as TextScores
    from lambdanets.text.measurement import evaluate as evaluate
    from lambdanets.text.measurement import measure as measure
    from lambdanets.text.training import load_run as load_run
    from lambdanets.text.training import train as train

    export = export_language_model

_LAZY = {
    "TextScores": ("lambdanets.text.measurement", "TextScores"),
    "evaluate": ("lambdanets.text.measurement", "evaluate"),
    "generate": ("lambdanets.text.generation", "generate"),
    "load_run": ("lambdanets.text.training", "load_run"),
    "measure": ("lambdanets.text.measurement", "measure"),
    "train": ("lambdanets.text.training", "train"),
    # A public name of the room above.
    "export": ("lambdanets.exporting.language_model", "export_language_model"),
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        module, attribute = _LAZY[name]
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
