"""Counts of predictions by class and confidence: one pass over a loader, with results that can be added."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot
from torch.utils.data import DataLoader

from lambdanets.train.config import EngineConfig
from lambdanets.train.errors import RunError
from lambdanets.train.trainer import make_trainer, one_device, quiet_lightning
from lambdanets.utils.progress import MANY, progress_bar
from lambdanets.utils.text import first_line

ScorerT = TypeVar("ScorerT", bound="Scorer")
TOP = 5  # classes that count as a hit for `top5`
BINS = 15  # equal intervals of the confidence, as in the paper on the calibration error
FEW_CLASSES = 20  # most classes for which the probabilities of all classes are recorded


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Correct predictions of a network by class; scores of the same classes can be added.

    Attributes:
        images: Images of each true class, int64 `[classes]`.
        top1: Of these, the images whose most probable class is the true one, int64 `[classes]`.
        top5: Of these, the images whose true class is among the five most probable, int64 `[classes]`.
        guessed: Images of any true class whose most probable class is this one, int64 `[classes]`.
        calibration: Images, correct predictions and the sum of the confidences (the largest probability of an
            image) in each interval of the confidence, float64 `[3, BINS]`; bin i has those above i / BINS and
            up to (i + 1) / BINS.
        loss_sum: Loss, summed over the images: the cross entropy, binary where a network was trained by it.
        seconds: Wall time of the pass over the images, in seconds.
    """

    images: np.ndarray
    top1: np.ndarray
    top5: np.ndarray
    guessed: np.ndarray
    calibration: np.ndarray
    loss_sum: float
    seconds: float

    def __add__(self, other: Scores) -> Scores:
        return Scores(
            images=self.images + other.images,
            top1=self.top1 + other.top1,
            top5=self.top5 + other.top5,
            guessed=self.guessed + other.guessed,
            calibration=self.calibration + other.calibration,
            loss_sum=self.loss_sum + other.loss_sum,
            seconds=self.seconds + other.seconds,
        )

    @property
    def error(self) -> float:
        """Top-1 error over all images, as a fraction."""
        return 1 - int(self.top1.sum()) / int(self.images.sum())

    def precision(self) -> np.ndarray:
        """Return the part of the predictions of each class that is correct, `[classes]`; 0 without any."""
        return self.top1 / np.maximum(self.guessed, 1)

    def recall(self) -> np.ndarray:
        """Return the part of the images of each class that is found, `[classes]`; 0 without any."""
        return self.top1 / np.maximum(self.images, 1)

    def f1(self) -> np.ndarray:
        """Return the harmonic mean of precision and recall of each class, `[classes]`; 0 where both are."""
        return 2 * self.top1 / np.maximum(self.images + self.guessed, 1)

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: the mean distance between confidence and accuracy over the bins.

        References:
            Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 3.
        """
        images, correct, confidence = self.calibration
        return float(np.abs(correct - confidence).sum() / images.sum())

    def figures(self) -> dict[str, float]:
        """Return the figures of all images; the means over the classes are over those that have images.

        Returns:
            `loss`, `top1`, `top5` (fractions), `balanced_accuracy` (the mean of the recalls),
            `macro_precision`, `macro_f1`, `calibration_error`, `images` and `images_per_second`.
        """
        images, present = int(self.images.sum()), self.images > 0
        return {
            "loss": self.loss_sum / images,
            "top1": int(self.top1.sum()) / images,
            "top5": int(self.top5.sum()) / images,
            "balanced_accuracy": float(self.recall()[present].mean()),
            "macro_precision": float(self.precision()[present].mean()),
            "macro_f1": float(self.f1()[present].mean()),
            "calibration_error": self.calibration_error,
            "images": images,
            "images_per_second": images / self.seconds,
        }


@dataclass(frozen=True, kw_only=True)
class SampleResults:
    """The predictions for single samples, in the order of the loader.

    Attributes:
        truths: True classes, int64 `[n]`.
        guesses: Most probable classes, int64 `[n]`.
        confidences: Their probabilities, float32 `[n]`.
        truth_probabilities: Probabilities of the true classes, float32 `[n]`.
        losses: Losses, float32 `[n]`.
        probabilities: Probabilities of all classes that the predictions were chosen from, float32 `[n, k]`;
            None if these are more than `FEW_CLASSES`.
    """

    truths: np.ndarray
    guesses: np.ndarray
    confidences: np.ndarray
    truth_probabilities: np.ndarray
    losses: np.ndarray
    probabilities: np.ndarray | None

    def __len__(self) -> int:
        return len(self.truths)


def concatenate(parts: Sequence[SampleResults]) -> SampleResults:
    """Return the results of all samples of several batches, of which there is at least one."""
    columns: dict[str, Any] = {}
    for name in (each.name for each in fields(SampleResults)):
        values = [getattr(part, name) for part in parts]
        columns[name] = None if values[0] is None else np.concatenate(values)
    return SampleResults(**columns)


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


def binary_loss(logits: Tensor, targets: Tensor, *, reduction: Literal["sum", "none"]) -> Tensor:
    """Return the binary cross entropy of each image `[b]`, averaged over the classes, or the sum of these.

    Args:
        logits: Logits `[b, classes]`.
        targets: True classes `[b]`.
        reduction: "none" or "sum".
    """
    parts = one_hot(targets, logits.shape[1]).to(logits)
    losses = binary_cross_entropy_with_logits(logits, parts, reduction="none").mean(1)
    return losses.sum() if reduction == "sum" else losses


def topk_hits(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the predicted class of each image, and whether the true one is it and is among the top five.

    Args:
        logits: Logits `[b, classes]`.
        targets: True classes `[b]`.

    Returns:
        Class indices `[b]` and two boolean tensors `[b]`.
    """
    ranked = logits.topk(min(TOP, logits.shape[1]), dim=1).indices
    found = ranked == targets[:, None]
    return ranked[:, 0], found[:, 0], found.any(1)


def score(
    network: nn.Module,
    loader: DataLoader,
    *,
    num_classes: int,
    engine: EngineConfig,
    name: str,
    allowed: np.ndarray | None = None,
    on_logits: Callable[[Tensor], None] | None = None,
    on_samples: Callable[[SampleResults], None] | None = None,
    device: torch.device | None = None,
    binary: bool = False,
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
        on_samples: Called with the predictions for the samples of every batch, in order.
        device: Device in place of the engine's.
        binary: The loss is the binary cross entropy of each class, averaged over the classes.

    Raises:
        RunError: The network cannot take images of this size, or the device cannot be used.
        DataError: An image cannot be read.
    """

    def create(report: Callable[[int], None]) -> Scorer:
        return Scorer(
            network, num_classes, engine, name, allowed, on_logits, on_samples, report, binary=binary
        )

    scorer, seconds = validate(create, loader, engine, device)
    images, top1, top5, guessed = (counts.numpy() for counts in scorer.counts)
    return Scores(
        images=images,
        top1=top1,
        top5=top5,
        guessed=guessed,
        calibration=scorer.calibration.numpy(),
        loss_sum=scorer.loss_sum,
        seconds=seconds,
    )


def validate(
    create: Callable[[Callable[[int], None]], ScorerT],
    loader: DataLoader,
    engine: EngineConfig,
    device: torch.device | None,
) -> tuple[ScorerT, float]:
    """Run a scorer over a loader, in this process alone.

    Args:
        create: Creates the scorer from a function that takes the number of images done.
        loader: Loader of the batches.
        engine: Device and precision.
        device: Device in place of the engine's.

    Returns:
        The scorer, and the wall time in seconds.
    """
    if engine.threads:
        torch.set_num_threads(engine.threads)
    dataset: Any = loader.dataset
    total = len(dataset)
    # One process: with several, each would count its shard only.
    with quiet_lightning(), progress_bar("Measuring", total, least=MANY) as report:
        scorer = create(lambda done: report(done, total))
        trainer = make_trainer(
            **one_device(engine, device),
            plugins=[LightningEnvironment()],  # a single process, even under a launcher
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        started = time.perf_counter()
        trainer.validate(scorer, loader, verbose=False)
    return scorer, time.perf_counter() - started


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
        on_samples: Callable[[SampleResults], None] | None,
        report: Callable[[int], None],
        *,
        binary: bool = False,
    ) -> None:
        super().__init__()
        self.loss = binary_loss if binary else cross_entropy
        self.network, self.num_classes, self.name = network, num_classes, name
        self.on_logits, self.on_samples, self.report = on_logits, on_samples, report
        self.memory_format = torch.channels_last if engine.channels_last else torch.contiguous_format
        self.allowed: Tensor | None
        self.register_buffer(
            "allowed", None if allowed is None else torch.from_numpy(allowed), persistent=False
        )
        # Rows: images, top-1, top-5, and predictions.
        self.counts = torch.zeros(4, num_classes, dtype=torch.int64)
        self.calibration = torch.zeros(3, BINS, dtype=torch.float64)
        self.loss_sum = 0.0

    def validation_step(self, batch: tuple[Tensor | tuple[Tensor, ...], Tensor], batch_idx: int) -> None:
        inputs, targets = batch
        logits = self._logits(inputs).float()
        if self.on_logits is not None:
            self.on_logits(logits)
        chosen = (
            (logits, targets) if self.allowed is None else restrict_classes(logits, targets, self.allowed)
        )
        self.loss_sum += self.loss(*chosen, reduction="sum").item()
        guesses, *hits = topk_hits(*chosen)
        counted = [targets, *(targets[hit] for hit in hits), self._classes(guesses)]
        for row, members in zip(self.counts, counted, strict=True):
            row += torch.bincount(members, minlength=self.num_classes).cpu()
        probabilities = chosen[0].softmax(1)
        confidences = probabilities.gather(1, guesses[:, None])[:, 0].cpu()
        self._calibrate(confidences, hits[0].cpu())
        if self.on_samples is not None:
            places = chosen[1][:, None]
            self.on_samples(
                SampleResults(
                    truths=targets.cpu().numpy(),
                    guesses=self._classes(guesses).cpu().numpy(),
                    confidences=confidences.numpy(),
                    truth_probabilities=probabilities.gather(1, places)[:, 0].cpu().numpy(),
                    losses=self.loss(*chosen, reduction="none").cpu().numpy(),
                    probabilities=probabilities.cpu().numpy()
                    if probabilities.shape[1] <= FEW_CLASSES
                    else None,
                )
            )
        self.report(int(self.counts[0].sum()))

    def _classes(self, places: Tensor) -> Tensor:
        """Return the class indices of columns of the restricted logits."""
        return places if self.allowed is None else self.allowed[places]

    def _calibrate(self, confidences: Tensor, right: Tensor) -> None:
        """Count images by their confidence `[b]`; `right` is whether the prediction is correct."""
        inner = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)[1:-1]
        bins = torch.bucketize(confidences.double(), inner)
        for row, weights in zip(self.calibration, (None, right.double(), confidences.double()), strict=True):
            row += torch.bincount(bins, weights, minlength=BINS)

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
