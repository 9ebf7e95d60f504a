"""Measure the paper's tables and its race: `python -m benchmarks.paper race | table4 | table13 | table14`.

Options, files and `--from` are those of `lambdanets bench models`; `--help` after a name lists them.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from tyro import conf

from lambdanets import bench
from lambdanets.cli import main
from lambdanets.cli.bench_models import NetworkOptions, run_network_bench
from lambdanets.cli.errors import check_name
from lambdanets.cli.options import parse, shown

from .published import TABLES, race_networks
from .report import REPORTS

PROGRAM = "python -m benchmarks.paper"
RACE_INTERLEAVED = 4  # networks that take turns: few, so that an interrupted race loses little


@dataclass(frozen=True, kw_only=True)
class TableOptions(NetworkOptions):
    """Options of a table.

    Attributes:
        size: Image size of all rows.
    """

    size: Annotated[str | None, shown("N | NxN", "the paper's")] = None


def race(*, measuring: Annotated[NetworkOptions, conf.OmitArgPrefixes]) -> int:
    """Race LambdaResNets, EfficientNets and ResNet-RS: published accuracy against time measured here.

    Neighbours in accuracy take turns. Rows are written as they are measured; --resume goes on. Leaves
    race.csv, race.md with the speed at matched accuracy, and figures. --largest 10 leaves the slowest out.

    Args:
        measuring: How it is measured.
    """
    return run_network_bench(
        "race", measuring, race_networks, REPORTS["race"], max_interleaved=RACE_INTERLEAVED
    )


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


PROGRAMS = {"race": race, "table4": table4, "table13": table13, "table14": table14}


def _table(name: str, options: TableOptions) -> int:
    def select() -> Sequence[bench.NetworkSpec]:
        if options.size is None:
            return TABLES[name]
        size = bench.parse_size(options.size)
        return [network.at(size) for network in TABLES[name]]

    return run_network_bench(name, options, select, REPORTS[name])


def run(words: list[str]) -> int:
    """Run the words after `python -m benchmarks.paper` and return the exit code."""
    if not words or words[0] in ("-h", "--help"):
        print(f"usage: {PROGRAM} {' | '.join(PROGRAMS)} [options]\n")
        print(
            "\n".join(f"  {name:<9}{(each.__doc__ or '').splitlines()[0]}" for name, each in PROGRAMS.items())
        )
        return 0
    name, *options = words
    check_name("table", name, PROGRAMS)
    return parse(PROGRAMS[name], prog=f"{PROGRAM} {name}", words=options)()


if __name__ == "__main__":
    sys.exit(main(run=run))
