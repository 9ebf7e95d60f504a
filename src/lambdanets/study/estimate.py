"""How long a study will take: a few steps of every contender, run as the study would run them."""

from __future__ import annotations

import csv
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

from lambdanets.train import override, to_json

from .running import Failure, Progress, run
from .settings import Cell, Study, StudyFiles

STEPS = 6  # of each of two epochs; the first pays for what happens once
FORWARD = 1 / 3  # of a training step's time, for an image of the validation


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a cell of a contender takes.

    Attributes:
        images_per_second: in training, by the clock, beside as many other processes as the study has.
        images_per_cpu_second: by processor time: what a machine with nothing else to do would come near to.
        seconds: of a whole cell, validations included, without `start`.
        start: seconds of its process outside of the epochs, with the few training images of the trial.
    """

    images_per_second: float
    images_per_cpu_second: float
    seconds: float
    start: float


def estimate(
    study: Study, contenders: list[str], *, jobs: int, watch: Callable[[Progress], None]
) -> tuple[Mapping[str, Estimate], Mapping[str, Failure]]:
    """Time a few steps of each contender in a folder that is thrown away.

    Args:
        study: whose cells are estimated.
        contenders: names.
        jobs: processes at once.
        watch: as for `run`.

    Returns:
        The estimates, and what failed.
    """
    data, images = study.config.data, study.images
    least = ceil(STEPS * data.batch_size / images.classes)
    few = min(least, data.train_per_class or least)
    trial = override(
        study.config,
        f"data.train_per_class={few}",
        "schedule.warmup_epochs=0",
        "engine.epochs=2",
        f"engine.max_batches={STEPS}",
        "engine.max_val_batches=1",
    )
    with tempfile.TemporaryDirectory(prefix="lambdanets-study-") as folder:
        files = StudyFiles(Path(folder))
        files.settings.write_text(to_json(replace(study, config=trial)), encoding="utf-8")
        cells = [Cell(contender=name, seed=0) for name in contenders]
        begun = time.monotonic()
        progress = run(study=replace(study, config=trial), files=files, cells=cells, jobs=jobs, watch=watch)
        turns = ceil(len(cells) / jobs)
        epochs_of_a_turn = max((row.seconds for row in progress.done.values()), default=0.0)
        start = max(0.0, (time.monotonic() - begun) / max(1, turns) - epochs_of_a_turn)
        speeds = {cell.contender: _second_epoch(files, cell) for cell in progress.done}
    epochs = study.config.engine.epochs
    work = epochs * (images.train + FORWARD * images.val)
    found = {
        name: Estimate(images_per_second=wall, images_per_cpu_second=cpu, seconds=work / wall, start=start)
        for name, (wall, cpu) in speeds.items()
    }
    return found, {cell.contender: failure for cell, failure in progress.failed.items()}


def epochs_within(
    minutes: float, found: Mapping[str, Estimate], cells: Sequence[Cell], *, epochs: int, jobs: int
) -> int:
    """Return how many epochs every cell of a study can have for the whole to end within some minutes.

    Args:
        minutes: For all cells, from now on.
        found: What was estimated, for `epochs` epochs.
        cells: Those to be run.
        epochs: Of the estimate.
        jobs: Processes at once.
    """
    # A process that ends leaves its place empty until the last one has ended, too: whole turns are counted.
    turns = ceil(len(cells) / jobs)
    start = turns * max(each.start for each in found.values())
    epoch = turns * max(each.seconds for each in found.values()) / epochs
    return max(0, int((60 * minutes - start) / epoch))


def _second_epoch(files: StudyFiles, cell: Cell) -> tuple[float, float]:
    with files.curves.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["contender"] == cell.contender]
    return float(rows[-1]["images_per_second"]), float(rows[-1]["images_per_cpu_second"])
