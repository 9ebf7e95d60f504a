"""Lambda layers and LambdaResNets: long-range interactions without attention maps.

Importing the package costs torch and timm, and registers every model in timm.
"""

__version__ = "0.1.0.dev0"

from .models import accelerate as accelerate
from .models import create_model as create_model
from .models import list_models as list_models
from .nn import LambdaLayer1d as LambdaLayer1d
from .nn import LambdaLayer2d as LambdaLayer2d
from .nn import LambdaLayer3d as LambdaLayer3d
from .ops import GlobalContext as GlobalContext
from .ops import LocalContext as LocalContext
from .ops import MaskedContext as MaskedContext
from .ops import Plan as Plan
from .ops import Problem as Problem
from .ops import lambda_layer as lambda_layer
from .ops import plan as plan
