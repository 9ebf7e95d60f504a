"""`lambdanets bench op`: our layer and kernels against other layers, checked before they are timed."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro import conf

from lambdanets.cli.console import draw, stderr, stdout, table
from lambdanets.cli.errors import UsageError, check_name, usage
from lambdanets.cli.options import Device, DtypeName, Without, check_device, read_sizes, shown

if TYPE_CHECKING:
    from lambdanets.bench import Case, LayerRecord, Provenance, Settings, Table

Clock = Literal["wall", "process"]

CSV, REPORT = "op.csv", "op.md"
DEFAULT = "layers"
NO_CPU_TIME = "--clock process has no meaning on {}, where the CPU only waits."
EXTRA = "pip install 'lambdanets[bench]'"


def run(
    *,
    cases: Annotated[str | None, shown("NAME,NAME", "the eight of layers")] = None,
    grid: Annotated[str | None, shown("N | NxN | NxNxN")] = None,
    scope: Annotated[str | None, shown("N | NxN | NxNxN")] = None,
    batch: Annotated[int | None, shown("N", "1")] = None,
    dim: Annotated[int | None, shown("N", "64")] = None,
    heads: Annotated[int | None, shown("N", "4")] = None,
    dim_k: Annotated[int | None, shown("N", "16")] = None,
    dim_u: Annotated[int | None, shown("N", "1")] = None,
    pass_: Annotated[Literal["train", "eval", "both"], conf.arg(name="pass")] = "both",
    dtype: DtypeName = "float32",
    device: Device = "cpu",
    threads: Annotated[int | None, shown("N", "PyTorch's")] = None,
    rounds: int = 9,
    max_seconds: float = 20.0,
    memory: Without = True,
    channels_last: bool = False,
    large: bool = False,
    clock: Clock = "wall",
    out: Path = Path("runs/bench-op"),
    from_: Annotated[Path | None, conf.arg(name="from", metavar="CSV", help_behavior_hint="")] = None,
) -> int:
    """Compare our lambda layer and its kernels with other implementations, attention and the convolution.

    Results are compared before anything is timed; where they differ there are no times. All take turns in one
    process; peak memory is measured in a process each, on a GPU in the same one. Leaves op.csv (every row
    with its provenance), op.md and figures.

    Args:
        cases: Cases or groups of them: layers, stages, stages-global, wide, series-global, series-local.
        grid: Of a custom case: sizes of its grid, for example 40x56.
        scope: Of a custom case: position table entries per axis; global positions when not given.
        batch: Of a custom case: batch size, b.
        dim: Of a custom case: channels.
        heads: Of a custom case: queries per position, h.
        dim_k: Of a custom case: query and key depth, k.
        dim_u: Of a custom case: intra-depth, u.
        pass_: Training steps, inference or both.
        dtype: Element type of input and weights.
        device: Device of the measurement.
        threads: Threads of PyTorch.
        rounds: Samples of each contender.
        max_seconds: A contender whose first call takes longer is measured by that one call.
        memory: Leave out the peak memory.
        channels_last: The channels of a position lie side by side in memory, as in a network on a GPU.
        large: Series go up to 256x256.
        clock: The time that is shown: wall time, or CPU time ("process"), which a busy machine changes less.
        out: The folder for rows, report and figures.
        from_: Draw tables and figures from the rows of this file, without measuring.
    """
    import torch

    from lambdanets import bench

    custom = {"scope": scope, "batch": batch, "dim": dim, "heads": heads, "dim_k": dim_k, "dim_u": dim_u}
    with usage():
        if clock == "process" and device != "cpu":
            raise UsageError(NO_CPU_TIME.format(device))
        if from_ is not None:
            records, where = bench.read_layers(from_)
        else:
            check_device(device)
            chosen = _custom_case(grid, custom) if grid is not None else _by_name(cases, custom, large=large)
            if grid is not None and cases is not None:
                raise UsageError("--cases and --grid are two ways to choose cases; give one.")
            settings = bench.Settings(
                passes=("train", "eval") if pass_ == "both" else (pass_,),
                dtype=getattr(torch, dtype),
                device=device,
                threads=torch.get_num_threads() if threads is None else threads,
                rounds=rounds,
                max_seconds=max_seconds,
                memory=memory,
                channels_last=channels_last,
            )
            single = [case for case in chosen if case.batch * case.positions == 1]
            if single and "train" in settings.passes:
                raise UsageError(f"{single[0].name} has one position: batch norms cannot train on it.")
    out.mkdir(parents=True, exist_ok=True)
    if from_ is None:
        records, where = _measure(chosen, settings, out)
    print_report(bench.layer_tables(records, clock), (bench.LEGEND, bench.provenance_line(where)))
    _write(records, where, clock, out)
    return 0


def _by_name(names: str | None, custom: dict[str, object], *, large: bool) -> "list[Case]":
    from lambdanets import bench

    given = [name for name, value in custom.items() if value is not None]
    if given:
        raise UsageError(f"--{given[0].replace('_', '-')} describes a custom case, which needs a --grid too.")
    words = [word.strip() for word in (DEFAULT if names is None else names).split(",") if word.strip()]
    if not words:
        raise UsageError(f"--cases names none; there are {', '.join([*bench.GROUPS, *bench.CASES])}")
    for word in words:
        check_name("case", word, [*bench.GROUPS, *bench.CASES])
    return bench.select(words, large=large)


def _custom_case(grid: str, sizes: dict[str, object]) -> "list[Case]":
    from lambdanets.bench import Case

    axes = read_sizes("--grid", grid)
    scope = sizes.pop("scope")
    local = None if scope is None else read_sizes("--scope", str(scope))
    if local is not None and len(local) == 1:
        local *= len(axes)
    heads = sizes.pop("heads")
    given = {name: value for name, value in (sizes | {"num_heads": heads}).items() if value is not None}
    return [Case(name=grid.lower(), grid=axes, scope=local, **given)]  # type: ignore[arg-type]


def _measure(cases: "list[Case]", settings: "Settings", out: Path) -> "tuple[list[LayerRecord], Provenance]":
    import torch

    from lambdanets import bench
    from lambdanets.ops.kernels import native

    torch.set_num_threads(settings.threads)
    machine = bench.measure_machine(settings.dtype, settings.device)
    where = bench.provenance(settings.dtype, settings.device, settings.threads, machine)
    path = out / CSV
    keep_previous(path)
    notes = stderr()
    if settings.device == "cpu":
        notes.print(native.describe(), style="dim")
    records = bench.measure_layers(
        cases,
        settings,
        machine,
        report=lambda line: notes.print(line, style="dim"),
        save=lambda rows: bench.write_layers(path, rows, where),
    )
    return records, where


def print_report(tables: "Iterable[Table]", paragraphs: Iterable[str]) -> None:
    """Print tables and the paragraphs that explain them."""
    console = stdout()
    for made in tables:
        rows = table()
        for column, heading in enumerate(made.headings):
            # Folded, not cut off: half of a number would be another number.
            side = "right" if column > 1 else "left"
            rows.add_column(heading, justify=side, overflow="fold", header_style="bold")
        for cells in made.rows:
            rows.add_row(*cells)
        draw(console, made.title, rows)
        for note in made.notes:
            console.print(note, style="dim")
        console.print()
    for line in paragraphs:
        console.print(line, style="dim")


def _write(records: "list[LayerRecord]", where: "Provenance", clock: Clock, out: Path) -> None:
    from lambdanets import bench

    figures = draw_if_possible(lambda: bench.draw_layers(records, where, out, clock))
    report = bench.layer_markdown(records, where, clock, [figure.name for figure in figures])
    (out / REPORT).write_text(report, encoding="utf-8")
    print_written(out, [REPORT, *(figure.name for figure in figures)])


def print_written(out: Path, names: Iterable[str]) -> None:
    """Print which files were written."""
    stdout().print(f"\nwritten to {out}: {', '.join(names)}", soft_wrap=True)


def keep_previous(path: Path) -> None:
    """Rename the rows of an earlier benchmark."""
    if path.exists():
        path.replace(path.with_suffix(".previous.csv"))


def draw_if_possible(draw_all: Callable[[], list[Path]]) -> list[Path]:
    """Return the drawn figures; none, with a line on stderr, where matplotlib is missing."""
    try:
        return draw_all()
    except ModuleNotFoundError as error:
        stderr().print(f"no figures without {error.name}: {EXTRA}")
        return []
