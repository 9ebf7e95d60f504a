"""Models as single files that run without this package: programs of torch.export (.pt2) or ONNX (.onnx).

`export_network` writes any network with example inputs, `export_step` the step of a recurrent one;
`export_classifier`, `export_detector` and `export_language_model` prepare the network, the examples and the
metadata of a run. Each file is loaded again and compared with the network
before it appears under its name. A file format is a module that implements `Format`, listed in `FORMATS`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lambdanets.exporting.format import ExportError as ExportError
from lambdanets.exporting.network import FORMATS as FORMATS
from lambdanets.exporting.network import Exported as Exported
from lambdanets.exporting.network import export_network as export_network

if TYPE_CHECKING:
    from lambdanets.exporting.classifier import export_classifier as export_classifier
    from lambdanets.exporting.detector import ExportedDetector as ExportedDetector
    from lambdanets.exporting.detector import export_detector as export_detector
    from lambdanets.exporting.language_model import export_language_model as export_language_model
    from lambdanets.exporting.language_model import export_step as export_step

# Imported on first use: torchvision's detectors, timm and Lightning take long.
_LAZY = {
    "ExportedDetector": "detector",
    "export_classifier": "classifier",
    "export_detector": "detector",
    "export_language_model": "language_model",
    "export_step": "language_model",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"lambdanets.exporting.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
