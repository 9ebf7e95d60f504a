"""What a recipe says of itself: where it comes from, what to expect, what it needs, and its command."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from functools import partial

from lambdanets.models import create_model
from lambdanets.recipes.budget import Cost, estimate
from lambdanets.recipes.imagenet import Row
from lambdanets.recipes.registry import RECIPES, get_recipe
from lambdanets.train import RunConfig

DEVICES = (8, 64, 512)


@dataclass(frozen=True, kw_only=True)
class Statement:
    """A recipe in words.

    Attributes:
        title: one sentence.
        sections: the parts of its docstring by their heading ("Follows", "Expect" or "Measured", "Needs",
            "Command"), each on one line.
        device_rate: training images per second of one device, published or None.
        rate_source: where that is from.
    """

    title: str
    sections: dict[str, str]
    device_rate: float | None = None
    rate_source: str = ""


def statement(name: str) -> Statement:
    """Read what a recipe states.

    Raises:
        ValueError: there is no such recipe.

    Example:
        >>> statement("imagenet-350-152@224").sections["Expect"]
        '83.2 %, 86.5 % with pseudo-labels (published, Table 19; not trained here).'
    """
    get_recipe(name)
    made = RECIPES[name]
    function = made.func if isinstance(made, partial) else made
    title, _, rest = inspect.cleandoc(function.__doc__ or "").partition("\n\n")
    found = re.split(r"^(\w+):", rest, flags=re.MULTILINE)[1:]
    sections = {head: " ".join(text.split()) for head, text in zip(found[::2], found[1::2], strict=True)}
    if not isinstance(made, partial):
        return Statement(title=title, sections=sections)
    row: Row = made.args[0]
    here = "was not measured here"
    if row.cpu_rate is not None:
        here = f"is {row.cpu_rate} images per second on two cores of an AMD EPYC in float32"
    sections |= {
        "Expect": row.expect,
        "Needs": "GPUs, data.batch_size images on each, accumulated to 4,096; the pace of training "
        f"{here} (benchmarks/models).",
        "Command": f"lambdanets train {name} --data folder:/data/imagenet --devices 8",
    }
    return Statement(
        title=title,
        sections=sections,
        device_rate=row.tpu_rate,
        rate_source=f"a TPUv3 core's, published: {row.seconds} s for 1,024 images on eight (Table 19)",
    )


def costs(
    config: RunConfig, *, images_per_second: float, devices: tuple[int, ...] = DEVICES
) -> tuple[Cost, ...]:
    """Estimate what a run on ImageNet costs on so many devices; see `estimate` for the model.

    Args:
        config: the run.
        images_per_second: of one device, in training.
        devices: numbers of devices.
    """
    options = {**config.model.options, "pretrained": False}
    network = create_model(config.model.name, device="meta", **options)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return tuple(
        estimate(config, parameters=parameters, images_per_second=images_per_second, devices=number)
        for number in devices
    )
