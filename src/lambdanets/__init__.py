"""Lambda layers and LambdaResNets: long-range interactions without attention maps.

The layers are `LambdaLayer1d`, `LambdaLayer2d` and `LambdaLayer3d`, their functional form is `lambda_layer`.
Networks are created by `create_model`; `accelerate` replaces the lambda layers of other packages; `explain`
shows what lambda layers look at. Importing the package imports torch and timm, and registers its models in
timm.
"""

from .explaining import Explanation, explain
from .models import accelerate, create_model, list_models
from .nn import LambdaLayer, LambdaLayer1d, LambdaLayer2d, LambdaLayer3d
from .ops import GlobalContext, LocalContext, MaskedContext, Plan, Problem, lambda_layer, plan

__version__ = "0.1.0"
__all__ = [
    "Explanation",
    "GlobalContext",
    "LambdaLayer",
    "LambdaLayer1d",
    "LambdaLayer2d",
    "LambdaLayer3d",
    "LocalContext",
    "MaskedContext",
    "Plan",
    "Problem",
    "accelerate",
    "create_model",
    "explain",
    "lambda_layer",
    "list_models",
    "plan",
]
