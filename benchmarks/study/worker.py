"""The process of one cell, which trains or continues it and writes its result; started by `running`.

python -m benchmarks.study.worker FOLDER CONTENDER SEED JOBS
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lambdanets import bench
from lambdanets.bench.records import NONE
from lambdanets.train import TrainingInterrupted
from lambdanets.train.serialization import encode
from lambdanets.utils.processes import locked

from .records import CellRecord, to_cells
from .settings import Cell, Study, StudyFiles, load_study

if TYPE_CHECKING:
    from lambdanets.train import RunResult

STATUS = Path("/proc/self/status")
SAVE_TIMEOUT = 120.0  # seconds for a process of a killed study that is still saving


def main(arguments: Sequence[str]) -> int:
    """Run one cell; the last line on stderr is the error."""
    folder, contender, seed, jobs = arguments
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        run_cell(StudyFiles(Path(folder)), Cell(contender=contender, seed=int(seed)), jobs=int(jobs))
    except TrainingInterrupted as stop:
        return stop.exit_code
    except Exception as error:
        traceback.print_exc()
        print(" ".join(str(error).split()) or type(error).__name__, file=sys.stderr)
        return 1
    return 0


def run_cell(files: StudyFiles, cell: Cell, *, jobs: int) -> None:
    """Train a cell, or continue it from its checkpoint, and write its result beside its run."""
    from lambdanets.train import train
    from lambdanets.train.checkpoint import write_text

    study = load_study(files)
    directory = files.run(cell)
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory / ".cell.lock", f"the run in {directory}", patience=SAVE_TIMEOUT):
        if files.result(cell).is_file():
            return
        begun = (directory / "config.json").is_file()
        result = train(study.run_config(cell), run_dir=directory, resume=begun)
        record = describe(study, cell, result, jobs=jobs)
        found = {"row": to_cells(record), "epochs": result.history}
        write_text(files.result(cell), json.dumps(found, indent=1) + "\n")


def describe(study: Study, cell: Cell, result: RunResult, *, jobs: int) -> CellRecord:
    """Return the row of a cell that this process has trained."""
    config, last = study.run_config(cell), result.history[-1]
    on_gpu = torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0
    unmeasured = bench.Machine(gflops=NONE, gflops_cpu=NONE, copy_gbs=NONE)
    where = asdict(
        bench.provenance(torch.float32, "cuda" if on_gpu else "cpu", torch.get_num_threads(), unmeasured)
    )
    kind, _, root = config.data.source.partition(":")
    speeds = [row["images_per_cpu_second"] for row in result.history]
    return CellRecord(
        contender=cell.contender,
        title=study.contender(cell.contender).title,
        seed=cell.seed,
        trunk=study.trunk,
        recipe=config.recipe,
        model=config.model.name,
        options=json.dumps(encode(config.model.options), sort_keys=True),
        parameters=result.parameters,
        epochs=config.engine.epochs,
        image_size=config.data.image_size,
        batch_size=config.data.batch_size,
        lr=config.optimizer.lr,
        data=f"{kind}:{Path(root).name}" if root else kind,
        train_images=study.images.train,
        val_images=study.images.val,
        classes=study.images.classes,
        fingerprint=study.images.fingerprint,
        top1=last["val_top1"],
        best_top1=result.best["val_top1"],
        best_epoch=result.best_epoch,
        train_top1=last["train_top1"],
        train_loss=last["train_loss"],
        val_loss=last["val_loss"],
        images_per_second=result.images_per_second,
        images_per_cpu_second=len(speeds) / sum(1 / speed for speed in speeds),
        seconds=result.seconds,
        peak_mib=NONE if result.already_complete else peak_mib(),
        peak_gpu_mib=torch.cuda.max_memory_allocated() / 2**20 if on_gpu else NONE,
        jobs=jobs,
        precision=config.engine.precision,
        **{name: where[name] for name in PROVENANCE},
    )


PROVENANCE = (
    "threads", "device", "processor", "system", "load", "lambdanets", "commit", "torch", "timm", "python",
    "date",
)  # fmt: skip


def peak_mib() -> float:
    """Return the peak of this process's resident memory in MiB."""
    if STATUS.exists():
        # Not getrusage: a process inherits its peak from its parent.
        sizes: dict[str, Any] = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return int(sizes["VmHWM"].split()[0]) / 2**10
    import resource

    scale = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**20


def _end_with_parent() -> None:
    """Save and stop when the study has ended: its end of our standard input is closed then."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
