"""Networks with lambda layers, their weights, and the lambda layers of other packages.

Importing this package registers its models in timm: the ResNets of `zoo` and the MobileNets of `mobilenet`.
"""

from . import mobilenet as mobilenet
from . import zoo as zoo
from .config import ResNetConfig as ResNetConfig
from .interop import accelerate as accelerate
from .operators import OPERATORS as OPERATORS
from .registry import ModelInfo as ModelInfo
from .registry import create_model as create_model
from .registry import list_models as list_models
from .registry import model_info as model_info
from .resnet import ResNet as ResNet
from .weight_files import WeightsError as WeightsError
from .weight_files import save_for_hub as save_for_hub
from .weights import load_weights as load_weights
