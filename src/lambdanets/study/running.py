"""Runs the cells of a study, several processes at once, and takes up their results as they end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lambdanets.train import RunError, load_run

from .records import Record, read, restore
from .settings import Cell, Study, StudyFiles

POLL = 0.25  # seconds between looks at the processes
LOOK = 2.0  # seconds between looks at the epochs of those that run
PATIENCE = 90.0  # seconds that a process gets to save when the study is stopped


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A cell whose process ended without a result; the next `run` tries it again."""

    cell: Cell
    reason: str
    log: Path


@dataclass(kw_only=True)
class Progress:
    """Where a study is.

    Attributes:
        cells: all that were asked for, in order.
        epochs: of each.
        jobs: processes at once.
        done: their rows, of this session and of earlier ones.
        running: the finished epochs of those that run.
        failed: of this session.
        event: what has just happened, "" when nothing has.
    """

    cells: list[Cell]
    epochs: int
    jobs: int
    done: dict[Cell, Record] = field(default_factory=dict)
    running: dict[Cell, list[dict[str, float]]] = field(default_factory=dict)
    failed: dict[Cell, Failure] = field(default_factory=dict)
    event: str = ""

    @property
    def waiting(self) -> list[Cell]:
        """Cells that have not begun in this session."""
        return [
            cell
            for cell in self.cells
            if cell not in self.done and cell not in self.running and cell not in self.failed
        ]

    def seconds_left(self) -> float | None:
        """Seconds to the end at the pace of the epochs so far, by contender; None before the first."""
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
    """Run all cells that have no result yet, and return when none is left or all others have failed.

    Whatever ends this process, what is finished has its row, and what is not continues from its last
    checkpoint the next time. On an exception (Ctrl-C) the processes are asked to save and awaited.

    Args:
        study: as `settle` returned it.
        files: of the study; the caller holds its lock.
        cells: in the order in which they are begun.
        jobs: processes at once.
        watch: called a few times a second.
    """
    progress = Progress(cells=list(cells), epochs=study.config.engine.epochs, jobs=jobs)
    rows = _take(files)
    progress.done = {cell: rows[cell] for cell in cells if cell in rows}
    workers: dict[Cell, subprocess.Popen[bytes]] = {}
    looked = 0.0
    try:
        watch(progress)
        while progress.waiting or workers:
            while len(workers) < jobs and progress.waiting:
                cell = progress.waiting[0]
                workers[cell] = _start(study, files, cell, jobs)
                progress.running[cell] = []
            time.sleep(POLL)
            if time.monotonic() - looked > LOOK:
                looked = time.monotonic()
                progress.running = {cell: _epochs(files.run(cell)) for cell in workers}
            for cell, worker in list(workers.items()):
                code = worker.poll()
                if code is None:
                    continue
                del workers[cell], progress.running[cell]
                if code == 0 and files.result(cell).is_file():
                    progress.done[cell] = _take(files)[cell]
                    _tell(progress, watch, finished_line(progress.done[cell]))
                else:
                    log = files.log(cell)
                    progress.failed[cell] = Failure(cell=cell, reason=_reason(code, log), log=log)
                    _tell(progress, watch, f"{cell} failed: {progress.failed[cell].reason} ({log})")
            watch(progress)
    finally:
        _stop(list(workers.values()))
    return progress


def finished_line(record: Record) -> str:
    """What one cell gave, in a line."""
    epochs = f"{record.epochs} epoch{'s' if record.epochs != 1 else ''}"
    speed = f"{record.images_per_second:,.0f} images/s"
    return (
        f"{record.cell}: {100 * record.top1:.2f} % after {epochs}, {speed}, {record.parameters:,} parameters"
    )


def _tell(progress: Progress, watch: Callable[[Progress], None], event: str) -> None:
    progress.event = event
    watch(progress)
    progress.event = ""


def _start(study: Study, files: StudyFiles, cell: Cell, jobs: int) -> subprocess.Popen[bytes]:
    log = files.log(cell)
    log.parent.mkdir(parents=True, exist_ok=True)
    threads = study.config.engine.threads
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    words = [str(files.directory), cell.contender, str(cell.seed), str(jobs)]
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "lambdanets.study.worker", *words],
            stdin=subprocess.PIPE,  # never written to: it closes when this process ends, and the cell with it
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C in the terminal is for the study, which asks its cells to save
        )


def _take(files: StudyFiles) -> dict[Cell, Record]:
    """Make all results rows, free the disk of what only an unfinished run needs, and return the rows."""
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
        return f"ended by signal {-code}" + (", perhaps for want of memory" if code == -9 else "")
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines and code else "ended without a result"


def _stop(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask the processes to save and wait for them; impatience, or another Ctrl-C, kills them."""
    try:
        for worker in workers:
            worker.terminate()
        until = time.monotonic() + PATIENCE
        for worker in workers:
            worker.wait(max(until - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
        pass
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
