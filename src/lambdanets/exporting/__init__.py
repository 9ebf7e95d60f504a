"""A network as one file that runs without this package: torch.export's or ONNX's."""

from .network import FORMATS as FORMATS
from .network import Exported as Exported
from .network import ExportError as ExportError
from .network import export_network as export_network
