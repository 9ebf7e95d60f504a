"""`lambdanets bench models`, `race`, `table4`, `table13` and `table14`: whole networks."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import torch
from rich.progress import Progress, TextColumn, TimeRemainingColumn
from tyro import conf

from lambdanets.bench import Settings, networks
from lambdanets.bench.networks import Entry, Limits
from lambdanets.bench.tables import Clock
from lambdanets.cli.benching import CLOCK_OF_CPU, drawn, keep_previous, say_written, show
from lambdanets.cli.console import stderr
from lambdanets.cli.errors import UsageError, usage
from lambdanets.cli.options import Device, Without, check_device, shown
from lambdanets.utils.progress import progress_bar_column

BATCH = 8
# How many take turns: of a race that may be cut short, few, so that little is lost.
TOGETHER, TOGETHER_IN_RACE = 8, 4
LOOK_BACK = 600.0  # seconds that the time left is estimated from; single steps take very different times


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every bench of networks takes.

    Attributes:
        batch: Images of a pass; 8 unless a step of some network would take too long. Halved where memory does
            not suffice.
        pass_: Training steps, inference or both.
        dtype: Element type; in bfloat16 training is mixed precision.
        device: Where it runs.
        threads: Threads of PyTorch.
        rounds: Samples of each network.
        max_seconds: Time for the samples of one network and pass.
        memory: Leave out the peak memory, which takes a process for each network.
        clock: Which time is shown; on a busy machine the processor's says more than the clock on the wall.
        largest: Networks of more multiply-adds for one image are left out.
        resume: Go on with the rows that are in the folder; what they measured is kept.
        out: The folder for rows, report and figures.
        from_: Measure nothing; draw the tables and figures of this file again.
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
class ModelOptions(Options):
    """What `bench models` takes, too.

    Attributes:
        models: Names or patterns, such as lambda_resnet50,efficientnet_b*; resnet50@160 has that size alone.
        sizes: Image sizes of all that name none, such as 160,240 or 160x224.
    """

    models: Annotated[str | None, shown("NAME,NAME@SIZE", "none")] = None
    sizes: Annotated[str | None, shown("N,NxN", "each one's own")] = None


@dataclass(frozen=True, kw_only=True)
class TableOptions(Options):
    """What a table takes, too.

    Attributes:
        size: Image size of all rows.
    """

    size: Annotated[str | None, shown("N | NxN", "the paper's")] = None


def models(*, measuring: Annotated[ModelOptions, conf.OmitArgPrefixes]) -> int:
    """Measure networks side by side: parameters, multiply-adds, throughput, peak memory.

    All that timm has registered and this package's own. They take turns in one process; peak memory is
    measured in a process each. Leaves models.csv (every row with its provenance), models.md and figures.

    Args:
        measuring: What is measured and how.
    """

    def chosen() -> list[Entry]:
        words = [word for word in (measuring.models or "").split(",") if word.strip()]
        if not words:
            raise UsageError(
                "--models names what is measured, for example --models lambda_resnet50,resnet50."
            )
        sizes = [word for word in (measuring.sizes or "").split(",") if word.strip()]
        return networks.entries(words, sizes)

    return _bench("models", measuring, chosen, typed=True, together=TOGETHER)


def race(*, measuring: Annotated[Options, conf.OmitArgPrefixes]) -> int:
    """Race LambdaResNets, EfficientNets and ResNet-RS: published accuracy against time measured here.

    Neighbours in accuracy take turns. Rows are kept as they are measured; --resume goes on. Leaves race.csv,
    race.md with the speed at matched accuracy, and figures. --largest 10 leaves the slowest out.

    Args:
        measuring: How it is measured.
    """
    return _bench("race", measuring, networks.racers, typed=False, together=TOGETHER_IN_RACE)


def table4(*, measuring: Annotated[TableOptions, conf.OmitArgPrefixes]) -> int:
    """Measure Table 4 of the paper: a ResNet-50 of lambda layers or self-attention, memory and speed.

    Memory as the paper counts it is computed; the peak and the speed are measured here, at a smaller batch.

    Args:
        measuring: How it is measured.
    """
    return _table("table4", measuring)


def table13(*, measuring: Annotated[TableOptions, conf.OmitArgPrefixes]) -> int:
    """Measure Table 13 of the paper: which stages of a ResNet-50 hold lambda layers.

    Args:
        measuring: How it is measured.
    """
    return _table("table13", measuring)


def table14(*, measuring: Annotated[TableOptions, conf.OmitArgPrefixes]) -> int:
    """Measure Table 14 of the paper: ResNet-RS, and LambdaResNets with few or many lambda layers in c4.

    Args:
        measuring: How it is measured.
    """
    return _table("table14", measuring)


def _table(name: str, options: TableOptions) -> int:
    def chosen() -> list[Entry]:
        rows = list(networks.TABLES[name])
        if options.size is None:
            return rows
        size = networks.read_size(options.size)
        return [entry.at(size) for entry in rows]

    return _bench(name, options, chosen, typed=False, together=TOGETHER)


def _bench(
    name: str, options: Options, chosen: Callable[[], Sequence[Entry]], *, typed: bool, together: int
) -> int:
    """Run a bench of networks; what was typed is checked before, a row of the paper may have no network."""
    out = options.out or Path(f"runs/bench-{name}")
    path = out / f"{name}.csv"
    with usage():
        if options.from_ is not None:
            _refuse_settings(options)
            measured = networks.read(options.from_, name)
            device = measured[0][1].device
        else:
            check_device(device := options.device)
            entries = chosen()
            settings = Settings(
                passes=("train", "eval") if options.pass_ == "both" else (options.pass_,),
                dtype=getattr(torch, options.dtype),
                device=options.device,
                threads=torch.get_num_threads() if options.threads is None else options.threads,
                rounds=options.rounds,
                max_seconds=options.max_seconds,
                memory=options.memory,
            )
            limits = Limits(
                batch=BATCH if options.batch is None else options.batch,
                fixed=options.batch is not None,
                largest=options.largest,
                together=together,
            )
            if typed:
                networks.check(entries, settings, limits)
            earlier = networks.read(path, name) if options.resume and path.exists() else []
        if options.clock == "process" and device != "cpu":
            raise UsageError(CLOCK_OF_CPU.format(device))
    out.mkdir(parents=True, exist_ok=True)
    if options.from_ is None:
        if not earlier:
            keep_previous(path)
        with _progress() as report:
            measured = networks.measure(
                name,
                entries,
                settings,
                limits,
                earlier=earlier,
                report=report,
                save=lambda rows: networks.write(path, rows) if rows else None,
            )
    show(
        networks.make_tables(measured, options.clock),
        [*networks.words(name, options.clock), networks.places(measured)],
    )
    figures = drawn(lambda: networks.draw(measured, out, options.clock))
    names = [figure.name for figure in figures]
    (out / f"{name}.md").write_text(
        networks.markdown(measured, [each for each in names if each.endswith(".png")], options.clock),
        encoding="utf-8",
    )
    say_written(out, [f"{name}.md", *names])
    return 0


def _refuse_settings(options: Options) -> None:
    """Raise UsageError where something was said on how to measure, and nothing is measured."""
    for field in fields(options):
        if field.name not in ("clock", "out", "from_") and getattr(options, field.name) != field.default:
            word = f"{'no-' * (field.name == 'memory')}{field.name.rstrip('_').replace('_', '-')}"
            raise UsageError(f"--{word} has no effect with --from, which measures nothing.")


@contextmanager
def _progress() -> Iterator[Callable[[str, float], None]]:
    """Give a function that shows what goes on and how much is done: a bar, or lines in a pipe."""
    console = stderr()
    if not console.is_terminal:
        last: list[str] = []

        def tell(what: str, done: float) -> None:
            if [what] != last:
                last[:] = [what]
                console.print(f"{100 * done:3.0f} %  {what}", style="dim")

        yield tell
        return
    columns = (
        progress_bar_column(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
        TextColumn("left "),
        TextColumn("{task.description}", markup=False),
    )
    look = {"refresh_per_second": 4, "transient": True, "speed_estimate_period": LOOK_BACK}
    with Progress(*columns, console=console, **look) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda what, done: progress.update(task, completed=done, description=what)
