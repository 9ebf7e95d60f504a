"""`lambdanets list`: models, recipes and data sources."""

from fnmatch import fnmatch
from typing import Annotated

from rich.table import Table
from tyro import conf

from lambdanets.cli.console import draw, grid, stdout, table
from lambdanets.cli.errors import UsageError
from lambdanets.cli.options import shown
from lambdanets.utils.text import did_you_mean


def run(pattern: Annotated[str, conf.Positional, shown("PATTERN")] = "*") -> int:
    """List models, recipes and data sources.

    Args:
        pattern: Pattern of the names to list, with wildcards, in quotes: 'lambda*'.
    """
    tables = {
        "models": _models(pattern),
        "language models": _language_models(pattern),
        "trained networks (names for predict, --weights, ...)": _trained(pattern),
        "recipes": _recipes(pattern),
        "data sources (--data)": _sources(pattern),
    }
    tables = {title: made for title, made in tables.items() if made.row_count}
    if not tables:
        from lambdanets.data.sources import SOURCES
        from lambdanets.models import LANGUAGE_MODELS, list_models
        from lambdanets.recipes import list_recipes

        forms = (each.form for each in SOURCES.values())
        near = did_you_mean(
            pattern.replace("*", ""), [*list_models(), *LANGUAGE_MODELS, *list_recipes(), *forms]
        )
        raise UsageError(f"no model, recipe or data source is named {pattern!r}{near}")
    console = stdout()
    for title, made in tables.items():
        draw(console, title, made)
    return 0


def _models(pattern: str) -> Table:
    from lambdanets.models import list_models, model_info

    made = table(name="left", parameters_M="right", image="right", description="wrap")
    for each in map(model_info, list_models(pattern)):
        channels, *sizes = each.image
        colour = {1: "grey", 3: "RGB"}.get(channels, f"of {channels} channels")
        millions = f"{each.parameters / 1e6:.2f}"
        made.add_row(each.name, millions, f"{grid(tuple(sizes))} {colour}", each.description)
    return made


def _language_models(pattern: str) -> Table:
    import torch

    from lambdanets.models import LANGUAGE_MODELS, create_language_model

    made = table(name="left", parameters_M="right", blocks="right", channels="right", layer="left")
    for name in LANGUAGE_MODELS:
        if fnmatch(name, pattern):
            with torch.device("meta"):
                model = create_language_model(name, vocabulary=256)
            millions = f"{model.num_parameters / 1e6:.2f}"
            made.add_row(name, millions, str(len(model.blocks)), str(model.dim), model.operator)
    return made


def _trained(pattern: str) -> Table:
    from lambdanets.models.shipped import card_title, shipped_models

    made = table(name="left", description="wrap")
    for name in shipped_models():
        if fnmatch(name, pattern):
            made.add_row(name, card_title(name))
    return made


def _recipes(pattern: str) -> Table:
    from lambdanets.recipes import get_recipe, list_recipes

    made = table(name="left", model="left", data="left", epochs="right", batch="right")
    for name in list_recipes():
        if fnmatch(name, pattern):
            config = get_recipe(name)
            data, epochs = config.data, config.engine.epochs
            made.add_row(name, config.model.name, data.source, str(epochs), str(data.batch_size))
    return made


def _sources(pattern: str) -> Table:
    from lambdanets.data.sources import SOURCES

    made = table(name="left", description="wrap")
    for source in SOURCES.values():
        if fnmatch(source.form, pattern):
            made.add_row(source.form, source.help)
    return made
