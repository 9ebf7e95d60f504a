"""The model family, registered in timm when this package is imported."""

from . import mobilenet as mobilenet
from . import zoo as zoo
from .accelerate import accelerate as accelerate
from .config import ResNetConfig as ResNetConfig
from .hub import save_for_hub as save_for_hub
from .registry import create_model as create_model
from .registry import list_models as list_models
from .resnet import ResNet as ResNet
from .weight_files import WeightsError as WeightsError
from .weights import load_weights as load_weights
