"""Recipes by name, and their miniatures."""

from collections.abc import Callable
from functools import partial

from lambdanets.detection import DetectionConfig
from lambdanets.recipes.cifar import cifar
from lambdanets.recipes.coco import coco
from lambdanets.recipes.digits import digits
from lambdanets.recipes.folder import folder
from lambdanets.recipes.imagenet import ROWS, imagenet_90, imagenet_350
from lambdanets.train import RunConfig, override
from lambdanets.train.typed import nearest

RECIPES: dict[str, Callable[[], RunConfig | DetectionConfig]] = {
    "digits": digits,
    "cifar": cifar,
    "folder": folder,
    "imagenet-90": imagenet_90,
    **{row.name: partial(imagenet_350, row) for row in ROWS},
    "coco": coco,
}
NARROW = (8, 16, 32, 64)  # channels inside the blocks of a miniature's stages


def list_recipes() -> list[str]:
    """Names of all recipes."""
    return list(RECIPES)


def get_recipe(name: str) -> RunConfig | DetectionConfig:
    """The complete configuration of a recipe.

    Raises:
        ValueError: there is no such recipe; the nearest name is suggested.

    Example:
        >>> get_recipe("digits").engine.epochs
        30
    """
    if name not in RECIPES:
        raise ValueError(f"there is no recipe {name!r}{nearest(name, RECIPES)}")
    return RECIPES[name]()


def miniature(config: RunConfig) -> RunConfig:
    """The same run in a few steps on one core: every part is used, nothing is learnt.

    Images stay as they are up to 32 pixels and shrink to that beyond; networks for ImageNet become narrow.
    The data may still have to be named.
    """
    narrow = [f"model.options.widths={list(NARROW)}"] if config.recipe.startswith("imagenet") else []
    return override(
        config,
        *narrow,
        f"data.image_size={min(config.data.image_size, 32)}",
        "data.batch_size=8",
        "data.workers=0",
        "schedule.warmup_epochs=1",
        "engine.epochs=2",
        "engine.threads=1",
        "engine.max_batches=2",
        "engine.max_val_batches=2",
        "engine.global_batch=None" if config.engine.global_batch is None else "engine.global_batch=16",
    )
