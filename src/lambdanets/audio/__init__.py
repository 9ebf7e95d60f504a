"""Classification of recordings: training, evaluation and prediction, from folders of audio files.

Modules with slow imports, such as Lightning, are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lambdanets.audio.config import AudioConfig as AudioConfig

if TYPE_CHECKING:
    from lambdanets.audio.evaluation import evaluate as evaluate
    from lambdanets.audio.prediction import AudioPrediction as AudioPrediction
    from lambdanets.audio.prediction import predict as predict
    from lambdanets.audio.prediction import predict_samples as predict_samples
    from lambdanets.audio.sheet import draw_spectrograms as draw_spectrograms
    from lambdanets.audio.training import load_run as load_run
    from lambdanets.audio.training import train as train
    from lambdanets.exporting.audio import export_audio

    export = export_audio

_LAZY = {
    "AudioPrediction": ("lambdanets.audio.prediction", "AudioPrediction"),
    "draw_spectrograms": ("lambdanets.audio.sheet", "draw_spectrograms"),
    "evaluate": ("lambdanets.audio.evaluation", "evaluate"),
    "load_run": ("lambdanets.audio.training", "load_run"),
    "predict": ("lambdanets.audio.prediction", "predict"),
    "predict_samples": ("lambdanets.audio.prediction", "predict_samples"),
    "train": ("lambdanets.audio.training", "train"),
    # A public name of the room above.
    "export": ("lambdanets.exporting.audio", "export_audio"),
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        module, attribute = _LAZY[name]
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
