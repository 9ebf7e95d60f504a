"""The lambda layer, and the attention layers that it is compared with, as modules. Needs torch alone.

A layer for the blocks of `lambdanets.models` maps images `[b, dim, height, width]` of any size to
`[b, dim_out, height, width]` in the same memory format, takes the arguments `device` and `dtype`, and
initialises its parameters in `reset_parameters`.

`lambda_layer` has the lambda layer, `lambda_layer_1d` that of sequences, whose calls with a state are in
`recurrent_lambda_layer`. `layer_output`, `fuse_batch_norm`, `memory_format` and `positions` are helpers.
`sequence_layer` has the base class of the other layers on sequences, `[b, dim, n]` to `[b, dim_out, n]`. All
layers on sequences share `states`, the checks in `recurrent`, and padded and packed rows in `rows`.
`attention_base` has the base class of the attention layers, `separable` the attention function of
`global_attention`. `blocks` has the residual blocks around any of them.
"""

from .attention_1d import Attention1d as Attention1d
from .axial_attention import AxialAttention2d as AxialAttention2d
from .convolution_1d import Convolution1d as Convolution1d
from .global_attention import GlobalAttention2d as GlobalAttention2d
from .gru_1d import GRU1d as GRU1d
from .lambda_layer import LambdaLayer as LambdaLayer
from .lambda_layer import LambdaLayer2d as LambdaLayer2d
from .lambda_layer import LambdaLayer3d as LambdaLayer3d
from .lambda_layer_1d import LambdaLayer1d as LambdaLayer1d
from .linear_attention import LinearAttention2d as LinearAttention2d
from .linear_attention_1d import LinearAttention1d as LinearAttention1d
from .local_attention import LocalAttention2d as LocalAttention2d
