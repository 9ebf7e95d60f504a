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
    "mobilenetv2_conv": 3_504_872,
    "mobilenetv2_lambda": 3_208_360,
    "resnet50_attention": 18_045_304,
    "resnet50_axial": 21_870_584,
    "resnet50_cccc": 25_557_032,
    "resnet50_cccl": 18_825_176,
    "resnet50_ccll": 15_559_736,
    "resnet50_clll": 15_061_880,
    "resnet50_conv": 25_557_032,
    "resnet50_lambda": 14_995_592,
    "resnet50_lambda_u4": 16_040_360,
    "resnet50_lccc": 25_490_744,
    "resnet50_linear_attention": 18_012_200,
    "resnet50_llcc": 24_992_888,
    "resnet50_lllc": 21_727_448,
    "resnet50_llll": 14_995_592,
    "resnet50_local_attention": 18_038_632,
    "resnet50_rs": 25_613_256,
    "resnet50_rs_se": 35_691_912,
    "resnet50_se": 28_088_024,
    "resnet101_rs": 44_605_384,
    "resnet101_rs_se": 63_618_696,
    "resnet152_rs": 60_249_032,
    "resnet152_rs_se": 86_621_576,
    "resnet200_rs": 64_730_056,
    "resnet200_rs_se": 93_209_992,
    "resnet270_rs": 89_655_496,
    "resnet270_rs_se": 129_861_448,
    "resnet350_rs": 112_842_440,
    "resnet350_rs_se": 163_956_168,
    "resnet420_rs": 131_840_712,
    "resnet420_rs_se": 191_891_656,
}
MOBILENETS: dict[str, str] = {
    "mobilenetv2_conv": "17 inverted bottlenecks; convolutions alone",
    "mobilenetv2_lambda": "17 inverted bottlenecks; lambda in the 10th and the 16th; scope 5",
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
            description=describe(CONFIGS[name]) if name in CONFIGS else MOBILENETS[name],
        )
        for name in list_models(pattern)
    ]


def count(name: str) -> int:
    """Return a model's number of parameters, by building it without memory."""
    return sum(parameter.numel() for parameter in create_model(name, device="meta").parameters())


def describe(config: ResNetConfig) -> str:
    """Return a phrase on the blocks of each stage and what they hold."""
    stages = []
    for stage, (depth, blocks) in enumerate(zip(config.depths, config.operator_blocks, strict=True), start=1):
        number = depth if blocks == "all" else len(blocks)
        if number:
            stages.append(f"layer{stage}" + (f" ({number} of {depth})" if number < depth else ""))
    where = "convolutions alone"
    if config.operator != "conv" and stages:
        where = f"{config.operator.replace('_', ' ')} in {', '.join(stages)}"
        where += f"; scope {config.scope}" if config.operator in ("lambda", "local_attention") else ""
        where += f", u {config.dim_u}" if config.dim_u > 1 else ""
    elif any(config.squeeze_excite):
        where = f"convolutions, squeeze-and-excitation 1/{config.squeeze_reduction}"
    return f"{'-'.join(map(str, config.depths))} blocks; {where}"
