"""`lambdanets eval`: what a run reaches on its validation set, or on another one."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from tyro import conf

from lambdanets.cli.console import draw, stdout, table
from lambdanets.cli.errors import usage
from lambdanets.cli.options import shown
from lambdanets.data import DataConfig
from lambdanets.train import load_run

LABELS = {
    "top1": ("accuracy", "{:.2%}"),
    "top5": ("top-5 accuracy", "{:.2%}"),
    "images": ("images", "{:,.0f}"),
    "images_per_second": ("images/s", "{:,.0f}"),
}


def run(
    run: Annotated[Path, conf.Positional, shown("RUN")],
    *,
    data: Annotated[str | None, shown("SOURCE", "the run's own validation set")] = None,
    weights: Literal["best", "last"] = "best",
    batch_size: Annotated[int | None, shown("N", "the run's")] = None,
) -> int:
    """Measure a run on its validation set, or on another one.

    Args:
        run: The folder of a run.
        data: Other images with the same classes, such as folder:PATH; where they have no val/ of their own,
            all of them are measured.
        weights: The best weights by validation, or those of the last epoch.
        batch_size: Images that go through the network at once.
    """
    opened = load_run(run)
    config = opened.config.data
    with usage():
        if batch_size is not None:
            config = replace(config, batch_size=batch_size)
        if data is not None:
            config = _elsewhere(config, data)

    from lambdanets.train import evaluate

    metrics = evaluate(opened, config, weights=weights)
    if len(opened.classes) <= 5:
        metrics.pop("top5")  # always 100 %
    rows = table(measure="left", value="right")
    for name, value in metrics.items():
        label, form = LABELS.get(name, (name, "{:,.4f}"))
        rows.add_row(label, form.format(value))
    draw(stdout(), f"{run}, {weights} weights, on {config.source}", rows)
    return 0


def _elsewhere(config: DataConfig, source: str) -> DataConfig:
    """All of another source; of the run's own, however its path is written, what the run has not seen."""
    other = replace(config, source=source)
    if _place(other) == _place(config):
        return other
    return replace(other, val_fraction=1.0)


def _place(config: DataConfig) -> tuple[str, Path]:
    kind, _, root = config.resolved().source.partition(":")
    return kind, Path(root).resolve()
