"""Numbers of samples by class: sets in which they differ, and epochs in which each class is equally often."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from .errors import DataError, SourceWarning
from .randomness import derived_seed, permutation

DOMINANT = 0.8  # part of the validation samples above which one class is reported


def class_counts(targets: np.ndarray, classes: int) -> np.ndarray:
    """Return the number of samples of each class, of shape [classes].

    Args:
        targets: class indices of shape [n], or 0 and 1 for each class, of shape [n, classes].
        classes: number of classes.
    """
    return targets.sum(axis=0) if targets.ndim == 2 else np.bincount(targets, minlength=classes)


def lacking_classes(targets: np.ndarray, chosen: np.ndarray, classes: Sequence[str]) -> list[str]:
    """Return the names of the classes that occur in `targets`, but not where `chosen`, bool of shape [n]."""
    all_counts, own = (class_counts(each, len(classes)) for each in (targets, targets[chosen]))
    return [classes[int(index)] for index in np.flatnonzero((all_counts > 0) & (own == 0))]


def warn_dominant_class(targets: np.ndarray, classes: Sequence[str], samples: str) -> None:
    """Warn if one class has so many validation samples that always guessing it scores high.

    Args:
        targets: class indices of shape [n].
        classes: class names.
        samples: plural noun of the samples.
    """
    counts = class_counts(targets, len(classes))
    most = int(counts.argmax())
    if counts[most] > DOMINANT * len(targets):
        part = f"{counts[most] / len(targets):.1%}"
        warnings.warn(
            f"{part} of the validation {samples} are of the class {classes[most]!r}: always guessing it "
            f"scores {part}. Compare the balanced accuracy in the summary; data.sampling=balanced or "
            "loss.class_weights=balanced train for the other classes.",
            SourceWarning,
            stacklevel=3,
        )


def check_positives(train: np.ndarray, val: np.ndarray, classes: Sequence[str], where: str) -> None:
    """Refuse a class that no training sample has, and warn about those that no validation sample has.

    Args:
        train: 0 and 1 for each class, of shape [n, classes].
        val: the same of the validation samples.
        classes: class names.
        where: the source, for messages.

    Raises:
        DataError: a class has no positive in training.
    """
    for side, targets in (("training", train), ("validation", val)):
        if not (lacking := [classes[int(index)] for index in np.flatnonzero(targets.sum(axis=0) == 0)]):
            continue
        names = f"the {'class' if len(lacking) == 1 else 'classes'} {', '.join(map(repr, lacking))}"
        if side == "training":
            raise DataError(f"no training image of {where} has {names}, which cannot be learned.")
        warnings.warn(
            f"no validation image of {where} has {names}, for which nothing is measured.",
            SourceWarning,
            stacklevel=3,
        )


def balanced_order(seed: int, epoch: int, targets: np.ndarray) -> np.ndarray:
    """Return an order of samples in which each class occurs equally often.

    A class with too few samples repeats all of them before any again; of one with too many, each epoch has
    a random part. The remainder of n / classes goes to random classes.

    Args:
        seed: seed of the run.
        epoch: counted from 0.
        targets: class indices of shape [n].

    Returns:
        Indices of samples, of shape [n].
    """
    seed, size = derived_seed(seed, "balanced"), len(targets)
    order = permutation(seed, epoch, size)
    by_class = order[np.argsort(targets[order], kind="stable")]
    present, starts = np.unique(targets[by_class], return_index=True)
    members = np.split(by_class, starts[1:])
    numbers = np.full(len(present), size // len(present))
    numbers[permutation(seed, epoch, len(present))[: size % len(present)]] += 1
    drawn = np.concatenate([np.resize(each, number) for each, number in zip(members, numbers, strict=True)])
    return drawn[permutation(derived_seed(seed, "order"), epoch, size)]


def occurrences(order: np.ndarray) -> np.ndarray:
    """Return how often each element of an array [n] occurs before its position, of shape [n]."""
    by_value = np.argsort(order, kind="stable")
    ordered = order[by_value]
    earlier = np.empty(len(order), np.int64)
    earlier[by_value] = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    return earlier
