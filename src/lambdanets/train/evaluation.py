"""`evaluate`: what a run reaches on its validation images, or on others with the same classes."""

import time
from dataclasses import replace
from typing import Literal

import torch

from lambdanets.data import DataConfig, eval_loader, open_split
from lambdanets.train.engine import make_trainer, placement, quiet
from lambdanets.train.module import Classifier
from lambdanets.train.run import Run
from lambdanets.train.state import RunState


def evaluate(
    run: Run, data_config: DataConfig | None = None, *, weights: Literal["best", "last"] = "best"
) -> dict[str, float]:
    """Measure a run, in the precision it was trained in.

    Args:
        run: from `load_run`.
        data_config: other images; None takes the run's own validation images.
        weights: of the best epoch, or of the last.

    Returns:
        `loss`, `top1`, `top5` (fractions), `images`, `images_per_second`.

    Raises:
        DataError: the images cannot be used, or are of other classes than the run's.
        RunError: the run has no such weights yet.

    Example:
        >>> evaluate(load_run("runs/digits"))["top1"]
    """
    data = data_config or run.config.data
    if run.config.engine.threads:
        torch.set_num_threads(run.config.engine.threads)
    network = run.model(weights)
    images, _ = open_split(data, "val", seed=run.config.seed, classes=run.classes)
    loader = eval_loader(images, data)
    engine = replace(run.config.engine, ema=None)  # these are the average's weights already
    module = Classifier(
        network, replace(run.config, engine=engine), num_classes=len(run.classes), state=RunState()
    )
    # One process: dealing the images out to several would let each see its own part only.
    with quiet():
        trainer = make_trainer(
            **(placement(run.config.engine) | {"devices": 1, "num_nodes": 1, "strategy": "auto"}),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        started = time.perf_counter()
        trainer.validate(module, loader, verbose=False)
    seconds = time.perf_counter() - started
    values = {name.removeprefix("val_"): value for name, value in module.validation.items()}
    return {**values, "images": len(images), "images_per_second": len(images) / seconds}
