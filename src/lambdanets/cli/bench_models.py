"""`lambdanets bench models`: whole networks side by side; `benchmarks.paper` uses the same function."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from rich.progress import Progress, TextColumn, TimeRemainingColumn
from tyro import conf

from lambdanets.cli.bench_op import (
    NO_CPU_TIME,
    Clock,
    draw_if_possible,
    keep_previous,
    print_report,
    print_written,
)
from lambdanets.cli.console import stderr
from lambdanets.cli.errors import UsageError, usage
from lambdanets.cli.options import Device, Without, check_device, shown
from lambdanets.utils.allocator import keep_freed_memory
from lambdanets.utils.progress import progress_bar_column

if TYPE_CHECKING:
    from lambdanets import bench

BATCH = 8
MAX_INTERLEAVED = 8
ESTIMATE_SECONDS = 600.0  # of progress that the time left is estimated from: single steps differ much


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Options of every benchmark of networks.

    Attributes:
        batch: Images of a pass; halved if memory does not suffice. By default 8, or fewer if a step of a
            network would take too long.
        pass_: Training steps, inference or both.
        dtype: Element type; in bfloat16 training is mixed precision.
        device: Device of the measurement.
        threads: Threads of PyTorch.
        rounds: Samples of each network.
        max_seconds: Seconds for the samples of one network and pass.
        memory: Leave out the peak memory, which takes a process for each network.
        clock: The time that is shown: wall time, or CPU time ("process"), which a busy machine changes less.
        largest: Most multiply-adds per image, in 10^9; larger networks are left out.
        resume: Keep the rows in the folder, and measure only the others.
        out: The folder for rows, report and figures.
        from_: Draw tables and figures from the rows of this file, without measuring.
    """

    batch: Annotated[int | None, shown("N", "8 or fewer")] = None
    pass_: Annotated[Literal["train", "eval", "both"], conf.arg(name="pass")] = "both"
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Device = "cpu"
    threads: Annotated[int | None, shown("N", "PyTorch's")] = None
    rounds: int = 5
    max_seconds: float = 15.0
    memory: Without = True
    clock: Clock = "wall"
    largest: Annotated[float | None, shown("GMAC", "no limit")] = None
    resume: bool = False
    out: Annotated[Path | None, shown("DIR", "runs/bench-NAME")] = None
    from_: Annotated[Path | None, conf.arg(name="from", metavar="CSV", help_behavior_hint="")] = None


@dataclass(frozen=True, kw_only=True)
class ModelOptions(NetworkOptions):
    """Options of `bench models`.

    Attributes:
        models: Names or patterns, such as lambda_resnet50,efficientnet_b*; resnet50@160 sets its image size.
        sizes: Image sizes of the models without one after @, such as 160,240 or 160x224.
    """

    models: Annotated[str | None, shown("NAME,NAME@SIZE", "none")] = None
    sizes: Annotated[str | None, shown("N,NxN", "each one's own")] = None


def run(*, measuring: Annotated[ModelOptions, conf.OmitArgPrefixes]) -> int:
    """Measure networks side by side: parameters, multiply-adds, throughput, peak memory.

    The networks are those of timm's registry, which has this package's too. They take turns in one process;
    the peak memory of each is measured in a separate process. Writes models.csv (rows with provenance),
    models.md and figures.

    Args:
        measuring: The networks, and the settings of the measurement.
    """
    from lambdanets import bench

    def select() -> list[bench.NetworkSpec]:
        words = [word for word in (measuring.models or "").split(",") if word.strip()]
        if not words:
            raise UsageError(
                "--models is missing: name networks, for example --models lambda_resnet50,resnet50."
            )
        sizes = [word for word in (measuring.sizes or "").split(",") if word.strip()]
        return bench.select_networks(words, sizes)

    return run_network_bench("models", measuring, select, bench.MODELS_REPORT, must_exist=True)


def run_network_bench(
    name: str,
    options: NetworkOptions,
    select: "Callable[[], Sequence[bench.NetworkSpec]]",
    report: "bench.NetworkReport",
    *,
    must_exist: bool = False,
    max_interleaved: int = MAX_INTERLEAVED,
) -> int:
    """Run a benchmark of networks, or draw its report again, and return the exit code.

    Args:
        name: Of the benchmark and of its files.
        options: The user's options.
        select: Returns the networks.
        report: Its tables and figures.
        must_exist: Whether a network that cannot be built is a mistake of the user, rather than a row.
        max_interleaved: Largest number of networks that take turns.
    """
    import torch

    from lambdanets import bench
    from lambdanets.bench.network_report import provenance_range

    out = options.out or Path(f"runs/bench-{name}")
    path = out / f"{name}.csv"
    with usage():
        if options.from_ is not None:
            _refuse_settings(options)
            measured = bench.read_networks(options.from_, name)
            device = measured[0][1].device
        else:
            check_device(device := options.device)
            networks = select()
            settings = bench.Settings(
                passes=("train", "eval") if options.pass_ == "both" else (options.pass_,),
                dtype=getattr(torch, options.dtype),
                device=options.device,
                threads=torch.get_num_threads() if options.threads is None else options.threads,
                rounds=options.rounds,
                max_seconds=options.max_seconds,
                memory=options.memory,
            )
            limits = bench.Limits(
                batch=BATCH if options.batch is None else options.batch,
                fixed=options.batch is not None,
                largest=options.largest,
                max_interleaved=max_interleaved,
            )
            if must_exist:
                bench.check_networks(networks, settings, limits)
            earlier = bench.read_networks(path, name) if options.resume and path.exists() else []
        if options.clock == "process" and device != "cpu":
            raise UsageError(NO_CPU_TIME.format(device))
    out.mkdir(parents=True, exist_ok=True)
    if options.from_ is None:
        if not earlier:
            keep_previous(path)
        keep_freed_memory()  # as `train` and `eval` do
        with _progress() as progress:
            measured = bench.measure_networks(
                name,
                networks,
                settings,
                limits,
                earlier=earlier,
                report=progress,
                save=lambda rows: bench.write_networks(path, rows) if rows else None,
            )
    print_report(
        report.make_tables(measured, options.clock),
        [*report.legend(options.clock), provenance_range(measured)],
    )
    figures = draw_if_possible(lambda: report.draw(measured, out, options.clock))
    names = [figure.name for figure in figures]
    (out / f"{name}.md").write_text(
        report.markdown(measured, [each for each in names if each.endswith(".png")], options.clock),
        encoding="utf-8",
    )
    print_written(out, [f"{name}.md", *names])
    return 0


def _refuse_settings(options: NetworkOptions) -> None:
    """Raise UsageError where an option on how to measure was given, and nothing is measured."""
    for field in fields(options):
        if field.name not in ("clock", "out", "from_") and getattr(options, field.name) != field.default:
            word = f"{'no-' * (field.name == 'memory')}{field.name.rstrip('_').replace('_', '-')}"
            raise UsageError(f"--{word} has no effect with --from, which measures nothing.")


@contextmanager
def _progress() -> Iterator[Callable[[str, float], None]]:
    """Give a function that shows the current step and the finished fraction: a bar, or lines in a pipe."""
    console = stderr()
    if not console.is_terminal:
        last: list[str] = []

        def print_step(step: str, done: float) -> None:
            if [step] != last:
                last[:] = [step]
                console.print(f"{100 * done:3.0f} %  {step}", style="dim")

        yield print_step
        return
    columns = (
        progress_bar_column(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
        TextColumn("left "),
        TextColumn("{task.description}", markup=False),
    )
    look = {"refresh_per_second": 4, "transient": True, "speed_estimate_period": ESTIMATE_SECONDS}
    with Progress(*columns, console=console, **look) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda step, done: progress.update(task, completed=done, description=step)
