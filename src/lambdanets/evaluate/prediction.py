"""Predictions for single images by a trained run or a published model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from lambdanets.data import IMAGE_SUFFIXES, DataError, StreamSet, eval_transform, open_split, read_image
from lambdanets.data.files import find_files
from lambdanets.evaluate.target import EvalTarget, target_from_run
from lambdanets.models import to_channels_last
from lambdanets.train.config import EngineConfig
from lambdanets.train.run import Run
from lambdanets.viz.contact_sheet import Prediction

Item = TypeVar("Item")


def predict(
    run: Run,
    paths: Iterable[str | os.PathLike[str]],
    *,
    top: int = 5,
    batch_size: int = 32,
    weights: Literal["best", "last"] = "best",
    max_pixels: int | None = None,
) -> list[Prediction]:
    """Classify image files, and the images inside folders, with a trained run.

    Images are rotated by their EXIF tag, converted to RGB or grey as the run needs, and prepared as in its
    validation. A file that cannot be read does not stop the others: its prediction has the reason.

    Args:
        run: A run opened by `load_run`.
        paths: Files and folders; folders are searched recursively, in the order of names.
        top: Number of classes per image; all if the run has fewer.
        batch_size: Images per batch.
        weights: The best weights by validation, or those of the last epoch.
        max_pixels: Largest image to read, in pixels; None takes the limit of the run.

    Returns:
        One prediction per image, in the order of the paths.

    Raises:
        ValueError: `top`, `batch_size` or `max_pixels` is not positive.

    Example:
        >>> for each in predict(load_run("runs/birds"), ["photo.jpg", "holidays/"]):
        ...     print(each.path, each.labels[0], f"{each.probabilities[0]:.1%}")
    """
    target = target_from_run(run, weights=weights)
    return list(predict_files(target, paths, top=top, batch_size=batch_size, max_pixels=max_pixels))


def predict_files(
    target: EvalTarget,
    paths: Iterable[str | os.PathLike[str]],
    *,
    top: int = 5,
    threshold: float = 0.5,
    batch_size: int = 32,
    max_pixels: int | None = None,
) -> Iterator[Prediction]:
    """Classify image files as `predict` does, by the network of a run or by a published model.

    Predictions are yielded as they are made, so that any number of files can be classified.

    Args:
        target: The network, with the preparation of its images; `target.data.source` is not read.
        paths: Files and folders; folders are searched recursively, in the order of names.
        top: Number of classes per image; all if there are fewer.
        threshold: Least probability of a label, for images with several labels.
        batch_size: Images per batch.
        max_pixels: Largest image to read, in pixels; None takes the limit of `target.data`.

    Example:
        >>> for each in predict_files(target_from_model("resnet50"), ["photo.jpg"], top=1):
        ...     print(each.path, each.labels[0])
    """
    limit = target.data.max_pixels if max_pixels is None else max_pixels
    check_positive(top=top, batch_size=batch_size, max_pixels=limit)
    transform = eval_transform(target.data)
    model, device = prepare_network(target.network, target.engine, target.device)

    def load(path: Path) -> Tensor | str:
        if path.is_dir():
            return "there are no images in this folder"
        try:
            return transform(read_image(path, max_pixels=limit))
        except (DataError, OSError) as error:
            return error_reason(error, path)

    # Decoding photos takes longer than a small network; Pillow releases the GIL while it decodes.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for batch in batched(find_files(paths, IMAGE_SUFFIXES), batch_size):
            loaded = list(pool.map(load, batch))
            images = [each for each in loaded if isinstance(each, Tensor)]
            answers = iter(_classify(model, images, device, target, top, threshold))
            for path, each in zip(batch, loaded, strict=True):
                if isinstance(each, str):
                    yield Prediction(path=str(path), error=each)
                else:
                    labels, probabilities = next(answers)
                    yield Prediction(path=str(path), labels=labels, probabilities=probabilities)


def predict_samples(
    run: Run,
    count: int,
    *,
    top: int = 5,
    batch_size: int = 32,
    weights: Literal["best", "last"] = "best",
) -> list[Prediction]:
    """Classify samples of the run's own validation set, with their true classes.

    The samples are spread evenly over the set, so that a sorted set is covered.

    Args:
        run: A run opened by `load_run`.
        count: Number of samples; the whole set if it has fewer.
        top: Number of classes per image.
        batch_size: Images per batch.
        weights: The best weights by validation, or those of the last epoch.

    Returns:
        One prediction per sample, with its `truth` and its `image`.

    Raises:
        ValueError: `count`, `top` or `batch_size` is not positive, or the source is a stream.
    """
    target = target_from_run(run, weights=weights)
    return list(predict_held_out(target, count, top=top, batch_size=batch_size))


def predict_held_out(
    target: EvalTarget, count: int, *, top: int = 5, threshold: float = 0.5, batch_size: int = 32
) -> Iterator[Prediction]:
    """Classify samples of the validation images of a run's target, as `predict_samples` does, one by one."""
    check_positive(count=count, top=top, batch_size=batch_size)
    data = target.data
    image_set, classes = open_split(data, "val", seed=target.seed, classes=target.classes)
    if isinstance(image_set, StreamSet):
        raise ValueError(f"samples cannot be picked from a stream such as {data.source!r}")
    count = min(count, len(image_set))
    chosen = [(index * len(image_set)) // count for index in range(count)]
    model, device = prepare_network(target.network, target.engine, target.device)
    for batch in batched(chosen, batch_size):
        items = [image_set.item(index, 0, target.seed) for index in batch]
        answers = _classify(model, [image for image, _ in items], device, target, top, threshold)
        for index, (_, truth), (labels, probabilities) in zip(batch, items, answers, strict=True):
            truths = tuple(classes[index] for index in true_classes(truth))
            yield Prediction(
                path=image_set.path(index),
                labels=labels,
                probabilities=probabilities,
                truth=", ".join(truths) or "none",
                truths=truths if data.multi_label else None,
                image=image_set.images.read(index),
            )


def true_classes(target: int | Tensor) -> list[int]:
    """Return the indices of the true classes of an image, from its class or from 0 and 1 for each class."""
    return [target] if isinstance(target, int) else target.nonzero()[:, 0].tolist()


def check_positive(**values: int) -> None:
    """Raise ValueError for the first argument below 1, by its name."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def prepare_network(
    network: nn.Module, engine: EngineConfig, device: torch.device | None = None
) -> tuple[nn.Module, torch.device]:
    """Return a network in evaluation mode on a device, by default the best one, and the device.

    On a CPU the network is channels-last if that of the training was.
    """
    if device is None:
        best = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        device = best or torch.device("cpu")
    network = network.to(device).eval()
    if engine.channels_last and device.type == "cpu":
        to_channels_last(network)
    return network, device


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield the items in lists of `size`; the last one may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def error_reason(error: Exception, path: Path) -> str:
    """Return a reader's message without the file name, which is shown beside it."""
    return str(error).removeprefix(f"cannot read {path}: ").rstrip(".")


@torch.inference_mode()
def _classify(
    model: nn.Module,
    images: Sequence[Tensor],
    device: torch.device,
    target: EvalTarget,
    top: int,
    threshold: float,
) -> list[tuple[tuple[str, ...], tuple[float, ...]]]:
    """Return the classes of each image with their probabilities, the most probable first.

    These are `top` classes; of images with several labels those with a probability of `threshold` or more.
    """
    if not images:
        return []
    scores = model(torch.stack(tuple(images)).to(device)).float()
    several = target.data.multi_label
    every = scores.sigmoid() if several else scores.softmax(-1)
    probabilities, indices = every.cpu().topk(min(top, scores.shape[-1]))
    return [
        (tuple(str(target.classes[index]) for index in row[:number]), tuple(values[:number]))
        for row, values, number in zip(
            indices.tolist(),
            probabilities.tolist(),
            (probabilities >= threshold).sum(1).tolist() if several else [top] * len(indices),
            strict=True,
        )
    ]
