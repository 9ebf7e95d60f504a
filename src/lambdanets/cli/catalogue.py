"""The models of this package in one line each, known without building them."""

from dataclasses import dataclass

import timm

from lambdanets.models import ResNetConfig, create_model, list_models
from lambdanets.models.zoo import CONFIGS

# Building these to count them takes seconds, even without memory; a test does and compares. Small models
# are counted on the spot.
PARAMETERS: dict[str, int] = {
    "lambda_resnet50": 18_963_272,
    "lambda_resnet50_c4": 16_242_072,
    "lambda_resnet101": 36_866_920,
    "lambda_resnet101_c4": 25_982_120,
    "lambda_resnet152": 51_404_696,
    "lambda_resnet152_c4": 35_077_496,
    "lambda_resnet200": 57_993_112,
    "lambda_resnet200_c4": 41_665_912,
    "lambda_resnet270": 81_366_248,
    "lambda_resnet270_c4": 55_786_968,
    "lambda_resnet350": 105_475_176,
    "lambda_resnet350_c4": 69_555_336,
    "lambda_resnet420": 124_438_664,
    "lambda_resnet420_c4": 81_443_704,
    "resnet50_cccc": 25_557_032,
    "resnet50_cccl": 18_825_176,
    "resnet50_ccll": 15_559_736,
    "resnet50_clll": 15_061_880,
    "resnet50_conv": 25_557_032,
    "resnet50_lambda": 14_995_592,
    "resnet50_lambda_u4": 16_040_360,
    "resnet50_lccc": 25_490_744,
    "resnet50_llcc": 24_992_888,
    "resnet50_lllc": 21_727_448,
    "resnet50_llll": 14_995_592,
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One model of the list.

    Attributes:
        name: What `create_model` takes.
        parameters: Number of parameters.
        image: Channels, height and width it was made for; any other height and width works.
        description: Its blocks, and which hold lambda layers.
    """

    name: str
    parameters: int
    image: tuple[int, ...]
    description: str


def models(pattern: str = "") -> list[Entry]:
    """Return the models whose names match a pattern with wildcards, in natural order."""
    return [
        Entry(
            name=name,
            parameters=PARAMETERS.get(name) or count(name),
            image=tuple(timm.get_pretrained_cfg_value(name, "input_size") or ()),
            description=describe(CONFIGS[name]),
        )
        for name in list_models(pattern)
    ]


def count(name: str) -> int:
    """Return a model's number of parameters, by building it without memory."""
    return sum(parameter.numel() for parameter in create_model(name, device="meta").parameters())


def describe(config: ResNetConfig) -> str:
    """Return a phrase on the blocks of each stage and where the lambda layers are."""
    stages = []
    for stage, (depth, blocks) in enumerate(zip(config.depths, config.operator_blocks, strict=True), start=1):
        number = depth if blocks == "all" else len(blocks)
        if number:
            stages.append(f"layer{stage}" + (f" ({number} of {depth})" if number < depth else ""))
    where = "convolutions alone"
    if config.operator == "lambda" and stages:
        where = f"lambda in {', '.join(stages)}; scope {config.scope}"
        where += f", u {config.dim_u}" if config.dim_u > 1 else ""
    return f"{'-'.join(map(str, config.depths))} blocks; {where}"
