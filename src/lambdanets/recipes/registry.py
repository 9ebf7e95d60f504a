"""Registry of recipes. Each module of this folder registers its own with the decorator `recipe`."""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from lambdanets.train import override
from lambdanets.train.config import BaseConfig, Config
from lambdanets.utils.text import did_you_mean

Configure = Callable[[], BaseConfig]
C = TypeVar("C", bound=Configure)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A registered recipe.

    Attributes:
        configure: Returns the complete configuration. Its docstring describes the recipe; see
            `lambdanets.recipes.describe`.
        sections: Sections that replace those of the docstring.
        device_rate: Published training images per second of one device, or None.
        rate_source: Source of that rate.
        needs_weights: Whether a run starts from trained weights only.
    """

    configure: Configure
    sections: Mapping[str, str] = field(default_factory=dict)
    device_rate: float | None = None
    rate_source: str = ""
    needs_weights: bool = False


RECIPES: dict[str, Recipe] = {}

# Overrides that make networks for ImageNet, and backbones of detectors, narrow and shallow.
SMALL_NETWORK = (
    "model.options.widths=[8, 16, 32, 64]",
    "model.options.depths=(1, 1, 2, 1)",
    "model.options.operator_blocks=((), (), (1,), 'all')",
)
SMALL_DETECTOR = (
    "model.options.stem_width=8",
    "model.fpn_channels=16",
    "model.anchor_sizes=(8, 16, 32, 64, 128)",
    "model.box_dim=32",
    "model.mask_dim=8",
    "model.mask_convs=1",
    "model.rpn_pre_nms_top_n_train=100",
    "model.rpn_post_nms_top_n_train=50",
    "model.rpn_pre_nms_top_n_test=100",
    "model.rpn_post_nms_top_n_test=50",
    "model.box_batch_size_per_image=32",
    "model.box_detections_per_img=20",
    "validation.sheet=2",
)


def recipe(
    name: str,
    *,
    sections: Mapping[str, str] | None = None,
    device_rate: float | None = None,
    rate_source: str = "",
    needs_weights: bool = False,
) -> Callable[[C], C]:
    """Register a function that returns a configuration as the recipe of a name.

    Args:
        name: Name of the recipe; the field `recipe` of the configuration must be the same.
        sections: Sections of the description that replace those of the function's docstring.
        device_rate: Published training images per second of one device.
        rate_source: Source of that rate.
        needs_weights: Whether a run starts from trained weights only.

    Example:
        >>> @recipe("mine")
        ... def mine() -> RunConfig:
        ...     return RunConfig(recipe="mine", model=ModelConfig(name="lambda_resnet_mini"))
    """

    def register(configure: C) -> C:
        RECIPES[name] = Recipe(
            configure=configure,
            sections=sections or {},
            device_rate=device_rate,
            rate_source=rate_source,
            needs_weights=needs_weights,
        )
        return configure

    return register


def import_recipes(path: Iterable[str]) -> None:
    """Import all modules of `lambdanets.recipes`, which register their recipes.

    Args:
        path: The folders of the package.
    """
    for module in pkgutil.iter_modules(path, "lambdanets.recipes."):
        importlib.import_module(module.name)


def list_recipes() -> list[str]:
    """Return the names of all recipes."""
    return list(RECIPES)


def find_recipe(name: str) -> Recipe:
    """Return a recipe as it was registered.

    Raises:
        ValueError: There is no such recipe; the message suggests similar names.
    """
    if name not in RECIPES:
        hint = did_you_mean(name, RECIPES) or f"; known: {', '.join(RECIPES)}"
        raise ValueError(f"there is no recipe {name!r}{hint}")
    return RECIPES[name]


def get_recipe(name: str) -> BaseConfig:
    """Return the complete configuration of a recipe.

    Raises:
        ValueError: There is no such recipe; the message suggests similar names.

    Example:
        >>> get_recipe("digits").engine.epochs
        30
    """
    return find_recipe(name).configure()


def miniature(config: Config) -> Config:
    """Return a configuration of the same run in a few steps on one core, as a trial of every part of it.

    Images larger than 32 pixels, with a detector 64, shrink to that size; networks for ImageNet and detectors
    become narrow and shallow, and so do classifiers of recordings, and language models, with short windows.
    The data source is unchanged.
    """
    return override(
        config,
        *MINIATURES[config.TASK](config),
        "schedule.warmup_epochs=1",
        "engine.epochs=2",
        "engine.threads=1",
        "engine.max_batches=2",
        "engine.max_val_batches=2",
        "engine.validate_every=1",
        "engine.sync_batchnorm=false",
        "engine.global_batch=None" if config.engine.global_batch is None else "engine.global_batch=16",
    )


def _small_classifier(config: BaseConfig) -> Iterator[str]:
    if config.recipe.startswith("imagenet"):
        yield from SMALL_NETWORK
    yield f"data.image_size={min(config.data.image_size, 32)}"
    yield from ("data.batch_size=8", "data.workers=0")


def _small_detector(config: BaseConfig) -> Iterator[str]:
    yield from (*SMALL_NETWORK, *SMALL_DETECTOR)
    yield f"data.image_size={min(config.data.image_size, 64)}"
    yield from ("data.batch_size=2", "data.workers=0")


def _small_language_model(config: BaseConfig) -> Iterator[str]:
    yield from ("model.options.dim=16", "model.options.depth=1", "model.options.num_heads=2")
    yield from ("data.context=16", "data.batch_size=4", "data.windows=None", "sample.tokens=20")


def _small_audio(config: BaseConfig) -> Iterator[str]:
    yield from ("model.options.widths=[8, 16, 16]", "model.options.depths=[1, 1, 1]", "data.batch_size=8")


# Task -> the overrides that make its networks and data small.
MINIATURES: dict[str, Callable[[BaseConfig], Iterable[str]]] = {
    "classification": _small_classifier,
    "detection": _small_detector,
    "audio": _small_audio,
    "text": _small_language_model,
}
