"""`lambdanets show` for a recipe: its description, its settings, and an estimate of its cost."""

from dataclasses import MISSING, fields
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lambdanets.cli.console import draw, stdout, table
from lambdanets.recipes import DEVICES, Description, costs, describe, get_recipe
from lambdanets.recipes.cost import IMAGENET, LINK
from lambdanets.train import RunConfig
from lambdanets.train.config import BaseConfig
from lambdanets.train.serialization import flatten


def show_recipe(name: str, *, devices: tuple[int, ...] | None, images_per_second: float | None) -> None:
    """Print a recipe: its description, its settings, and for ImageNet an estimate of its cost."""
    console, config, about = stdout(), get_recipe(name), describe(name)
    console.print(Text.assemble((name, "bold"), f"  {about.title}\n"), soft_wrap=True)
    rows = Table.grid(padding=(0, 2))
    for heading, text in (about.sections | {"Sets": "  ".join(settings(config))}).items():
        rows.add_row(Text(heading, "dim"), text)
    console.print(rows)
    if isinstance(config, RunConfig) and name.startswith("imagenet"):
        _draw_costs(config, about, devices or DEVICES, images_per_second, console)


def settings(config: BaseConfig) -> list[str]:
    """Return the fields of a configuration that differ from the defaults, in the form of `--set`."""
    usual = type(config)(recipe=config.recipe, model=_defaults(config.model), data=_defaults(config.data))
    plain = flatten(usual)
    changed = {name: value for name, value in flatten(config).items() if plain[name] != value}
    options = changed.pop("model.options", {})
    return [
        *(f"model.options.{name}={value}" for name, value in options.items()),
        *(f"{name}={value}" for name, value in changed.items()),
    ]


def _defaults(part: Any) -> Any:
    """Return a part of a configuration with the defaults of all fields that have one."""
    required = [each.name for each in fields(part) if each.default is each.default_factory is MISSING]
    return type(part)(**{name: getattr(part, name) for name in required})


def _draw_costs(
    config: RunConfig,
    about: Description,
    devices: tuple[int, ...],
    rate: float | None,
    console: Console,
) -> None:
    source = about.rate_source if rate is None else "given"
    rate = about.device_rate if rate is None else rate
    if rate is None:
        console.print(
            "\nNo training rate of a device is published for it. Measure yours and pass it as "
            "--images-per-second: "
            f"lambdanets bench models --models {config.model.name} --sizes {config.data.image_size} "
            f"--pass train --device cuda --dtype bfloat16 --batch {config.data.batch_size}",
            soft_wrap=True,
        )
        return
    rows = table(
        devices="right", images_on_each="right", hours="right", device_hours="right", exchange="right"
    )
    for each in costs(config, images_per_second=rate, devices=devices):
        if each.batch_size is None:
            rows.add_row(f"{each.devices:,}", f"{config.engine.global_batch:,} do not divide")
            continue
        rows.add_row(
            f"{each.devices:,}",
            str(each.batch_size),
            f"{each.hours:,.1f}",
            f"{each.device_hours:,.0f}",
            f"{each.communication:.0%}",
        )
    console.print()
    draw(console, f"{config.engine.epochs} epochs of ImageNet: an estimate, not measured", rows)
    console.print(
        f"Rate of a device: {rate:,.0f} training images/s ({source}); --images-per-second sets another.\n"
        f"A step is {config.engine.global_batch:,} images, then an exchange of gradients at "
        f"{LINK / 1e9:g} GB/s that does not overlap with it; an epoch validates {IMAGENET[1]:,} images.\n"
        "Not included: reading the images, and the lower rate of small batches.",
        style="dim",
        soft_wrap=True,
    )
