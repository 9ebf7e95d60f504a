"""`lambdanets show`: a recipe; or the stages of a model, their cost, and the kernel of every lambda layer."""

from collections import defaultdict
from typing import Annotated

import timm
import torch
from rich.console import Console
from tyro import conf

from lambdanets.bench.summary import Summary, summarise
from lambdanets.cli.console import draw, grid, milliseconds, stdout, table
from lambdanets.cli.errors import UsageError, check_name, impossible, usage
from lambdanets.cli.options import Device, DtypeName, read_sizes, shown
from lambdanets.cli.showing_recipe import show_recipe
from lambdanets.models import create_model
from lambdanets.ops import Plan
from lambdanets.recipes import list_recipes
from lambdanets.wording import did_you_mean


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
    """Show a model: stages, parameters, multiply-adds, and the kernel of every lambda layer. Or a recipe.

    The model is built without memory and nothing is computed, so the largest takes a second or two. A recipe
    is shown with where it comes from, what to expect, its command, and on ImageNet an estimate of its cost.

    Args:
        name: Name of a model or of a recipe; `lambdanets list` has them all.
        size: Image size, for example 256 or 224x320.
        num_classes: Classes of the head.
        batch: Batch size the kernels are planned for.
        train: The kernels are planned for training, not for inference.
        dtype: Element type they are planned for.
        device: Device type they are planned for; it need not be present.
        devices: Of a recipe: numbers of devices to estimate its cost for.
        images_per_second: Of a recipe: training images per second of one device.
    """
    for option, number in (("--num-classes", num_classes), ("--batch", batch)):
        if number is not None and number < 1:
            raise UsageError(f"{option} must be at least 1, got {number}.")
    if name in list_recipes():
        if size is not None or num_classes is not None or train:
            raise UsageError("--size, --num-classes and --train are for models; a recipe has its own.")
        with usage():
            show_recipe(name, devices=devices, images_per_second=images_per_second)
        return 0
    if devices is not None or images_per_second is not None:
        raise UsageError("--devices and --images-per-second are for recipes; see lambdanets list.")
    if not timm.is_model(name) and did_you_mean(name, list_recipes()):
        check_name("recipe", name, list_recipes())
    options = {} if num_classes is None else {"num_classes": num_classes}
    with usage():
        sizes = None if size is None else _square(read_sizes("--size", size))
        with impossible(f"{name} cannot be built so"), torch.device("meta"):
            built = create_model(name, **options)
        with impossible(f"{name} cannot take such images"):
            summary = summarise(
                built, sizes, batch=batch, train=train, dtype=getattr(torch, dtype), device=device
            )
    console = stdout()
    _draw_parts(name, summary, console)
    _draw_plans(summary, console)
    return 0


def _square(sizes: tuple[int, ...]) -> tuple[int, int]:
    if not 1 <= len(sizes) <= 2:
        raise UsageError(f"--size takes a height and a width, not {grid(sizes)}.")
    return sizes[0], sizes[-1]


def _draw_parts(name: str, summary: Summary, console: Console) -> None:
    rows = table(
        part="left",
        resolution="right",
        channels="right",
        blocks="right",
        lambda_blocks="wrap",
        parameters_M="right",
        GMAC="right",
    )
    for part in summary.parts:
        count, which = len(part.lambda_blocks), ", ".join(map(str, part.lambda_blocks))
        if not part.num_blocks:
            lambdas = ""
        elif not count:
            lambdas = "none"
        else:
            lambdas = "all" if count == part.num_blocks else f"{count} of {part.num_blocks}: {which}"
        rows.add_row(
            part.name,
            grid(part.resolution),
            str(part.channels or ""),
            str(part.num_blocks or ""),
            lambdas,
            f"{part.parameters / 1e6:.2f}",
            f"{part.macs / 1e9:.3f}",
        )
    rows.add_section()
    rows.add_row(
        "total",
        "",
        "",
        "",
        f"{len(summary.plans)} lambda layers",
        f"{summary.parameters / 1e6:.2f}",
        f"{summary.macs / 1e9:.3f}",
        style="bold",
    )
    draw(console, f"{name} at {grid(summary.image[1:])}, {summary.image[0]} channels", rows)
    console.print(
        f"{summary.parameters:,} parameters. Multiply-adds for one image, as the kernels below do them; "
        "blocks are counted from 0.",
        style="dim",
    )


def _draw_plans(summary: Summary, console: Console) -> None:
    if not summary.plans:
        return
    groups: dict[Plan, list[str]] = defaultdict(list)
    for name, made in summary.plans.items():
        groups[made].append(name)
    first = next(iter(groups)).problem
    use = "training" if first.train else "inference"
    dtype = str(first.dtype).removeprefix("torch.")
    rows = table(
        layers="wrap",
        grid="right",
        scope="right",
        h="right",
        k="right",
        v="right",
        u="right",
        kernel="left",
        est_ms="right",
        others="wrap",
    )
    for made, names in groups.items():
        problem = made.problem
        kernels, seconds = _chosen(made)
        rows.add_row(
            _together(names),
            grid(problem.grid),
            grid(problem.scope or ()),
            str(problem.num_heads),
            str(problem.dim_k),
            str(problem.dim_v),
            str(problem.dim_u),
            kernels,
            milliseconds(seconds),
            ", ".join(_others(made)),
        )
    console.print()
    draw(console, f"lambda layers, batch {first.batch}, {dtype} on {first.device}, {use}", rows)


def _chosen(made: Plan) -> tuple[str, float]:
    """The chosen kernels, of both passes when training, and their time together."""
    chosen = [row for row in (*made.rows, *made.backward_rows) if row.verdict == "chosen"]
    names = list(dict.fromkeys(row.kernel for row in chosen))
    return " + ".join(names) or "none fits", sum(row.cost.seconds for row in chosen if row.cost is not None)


def _others(made: Plan) -> list[str]:
    """Each kernel beside the chosen one: its time in both passes against the chosen ones', or why not."""
    _, least = _chosen(made)
    phrases = []
    for row, *backward in zip(made.rows, *([made.backward_rows] if made.backward_rows else []), strict=True):
        lines = (row, *backward)
        costs = [line.cost for line in lines if line.cost is not None]
        if all(line.verdict == "chosen" for line in lines):
            continue
        out = [line for line in lines if line.verdict in ("cannot serve", "too large")]
        if out or not least:
            phrases.append(f"{row.kernel}: {(out or [row])[0].reason}")
        else:
            phrases.append(f"{row.kernel} {sum(cost.seconds for cost in costs) / least:.1f}x")
    return phrases


def _together(names: list[str]) -> str:
    """Layers of one stage in one phrase: layer3.5.conv2 and layer3.10.conv2 become layer3: 5, 10."""
    stages: dict[str, list[str]] = defaultdict(list)
    for name in names:
        stage, _, rest = name.partition(".")
        stages[stage].append(rest.partition(".")[0])
    return "; ".join(f"{stage}: {', '.join(blocks)}" for stage, blocks in stages.items())
