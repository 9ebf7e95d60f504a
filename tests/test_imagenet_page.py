"""The table of docs/imagenet.md is what the recipes and the model of their cost say."""

from pathlib import Path

from lambdanets.recipes import costs, get_recipe
from lambdanets.recipes.imagenet import ROWS

PAGE = Path(__file__).parents[1] / "docs/imagenet.md"


def test_the_table_of_recipes() -> None:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| `imagenet-350")]
    rows = [[cell.strip(" *`") for cell in line.strip("|").split("|")] for line in lines]
    expected = []
    for row in ROWS:
        eight, many, most = (
            cost.hours for cost in costs(get_recipe(row.name), images_per_second=row.tpu_rate)
        )
        published = [str(value or "") for value in (row.top1, row.pseudo_top1)]
        settings = [str(row.magnitude), str(row.dropout), f"{row.stochastic_depth:g}"]
        expected.append([row.name, *settings, *published, f"{eight:.0f}", f"{many:.1f}", f"{most:.1f}"])
    assert rows == expected
