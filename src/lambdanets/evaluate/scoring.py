"""Counts of correct predictions by class: one pass over a loader, with results that can be added."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from lambdanets.train.config import EngineConfig
from lambdanets.train.engine import device_and_precision, make_trainer, quiet_lightning
from lambdanets.train.errors import RunError
from lambdanets.utils.progress import MANY, progress_bar
from lambdanets.utils.text import first_line

TOP = 5  # classes that count as a hit for `top5`


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Correct predictions of a network by class; scores of the same classes can be added.

    Attributes:
        images: Images of each true class, int64 `[classes]`.
        top1: Of these, the images whose most probable class is the true one, int64 `[classes]`.
        top5: Of these, the images whose true class is among the five most probable, int64 `[classes]`.
        loss_sum: Cross entropy, summed over the images.
        seconds: Wall time of the pass over the images, in seconds.
    """

    images: np.ndarray
    top1: np.ndarray
    top5: np.ndarray
    loss_sum: float
    seconds: float

    def __add__(self, other: Scores) -> Scores:
        return Scores(
            images=self.images + other.images,
            top1=self.top1 + other.top1,
            top5=self.top5 + other.top5,
            loss_sum=self.loss_sum + other.loss_sum,
            seconds=self.seconds + other.seconds,
        )

    @property
    def error(self) -> float:
        """Top-1 error over all images, as a fraction."""
        return 1 - int(self.top1.sum()) / int(self.images.sum())

    def figures(self) -> dict[str, float]:
        """Return `loss`, `top1`, `top5` (fractions), `images` and `images_per_second`."""
        images = int(self.images.sum())
        return {
            "loss": self.loss_sum / images,
            "top1": int(self.top1.sum()) / images,
            "top5": int(self.top5.sum()) / images,
            "images": images,
            "images_per_second": images / self.seconds,
        }


def restrict_classes(logits: Tensor, targets: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Restrict logits to some of the classes.

    Args:
        logits: Logits `[b, classes]`.
        targets: True classes `[b]`, each one of `allowed`.
        allowed: Class indices `[k]` in ascending order.

    Returns:
        Logits `[b, k]`, and the targets as indices into `allowed`.
    """
    return logits[:, allowed], torch.searchsorted(allowed, targets)


def topk_hits(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return whether the true class of each image is the most probable, and whether it is among the top five.

    Args:
        logits: Logits `[b, classes]`.
        targets: True classes `[b]`.

    Returns:
        Two boolean tensors `[b]`.
    """
    found = logits.topk(min(TOP, logits.shape[1]), dim=1).indices == targets[:, None]
    return found[:, 0], found.any(1)


def score(
    network: nn.Module,
    loader: DataLoader,
    *,
    num_classes: int,
    engine: EngineConfig,
    name: str,
    allowed: np.ndarray | None = None,
    on_logits: Callable[[Tensor], None] | None = None,
) -> Scores:
    """Run a network over the images of a loader, once and in this process alone, and count.

    Args:
        network: Images `[b, c, h, w]` to logits `[b, num_classes]`, or several inputs to the same.
        loader: Loader of (images, targets), each image once; several inputs are a tuple in place of images.
        num_classes: Number of logits.
        engine: Device, precision and memory format.
        name: Name of the model, for errors.
        allowed: Class indices in ascending order, to which loss, top-1 and top-5 are restricted; None allows
            all.
        on_logits: Called with the float32 logits of every batch, in order.

    Raises:
        RunError: The network cannot take images of this size.
        DataError: An image cannot be read.
    """
    if engine.threads:
        torch.set_num_threads(engine.threads)
    dataset: Any = loader.dataset
    total = len(dataset)
    # One process: with several, each would count its shard only.
    with quiet_lightning(), progress_bar("Measuring", total, least=MANY) as report:
        scorer = Scorer(
            network, num_classes, engine, name, allowed, on_logits, lambda done: report(done, total)
        )
        trainer = make_trainer(
            **device_and_precision(engine),
            devices=1,
            plugins=[LightningEnvironment()],  # a single process, even under a launcher
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        started = time.perf_counter()
        trainer.validate(scorer, loader, verbose=False)
    seconds = time.perf_counter() - started
    images, top1, top5 = (counts.cpu().numpy() for counts in scorer.counts)
    return Scores(images=images, top1=top1, top5=top5, loss_sum=scorer.loss_sum, seconds=seconds)


class Scorer(pl.LightningModule):
    """The pass of `score` as a Lightning module: the trainer handles devices and precision."""

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        engine: EngineConfig,
        name: str,
        allowed: np.ndarray | None,
        on_logits: Callable[[Tensor], None] | None,
        report: Callable[[int], None],
    ) -> None:
        super().__init__()
        self.network, self.num_classes, self.name = network, num_classes, name
        self.on_logits, self.report = on_logits, report
        self.memory_format = torch.channels_last if engine.channels_last else torch.contiguous_format
        self.allowed: Tensor | None
        self.register_buffer(
            "allowed", None if allowed is None else torch.from_numpy(allowed), persistent=False
        )
        self.counts = torch.zeros(3, num_classes, dtype=torch.int64)  # rows: images, top-1, top-5
        self.loss_sum = 0.0

    def validation_step(self, batch: tuple[Tensor | tuple[Tensor, ...], Tensor], batch_idx: int) -> None:
        inputs, targets = batch
        logits = self._logits(inputs).float()
        if self.on_logits is not None:
            self.on_logits(logits)
        chosen = (
            (logits, targets) if self.allowed is None else restrict_classes(logits, targets, self.allowed)
        )
        self.loss_sum += cross_entropy(*chosen, reduction="sum").item()
        for row, counted in zip(self.counts, (slice(None), *topk_hits(*chosen)), strict=True):
            row += torch.bincount(targets[counted], minlength=self.num_classes).cpu()
        self.report(int(self.counts[0].sum()))

    def _logits(self, inputs: Tensor | tuple[Tensor, ...]) -> Tensor:
        images = inputs if isinstance(inputs, Tensor) else inputs[0]
        try:
            if not isinstance(inputs, Tensor):
                return self.network(*inputs)
            return self.network(images.to(memory_format=self.memory_format))
        except torch.OutOfMemoryError:
            raise
        except (AssertionError, RuntimeError, ValueError) as error:
            # timm asserts the image size; layers that are built for one size raise the others.
            size = "x".join(map(str, images.shape[1:]))
            reason = first_line(error)
            raise RunError(f"{self.name} cannot take images of {size}: {reason}") from error
