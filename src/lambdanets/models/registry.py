"""Creation of models by name, and their registration in timm."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import timm
from timm.models import (
    build_model_with_cfg,
    get_pretrained_cfg,
    is_model,
    is_model_pretrained,
    model_entrypoint,
    register_model,
)
from torch import nn

from lambdanets.utils.text import did_you_mean

from .config import ResNetConfig
from .int8 import dequantise
from .operators import OPERATORS
from .resnet import ResNet, count_parameters
from .shipped import WEIGHTS, shipped_classes, shipped_run
from .weight_files import check_source, read_content

_descriptions: dict[str, str] = {}
"""Description of each model of this package, by name."""
_configs: dict[str, ResNetConfig] = {}
"""Config of those that are a `ResNet`."""
_ARCHITECTURE_OPTIONS = frozenset(field.name for field in fields(ResNetConfig))
_TIMM_OPTIONS = frozenset(
    {"features_only", "out_indices", "feature_cls"}
    | inspect.signature(build_model_with_cfg).parameters.keys()
    | inspect.signature(ResNet).parameters.keys()
) - {"model_cls", "variant", "model_cfg", "feature_cfg", "config", "kwargs"}


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """Description of a model of this package.

    Attributes:
        name: Name for `create_model`.
        parameters: Number of parameters.
        image: Channels, height and width of the images that the model was made for. Other heights and widths
            work too.
        description: Its blocks, and which of them hold lambda layers.
    """

    name: str
    parameters: int
    image: tuple[int, ...]
    description: str


def create_model(name: str, **options: Any) -> nn.Module:
    """Create a model of this package, or of timm, by name.

    Args:
        name: Name of the model; `list_models()` lists those of this package. Also `local-dir:FOLDER` or
            `hf-hub:OWNER/NAME`, as in timm.
        **options: Options of `timm.create_model` (`num_classes`, `in_chans`, `features_only`, `out_indices`,
            `drop_rate`, `drop_path_rate`, `global_pool`, `output_stride`, ...) and, for the models of this
            package, the fields of `ResNetConfig`, such as `scope=7` or `dim_k=8`.

    Returns:
        The model, in training mode.

    Raises:
        ValueError: If there is no such model or option, or `pretrained=True` and no weights are published.
        WeightsError: If a file of weights is damaged.
        OSError: If a file cannot be read.

    Example:
        >>> model = create_model("lambda_resnet_cifar", num_classes=100, drop_path_rate=0.1)
        >>> model(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 100])
    """
    # timm drops options that are None, but None is not the default of these two.
    options |= {key: "none" for key in ("norm", "normalize") if key in options and options[key] is None}
    if ":" not in name:
        if not is_model(name):
            suggestion = did_you_mean(name, list_models()) or did_you_mean(name, timm.list_models())
            raise ValueError(f"there is no model named {name!r}{suggestion}")
        own_source = options.get("pretrained_cfg") or options.get("pretrained_cfg_overlay")
        if (
            options.get("pretrained")
            and name in _descriptions
            and not (own_source or is_model_pretrained(name))
        ):
            raise ValueError(f"pretrained=True: no trained weights of {name} are published; leave it out")
    else:
        check_source(name, weights=bool(options.get("pretrained")))
    overlay = (options.get("pretrained") and options.get("pretrained_cfg_overlay")) or {}
    shipped = shipped_run(name) if options.get("pretrained") else None
    for file in (options.get("checkpoint_path"), overlay.get("file"), shipped and shipped / WEIGHTS):
        if file and Path(file).suffix not in (".npz", ".npy"):
            read_content(Path(file))  # raises if the file is damaged; timm verifies no checksum
    network: Any = timm.create_model(name, **options)
    if shipped and getattr(network, "num_classes", 0) == len(names := shipped_classes(name)):
        # Not in timm's registry: there they would be the names of any network of this number of classes.
        network.pretrained_cfg["label_names"] = names
    return network


def list_models(filter: str = "") -> list[str]:
    """List the models of this package.

    Args:
        filter: Shell-style pattern, such as `"lambda*"` or `"*_c4"`. Default: all models.

    Returns:
        The names in natural order.

    Example:
        >>> list_models("lambda_resnet1*_c4")
        ['lambda_resnet101_c4', 'lambda_resnet152_c4']
    """
    return [name for name in timm.list_models(filter) if name in _descriptions]


def model_info(name: str) -> ModelInfo:
    """Return size and description of a model of this package.

    Raises:
        KeyError: If the model is not of this package.
    """
    description = _descriptions[name]
    cfg: Any = get_pretrained_cfg(name)
    image = tuple(cfg.input_size)
    if name in _configs:
        parameters = count_parameters(_configs[name], num_classes=cfg.num_classes, in_chans=image[0])
    else:
        parameters = sum(parameter.numel() for parameter in create_model(name, device="meta").parameters())
    return ModelInfo(name=name, parameters=parameters, image=image, description=description)


def register(configs: dict[str, ResNetConfig], module: str) -> None:
    """Register ResNets in timm.

    Args:
        configs: The architectures by model name.
        module: Name of the module that defines them; it has timm's `default_cfgs` for the same names.

    Raises:
        ValueError: If a model of another package has one of the names. In that case none is registered.
    """
    entrypoints = {name: _entrypoint(name, config) for name, config in configs.items()}
    register_entrypoints(entrypoints, module, {name: _describe(config) for name, config in configs.items()})
    _configs.update(configs)


def register_entrypoints(
    entrypoints: dict[str, Callable[..., nn.Module]], module: str, descriptions: dict[str, str]
) -> None:
    """Register functions that create a model in timm.

    Args:
        entrypoints: Functions by model name, called as `function(pretrained=False, **options)`.
        module: Name of the module that defines them; it has timm's `default_cfgs` for the same names.
        descriptions: Descriptions by model name; see `ModelInfo`.

    Raises:
        ValueError: If a model of another package has one of the names. In that case none is registered.
    """
    for name in entrypoints:
        if is_model(name) and model_entrypoint(name).__module__ != module:
            owner = model_entrypoint(name).__module__
            raise ValueError(
                f"the model name {name!r} is taken in timm's registry by {owner}; rename one of them"
            )
    for name, entrypoint in entrypoints.items():
        entrypoint.__name__ = entrypoint.__qualname__ = name
        entrypoint.__module__ = module
        setattr(sys.modules[module], name, entrypoint)
        register_model(entrypoint)
        _descriptions[name] = descriptions[name]


def check_options(name: str, options: Iterable[str], known: Collection[str]) -> None:
    """Raise ValueError, with the most similar known option, for an option that a model does not have."""
    for option in set(options) - set(known):
        raise ValueError(f"{name} has no option {option!r}{did_you_mean(option, sorted(known))}")


def _entrypoint(name: str, config: ResNetConfig) -> Callable[..., nn.Module]:
    """Return the function that creates a ResNet, in the form in which timm's registry expects it."""

    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        check_options(name, options, _ARCHITECTURE_OPTIONS | _TIMM_OPTIONS)
        architecture = {key: options.pop(key) for key in _ARCHITECTURE_OPTIONS & options.keys()}
        chosen = replace(config, **architecture)
        return build_model_with_cfg(
            ResNet,
            name,
            pretrained,
            config=chosen,
            feature_cfg={"out_indices": tuple(range(chosen.num_feature_maps))},
            pretrained_filter_fn=lambda weights, _: dequantise(weights),
            **options,
        )

    create.__doc__ = f"Create {name}; see `lambdanets.models.create_model` for the options."
    return create


def _describe(config: ResNetConfig) -> str:
    """Return a phrase on the blocks of each stage and their operators."""
    stages = []
    for stage, (depth, blocks) in enumerate(zip(config.depths, config.operator_blocks, strict=True), start=1):
        number = depth if blocks == "all" else len(blocks)
        if number:
            stages.append(f"layer{stage}" + (f" ({number} of {depth})" if number < depth else ""))
    operators = "convolutions alone"
    if config.operator != "conv" and stages:
        operators = f"{config.operator.replace('_', ' ')} in {', '.join(stages)}"
        operators += f"; scope {config.scope}" if OPERATORS[config.operator].uses_scope else ""
        operators += f", u {config.dim_u}" if config.dim_u > 1 else ""
    elif any(config.squeeze_excite):
        operators = f"convolutions, squeeze-and-excitation 1/{config.squeeze_reduction}"
    return f"{'-'.join(map(str, config.depths))} blocks; {operators}"
