"""The operators that may replace the 3x3 convolution in the blocks of a ResNet, and those on sequences.

To add an operator, write its module in `lambdanets.nn`, export it there, and register it in `OPERATORS`, or
for models of sequences in `SEQUENCE_OPERATORS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from timm.models import register_notrace_module
from torch import nn

from lambdanets.nn import (
    Attention1d,
    AxialAttention2d,
    Convolution1d,
    GlobalAttention2d,
    GRU1d,
    LambdaLayer1d,
    LambdaLayer2d,
    LinearAttention1d,
    LinearAttention2d,
    LocalAttention2d,
)

from .config import ResNetConfig


@dataclass(frozen=True, kw_only=True)
class BlockPosition:
    """Position of a block in the network.

    Attributes:
        stride: Stride of the block.
        dilation: Dilation of the operator: distance between the positions that its kernel or scope combines.
        grid: Side of the operator's input in positions, for images of the config's `image_size`.
    """

    stride: int
    dilation: int
    grid: int


@dataclass(frozen=True, kw_only=True)
class Operator:
    """An operator for the blocks.

    Only the convolution has a stride of its own. All other operators keep the resolution of their input, and
    the block pools their output. A module with a method `reset_parameters` is initialised by that method.

    Attributes:
        build: Constructor, called as `build(width, position, config, device=, dtype=)`.
        layer: Class of the modules that it returns; graphs of timm (feature_cls="fx") do not trace into them.
        can_dilate: Whether the operator supports a dilation, which an `output_stride` below 32 needs.
        uses_scope: Whether the config's `scope` has an effect.
    """

    build: Callable[..., nn.Module]
    layer: type[nn.Module]
    can_dilate: bool = False
    uses_scope: bool = False


def build_operator(
    name: str, width: int, position: BlockPosition, config: ResNetConfig, **factory: Any
) -> nn.Module:
    """Create the operator of a block.

    Args:
        name: Name in `OPERATORS`.
        width: Channels of the input and the output.
        position: Position of the block.
        config: Options of the operator.
        **factory: device and dtype of the parameters.

    Raises:
        ValueError: If the position needs a dilation that the operator does not support, or the options
            contradict each other.
    """
    operator = OPERATORS[name]
    if position.dilation > 1 and not operator.can_dilate:
        raise _cannot_dilate(f"operator {name!r}")
    return operator.build(width, position, config, **factory)


def _cannot_dilate(operator: str) -> ValueError:
    return ValueError(
        f"output_stride must be 32 for {operator}, which cannot be dilated, as a smaller output_stride "
        "requires; convolutions, lambda layers with a scope and linear attention can be"
    )


def _conv(width: int, position: BlockPosition, config: ResNetConfig, **factory: Any) -> nn.Module:
    d = position.dilation
    return nn.Conv2d(width, width, 3, stride=position.stride, padding=d, dilation=d, bias=False, **factory)


def _lambda(width: int, position: BlockPosition, config: ResNetConfig, **factory: Any) -> nn.Module:
    scope = None if config.scope == "global" or not config.position else config.scope
    has_global_table = config.position and scope is None
    if has_global_table and position.dilation > 1:
        raise _cannot_dilate("a lambda layer of global scope")
    return LambdaLayer2d(
        width,
        dim_k=config.dim_k,
        num_heads=config.num_heads,
        dim_u=config.dim_u,
        scope=scope,
        grid=position.grid if has_global_table else None,
        dilation=position.dilation if config.position else 1,
        content=config.content,
        position=config.position,
        normalize=config.normalize,
        norm=None if config.norm == "none" else config.norm,
        position_bias=config.position_bias,
        kernel=config.kernel,
        **factory,
    )


def _attention(width: int, position: BlockPosition, config: ResNetConfig, **factory: Any) -> nn.Module:
    return GlobalAttention2d(width, num_heads=config.num_heads, grid=position.grid, **factory)


def _axial(width: int, position: BlockPosition, config: ResNetConfig, **factory: Any) -> nn.Module:
    return AxialAttention2d(width, num_heads=config.num_heads, grid=position.grid, **factory)


def _local_attention(width: int, position: BlockPosition, config: ResNetConfig, **factory: Any) -> nn.Module:
    if config.scope == "global":
        raise ValueError(
            "operator='local_attention' needs the side of its window, such as scope=7; for scope='global' "
            "use operator='attention'"
        )
    return LocalAttention2d(width, num_heads=config.num_heads, window=config.scope, **factory)


def _linear_attention(width: int, position: BlockPosition, config: ResNetConfig, **factory: Any) -> nn.Module:
    return LinearAttention2d(width, num_heads=config.num_heads, **factory)


OPERATORS: dict[str, Operator] = {
    "conv": Operator(build=_conv, layer=nn.Conv2d, can_dilate=True),
    "lambda": Operator(build=_lambda, layer=LambdaLayer2d, can_dilate=True, uses_scope=True),
    "attention": Operator(build=_attention, layer=GlobalAttention2d),
    "axial": Operator(build=_axial, layer=AxialAttention2d),
    "local_attention": Operator(build=_local_attention, layer=LocalAttention2d, uses_scope=True),
    "linear_attention": Operator(build=_linear_attention, layer=LinearAttention2d, can_dilate=True),
}

for _operator in OPERATORS.values():
    # torch.fx never traces into the modules of torch.nn.
    if _operator.layer is not nn.Conv2d:
        register_notrace_module(_operator.layer)


def _lambda_1d(width: int, num_heads: int, *, causal: bool, **options: Any) -> nn.Module:
    return LambdaLayer1d(
        width, num_heads=num_heads, causal=causal, **({"scope": 23, "norm": "rms"} | options)
    )


def _attention_1d(width: int, num_heads: int, *, causal: bool, **options: Any) -> nn.Module:
    return Attention1d(width, num_heads=num_heads, causal=causal, **options)


def _linear_attention_1d(width: int, num_heads: int, *, causal: bool, **options: Any) -> nn.Module:
    return LinearAttention1d(width, num_heads=num_heads, causal=causal, **options)


def _conv_1d(width: int, num_heads: int, *, causal: bool, **options: Any) -> nn.Module:
    return Convolution1d(width, causal=causal, **options)


def _gru_1d(width: int, num_heads: int, *, causal: bool, **options: Any) -> nn.Module:
    return GRU1d(width, causal=causal, **options)


SEQUENCE_OPERATORS: dict[str, Callable[..., nn.Module]] = {
    "lambda": _lambda_1d,
    "attention": _attention_1d,
    "linear_attention": _linear_attention_1d,
    "conv": _conv_1d,
    "gru": _gru_1d,
}
"""Constructors of the layers on sequences, called as `build(width, num_heads, causal=, **options)`.

Options are those of the layer, with device and dtype of the parameters. A layer maps `[b, width, n]` to
`[b, dim_out, n]`, where `dim_out` is an attribute of the layer. Convolutions and GRUs have no heads.
"""
