"""`lambdanets show` for a model of images: its stages, their cost and the kernels of its lambda layers."""

from collections import defaultdict

import torch
from rich.console import Console

from lambdanets.cli import fastest
from lambdanets.cli.console import draw, grid, milliseconds, stdout, table
from lambdanets.cli.errors import UsageError, as_usage_error, usage
from lambdanets.cli.options import read_sizes
from lambdanets.models import create_model
from lambdanets.models.audio import AudioResNet
from lambdanets.models.summary import Summary, summarise
from lambdanets.ops import Plan
from lambdanets.ops.hardware import compute_dtype
from lambdanets.ops.kernels import native


def show_model(
    name: str,
    *,
    size: str | None,
    num_classes: int | None,
    batch: int,
    train: bool,
    dtype: str,
    device: str,
) -> None:
    """Print a model of images; the arguments are those of `lambdanets show`."""
    options = {} if num_classes is None else {"num_classes": num_classes}
    with usage():
        sizes = None if size is None else _square(read_sizes("--size", size))
        with as_usage_error(f"{name} cannot be built with these options"), torch.device("meta"):
            built = create_model(name, **options)
        if isinstance(built, AudioResNet):
            raise UsageError(f"show is for models of images, and {name} takes sequences.")
        with as_usage_error(f"{name} cannot take images of this size"):
            summary = summarise(
                built, sizes, batch=batch, train=train, dtype=getattr(torch, dtype), device=device
            )
    console = stdout()
    _draw_parts(name, summary, console)
    _draw_plans(summary, console)
    if device == "cpu":
        _print_advice(name, console)


def _square(sizes: tuple[int, ...]) -> tuple[int, int]:
    if not 1 <= len(sizes) <= 2:
        raise UsageError(f"--size is a height and a width, not {grid(sizes)}.")
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
        f"{summary.parameters:,} parameters. Multiply-adds (MAC) are for one image with the kernels below; "
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
            _by_stage(names),
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
    if first.device == "cpu":
        console.print(native.describe(), style="dim", soft_wrap=True)


def _print_advice(name: str, console: Console) -> None:
    """Print the fastest forms of a network on a CPU, if it was measured."""
    bfloat16 = compute_dtype(torch.bfloat16, "cpu") == torch.bfloat16
    if sentences := fastest.advice(name, bfloat16=bfloat16):
        console.print()
        console.print(" ".join(sentences), soft_wrap=True)


def _chosen(made: Plan) -> tuple[str, float]:
    """Return the names of the selected kernels, of both passes in training, and the sum of their times."""
    chosen = [row for row in (*made.rows, *made.backward_rows) if row.verdict == "chosen"]
    names = list(dict.fromkeys(row.kernel for row in chosen))
    return " + ".join(names) or "none fits", sum(row.cost.seconds for row in chosen if row.cost is not None)


def _others(made: Plan) -> list[str]:
    """Return a phrase for each other kernel: its time relative to the selected one, or why it is excluded."""
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


def _by_stage(names: list[str]) -> str:
    """Join the layers of each stage: layer3.5.conv2 and layer3.10.conv2 become layer3: 5, 10."""
    stages: dict[str, list[str]] = defaultdict(list)
    for name in names:
        stage, _, rest = name.partition(".")
        stages[stage].append(rest.partition(".")[0])
    return "; ".join(f"{stage}: {', '.join(blocks)}" for stage, blocks in stages.items())
