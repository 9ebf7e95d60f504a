"""MobileNet-v2: timm's, and a variant with two lightweight lambda blocks (Table 17).

The paper replaces the 10th and the 16th inverted bottleneck: the last one with 64 channels and the last one
with 160, both without stride. In its lightweight block the first pointwise convolution keeps the number of
channels, and the lambda convolution is 5x5 with k = 32 and h = 4. Here k = 32 counts the query channels of
all heads, 8 for each head. That gives the table's 3.21 M parameters (3,208,360) and, at 224 pixels with two
operations per multiply-add, its 563 M operations (563.2 M by torch's counter). With 32 for each head, the
model would have 3.24 M parameters and 575 M operations.
"""

from __future__ import annotations

import inspect
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, get_pretrained_cfg, load_pretrained
from timm.models.efficientnet import EfficientNet, mobilenetv2_100
from torch import nn

from lambdanets.nn import LambdaLayer2d
from lambdanets.nn.blocks import LightweightBottleneck

from .registry import check_options, register_entrypoints

# Stage and block of the 10th and the 16th inverted bottleneck in timm's model.
_REPLACED_BLOCKS = ((3, 3), (5, 2))
_LAYER_OPTIONS: dict[str, Any] = {"dim_k": 8, "num_heads": 4, "dim_u": 1, "scope": 5, "kernel": "auto"}
_TIMM_OPTIONS = (
    {"features_only", "out_indices", "feature_cls", "drop_rate", "drop_path_rate"}
    | inspect.signature(build_model_with_cfg).parameters.keys()
    | inspect.signature(EfficientNet).parameters.keys()
) - {"model_cls", "variant", "model_cfg", "feature_cfg", "block_args", "kwargs"}


def _conv(pretrained: bool = False, **options: Any) -> nn.Module:
    """Create MobileNet-v2, which is timm's mobilenetv2_100, with the same options."""
    check_options("mobilenetv2_conv", options, _TIMM_OPTIONS)
    return mobilenetv2_100(pretrained=pretrained, **_with_cfg("mobilenetv2_conv", options))


def _lambda(pretrained: bool = False, **options: Any) -> nn.Module:
    """Create MobileNet-v2 with two lightweight lambda blocks.

    Options are those of timm's mobilenetv2_100, and dim_k, num_heads, dim_u, scope and kernel.

    Raises:
        ValueError: If an option does not exist, or contradicts another.
    """
    name = "mobilenetv2_lambda"
    check_options(name, options, _TIMM_OPTIONS | _LAYER_OPTIONS.keys())
    if pretrained and not (options.get("pretrained_cfg") or options.get("pretrained_cfg_overlay")):
        raise ValueError(f"pretrained=True: no trained weights of {name}; a file goes to checkpoint_path=")
    if pretrained and options.get("features_only"):
        raise ValueError(f"features_only=True: trained weights of {name} go into the whole model only")
    if options.get("feature_cls") == "fx":
        raise ValueError(
            f"feature_cls='fx' would trace {name} before its lambda blocks are inserted; "
            "feature_cls='getter' returns the same features"
        )
    layer = {key: options.pop(key, default) for key, default in _LAYER_OPTIONS.items()}
    model = mobilenetv2_100(pretrained=False, **_with_cfg(name, options))
    body: Any = model.get_submodule("model") if hasattr(model, "model") else model
    for stage, block in _REPLACED_BLOCKS:
        old = body.get_submodule(f"blocks.{stage}.{block}")
        weight = old.conv_pwl.weight
        factory = {"device": weight.device, "dtype": weight.dtype}
        dim = len(weight)
        operator = LambdaLayer2d(dim, dilation=old.conv_dw.dilation, **layer, **factory)
        light = LightweightBottleneck(dim, operator, drop_path=old.drop_path, **factory)
        body.set_submodule(f"blocks.{stage}.{block}", light)
    if pretrained:
        classes, channels = body.num_classes, body.conv_stem.in_channels
        load_pretrained(model, body.pretrained_cfg, num_classes=classes, in_chans=channels)
    return model


def _with_cfg(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Add the `pretrained_cfg` of this model, in place of that of timm's mobilenetv2_100."""
    cfg = options.pop("pretrained_cfg", None)
    return {**options, "pretrained_cfg": get_pretrained_cfg(name) if cfg is None else cfg}


_CFG: dict[str, Any] = {
    "url": "",
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": (7, 7),
    "crop_pct": 0.875,
    "interpolation": "bicubic",
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "first_conv": "conv_stem",
    "classifier": "classifier",
    "license": "apache-2.0",
    "paper_ids": "arXiv:2102.08602",
}
default_cfgs = generate_default_cfgs({"mobilenetv2_conv": _CFG, "mobilenetv2_lambda": _CFG})
register_entrypoints(
    {"mobilenetv2_conv": _conv, "mobilenetv2_lambda": _lambda},
    __name__,
    {
        "mobilenetv2_conv": "17 inverted bottlenecks; convolutions alone",
        "mobilenetv2_lambda": "17 inverted bottlenecks; lambda in the 10th and the 16th; scope 5",
    },
)
