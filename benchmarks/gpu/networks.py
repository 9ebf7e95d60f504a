"""The model race on a GPU: LambdaResNets, ResNet-RS (SE, and without) and EfficientNets at the paper's sizes.

    python benchmarks/gpu/networks.py [--minutes 8] [--resume]

What `lambdanets bench race` does, in one run: training steps under bfloat16 autocast and inference in
bfloat16, channels last, batches of 128 that are halved until they fit. Accuracies are published ones. Leaves
race.csv, race.md with the speed at matched accuracy, and figures; --resume goes on where the time was up.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

from common import FAILURE, MINUTES, Parser, begin, figures, memory_too

TOGETHER = 4  # how many take turns
CONVOLUTIONS = "ResNet-RS without SE"
WANTED = {"matplotlib": "no figures now; --draw race.csv draws them on another machine"}


class TimeIsUp(Exception):
    """Raised between two steps of the race; the rows so far are in the file."""


def draw(path: Path) -> None:
    """Write the report and the figures of a race.csv beside it, and print the report."""
    from lambdanets.bench import networks

    measured = networks.read(path, "race")
    names = figures(lambda: networks.draw(measured, path.parent))
    report = networks.markdown(measured, names, "wall")
    path.with_suffix(".md").write_text(report)
    print(report)


def main() -> int:
    parser = Parser(__doc__, "race.csv")
    parser.add_argument("--batch", type=int, default=128, help="images of a pass, halved until it fits")
    parser.add_argument("--rounds", type=int, default=5, help="samples of each network")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="nothing begins later")
    parser.add_argument("--resume", action="store_true", help="go on with the rows in the folder")
    words = parser.parse_args()
    begin(words, needed=("torch", "timm"), wanted=WANTED)
    if words.draw:
        draw(words.draw)
        return 0

    import torch

    from lambdanets.bench import Settings, networks
    from lambdanets.bench.networks.published import RS

    entries = networks.racers()
    # Without squeeze-and-excitation nothing is published at these sizes: times alone, after the race.
    entries += [
        replace(entry, model=entry.model.removesuffix("_se"), family=CONVOLUTIONS, published=None)
        for entry in entries
        if entry.family == RS
    ]
    if words.quick:  # the first point of each family
        entries = list({entry.family: entry for entry in reversed(entries)}.values())
    path = (words.out or Path("runs/gpu-networks")) / "race.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + 60 * words.minutes
    said = ""

    def report(what: str, done: float) -> None:
        nonlocal said
        if time.monotonic() > ends and done < 1:
            raise TimeIsUp
        if what != said:
            print(f"{100 * done:3.0f} %  {what}", flush=True)
        said = what

    settings = Settings(
        dtype=torch.bfloat16,
        device=words.device,
        threads=torch.get_num_threads(),
        rounds=1 if words.quick else words.rounds,
        max_seconds=4.0,
        memory=memory_too(words),
    )
    code = 0
    try:
        networks.measure(
            "race",
            entries,
            settings,
            networks.Limits(batch=2 if words.quick else words.batch, fixed=True, together=TOGETHER),
            earlier=networks.read(path, "race") if words.resume and path.exists() else [],
            report=report,
            save=lambda rows: networks.write(path, rows) if rows else None,
        )
    except TimeIsUp:
        print(f"{words.minutes:g} minutes are over; the same command with --resume goes on", file=sys.stderr)
        code = FAILURE
    if path.exists():
        draw(path)
    return code


if __name__ == "__main__":
    sys.exit(main())
