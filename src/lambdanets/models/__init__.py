"""Networks with lambda layers, their weights, and the lambda layers of other packages.

Importing this package registers its models in timm. To add

- a model variant: add its config to `zoo.CONFIGS`;
- an operator for the blocks: export its module from `lambdanets.nn` and register it in `operators.OPERATORS`;
- support for the lambda layer of another package: see `interop`.
"""

from . import audio as audio
from . import mobilenet as mobilenet
from . import zoo as zoo
from .config import ResNetConfig as ResNetConfig
from .interop import accelerate as accelerate
from .memory_format import to_channels_last as to_channels_last
from .operators import OPERATORS as OPERATORS
from .registry import ModelInfo as ModelInfo
from .registry import create_model as create_model
from .registry import list_models as list_models
from .registry import model_info as model_info
from .resnet import ResNet as ResNet
from .sequence import LANGUAGE_MODELS as LANGUAGE_MODELS
from .sequence import LambdaLM as LambdaLM
from .sequence import create_language_model as create_language_model
from .weight_files import WeightsError as WeightsError
from .weight_files import save_for_hub as save_for_hub
from .weights import load_weights as load_weights
