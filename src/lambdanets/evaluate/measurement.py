"""Evaluation of a run or a model: on its own validation images, on others, on ImageNet's test sets."""

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
from lambdanets.evaluate.corruptions import (
    CorruptionError,
    corruption_errors,
    find_corruptions,
    mean_corruption_error,
)
from lambdanets.evaluate.samples import Recorder, Samples
from lambdanets.evaluate.scoring import Scores, score
from lambdanets.evaluate.target import EvalTarget, target_from_run
from lambdanets.evaluate.test_sets import (
    TEST_SETS,
    ImageNetSet,
    folder_names,
    imagenet_classes,
    recognise_test_set,
    wnids,
)
from lambdanets.train.run import Run
from lambdanets.utils.files import parse_json
from lambdanets.utils.text import join_some

TIMM_COPY = "timm"  # value of `real` for the copy of the labels in timm


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of `measure`.

    Attributes:
        scores: Scores by class; for ImageNet-C over all its parts together.
        data: The images, and how they were prepared.
        test_set: The test set, or None for other images.
        choices: Number of classes that predictions were restricted to.
        real: `top1` and `top5` (fractions) by the ReaL labels and their number of `images`, if asked for.
        corruptions: Errors by corruption, for ImageNet-C.
        samples: Predictions for single images, if asked for.
    """

    scores: Scores
    data: DataConfig
    test_set: ImageNetSet | None = None
    choices: int
    real: dict[str, float] | None = None
    corruptions: tuple[CorruptionError, ...] = ()
    samples: Samples | None = None

    @property
    def mce(self) -> float | None:
        """Mean corruption error, 1.0 for AlexNet; None unless all of ImageNet-C was measured."""
        return mean_corruption_error(self.corruptions)


def evaluate(
    run: Run, data_config: DataConfig | None = None, *, weights: Literal["best", "last"] = "best"
) -> dict[str, float]:
    """Evaluate a run, in the precision it was trained in.

    Args:
        run: A run opened by `load_run`.
        data_config: Other images; None takes the run's own validation images.
        weights: Weights of the best epoch, or of the last.

    Returns:
        The figures of `Scores.figures`: `loss`, `top1`, `top5` (fractions), `images` and others.

    Raises:
        DataError: The images cannot be used, or have other classes than the run.
        RunError: The run has no such weights yet.

    Example:
        >>> evaluate(load_run("runs/digits"))["top1"]
    """
    target = target_from_run(run, weights=weights)
    return measure(replace(target, data=data_config or target.data)).scores.figures()


def measure(
    target: EvalTarget,
    *,
    test_set: ImageNetSet | None = None,
    real: str | Path | None = None,
    samples: bool = False,
) -> Evaluation:
    """Evaluate a network on its images, class by class.

    Args:
        target: The network, with its images in `target.data`.
        test_set: The test set that the images are, a member of `TEST_SETS`; None means that their classes are
            the target's own.
        real: Also evaluate by the labels of "Are we done with ImageNet?" (Beyer et al. 2020,
            arXiv:2006.07159): the published real.json, or "timm" for the copy in timm. Images without any
            label do not count there.
        samples: Record the prediction for each image, about 30 bytes, and up to 80 for few classes.

    Raises:
        DataError: The images or the labels cannot be used, or have other classes.
        RunError: The network cannot take images of this size.

    Example:
        >>> target = target_from_model("resnet50", "folder:/data/imagenetv2")
        >>> measure(target, test_set=TEST_SETS["v2"]).scores.figures()["top1"]
    """
    if real is not None and test_set not in (None, TEST_SETS["imagenet"]):
        raise DataError("ReaL labels are those of ImageNet's own validation set, and of no other test set.")
    names = _folder_names(target, test_set, real)
    if test_set is not None and test_set is TEST_SETS["c"]:
        return _measure_corruptions(target, names, test_set, Recorder() if samples else None)
    images = _open(target, target.data, names)
    allowed = _present_classes(images) if test_set is not None and test_set.restricted else None
    labels = None if real is None else _real_labels(images, real)
    recorder = Recorder() if samples else None
    on_logits = None if labels is None else labels.add_result
    scores = _score(target, images, allowed=allowed, on_logits=on_logits, recorder=recorder)
    by_real = None
    if labels is not None:
        top1, top5 = (labels.get_accuracy(k) / 100 for k in (1, 5))
        by_real = {"top1": top1, "top5": top5, "images": len(labels.is_correct[1])}
    return Evaluation(
        scores=scores,
        data=target.data,
        test_set=test_set,
        choices=len(names) if allowed is None else len(allowed),
        real=by_real,
        samples=None
        if recorder is None
        else recorder.samples(np.arange(len(names)) if allowed is None else allowed),
    )


def guess_test_set(target: EvalTarget) -> ImageNetSet | None:
    """Return the member of `TEST_SETS` that the target's folder is, by the names of its subfolders.

    Returns:
        None if the target has other classes than ImageNet's, or its source is not a folder.

    Raises:
        DataError: The folder does not exist, or is none of the sets.
    """
    kind, _, root = target.data.source.partition(":")
    if kind != "folder" or not root or imagenet_classes(target.classes) is None:
        return None
    return TEST_SETS[recognise_test_set(Path(root).expanduser())]


def _folder_names(
    target: EvalTarget, test_set: ImageNetSet | None, real: str | Path | None
) -> tuple[str, ...]:
    """Return the names of the class folders in the order of the logits."""
    if test_set is None and real is None:
        return target.classes
    classes = imagenet_classes(target.classes)
    if classes is None:
        what = f"{test_set.name} is" if test_set is not None else "ReaL labels are"
        others = join_some(target.classes, 3)
        raise DataError(f"{what} for ImageNet's classes, and {target.name} has others ({others}).")
    if real is not None and classes != wnids():
        raise DataError(
            f"ReaL labels are for ImageNet's 1,000 classes, and {target.name} has {len(classes)}."
        )
    return target.classes if test_set is None else folder_names(test_set, classes)


def _open(target: EvalTarget, data: DataConfig, names: tuple[str, ...]) -> ImageSet | StreamSet:
    return open_split(data, "val", seed=target.seed, classes=names)[0]


def _measure_corruptions(
    target: EvalTarget, names: tuple[str, ...], test_set: ImageNetSet, recorder: Recorder | None
) -> Evaluation:
    """Evaluate a target on each corruption and severity of ImageNet-C."""
    root = Path(target.data.source.partition(":")[2]).expanduser()
    if not root.is_dir():
        raise DataError(f"there is no folder {root}.")
    parts: dict[tuple[str, int], Scores] = {}
    for level, folder in find_corruptions(root).items():
        data = replace(target.data, source=f"folder:{folder}", val_fraction=1.0)
        parts[level] = _score(target, _open(target, data, names), recorder=recorder)
    return Evaluation(
        scores=reduce(add, parts.values()),
        data=target.data,
        test_set=test_set,
        choices=len(names),
        corruptions=corruption_errors({level: scores.error for level, scores in parts.items()}),
        samples=None if recorder is None else recorder.samples(np.arange(len(names))),
    )


def _score(
    target: EvalTarget,
    images: ImageSet | StreamSet,
    *,
    allowed: np.ndarray | None = None,
    on_logits: Callable[[Tensor], None] | None = None,
    recorder: Recorder | None = None,
) -> Scores:
    """Run a target over images; see `score`."""
    if recorder is not None:
        recorder.begin(images)
    return score(
        target.network,
        eval_loader(images, target.data),
        num_classes=len(target.classes),
        engine=target.engine,
        name=target.name,
        allowed=allowed,
        on_logits=on_logits,
        on_samples=None if recorder is None else recorder.add,
        device=target.device,
        binary=target.binary,
    )


def _present_classes(images: ImageSet | StreamSet) -> np.ndarray:
    """Return the class indices that images have, ascending."""
    if isinstance(images, StreamSet):
        raise DataError(
            "a test set with some of ImageNet's classes needs a folder as its source, not a stream."
        )
    return np.unique(images.targets)


def _real_labels(images: ImageSet | StreamSet, real: str | Path) -> Any:
    """Return timm's evaluation by ReaL labels, which takes the logits of all images in order."""
    from timm.data.real_labels import RealLabelsImagenet

    if isinstance(images, StreamSet):
        raise DataError("ReaL labels belong to files by name, and the images are streamed.")
    file, count = None, 50_000
    if str(real) != TIMM_COPY:
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
