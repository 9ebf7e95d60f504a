"""Training a detector, and opening what came out."""

from __future__ import annotations

from pathlib import Path

from lambdanets.data import CocoSplits, open_coco
from lambdanets.data.coco.splits import check_objects
from lambdanets.train import Run
from lambdanets.train import load_run as load_any_run
from lambdanets.train.engine import Task, train_task
from lambdanets.train.reporting import RunResult

from .module import DetectionModule
from .run_config import DetectionConfig


def _open(config: DetectionConfig) -> CocoSplits:
    splits = open_coco(config.data, seed=config.seed)
    check_objects(config.data, splits)
    return splits


DETECTION = Task(DetectionConfig, _open, DetectionModule)


def train(config: DetectionConfig | None = None, *, run_dir: str | Path, resume: bool = False) -> RunResult:
    """Train a detector on annotated images and leave one folder.

    Args, result and errors are those of `lambdanets.train.train`. Beside what every run leaves, the folder
    holds, of the best validation, `results/` in COCO's format, `precision_recall.png` and `classes.csv`,
    and of the newest one `sheet.png`, on which images have what is there beside what was found.

    Example:
        >>> train(get_recipe("nuclei"), run_dir="runs/nuclei")
    """
    return train_task(DETECTION, config, run_dir=run_dir, resume=resume)


def load_run(path: str | Path) -> Run[DetectionConfig]:
    """Open the folder of a run that trained a detector.

    Args:
        path: the folder that `train` wrote, wherever it lies now.

    Raises:
        RunError: the folder is no such run, or its configuration or its classes cannot be read.
    """
    return load_any_run(path, DetectionConfig)
