"""The end of a run: its pictures, its short summary, and what `train` returns."""

from dataclasses import dataclass
from pathlib import Path

from lambdanets.data import MixedSet, Splits
from lambdanets.train.checkpoint import write_text
from lambdanets.train.config import RunConfig
from lambdanets.train.figures import draw_confusion, draw_curves
from lambdanets.train.layout import RunFiles
from lambdanets.train.progress import clock
from lambdanets.train.recorder import to_csv
from lambdanets.train.state import RunState


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What came out of a run.

    Attributes:
        directory: the run folder.
        model, parameters: the network's name and number of parameters.
        history: one finished epoch each, the rows of `metrics.csv`.
        best_epoch, best_top1: the best validation accuracy, as a fraction.
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
    best_top1: float
    images_per_second: float
    seconds: float
    already_complete: bool
    summary: str


def finish(
    config: RunConfig,
    state: RunState,
    parameters: int,
    files: RunFiles,
    splits: Splits,
    *,
    write: bool = True,
) -> RunResult:
    """Write the last files of a run, the summary after all others, and say what came out."""
    last = state.history[-1]
    train = f"{len(splits.train):,} training"
    if isinstance(splits.train, MixedSet):
        train = f"{len(splits.train.labelled):,} labelled, {len(splits.train.pseudo):,} pseudo-labelled"
    sizes = f"{train} and {len(splits.val):,} validation images"
    epoch = f"epoch {state.best_epoch} of {config.engine.epochs}"
    lines = {
        "model": f"{config.model.name}, {parameters:,} parameters",
        "data": f"{config.data.source}: {sizes}, {len(splits.classes)} classes",
        "best": f"{100 * state.best_top1:.2f} % validation accuracy, {epoch}",
        "last": f"{100 * last['val_top1']:.2f} % validation accuracy, training loss {last['train_loss']:.3f}",
        "speed": f"{speed(state):,.0f} images/s in training, {clock(state.seconds)} in all",
        "folder": str(files.directory),
    }
    summary = "".join(f"{name:<8}{text}\n" for name, text in lines.items())
    if write:
        write_text(files.metrics, to_csv(state.history))
        draw_curves(state.history, files.curves, title=f"{config.model.name} on {config.data.source}")
        if state.best_confusion is not None:
            draw_confusion(state.best_confusion, splits.classes, files.confusion, f"epoch {state.best_epoch}")
        write_text(files.summary, summary)
    return result(config, state, parameters, files, summary)


def result(
    config: RunConfig,
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
        best_top1=state.best_top1,
        images_per_second=speed(state),
        seconds=state.seconds,
        already_complete=already_complete,
        summary=summary,
    )


def speed(state: RunState) -> float:
    """Images per second in training: the harmonic mean, as every epoch has the same number of images."""
    return len(state.history) / sum(1 / row["images_per_second"] for row in state.history)
