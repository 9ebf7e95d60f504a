"""The model race on a GPU: LambdaResNets, ResNet-RS (SE, and without) and EfficientNets at the paper's sizes.

    python benchmarks/gpu/networks.py [--minutes 8] [--resume]

As `python -m benchmarks.paper race`, in one run: training steps under bfloat16 autocast and inference in
bfloat16, channels last, batches of 128 that are halved until they fit. Accuracies are published ones. Leaves
race.csv, race.md with the speed at matched accuracy, and figures; --resume goes on where the time was up. The
row of a network that fails has the reason; after an error that cost the GPU, another process goes on.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from common import (
    FAILURE,
    LOST,
    Parser,
    add_worker,
    begin,
    drawn,
    figures,
    in_workers,
    memory_too,
    put_aside,
    stop,
)

if TYPE_CHECKING:
    from lambdanets import bench

MAX_INTERLEAVED = 4  # networks that take turns
CONVOLUTIONS = "ResNet-RS without SE"
WANTED = {"matplotlib": "no figures now; --draw race.csv draws them on another machine"}


class TimeIsUp(Exception):
    """Raised between two steps of the race; the rows so far are in the file."""


def draw(path: Path) -> None:
    """Write the report and the figures of a race.csv beside it, and print the report."""
    from benchmarks.paper.report import REPORTS
    from lambdanets import bench

    measured = bench.read_networks(path, "race")
    names = figures(lambda: REPORTS["race"].draw(measured, path.parent))
    report = REPORTS["race"].markdown(measured, names)
    path.with_suffix(".md").write_text(report)
    print(report)


def chosen(words: argparse.Namespace) -> list[bench.NetworkSpec]:
    """Return the networks of the race, and after them those without a published accuracy."""
    from benchmarks.paper.published import RS, race_networks

    networks = race_networks()
    # Without squeeze-and-excitation nothing is published at these sizes: times alone, after the race.
    networks += [
        replace(each, model=each.model.removesuffix("_se"), family=CONVOLUTIONS, published=None)
        for each in networks
        if each.family == RS
    ]
    if words.quick:  # the first point of each family
        networks = list({each.family: each for each in reversed(networks)}.values())
    return networks


def troubles(words: argparse.Namespace, path: Path) -> list[str]:
    """Return lines on the networks that were not run, and on rows with an error."""
    from lambdanets import bench
    from lambdanets.bench.timing import FAILED

    rows = [row for row, _ in bench.read_networks(path, "race")] if path.exists() else []
    done = {(row.title, row.model, row.mode) for row in rows}
    missing = [
        f"{each.model} {each.title} {which}"
        for each in chosen(words)
        for which in ("train", "eval")
        if (each.title, each.model, which) not in done
    ]
    found = [f"{row.model} {row.title} {row.mode}: {row.note}" for row in rows if FAILED in row.note]
    if missing:
        found.append(f"not run: {', '.join(missing)}; the same command with --resume goes on")
    return found


def work(words: argparse.Namespace, path: Path) -> int:
    """Run the race, and return an exit status."""
    import torch

    from lambdanets import bench

    ends = time.monotonic() + 60 * words.minutes
    last = ""

    def report(step: str, done: float) -> None:
        nonlocal last
        if step == last:
            return
        # Networks that have made their first steps are timed, too: the steps would be wasted otherwise.
        if time.monotonic() > ends and done < 1 and " in turn: " not in step:
            raise TimeIsUp
        print(f"{100 * done:3.0f} %  {step}", flush=True)
        last = step

    settings = bench.Settings(
        dtype=torch.bfloat16,
        device=words.device,
        threads=torch.get_num_threads(),
        rounds=1 if words.quick else words.rounds,
        max_seconds=4.0,
        memory=memory_too(words),
        forgiving=True,
    )
    try:
        bench.measure_networks(
            "race",
            chosen(words),
            settings,
            bench.Limits(
                batch=2 if words.quick else words.batch, fixed=True, max_interleaved=MAX_INTERLEAVED
            ),
            earlier=bench.read_networks(path, "race") if words.resume and path.exists() else [],
            report=report,
            save=lambda rows: bench.write_networks(path, rows) if rows else None,
        )
    except TimeIsUp:
        print("the time is up", file=sys.stderr, flush=True)
        return FAILURE
    except bench.DeviceLost as error:
        print(error, file=sys.stderr, flush=True)
        return LOST
    except ValueError as error:  # of earlier rows, measured otherwise
        stop(str(error))
    return 0


def main() -> int:
    parser = Parser(__doc__, "race.csv")
    parser.add_argument("--batch", type=int, default=128, help="images of a pass, halved until it fits")
    parser.add_argument("--rounds", type=int, default=5, help="samples of each network")
    add_worker(parser, "network")
    words = parser.parse_args()
    begin(words, needed=("torch", "timm"), wanted={} if words.worker else WANTED)
    if words.draw:
        draw(words.draw)
        return 0
    path = (words.out or Path("runs/gpu-networks")) / "race.csv"
    if words.worker:
        return work(words, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not words.resume:
        put_aside(path)
    code = in_workers(__file__, words.minutes, words.resume)
    found = troubles(words, path) + drawn(draw, path)
    if code not in (0, FAILURE):
        found.append(f"its process ended with {code}")
    if found:
        print("\n".join(found), file=sys.stderr)
    return FAILURE if found else 0


if __name__ == "__main__":
    sys.exit(main())
