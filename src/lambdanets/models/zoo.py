"""The ResNets of this package: one literal config for each published variant, counterparts, and small models.

To add a variant, add its config to `CONFIGS`; no other file changes.

The ablations are options of `resnet50_lambda` (or of any other model) rather than models of their own:
    Table 4   shared_positions=True; dim_k=8; scope=7 (the lambda convolution 7x7)
    Table 9   dim_k, num_heads and dim_u (with dim_u > 1 the paper has scope=7)
    Table 10  position=False (content only); content=False (position only)
    Table 11  resnet50_ccll with scope=3, 7, 15, 23, 31 or "global"
    Table 12  normalize="softmax_both", "l2" or "none"; norm="none"
    Table 14  operator_blocks: the lambda layers of c4, such as ((), (), (6, 12, 18), "all")

Blocks are counted from 0. The paper lists the lambda blocks of c4 without stating whether it counts from 0 or
from 1. The strided first block is in no list either way, and the numbers of parameters agree with both.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import generate_default_cfgs

from .config import Blocks, ResNetConfig
from .registry import register
from .shipped import shipped_cfg


def _hybrid(depths: tuple[int, int, int, int], c4: Blocks, *, image_size: int) -> ResNetConfig:
    """Return a LambdaResNet (section E.1): ResNet-RS with lambda layers in c5 and in the given blocks of c4.

    Squeeze-and-excitation is only in c2 and c3. The paper states just that lambda blocks have none, but its
    numbers of parameters (36.9 M for 101, 51.4 M for 152) leave none for the rest of c4.
    """
    return ResNetConfig(
        depths=depths,
        stem="deep",
        shortcut="pool",
        operator_blocks=((), (), c4, "all"),
        squeeze_excite=(True, True, False, False),
        image_size=image_size,
    )


def _rs(depths: tuple[int, int, int, int], *, squeeze_excite: bool, image_size: int) -> ResNetConfig:
    """Return a ResNet-RS (rows of Table 14): a LambdaResNet with convolutions in place of lambda layers."""
    return ResNetConfig(
        depths=depths,
        stem="deep",
        shortcut="pool",
        operator="conv",
        squeeze_excite=(squeeze_excite,) * 4,
        image_size=image_size,
    )


def _pattern(c2: str, c3: str, c4: str, c5: str) -> ResNetConfig:
    """Return a row of Table 13: a vanilla ResNet-50 with convolutions (c) or lambda layers (l) per stage."""
    blocks: dict[str, Blocks] = {"c": (), "l": "all"}
    return ResNetConfig(depths=(3, 4, 6, 3), operator_blocks=tuple(blocks[kind] for kind in (c2, c3, c4, c5)))


def _everywhere(operator: str, **options: Any) -> ResNetConfig:
    """Return the vanilla ResNet-50 with an operator in place of all 3x3 convolutions."""
    return replace(_pattern("l", "l", "l", "l"), operator=operator, **options)


_DIGITS = ResNetConfig(
    depths=(2, 2),
    widths=(16, 32),
    stem="conv3",
    stem_width=32,
    shortcut="pool",
    operator_blocks=((1,), "all"),
    squeeze_excite=(False, False),
    scope=7,
    image_size=8,
)
_CIFAR = ResNetConfig(
    depths=(1, 2, 3),
    widths=(32, 64, 128),
    expansion=2,
    stem="conv3",
    stem_width=64,
    shortcut="pool",
    operator_blocks=((), (), (1, 2)),
    squeeze_excite=(False, False, False),
    scope=15,
    image_size=32,
)
_MINI = ResNetConfig(
    depths=(2, 3, 4, 2),
    widths=(32, 64, 128, 256),
    stem="deep",
    stem_width=32,
    shortcut="pool",
    operator_blocks=((), (), (1, 3), "all"),
    squeeze_excite=(True, True, False, False),
    scope=15,
    image_size=128,
)

CONFIGS: dict[str, ResNetConfig] = {
    # Table 18, with the image sizes of Table 19 (the largest of the supervised rows).
    "lambda_resnet50": _hybrid((3, 4, 6, 3), c4=(3,), image_size=160),
    "lambda_resnet101": _hybrid((3, 4, 23, 3), c4=(6, 12, 18), image_size=192),
    "lambda_resnet152": _hybrid((3, 8, 36, 3), c4=(5, 10, 15, 20, 25, 30), image_size=256),
    "lambda_resnet200": _hybrid((3, 24, 36, 3), c4=(5, 10, 15, 20, 25, 30), image_size=320),
    "lambda_resnet270": _hybrid((4, 29, 53, 4), c4=(8, 16, 24, 32, 40, 48), image_size=256),
    "lambda_resnet350": _hybrid((4, 36, 72, 4), c4=(10, 20, 30, 40, 50, 60), image_size=320),
    "lambda_resnet420": _hybrid((4, 44, 87, 4), c4=(10, 20, 30, 40, 50, 60, 70, 80), image_size=320),
    # Tables 14 to 16, with their image sizes: lambda layers in all of c4 and c5.
    "lambda_resnet50_c4": _hybrid((3, 4, 6, 3), c4="all", image_size=160),
    "lambda_resnet101_c4": _hybrid((3, 4, 23, 3), c4="all", image_size=224),
    "lambda_resnet152_c4": _hybrid((3, 8, 36, 3), c4="all", image_size=320),
    "lambda_resnet200_c4": _hybrid((3, 24, 36, 3), c4="all", image_size=320),
    "lambda_resnet270_c4": _hybrid((4, 29, 53, 4), c4="all", image_size=256),
    "lambda_resnet350_c4": _hybrid((4, 36, 72, 4), c4="all", image_size=320),
    "lambda_resnet420_c4": _hybrid((4, 44, 87, 4), c4="all", image_size=320),
    # Table 3: the vanilla ResNet-50, and every 3x3 convolution replaced.
    "resnet50_conv": _pattern("c", "c", "c", "c"),
    "resnet50_lambda": _pattern("l", "l", "l", "l"),
    "resnet50_lambda_u4": replace(_pattern("l", "l", "l", "l"), dim_u=4, scope=7),
    # Table 13; cccc and llll equal resnet50_conv and resnet50_lambda.
    "resnet50_cccc": _pattern("c", "c", "c", "c"),
    "resnet50_lccc": _pattern("l", "c", "c", "c"),
    "resnet50_llcc": _pattern("l", "l", "c", "c"),
    "resnet50_lllc": _pattern("l", "l", "l", "c"),
    "resnet50_clll": _pattern("c", "l", "l", "l"),
    "resnet50_ccll": _pattern("c", "c", "l", "l"),
    "resnet50_cccl": _pattern("c", "c", "c", "l"),
    "resnet50_llll": _pattern("l", "l", "l", "l"),
    # Tables 3 and 4: the operators that the lambda layer is compared with, in the same network. Heads and
    # window are those of the sources; squeeze-and-excitation reduces by 16, which gives Table 3's 28.1 M.
    "resnet50_se": _everywhere("conv", squeeze_excite=(True,) * 4, squeeze_reduction=16),
    "resnet50_attention": _everywhere("attention", num_heads=8),
    "resnet50_axial": _everywhere("axial", num_heads=8),
    "resnet50_local_attention": _everywhere("local_attention", num_heads=8, scope=7),
    "resnet50_linear_attention": _everywhere("linear_attention", num_heads=8),
    # ResNet-RS without and with squeeze-and-excitation. The image sizes of 101 and 152 are those of Table 14,
    # the others are among those that ResNet-RS was published with.
    "resnet50_rs": _rs((3, 4, 6, 3), squeeze_excite=False, image_size=160),
    "resnet101_rs": _rs((3, 4, 23, 3), squeeze_excite=False, image_size=224),
    "resnet152_rs": _rs((3, 8, 36, 3), squeeze_excite=False, image_size=256),
    "resnet200_rs": _rs((3, 24, 36, 3), squeeze_excite=False, image_size=256),
    "resnet270_rs": _rs((4, 29, 53, 4), squeeze_excite=False, image_size=256),
    "resnet350_rs": _rs((4, 36, 72, 4), squeeze_excite=False, image_size=320),
    "resnet420_rs": _rs((4, 44, 87, 4), squeeze_excite=False, image_size=320),
    "resnet50_rs_se": _rs((3, 4, 6, 3), squeeze_excite=True, image_size=160),
    "resnet101_rs_se": _rs((3, 4, 23, 3), squeeze_excite=True, image_size=224),
    "resnet152_rs_se": _rs((3, 8, 36, 3), squeeze_excite=True, image_size=256),
    "resnet200_rs_se": _rs((3, 24, 36, 3), squeeze_excite=True, image_size=256),
    "resnet270_rs_se": _rs((4, 29, 53, 4), squeeze_excite=True, image_size=256),
    "resnet350_rs_se": _rs((4, 36, 72, 4), squeeze_excite=True, image_size=320),
    "resnet420_rs_se": _rs((4, 44, 87, 4), squeeze_excite=True, image_size=320),
    # Small models, not from the paper: for 8x8 grey images, for 32x32 images, and for photos on a CPU; and
    # their counterparts with convolutions.
    "lambda_resnet_digits": _DIGITS,
    "resnet_digits_conv": replace(_DIGITS, operator="conv"),
    "lambda_resnet_cifar": _CIFAR,
    "resnet_cifar_conv": replace(_CIFAR, operator="conv"),
    # The operators of the accuracy study, each in the two blocks that contain the lambda layers. The study's
    # variants of the lambda layer are options: scope=7, scope="global", position=False, content=False.
    "resnet_cifar_lambda": _CIFAR,
    "resnet_cifar_se": replace(
        _CIFAR, operator="conv", squeeze_excite=(False, False, (1, 2)), squeeze_reduction=16
    ),
    "resnet_cifar_attention": replace(_CIFAR, operator="attention", num_heads=8),
    "resnet_cifar_axial": replace(_CIFAR, operator="axial", num_heads=8),
    "resnet_cifar_local_attention": replace(_CIFAR, operator="local_attention", num_heads=8, scope=7),
    "resnet_cifar_linear_attention": replace(_CIFAR, operator="linear_attention", num_heads=8),
    "lambda_resnet_mini": _MINI,
    "resnet_mini_conv": replace(_MINI, operator="conv"),
}

_DIGITS_DATA = {
    "input_size": (1, 8, 8),
    "num_classes": 10,
    "mean": (0.305,),
    "std": (0.376,),
    "crop_pct": 1.0,
}
_CIFAR_DATA = {
    "input_size": (3, 32, 32),
    "num_classes": 10,
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2470, 0.2435, 0.2616),
    "crop_pct": 1.0,
}


def _default_cfg(name: str, config: ResNetConfig) -> dict[str, Any]:
    size = config.image_size
    data = _DIGITS_DATA if "digits" in name else _CIFAR_DATA if "cifar" in name else {}
    cfg: dict[str, Any] = {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, size, size),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "conv1.0" if config.stem == "deep" else "conv1",
        "classifier": "fc",
        "license": "apache-2.0",
        "paper_ids": "arXiv:2102.08602",
        **data,
        **shipped_cfg(name),
    }
    side = cfg["input_size"][-1] // config.reduction
    return {**cfg, "pool_size": (side, side)}


default_cfgs = generate_default_cfgs({name: _default_cfg(name, config) for name, config in CONFIGS.items()})
register(CONFIGS, __name__)
