"""How many images of each class a network has right: one pass over a loader, and sums that can be added."""

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
from lambdanets.train.engine import arithmetic, make_trainer, quiet
from lambdanets.train.errors import RunError
from lambdanets.utils.progress import MANY, progress_bar
from lambdanets.utils.text import first_line

TOP = 5


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a network has right, class by class; scores of the same classes can be added.

    Attributes:
        images: images of each class, int64 of shape (classes,).
        top1: those whose likeliest class is the true one, of shape (classes,).
        top5: those whose true class is among the five likeliest, of shape (classes,).
        loss_sum: cross entropy, summed over the images.
        seconds: from the first image read to the last counted.
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
        """The fraction of all images whose likeliest class is a wrong one."""
        return 1 - int(self.top1.sum()) / int(self.images.sum())

    def figures(self) -> dict[str, float]:
        """`loss`, `top1`, `top5` (fractions), `images`, `images_per_second`."""
        images = int(self.images.sum())
        return {
            "loss": self.loss_sum / images,
            "top1": int(self.top1.sum()) / images,
            "top5": int(self.top5.sum()) / images,
            "images": images,
            "images_per_second": images / self.seconds,
        }


def restrict(logits: Tensor, targets: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Leave only some classes to choose from.

    Args:
        logits: of shape (b, classes).
        targets: of shape (b,), each one of `kept`.
        kept: numbers of the classes, in ascending order, of shape (k,).

    Returns:
        Logits of shape (b, k), and the targets as places in `kept`.
    """
    return logits[:, kept], torch.searchsorted(kept, targets)


def hits(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each image's class is the likeliest, and whether it is one of the five likeliest.

    Args:
        logits: of shape (b, classes).
        targets: of shape (b,).

    Returns:
        Two boolean tensors of shape (b,).
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
    kept: np.ndarray | None = None,
    watch: Callable[[Tensor], None] | None = None,
) -> Scores:
    """Run a network over the images of a loader, once and in this process alone, and count.

    Args:
        network: images of shape (b, c, height, width) to logits of shape (b, num_classes).
        loader: gives (images, targets), every image once.
        num_classes: length of the logits.
        engine: the device, the precision and the memory format.
        name: of the model, for errors.
        kept: classes that there are to choose from, in ascending order; None keeps all. Loss, top-1 and
            top-5 are over these.
        watch: is called with the logits, float32, of every batch in order.

    Raises:
        RunError: the network cannot take images of this size.
        DataError: an image cannot be read.
    """
    if engine.threads:
        torch.set_num_threads(engine.threads)
    dataset: Any = loader.dataset
    total = len(dataset)
    # One process: dealing the images out to several would let each see its own part only.
    with quiet(), progress_bar("Measuring", total, least=MANY) as report:
        scorer = Scorer(network, num_classes, engine, name, kept, watch, lambda done: report(done, total))
        trainer = make_trainer(
            **arithmetic(engine),
            devices=1,
            plugins=[LightningEnvironment()],  # alone, whatever started the process
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
    """The pass of `score`, for Lightning's trainer, which knows devices and precisions."""

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        engine: EngineConfig,
        name: str,
        kept: np.ndarray | None,
        watch: Callable[[Tensor], None] | None,
        report: Callable[[int], None],
    ) -> None:
        super().__init__()
        self.network, self.num_classes, self.name = network, num_classes, name
        self.watch, self.report = watch, report
        self.memory_format = torch.channels_last if engine.channels_last else torch.contiguous_format
        self.kept: Tensor | None
        self.register_buffer("kept", None if kept is None else torch.from_numpy(kept), persistent=False)
        self.counts = torch.zeros(3, num_classes, dtype=torch.int64)  # images, top-1, top-5 of each class
        self.loss_sum = 0.0

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, targets = batch
        logits = self._logits(images).float()
        if self.watch is not None:
            self.watch(logits)
        chosen = (logits, targets) if self.kept is None else restrict(logits, targets, self.kept)
        self.loss_sum += cross_entropy(*chosen, reduction="sum").item()
        for row, counted in zip(self.counts, (slice(None), *hits(*chosen)), strict=True):
            row += torch.bincount(targets[counted], minlength=self.num_classes).cpu()
        self.report(int(self.counts[0].sum()))

    def _logits(self, images: Tensor) -> Tensor:
        try:
            return self.network(images.to(memory_format=self.memory_format))
        except torch.OutOfMemoryError:
            raise
        except (AssertionError, RuntimeError, ValueError) as error:
            # The first is timm's way to refuse images, the others are those of layers for one size alone.
            size = "x".join(map(str, images.shape[1:]))
            reason = first_line(error)
            raise RunError(f"{self.name} cannot take images of {size}: {reason}") from error
