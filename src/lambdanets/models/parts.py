"""The parts a ResNet is put together from: operators, the stem, and a bottleneck by its place."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from timm.layers.squeeze_excite import SqueezeExcite
from timm.models import register_notrace_module
from timm.models.resnet import downsample_avg, downsample_conv
from torch import nn

from ..nn import AxialAttention2d, GlobalAttention2d, LambdaLayer2d, LinearAttention2d, LocalAttention2d
from ..nn.blocks import Bottleneck
from .config import ResNetConfig


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where in the network an operator stands.

    Attributes:
        stride: Stride of the block.
        dilation: Distance between the neighbours of the operator.
        grid: Side of what comes in, for images of the config's size.
    """

    stride: int
    dilation: int
    grid: int


def _conv(width: int, place: Place, *, config: ResNetConfig, **factory: Any) -> nn.Module:
    d = place.dilation
    return nn.Conv2d(width, width, 3, stride=place.stride, padding=d, dilation=d, bias=False, **factory)


def _lambda(width: int, place: Place, *, config: ResNetConfig, **factory: Any) -> nn.Module:
    scope = None if config.scope == "global" or not config.position else config.scope
    everywhere = config.position and scope is None
    if everywhere and place.dilation > 1:
        raise _undilated("a lambda layer of global scope")
    return LambdaLayer2d(
        width,
        dim_k=config.dim_k,
        num_heads=config.num_heads,
        dim_u=config.dim_u,
        scope=scope,
        grid=place.grid if everywhere else None,
        dilation=place.dilation if config.position else 1,
        content=config.content,
        position=config.position,
        normalize=config.normalize,
        norm=None if config.norm == "none" else config.norm,
        position_bias=config.position_bias,
        kernel=config.kernel,
        **factory,
    )


def _attention(width: int, place: Place, *, config: ResNetConfig, **factory: Any) -> nn.Module:
    if place.dilation > 1:
        raise _undilated("operator 'attention'")
    return GlobalAttention2d(width, num_heads=config.num_heads, grid=place.grid, **factory)


def _axial(width: int, place: Place, *, config: ResNetConfig, **factory: Any) -> nn.Module:
    if place.dilation > 1:
        raise _undilated("operator 'axial'")
    return AxialAttention2d(width, num_heads=config.num_heads, grid=place.grid, **factory)


def _local_attention(width: int, place: Place, *, config: ResNetConfig, **factory: Any) -> nn.Module:
    if place.dilation > 1:
        raise _undilated("operator 'local_attention'")
    if config.scope == "global":
        raise ValueError("scope='global' is operator='attention'; local attention takes a window, as scope=7")
    return LocalAttention2d(width, num_heads=config.num_heads, window=config.scope, **factory)


def _linear_attention(width: int, place: Place, *, config: ResNetConfig, **factory: Any) -> nn.Module:
    return LinearAttention2d(width, num_heads=config.num_heads, **factory)


def _undilated(what: str) -> ValueError:
    return ValueError(
        f"output_stride must be 32 for {what}, which cannot be dilated as a smaller one asks; "
        f"convolutions, lambda layers with a scope and linear attention can"
    )


# timm's graphs (feature_cls="fx") keep the layers whole.
for _layer in (LambdaLayer2d, GlobalAttention2d, AxialAttention2d, LocalAttention2d, LinearAttention2d):
    register_notrace_module(_layer)

OPERATORS: dict[str, Callable[..., nn.Module]] = {
    "conv": _conv,
    "lambda": _lambda,
    "attention": _attention,
    "axial": _axial,
    "local_attention": _local_attention,
    "linear_attention": _linear_attention,
}
"""What can stand in the place of the 3x3 convolution: constructors called as
`constructor(width, place, config=, device=, dtype=)`.

Only the convolution strides by itself; every other operator works at the resolution that comes in, and the
block pools what it returns. A module with a `reset_parameters` of its own keeps the values that this gives.
"""


def stem_conv(config: ResNetConfig, in_chans: int, factory: dict[str, Any]) -> nn.Module:
    dim = config.stem_width
    if config.stem == "conv7":
        return nn.Conv2d(in_chans, dim, 7, stride=2, padding=3, bias=False, **factory)
    if config.stem == "conv3":
        return nn.Conv2d(in_chans, dim, 3, padding=1, bias=False, **factory)
    half = dim // 2
    return nn.Sequential(
        nn.Conv2d(in_chans, half, 3, stride=2, padding=1, bias=False, **factory),
        nn.BatchNorm2d(half, **factory),
        nn.ReLU(inplace=True),
        nn.Conv2d(half, half, 3, padding=1, bias=False, **factory),
        nn.BatchNorm2d(half, **factory),
        nn.ReLU(inplace=True),
        nn.Conv2d(half, dim, 3, padding=1, bias=False, **factory),
    )


def stem_pool(config: ResNetConfig, factory: dict[str, Any]) -> nn.Module:
    dim = config.stem_width
    if config.stem == "conv7":
        return nn.MaxPool2d(3, stride=2, padding=1)
    if config.stem == "conv3":
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(dim, dim, 3, stride=2, padding=1, bias=False, **factory),
        nn.BatchNorm2d(dim, **factory),
        nn.ReLU(inplace=True),
    )


def bottleneck(
    config: ResNetConfig,
    dim: int,
    stage: int,
    block: int,
    *,
    stride: int,
    dilation: int,
    first_dilation: int,
    grid: int,
    drop_path: nn.Module | None,
    **factory: Any,
) -> Bottleneck:
    width = config.widths[stage]
    dim_out = width * config.expansion
    kind = config.operator_of(stage, block)
    # The stage reduces here, unless output_stride has traded its stride for dilation. What the block is made
    # of must not depend on that, or the weights of the two would not be exchangeable.
    reduces = stage > 0 and block == 0
    shortcut = None
    if reduces or dim != dim_out:
        make = downsample_avg if config.shortcut == "pool" else downsample_conv
        shortcut = make(
            dim, dim_out, 1, stride=stride, dilation=dilation, first_dilation=first_dilation, **factory
        )
    pool = None
    if reduces and kind != "conv":
        pool = nn.AvgPool2d(3, stride=stride, padding=1, count_include_pad=config.pool_padding)
    gate = None
    if config.squeezes(stage, block):
        gate = SqueezeExcite(dim_out, rd_channels=max(1, dim_out // config.squeeze_reduction), **factory)
    place = Place(stride=stride, dilation=first_dilation, grid=grid)
    operator = OPERATORS[kind](width, place, config=config, **factory)
    return Bottleneck(
        dim,
        width,
        dim_out,
        operator,
        pool=pool,
        shortcut=shortcut,
        gate=gate,
        drop_path=drop_path,
        **factory,
    )
