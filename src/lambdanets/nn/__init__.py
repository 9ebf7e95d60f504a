"""The lambda layer as modules, on torch alone."""

from .lambda_layer import LambdaLayer1d as LambdaLayer1d
from .lambda_layer import LambdaLayer2d as LambdaLayer2d
from .lambda_layer import LambdaLayer3d as LambdaLayer3d
