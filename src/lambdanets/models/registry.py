"""Creating models by name, and the bridge to timm's registry."""

import inspect
import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import timm
from timm.models import build_model_with_cfg, is_model, is_model_pretrained, model_entrypoint, register_model
from torch import nn

from lambdanets.utils.text import did_you_mean

from .config import ResNetConfig
from .resnet import ResNet
from .weight_files import check_source, read_content

_names: set[str] = set()
_ARCHITECTURE = frozenset(field.name for field in fields(ResNetConfig))
_FACTORY = frozenset(
    {"features_only", "out_indices", "feature_cls"}
    | inspect.signature(build_model_with_cfg).parameters.keys()
    | inspect.signature(ResNet).parameters.keys()
) - {"model_cls", "variant", "model_cfg", "feature_cfg", "config", "kwargs"}


def create_model(name: str, **options: Any) -> nn.Module:
    """Creates a model of this package, or any other of timm.

    Args:
        name: Name of the model; `list_models()` has them all.
        **options: What `timm.create_model` takes (`num_classes`, `in_chans`, `features_only`, `out_indices`,
            `drop_rate`, `drop_path_rate`, `global_pool`, `output_stride`, ...) and, for the models of this
            package, the fields of their config, such as `scope=7` or `dim_k=8`.

    Returns:
        The model.

    Raises:
        ValueError: If there is no such model or option, or no trained weights although `pretrained` is set.
        WeightsError: If a file of weights is damaged.
        OSError: If it cannot be read.

    Example:
        >>> model = create_model("lambda_resnet_cifar", num_classes=100, drop_path_rate=0.1)
    """
    # timm leaves out options that are None, which for these two would be their default.
    options |= {key: "none" for key in ("norm", "normalize") if key in options and options[key] is None}
    if ":" not in name:
        if not is_model(name):
            hint = did_you_mean(name, list_models()) or did_you_mean(name, timm.list_models())
            raise ValueError(f"there is no model named {name!r}{hint}")
        own_source = options.get("pretrained_cfg") or options.get("pretrained_cfg_overlay")
        if options.get("pretrained") and name in _names and not (own_source or is_model_pretrained(name)):
            raise ValueError(f"pretrained=True: no trained weights of {name} are published; leave it out")
    else:
        check_source(name, weights=bool(options.get("pretrained")))
    overlay = (options.get("pretrained") and options.get("pretrained_cfg_overlay")) or {}
    for file in (options.get("checkpoint_path"), overlay.get("file")):
        if file and Path(file).suffix not in (".npz", ".npy"):
            read_content(Path(file))  # timm verifies no checksum
    return timm.create_model(name, **options)


def list_models(filter: str = "") -> list[str]:
    """Lists the models of this package.

    Args:
        filter: Shell-style pattern, such as "lambda*" or "*_c4".

    Returns:
        The names in natural order.
    """
    return [name for name in timm.list_models(filter) if name in _names]


def register(configs: dict[str, ResNetConfig], module: str) -> None:
    """Registers ResNets in timm under their names.

    Args:
        configs: The architectures by name.
        module: Name of the module that owns them and holds timm's `default_cfgs` of the same names.

    Raises:
        ValueError: If a name belongs to a model of another package. Nothing is registered then.
    """
    register_entrypoints({name: _entrypoint(name, config) for name, config in configs.items()}, module)


def register_entrypoints(entrypoints: dict[str, Callable[..., nn.Module]], module: str) -> None:
    """Registers functions that make a model, called as `function(pretrained=False, **options)`.

    Args:
        entrypoints: The functions by the name of their model.
        module: Name of the module that owns them and holds timm's `default_cfgs` of the same names.

    Raises:
        ValueError: If a name belongs to a model of another package. Nothing is registered then.
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
        _names.add(name)


def check_options(name: str, options: Iterable[str], known: Collection[str]) -> None:
    """Refuses options that a model does not have.

    Raises:
        ValueError: With the nearest that it has.
    """
    for option in set(options) - set(known):
        raise ValueError(f"{name} has no option {option!r}{did_you_mean(option, sorted(known))}")


def _entrypoint(name: str, config: ResNetConfig) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        check_options(name, options, _ARCHITECTURE | _FACTORY)
        chosen = replace(config, **{key: options.pop(key) for key in _ARCHITECTURE & options.keys()})
        return build_model_with_cfg(
            ResNet,
            name,
            pretrained,
            config=chosen,
            feature_cfg={"out_indices": tuple(range(chosen.num_feature_maps))},
            **options,
        )

    create.__doc__ = f"Creates {name}; see `lambdanets.models.create_model` for the options."
    return create
