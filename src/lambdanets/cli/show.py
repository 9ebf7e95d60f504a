"""`lambdanets show`: the stages of a model, their cost and the kernels of its lambda layers; or a recipe."""

from typing import Annotated

from tyro import conf

from lambdanets.cli.errors import UsageError, check_name, usage
from lambdanets.cli.options import Device, DtypeName, shown
from lambdanets.utils.text import did_you_mean


def run(
    name: Annotated[str, conf.Positional, conf.arg(metavar="MODEL | RECIPE")],
    *,
    size: Annotated[str | None, shown("N | NxN", "the model's own")] = None,
    num_classes: Annotated[int | None, shown("N", "the model's own")] = None,
    batch: int = 1,
    train: bool = False,
    dtype: DtypeName = "float32",
    device: Device = "cpu",
    devices: Annotated[tuple[int, ...] | None, shown("N ...", "8 64 512")] = None,
    images_per_second: Annotated[float | None, shown("R", "a published one")] = None,
) -> int:
    """Show a model: its stages, parameters, multiply-adds and the kernels of its lambda layers. Or a recipe.

    A model is built on the meta device and nothing is computed, so even the largest takes a second or two. Of
    a recipe it shows source, expected results, requirements, command and settings, and for ImageNet an
    estimate of its cost.

    Args:
        name: Name of a model or of a recipe; `lambdanets list` lists them.
        size: Image size, for example 256 or 224x320.
        num_classes: Number of classes.
        batch: Batch size for which the kernels are selected.
        train: Select the kernels for training, not for inference.
        dtype: Dtype for which the kernels are selected.
        device: Device type for which the kernels are selected; this machine need not have it.
        devices: Recipes: numbers of devices for which to estimate the cost.
        images_per_second: Recipes: training images per second of one device.
    """
    for option, number in (("--num-classes", num_classes), ("--batch", batch)):
        if number is not None and number < 1:
            raise UsageError(f"{option} must be at least 1, got {number}.")
    import timm

    from lambdanets.cli.show_model import show_model
    from lambdanets.cli.show_recipe import show_recipe
    from lambdanets.models import LANGUAGE_MODELS
    from lambdanets.recipes import list_recipes

    if name in list_recipes():
        if size is not None or num_classes is not None or train:
            raise UsageError("--size, --num-classes and --train are for models; a recipe sets its own.")
        with usage():
            show_recipe(name, devices=devices, images_per_second=images_per_second)
        return 0
    if name in LANGUAGE_MODELS:
        if size is not None or num_classes is not None or train or devices is not None or images_per_second:
            raise UsageError(f"{name} is a language model: show takes no further options for it.")
        from lambdanets.cli.show_language_model import show_language_model

        show_language_model(name)
        return 0
    if devices is not None or images_per_second is not None:
        raise UsageError("--devices and --images-per-second are for recipes; see lambdanets list.")
    if not timm.is_model(name) and did_you_mean(name, list_recipes()):
        check_name("recipe", name, list_recipes())
    show_model(name, size=size, num_classes=num_classes, batch=batch, train=train, dtype=dtype, device=device)
    return 0
