"""Runs the cells of a study, several processes at once, and estimates their time from a few steps."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path

from lambdanets.train import RunError, load_run, override, to_json

from .records import CellRecord, read, restore
from .settings import Cell, Study, StudyFiles

POLL = 0.25  # seconds between looks at the processes
LOOK = 2.0  # seconds between looks at the epochs of those that run
SAVE_TIMEOUT = 90.0  # seconds that a process gets to save when the study is stopped
ROOT = Path(__file__).parents[2]  # of the repository, from which the processes import this package
STEPS = 6  # of an estimate, in each of two epochs; one-time costs fall into the first
FORWARD = 1 / 3  # time of a validation image over that of a training image


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A cell whose process ended without a result; the next `run` starts it again."""

    cell: Cell
    reason: str
    log: Path


@dataclass(kw_only=True)
class Progress:
    """The state of a study.

    Attributes:
        cells: All cells, in order.
        epochs: Of each.
        jobs: Processes at once.
        done: Rows of the finished cells, of this session and of earlier ones.
        running: Finished epochs of the running cells.
        failed: Failed cells of this session.
        event: A line on a cell that has just ended, else "".
    """

    cells: list[Cell]
    epochs: int
    jobs: int
    done: dict[Cell, CellRecord] = field(default_factory=dict)
    running: dict[Cell, list[dict[str, float]]] = field(default_factory=dict)
    failed: dict[Cell, Failure] = field(default_factory=dict)
    event: str = ""

    @property
    def waiting(self) -> list[Cell]:
        """Cells that have not been started in this session."""
        return [
            cell
            for cell in self.cells
            if cell not in self.done and cell not in self.running and cell not in self.failed
        ]

    def seconds_left(self) -> float | None:
        """Return the seconds to the end at the pace of the epochs so far; None before the first."""
        paces: dict[str, list[float]] = {}
        for cell, record in self.done.items():
            paces.setdefault(cell.contender, []).append(record.seconds / record.epochs)
        for cell, history in self.running.items():
            paces.setdefault(cell.contender, []).extend(row["seconds"] for row in history)
        known = {name: sum(pace) / len(pace) for name, pace in paces.items() if pace}
        if not known:
            return None
        usual = sum(known.values()) / len(known)
        left = [(cell, self.epochs) for cell in self.waiting]
        left += [(cell, self.epochs - len(history)) for cell, history in self.running.items()]
        work = [epochs * known.get(cell.contender, usual) for cell, epochs in left]
        return max(sum(work) / self.jobs, max(work, default=0.0))


def run(
    study: Study,
    files: StudyFiles,
    cells: Sequence[Cell],
    *,
    jobs: int,
    watch: Callable[[Progress], None],
) -> Progress:
    """Run all cells without a result, and return when each has one or has failed.

    However this process ends, finished cells have their rows, and the next call continues the others from
    their last checkpoints. On an exception (Ctrl-C) the processes are asked to save and awaited.

    Args:
        study: The study, from `settle`.
        files: Of the study; the caller holds its lock.
        cells: In the order in which they are started.
        jobs: Processes at once.
        watch: Called a few times a second.
    """
    progress = Progress(cells=list(cells), epochs=study.config.engine.epochs, jobs=jobs)
    rows = _collect(files)
    progress.done = {cell: rows[cell] for cell in cells if cell in rows}
    workers: dict[Cell, subprocess.Popen[bytes]] = {}
    last_look = 0.0
    try:
        watch(progress)
        while progress.waiting or workers:
            while len(workers) < jobs and progress.waiting:
                cell = progress.waiting[0]
                workers[cell] = _start(study, files, cell, jobs)
                progress.running[cell] = []
            time.sleep(POLL)
            if time.monotonic() - last_look > LOOK:
                last_look = time.monotonic()
                progress.running = {cell: _epochs(files.run(cell)) for cell in workers}
            for cell, worker in list(workers.items()):
                code = worker.poll()
                if code is None:
                    continue
                del workers[cell], progress.running[cell]
                if code == 0 and files.result(cell).is_file():
                    progress.done[cell] = _collect(files)[cell]
                    _notify(progress, watch, finished_line(progress.done[cell]))
                else:
                    log = files.log(cell)
                    progress.failed[cell] = Failure(cell=cell, reason=_reason(code, log), log=log)
                    _notify(progress, watch, f"{cell} failed: {progress.failed[cell].reason} ({log})")
            watch(progress)
    finally:
        _stop(list(workers.values()))
    return progress


def finished_line(record: CellRecord) -> str:
    """Return the result of a cell in a line."""
    epochs = f"{record.epochs} epoch{'s' if record.epochs != 1 else ''}"
    speed = f"{record.images_per_second:,.0f} images/s"
    return (
        f"{record.cell}: {100 * record.top1:.2f} % after {epochs}, {speed}, {record.parameters:,} parameters"
    )


def _notify(progress: Progress, watch: Callable[[Progress], None], event: str) -> None:
    progress.event = event
    watch(progress)
    progress.event = ""


def _start(study: Study, files: StudyFiles, cell: Cell, jobs: int) -> subprocess.Popen[bytes]:
    log = files.log(cell)
    log.parent.mkdir(parents=True, exist_ok=True)
    threads = study.config.engine.threads
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path} | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    words = [str(files.directory), cell.contender, str(cell.seed), str(jobs)]
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.study.worker", *words],
            stdin=subprocess.PIPE,  # never written to: it closes when this process ends, and the cell with it
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C in the terminal is for the study, which asks its cells to save
        )


def _collect(files: StudyFiles) -> dict[Cell, CellRecord]:
    """Add all results to the tables, delete the checkpoints of finished cells, and return the rows."""
    restore(files)
    for result in files.results():
        shutil.rmtree(result.with_name("checkpoints"), ignore_errors=True)
    return {record.cell: record for record in read(files.cells)}


def _epochs(directory: Path) -> list[dict[str, float]]:
    try:
        return load_run(directory).history()
    except RunError:  # nothing written yet
        return []


def _reason(code: int, log: Path) -> str:
    if code < 0:
        return f"ended by signal {-code}" + (", perhaps for lack of memory" if code == -9 else "")
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines and code else "ended without a result"


def _stop(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask the processes to save; kill them after `SAVE_TIMEOUT`, or at another Ctrl-C."""
    try:
        for worker in workers:
            worker.terminate()
        until = time.monotonic() + SAVE_TIMEOUT
        for worker in workers:
            worker.wait(max(until - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
        pass
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The estimated time of a cell of one contender.

    Attributes:
        images_per_second: In training, by wall time, beside as many other processes as the study has.
        images_per_cpu_second: By CPU time, close to the speed on an idle machine.
        seconds: Of a whole cell, validations included, without `start`.
        start: Seconds of its process outside of the epochs, with the few training images of the trial.
    """

    images_per_second: float
    images_per_cpu_second: float
    seconds: float
    start: float


def estimate(
    study: Study, contenders: list[str], *, jobs: int, watch: Callable[[Progress], None]
) -> tuple[Mapping[str, Estimate], Mapping[str, Failure]]:
    """Time a few steps of each contender in a temporary folder.

    Args:
        study: The study whose cells are estimated.
        contenders: Names.
        jobs: Processes at once.
        watch: As of `run`.

    Returns:
        The estimates and the failures by contender.
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
    """Return the number of epochs of every cell with which the study ends within some minutes.

    Args:
        minutes: For all cells, from now on.
        found: Estimates for `epochs` epochs.
        cells: The cells to be run.
        epochs: Of the estimate.
        jobs: Processes at once.
    """
    # Whole turns are counted: a finished process may wait for the last one of its turn.
    turns = ceil(len(cells) / jobs)
    start = turns * max(each.start for each in found.values())
    epoch = turns * max(each.seconds for each in found.values()) / epochs
    return max(0, int((60 * minutes - start) / epoch))


def _second_epoch(files: StudyFiles, cell: Cell) -> tuple[float, float]:
    with files.curves.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["contender"] == cell.contender]
    return float(rows[-1]["images_per_second"]), float(rows[-1]["images_per_cpu_second"])
