"""Trains one run in a row of forked processes, each killed (SIGKILL) at a chosen point and then resumed.

A script of its own: the forks come from a process that has imported torch and computed nothing, so that they
neither inherit threads nor pay for the import.

    python killed_runs.py CONFIG.json RUN_DIR 'batch 5' validation best rename write 'time 0.4'
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lambdanets.cli.tasks import TASKS
from lambdanets.train import RunConfig, checkpoint, load_config, saving
from lambdanets.train.classifier import Classifier


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner: Any, name: str, when: Callable[..., bool]) -> None:
    """Die before a call of `owner.name` for which `when` holds."""
    original = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if when(*args, **kwargs):
            die()
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def half_a_file(content: Any, file: Any) -> None:
    file.write(b"PK" + bytes(1000))
    file.flush()
    die()


def arm(point: str) -> None:
    kind, _, number = point.partition(" ")
    if kind == "batch":  # in the middle of a step, gradients not yet there
        before(Classifier, "_record_loss", lambda module, loss: module.state.batches_done == int(number))
    elif kind == "validation":
        before(Classifier, "on_validation_epoch_end", lambda module: True)
    elif kind == "best":  # the best is written, the last is not
        before(
            saving.CheckpointCallback, "_save_last", lambda self, trainer: self.module.state.position[1] == 0
        )
    elif kind == "rename":  # the last has become the previous, and there is no last
        before(checkpoint.os, "replace", lambda source, target: Path(target).name == "last.ckpt")
    elif kind == "write":
        torch.save = half_a_file
    elif kind not in ("time", "never"):
        raise SystemExit(f"no such point: {point}")


def main(config: str, run_dir: str, *points: str) -> None:
    task = TASKS[json.loads(Path(config).read_text()).get("task", RunConfig.TASK)]
    kind, train = task.config_class(), task.train_function()
    for number, point in enumerate([*points, "never"]):
        child = os.fork()
        if child == 0:
            arm(point)
            train(load_config(Path(config), kind), run_dir=run_dir, resume=number > 0)
            os._exit(0)
        if point.startswith("time"):
            time.sleep(float(point.split()[1]))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        expected = signal.SIGKILL if point != "never" else 0
        if os.waitstatus_to_exitcode(status) != -expected:
            raise SystemExit(f"{point}: ended with {os.waitstatus_to_exitcode(status)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
