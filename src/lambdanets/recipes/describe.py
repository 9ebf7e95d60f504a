"""Description of a recipe: its docstring in sections, and an estimate of its cost."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass

from lambdanets.models import create_model
from lambdanets.recipes.cost import TrainingCost, estimate_cost
from lambdanets.recipes.registry import find_recipe
from lambdanets.train import RunConfig

DEVICES = (8, 64, 512)


@dataclass(frozen=True, kw_only=True)
class Description:
    """A recipe in words.

    Attributes:
        title: One sentence.
        sections: The sections of its docstring by heading ("Follows", "Expect" or "Measured", "Needs",
            "Command"), each on one line.
        device_rate: Published training images per second of one device, or None.
        rate_source: Source of that rate.
    """

    title: str
    sections: dict[str, str]
    device_rate: float | None = None
    rate_source: str = ""


def describe(name: str) -> Description:
    """Return the description of a recipe.

    Raises:
        ValueError: There is no such recipe.

    Example:
        >>> describe("imagenet-350-152@224").sections["Expect"]
        '83.2 %, 86.5 % with pseudo-labels (published, Table 19; not trained here).'
    """
    recipe = find_recipe(name)
    title, _, rest = inspect.cleandoc(recipe.configure.__doc__ or "").partition("\n\n")
    found = re.split(r"^(\w+):", rest, flags=re.MULTILINE)[1:]
    sections = {head: " ".join(text.split()) for head, text in zip(found[::2], found[1::2], strict=True)}
    return Description(
        title=title,
        sections=sections | dict(recipe.sections),
        device_rate=recipe.device_rate,
        rate_source=recipe.rate_source,
    )


def costs(
    config: RunConfig, *, images_per_second: float, devices: tuple[int, ...] = DEVICES
) -> tuple[TrainingCost, ...]:
    """Estimate the cost of a run on ImageNet for several numbers of devices; see `estimate_cost`.

    Args:
        config: The run.
        images_per_second: Training images per second of one device.
        devices: Numbers of devices.
    """
    network = create_model(config.model.name, device="meta", **config.model.options)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return tuple(
        estimate_cost(config, parameters=parameters, images_per_second=images_per_second, devices=number)
        for number in devices
    )
