"""The numbers of docs/imagenet.md equal the recipes, the estimate of their cost and the committed rows."""

import csv
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


def test_the_cost_of_the_loop() -> None:
    with (PAGE.parents[1] / "benchmarks/loop/loop.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    text = " ".join(PAGE.read_text().split())
    shares = {
        model: [100 * float(row["overhead"]) for row in rows if row["model"] == model]
        for model in ("lambda_resnet_cifar", "lambda_resnet50")
    }
    small = [float(row["added_cpu_ms"]) for row in rows if row["model"] == "lambda_resnet_cifar"]
    assert f"{min(small):.1f} to {max(small):.1f} ms of processor time for a step" in text
    for model, batch in (("lambda_resnet_cifar", 128), ("lambda_resnet50", 16)):
        own = shares[model]
        assert f"{min(own):.1f} to {max(own):.1f} % of a step of {batch} images" in text
    assert max(map(max, shares.values())) < 3
