"""The parts a ResNet is put together from: operators, the stem, and a bottleneck by its place."""

from collections.abc import Callable
from typing import Any

from timm.layers.squeeze_excite import SqueezeExcite
from timm.models import register_notrace_module
from timm.models.resnet import downsample_avg, downsample_conv
from torch import nn

from ..nn import LambdaLayer2d
from ..nn.blocks import Bottleneck
from .config import ResNetConfig


def _conv(config: ResNetConfig, width: int, *, stride: int, dilation: int, **factory: Any) -> nn.Module:
    return nn.Conv2d(
        width, width, 3, stride=stride, padding=dilation, dilation=dilation, bias=False, **factory
    )


def _lambda(config: ResNetConfig, width: int, *, stride: int, dilation: int, **factory: Any) -> nn.Module:
    return LambdaLayer2d(
        width,
        dim_k=config.dim_k,
        num_heads=config.num_heads,
        dim_u=config.dim_u,
        scope=config.scope,
        dilation=dilation,
        kernel=config.kernel,
        **factory,
    )


# Its geometry is a function of the sizes, so torch.fx takes the layer as a leaf.
register_notrace_module(LambdaLayer2d)

OPERATORS: dict[str, Callable[..., nn.Module]] = {"conv": _conv, "lambda": _lambda}
"""What can stand in the place of the 3x3 convolution: constructors called as
`constructor(config, width, stride=, dilation=, device=, dtype=)`.

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
        pool = nn.AvgPool2d(3, stride=stride, padding=1, count_include_pad=False)
    gate = None
    if config.squeeze_excite[stage] and kind == "conv":
        gate = SqueezeExcite(dim_out, rd_channels=dim_out // 4, **factory)
    operator = OPERATORS[kind](config, width, stride=stride, dilation=first_dilation, **factory)
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
