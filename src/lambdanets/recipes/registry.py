"""Recipes by name, and their miniatures."""

from collections.abc import Callable
from functools import partial

from lambdanets.detection import DetectionConfig
from lambdanets.recipes.cifar import cifar
from lambdanets.recipes.coco import coco
from lambdanets.recipes.digits import digits
from lambdanets.recipes.folder import folder
from lambdanets.recipes.imagenet import ROWS, imagenet_90, imagenet_350
from lambdanets.recipes.nuclei import nuclei
from lambdanets.train import RunConfig, override
from lambdanets.train.config import Config
from lambdanets.train.serialization import nearest

RECIPES: dict[str, Callable[[], RunConfig | DetectionConfig]] = {
    "digits": digits,
    "cifar": cifar,
    "folder": folder,
    "imagenet-90": imagenet_90,
    **{row.name: partial(imagenet_350, row) for row in ROWS},
    "coco": coco,
    "nuclei": nuclei,
}
TRUNK = (  # a miniature of the networks for ImageNet and of a detector's backbone
    "model.options.widths=[8, 16, 32, 64]",
    "model.options.depths=(1, 1, 2, 1)",
    "model.options.operator_blocks=((), (), (1,), 'all')",
)
DETECTOR = (
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


def miniature(config: Config) -> Config:
    """The same run in a few steps on one core: every part is used, nothing is learnt.

    Images stay as they are up to 32 pixels, with a detector 64, and shrink to that beyond; networks for
    ImageNet and detectors become narrow and shallow. The data may still have to be named.
    """
    detects = isinstance(config, DetectionConfig)
    small = detects or config.recipe.startswith("imagenet")
    side, images = (64, 2) if detects else (32, 8)
    return override(
        config,
        *(TRUNK if small else ()),
        *(DETECTOR if detects else ()),
        f"data.image_size={min(config.data.image_size, side)}",
        f"data.batch_size={images}",
        "data.workers=0",
        "schedule.warmup_epochs=1",
        "engine.epochs=2",
        "engine.threads=1",
        "engine.max_batches=2",
        "engine.max_val_batches=2",
        "engine.validate_every=1",
        "engine.sync_batchnorm=false",
        "engine.global_batch=None" if config.engine.global_batch is None else "engine.global_batch=16",
    )
