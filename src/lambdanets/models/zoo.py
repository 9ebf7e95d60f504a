"""One literal config per published variant, and small members for small images and for the CPU.

Blocks are counted from 0. The paper lists the lambda blocks of c4 without saying where it starts; its strided
first block is in no list either way, and the numbers of parameters agree with both readings.
"""

from dataclasses import replace
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import generate_default_cfgs

from .config import Blocks, ResNetConfig
from .registry import register


def _hybrid(depths: tuple[int, int, int, int], c4: Blocks) -> ResNetConfig:
    """A LambdaResNet (section E.1): ResNet-RS with lambda layers in all of c5 and the given blocks of c4.

    Squeeze-and-excitation is in c2 and c3 alone. The paper says only that lambda blocks have none,
    but its numbers of parameters (36.9 M for 101, 51.4 M for 152) have no room for it in the rest of c4.
    """
    return ResNetConfig(
        depths=depths,
        stem="deep",
        shortcut="pool",
        operator_blocks=((), (), c4, "all"),
        squeeze_excite=(True, True, False, False),
    )


def _pattern(c2: str, c3: str, c4: str, c5: str) -> ResNetConfig:
    """A row of Table 13: the vanilla ResNet-50 whose stages hold convolutions (c) or lambda layers (l)."""
    blocks: dict[str, Blocks] = {"c": (), "l": "all"}
    return ResNetConfig(depths=(3, 4, 6, 3), operator_blocks=tuple(blocks[kind] for kind in (c2, c3, c4, c5)))


_DIGITS = ResNetConfig(
    depths=(2, 2),
    widths=(16, 32),
    stem="conv3",
    stem_width=32,
    shortcut="pool",
    operator_blocks=((1,), "all"),
    squeeze_excite=(False, False),
    scope=7,
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
)

CONFIGS: dict[str, ResNetConfig] = {
    # Table 18.
    "lambda_resnet50": _hybrid((3, 4, 6, 3), c4=(3,)),
    "lambda_resnet101": _hybrid((3, 4, 23, 3), c4=(6, 12, 18)),
    "lambda_resnet152": _hybrid((3, 8, 36, 3), c4=(5, 10, 15, 20, 25, 30)),
    "lambda_resnet200": _hybrid((3, 24, 36, 3), c4=(5, 10, 15, 20, 25, 30)),
    "lambda_resnet270": _hybrid((4, 29, 53, 4), c4=(8, 16, 24, 32, 40, 48)),
    "lambda_resnet350": _hybrid((4, 36, 72, 4), c4=(10, 20, 30, 40, 50, 60)),
    "lambda_resnet420": _hybrid((4, 44, 87, 4), c4=(10, 20, 30, 40, 50, 60, 70, 80)),
    # Tables 14 to 16: lambda layers in all of c4 and c5.
    "lambda_resnet50_c4": _hybrid((3, 4, 6, 3), c4="all"),
    "lambda_resnet101_c4": _hybrid((3, 4, 23, 3), c4="all"),
    "lambda_resnet152_c4": _hybrid((3, 8, 36, 3), c4="all"),
    "lambda_resnet200_c4": _hybrid((3, 24, 36, 3), c4="all"),
    "lambda_resnet270_c4": _hybrid((4, 29, 53, 4), c4="all"),
    "lambda_resnet350_c4": _hybrid((4, 36, 72, 4), c4="all"),
    "lambda_resnet420_c4": _hybrid((4, 44, 87, 4), c4="all"),
    # Table 3: the vanilla ResNet-50, and every 3x3 convolution replaced.
    "resnet50_conv": _pattern("c", "c", "c", "c"),
    "resnet50_lambda": _pattern("l", "l", "l", "l"),
    "resnet50_lambda_u4": replace(_pattern("l", "l", "l", "l"), dim_u=4, scope=7),
    # Table 13. The first and the last are resnet50_conv and resnet50_lambda under the names of that table.
    "resnet50_cccc": _pattern("c", "c", "c", "c"),
    "resnet50_lccc": _pattern("l", "c", "c", "c"),
    "resnet50_llcc": _pattern("l", "l", "c", "c"),
    "resnet50_lllc": _pattern("l", "l", "l", "c"),
    "resnet50_clll": _pattern("c", "l", "l", "l"),
    "resnet50_ccll": _pattern("c", "c", "l", "l"),
    "resnet50_cccl": _pattern("c", "c", "c", "l"),
    "resnet50_llll": _pattern("l", "l", "l", "l"),
    # Ours: 8x8 grey images, 32x32 images, photos on a CPU; and the same trunks with convolutions alone.
    "lambda_resnet_digits": _DIGITS,
    "resnet_digits_conv": replace(_DIGITS, operator="conv"),
    "lambda_resnet_cifar": _CIFAR,
    "resnet_cifar_conv": replace(_CIFAR, operator="conv"),
    "lambda_resnet_mini": _MINI,
    "resnet_mini_conv": replace(_MINI, operator="conv"),
}

# The image sizes of Table 19 (the largest of the supervised rows), and of Tables 14 to 16 for the others.
_SIZES = {
    "lambda_resnet50": 160,
    "lambda_resnet50_c4": 160,
    "lambda_resnet101": 192,
    "lambda_resnet152": 256,
    "lambda_resnet152_c4": 320,
    "lambda_resnet200": 320,
    "lambda_resnet200_c4": 320,
    "lambda_resnet270": 256,
    "lambda_resnet270_c4": 256,
    "lambda_resnet350": 320,
    "lambda_resnet350_c4": 320,
    "lambda_resnet420": 320,
    "lambda_resnet420_c4": 320,
    "lambda_resnet_mini": 128,
    "resnet_mini_conv": 128,
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
_DATA = {
    "lambda_resnet_digits": _DIGITS_DATA,
    "resnet_digits_conv": _DIGITS_DATA,
    "lambda_resnet_cifar": _CIFAR_DATA,
    "resnet_cifar_conv": _CIFAR_DATA,
}


def _default_cfg(name: str, config: ResNetConfig) -> dict[str, Any]:
    size = _SIZES.get(name, 224)
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
        **_DATA.get(name, {}),
    }
    side = cfg["input_size"][-1] // config.reduction
    return {**cfg, "pool_size": (side, side)}


default_cfgs = generate_default_cfgs({name: _default_cfg(name, config) for name, config in CONFIGS.items()})
register(CONFIGS, __name__)
