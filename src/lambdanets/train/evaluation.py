"""What a run or a model reaches: on a run's own validation images, on others, on ImageNet's test sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from lambdanets.data import DataConfig, DataError, ImageSet, StreamSet, eval_loader, open_split
from lambdanets.train.corruptions import (
    CorruptionError,
    corruption_errors,
    find_corruptions,
    mean_corruption_error,
)
from lambdanets.train.run import Run
from lambdanets.train.scoring import Scores, score
from lambdanets.train.subject import Subject, subject_of_run
from lambdanets.train.test_sets import SETS, ImageNetSet, folder_names, imagenet_classes, recognise, wnids
from lambdanets.utils.files import parse_json
from lambdanets.utils.text import join_some

TIMMS = "timm"  # instead of a file of ReaL labels: the copy that comes with timm


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `measure` found.

    Attributes:
        scores: class by class; of ImageNet-C over all its parts together.
        data: the images and the form in which the network took them.
        test_set: None where the images are of no known one.
        choices: how many classes there were to choose from.
        real: `top1` and `top5` (fractions) by the ReaL labels and their `images`, where they were asked for.
        corruptions: of ImageNet-C.
    """

    scores: Scores
    data: DataConfig
    test_set: ImageNetSet | None = None
    choices: int
    real: dict[str, float] | None = None
    corruptions: tuple[CorruptionError, ...] = ()

    @property
    def mce(self) -> float | None:
        """Mean corruption error, 1.0 for AlexNet; None unless ImageNet-C was measured whole."""
        return mean_corruption_error(self.corruptions)


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
    subject = subject_of_run(run, weights=weights)
    return measure(replace(subject, data=data_config or subject.data)).scores.figures()


def measure(
    subject: Subject, *, test_set: ImageNetSet | None = None, real: str | Path | None = None
) -> Evaluation:
    """Measure a network on its images, class by class.

    Args:
        subject: the network, with its images in `subject.data`.
        test_set: what the images are, one of `SETS`; None takes their classes for the subject's own.
        real: labels of "Are we done with ImageNet?" (Beyer et al. 2020, arXiv:2006.07159) beside those of
            the folders: the published real.json, or "timm" for the copy that comes with timm. Images without
            any label are left out of the figures by these labels.

    Raises:
        DataError: the images or the labels cannot be used, or are of other classes.
        RunError: the network cannot take images of this size.

    Example:
        >>> subject = subject_of_model("resnet50", "folder:/data/imagenetv2")
        >>> measure(subject, test_set=SETS["v2"]).scores.figures()["top1"]
    """
    if real is not None and test_set not in (None, SETS["imagenet"]):
        raise DataError("ReaL labels are those of ImageNet's own validation set, and of no other test set.")
    names = _folder_names(subject, test_set, real)
    if test_set is not None and test_set is SETS["c"]:
        return _measure_corruptions(subject, names, test_set)
    images = _open(subject, subject.data, names)
    kept = _present(images) if test_set is not None and test_set.restricted else None
    labels = None if real is None else _real_labels(images, real)
    scores = _score(subject, images, kept=kept, watch=None if labels is None else labels.add_result)
    by_real = None
    if labels is not None:
        top1, top5 = (labels.get_accuracy(k) / 100 for k in (1, 5))
        by_real = {"top1": top1, "top5": top5, "images": len(labels.is_correct[1])}
    return Evaluation(
        scores=scores,
        data=subject.data,
        test_set=test_set,
        choices=len(names) if kept is None else len(kept),
        real=by_real,
    )


def guess_test_set(subject: Subject) -> ImageNetSet | None:
    """Which of `SETS` the subject's folder is; None where its classes are not ImageNet's, or in no folder.

    Raises:
        DataError: there is no such folder, or it is none of them.
    """
    kind, _, root = subject.data.source.partition(":")
    if kind != "folder" or not root or imagenet_classes(subject.classes) is None:
        return None
    return SETS[recognise(Path(root).expanduser())]


def _folder_names(subject: Subject, test_set: ImageNetSet | None, real: str | Path | None) -> tuple[str, ...]:
    """Names of the class folders in the order of the logits."""
    if test_set is None and real is None:
        return subject.classes
    classes = imagenet_classes(subject.classes)
    if classes is None:
        what = f"{test_set.name} is" if test_set is not None else "ReaL labels are"
        others = join_some(subject.classes, 3)
        raise DataError(f"{what} for ImageNet's classes, and {subject.name} knows others ({others}).")
    if real is not None and classes != wnids():
        raise DataError(
            f"ReaL labels are for ImageNet's 1,000 classes, and {subject.name} knows {len(classes)}."
        )
    return subject.classes if test_set is None else folder_names(test_set, classes)


def _open(subject: Subject, data: DataConfig, names: tuple[str, ...]) -> ImageSet | StreamSet:
    return open_split(data, "val", seed=subject.seed, classes=names)[0]


def _measure_corruptions(subject: Subject, names: tuple[str, ...], test_set: ImageNetSet) -> Evaluation:
    root = Path(subject.data.source.partition(":")[2]).expanduser()
    if not root.is_dir():
        raise DataError(f"there is no folder {root}.")
    parts: dict[tuple[str, int], Scores] = {}
    for place, folder in find_corruptions(root).items():
        data = replace(subject.data, source=f"folder:{folder}", val_fraction=1.0)
        parts[place] = _score(subject, _open(subject, data, names))
    return Evaluation(
        scores=reduce(add, parts.values()),
        data=subject.data,
        test_set=test_set,
        choices=len(names),
        corruptions=corruption_errors({place: scores.error for place, scores in parts.items()}),
    )


def _score(
    subject: Subject,
    images: ImageSet | StreamSet,
    *,
    kept: np.ndarray | None = None,
    watch: Callable[[Tensor], None] | None = None,
) -> Scores:
    return score(
        subject.network,
        eval_loader(images, subject.data),
        num_classes=len(subject.classes),
        engine=subject.engine,
        name=subject.name,
        kept=kept,
        watch=watch,
    )


def _present(images: ImageSet | StreamSet) -> np.ndarray:
    if isinstance(images, StreamSet):
        raise DataError(
            "a set whose classes are a part of ImageNet's is measured from folders, not streamed."
        )
    return np.unique(images.targets)


def _real_labels(images: ImageSet | StreamSet, real: str | Path) -> Any:
    """timm's counter of right answers by ReaL labels, which wants the logits of all images in order."""
    from timm.data.real_labels import RealLabelsImagenet

    if isinstance(images, StreamSet):
        raise DataError("ReaL labels belong to files by name, and the images are streamed.")
    file, count = None, 50_000
    if str(real) != TIMMS:
        file = Path(real).expanduser()
        count = len(_read_lists(file))
    paths = [images.path(index) for index in range(len(images))]
    if len(paths) != count:
        raise DataError(
            f"the ReaL labels are those of {count:,} images and there are {len(paths):,}; "
            "they belong to ImageNet's whole validation set."
        )
    counter = RealLabelsImagenet(paths, real_json=file)
    for path in paths:
        if Path(path).name not in counter.real_labels:
            raise DataError(f"there are no ReaL labels for {path}; expected ILSVRC2012_val_00000001.JPEG ...")
    if not any(counter.real_labels.values()):
        raise DataError(f"{real} has no label for any image.")
    return counter


def _read_lists(file: Path) -> list[list[int]]:
    try:
        labels = parse_json(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file} holds no ReaL labels: {error}.") from error
    if not isinstance(labels, list) or not all(_is_numbers(each) for each in labels):
        raise DataError(f"{file} holds no ReaL labels: expected a list with a list of numbers per image.")
    return labels


def _is_numbers(labels: object) -> bool:
    return isinstance(labels, list) and all(isinstance(label, int) for label in labels)
