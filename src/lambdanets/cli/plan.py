"""`lambdanets plan`: the kernel selected for a lambda layer, and the cost of each or why it is excluded."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from rich.table import Table

from lambdanets.cli.console import draw, milliseconds, stderr, stdout, table
from lambdanets.cli.errors import usage
from lambdanets.cli.options import Device, DtypeName, Without, check_device, read_sizes, shown

if TYPE_CHECKING:
    from lambdanets.ops import Plan
    from lambdanets.ops.planner import PlanRow

Sizes = Annotated[str, shown("N | NxN | NxNxN")]
OptionalSizes = Annotated[str | None, shown("N | NxN | NxNxN")]


def run(
    *,
    grid: Sizes,
    scope: OptionalSizes = None,
    dilation: OptionalSizes = None,
    context_grid: OptionalSizes = None,
    heads: int = 4,
    dim_k: int = 16,
    dim_v: int = 64,
    dim_u: int = 1,
    batch: int = 1,
    train: bool = False,
    causal: bool = False,
    dense: bool = False,
    content: Without = True,
    position: Without = True,
    dtype: DtypeName = "float32",
    device: Device = "cpu",
    measure: bool = False,
) -> int:
    """Show the kernel selected for a lambda layer, and the cost of each kernel or why it is excluded.

    Costs are estimates from the sizes: without --measure no kernel is run.

    Args:
        grid: Sizes of the query grid, for example 64x64.
        scope: Local context: entries of the position table per axis (23 or 7x7); global context by default.
        dilation: Distance between neighbouring entries of the position table.
        context_grid: Sizes of the context's grid, if it is not the query grid.
        heads: Number of heads, h.
        dim_k: Query and key depth, k.
        dim_v: Value depth per head, v.
        dim_u: Intra-depth, u.
        batch: Batch size, b.
        train: Include the backward pass.
        causal: Each query has only the positions up to its own as context (one axis).
        dense: Position embeddings for every pair of query and context [n, m, k, u], not a table of offsets.
        content: Leave out the content lambdas.
        position: Leave out the position lambdas.
        dtype: Dtype of the tensors.
        device: Device type; this machine need not have it.
        measure: Run the kernels on random tensors and select by their times, as kernel="measured" does.
    """
    import torch

    from lambdanets.ops import Problem, plan

    with usage():
        sizes = read_sizes("--grid", grid)
        problem = Problem(
            grid=sizes,
            context_grid=_optional("--context-grid", context_grid),
            scope=_optional("--scope", scope, len(sizes)),
            dilation=_optional("--dilation", dilation, len(sizes)),
            num_heads=heads,
            dim_k=dim_k,
            dim_v=dim_v,
            dim_u=dim_u,
            batch=batch,
            content=content,
            position=position,
            causal=causal,
            dense=dense,
            dtype=getattr(torch, dtype),
            device=device,
            train=train,
        )
        if measure:
            check_device(device)
    made = plan(problem, measured=measure)
    _draw(made)
    return 0 if made.refusal is None else 1


def _optional(option: str, text: str | None, rank: int = 1) -> tuple[int, ...] | None:
    """Return the sizes of an option, if it is given; a single number is used for all axes."""
    if text is None:
        return None
    sizes = read_sizes(option, text)
    return sizes * rank if len(sizes) == 1 else sizes


def _draw(made: "Plan") -> None:
    from lambdanets.ops.kernels import native
    from lambdanets.ops.planner import content_flops

    console = stdout()
    console.print(str(made.problem), style="bold", highlight=False)
    passes = [("forward", made.rows)] + ([("backward", made.backward_rows)] if made.problem.train else [])
    for name, rows in passes:
        draw(console, f"{name} pass, positions", _table(rows))
    if made.problem.content:
        content = content_flops(made.problem)
        console.print(f"Content: {content / 1e9:,.3f} GFLOP, the same with every kernel.", style="dim")
    if made.paper_kernel is not None:
        console.print(f"The paper's rule (appendix E.1) would take {made.paper_kernel}.", style="dim")
    if made.problem.device == "cpu":
        console.print(native.describe(), style="dim", soft_wrap=True)
    if made.refusal is not None:
        stderr().print(made.refusal)


def _table(lines: "Sequence[PlanRow]") -> Table:
    measured = any(row.measured is not None for row in lines)
    rows = table(
        kernel="left",
        GFLOP="right",
        MiB_moved="right",
        MiB_peak="right",
        est_ms="right",
        **({"ms": "right"} if measured else {}),
        why="wrap",
    )
    for row in lines:
        numbers = ["-"] * 4
        if row.cost is not None:
            numbers = [
                f"{row.cost.flops / 1e9:,.3f}",
                f"{row.cost.bytes / 2**20:,.1f}",
                f"{row.cost.peak_bytes / 2**20:,.1f}",
                milliseconds(row.cost.seconds),
            ]
        if measured:
            numbers.append("-" if row.measured is None else milliseconds(row.measured))
        style = {"chosen": "bold green", "cannot serve": "dim"}.get(row.verdict)
        rows.add_row(row.kernel, *numbers, f"{row.verdict}: {row.reason}", style=style)
    return rows
