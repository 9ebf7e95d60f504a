"""The end of a run: its pictures, its short summary, and what `train` returns."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lambdanets.train.checkpoint import write_text
from lambdanets.train.config import BaseConfig
from lambdanets.train.layout import RunFiles
from lambdanets.train.learner import Learner
from lambdanets.train.progress import clock, pace
from lambdanets.train.recorder import to_csv
from lambdanets.train.state import RunState


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What came out of a run.

    Attributes:
        directory: the run folder.
        model, parameters: the network's name and number of parameters.
        history: one finished epoch each, the rows of `metrics.csv`.
        best_epoch, best: by its validation, and its row of `metrics.csv`.
        images_per_second: in training, over the whole run.
        seconds: of all epochs, over all sessions.
        already_complete: whether there was nothing left to do.
        summary: the text of `summary.txt`.
    """

    directory: Path
    model: str
    parameters: int
    history: tuple[dict[str, float], ...]
    best_epoch: int
    best: dict[str, float]
    images_per_second: float
    seconds: float
    already_complete: bool
    summary: str


def finish(learner: Learner, files: RunFiles, splits: Any, *, write: bool = True) -> RunResult:
    """Write the last files of a run, the summary after all others, and say what came out."""
    config, state = learner.config, learner.state
    parameters = sum(p.numel() for p in learner.network.parameters())
    last, names = state.history[-1], splits.classes
    classes = f"{len(names)} class{'es' * (len(names) > 1)}"
    epoch = f"epoch {state.best_epoch} of {config.engine.epochs}"
    lines = {
        "model": f"{config.model.name}, {parameters:,} parameters",
        "data": f"{config.data.source}: {learner.say_data(splits)}, {classes}",
        "best": f"{learner.say_val(state.best)}, {epoch}",
        "last": f"{learner.say_val(last)}, training loss {last['train_loss']:.3f}",
        "speed": f"{pace(speed(state))} in training, {clock(state.seconds)} in all",
        "folder": str(files.directory),
    }
    summary = "".join(f"{name:<8}{text}\n" for name, text in lines.items())
    if write:
        write_text(files.metrics, to_csv(learner))
        learner.draw_curves(files.curves, f"{config.model.name} on {config.data.source}")
        learner.draw_best(files)
        write_text(files.summary, summary)
    return result(config, state, parameters, files, summary)


def result(
    config: BaseConfig,
    state: RunState,
    parameters: int,
    files: RunFiles,
    summary: str,
    *,
    already_complete: bool = False,
) -> RunResult:
    """What `train` returns, from where a run stands."""
    return RunResult(
        directory=files.directory,
        model=config.model.name,
        parameters=parameters,
        history=tuple(state.history),
        best_epoch=state.best_epoch,
        best=state.best,
        images_per_second=speed(state),
        seconds=state.seconds,
        already_complete=already_complete,
        summary=summary,
    )


def speed(state: RunState) -> float:
    """Images per second in training: the harmonic mean, as every epoch has the same number of images."""
    return len(state.history) / sum(1 / row["images_per_second"] for row in state.history)
