"""Predictions for single images by a trained run."""

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
from lambdanets.data.files import find_images, warn_left_out
from lambdanets.models import to_channels_last
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
    limit = run.config.data.max_pixels if max_pixels is None else max_pixels
    check_positive(top=top, batch_size=batch_size, max_pixels=limit)
    transform = eval_transform(run.config.data)
    model, device = prepare_network(run, weights)

    def load(path: Path) -> Tensor | str:
        if path.is_dir():
            return "there are no images in this folder"
        try:
            return transform(read_image(path, max_pixels=limit))
        except (DataError, OSError) as error:
            return error_reason(error, path)

    results: list[Prediction] = []
    # Decoding photos takes longer than a small network; Pillow releases the GIL while it decodes.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for batch in batched(find_image_files(paths), batch_size):
            loaded = list(pool.map(load, batch))
            images = [each for each in loaded if isinstance(each, Tensor)]
            answers = iter(_classify(model, images, device, run.classes, top))
            for path, each in zip(batch, loaded, strict=True):
                if isinstance(each, str):
                    results.append(Prediction(path=str(path), error=each))
                else:
                    labels, probabilities = next(answers)
                    results.append(Prediction(path=str(path), labels=labels, probabilities=probabilities))
    return results


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
    check_positive(count=count, top=top, batch_size=batch_size)
    image_set, classes = open_split(run.config.data, "val", seed=run.config.seed, classes=run.classes)
    if isinstance(image_set, StreamSet):
        raise ValueError(f"samples cannot be picked from a stream such as {run.config.data.source!r}")
    count = min(count, len(image_set))
    chosen = [(index * len(image_set)) // count for index in range(count)]
    model, device = prepare_network(run, weights)
    results: list[Prediction] = []
    for batch in batched(chosen, batch_size):
        items = [image_set.item(index, 0, run.config.seed) for index in batch]
        answers = _classify(model, [image for image, _ in items], device, run.classes, top)
        for index, (_, target), (labels, probabilities) in zip(batch, items, answers, strict=True):
            results.append(
                Prediction(
                    path=image_set.path(index),
                    labels=labels,
                    probabilities=probabilities,
                    truth=classes[int(target)],
                    image=image_set.images.read(index),
                )
            )
    return results


def check_positive(**values: int) -> None:
    """Raise ValueError for the first argument below 1, by its name."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def prepare_network(run: Run, weights: Literal["best", "last"]) -> tuple[nn.Module, torch.device]:
    """Return a run's network in evaluation mode on the best device, and the device.

    On a CPU the network is channels-last if that of the training was.
    """
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = device or torch.device("cpu")
    network = run.model(weights).to(device).eval()
    if run.config.engine.channels_last and device.type == "cpu":
        to_channels_last(network)
    return network, device


def find_image_files(paths: Iterable[str | os.PathLike[str]]) -> Iterator[Path]:
    """Yield image files: each path that is a file, of any suffix, and the images inside each folder.

    A folder without images is yielded itself, so that it can be reported. A warning counts the files of a
    folder that are left out.
    """
    for path in map(Path, paths):
        if not path.is_dir():
            yield path
            continue
        found = find_images(str(path), IMAGE_SUFFIXES)
        warn_left_out(str(path), found.others, found.stray)
        yield from sorted(map(Path, found.images)) or [path]


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
    model: nn.Module, images: Sequence[Tensor], device: torch.device, classes: Sequence[str], top: int
) -> list[tuple[tuple[str, ...], tuple[float, ...]]]:
    if not images:
        return []
    scores = model(torch.stack(tuple(images)).to(device)).float()
    probabilities, indices = scores.softmax(-1).cpu().topk(min(top, scores.shape[-1]))
    return [
        (tuple(str(classes[index]) for index in row), tuple(values))
        for row, values in zip(indices.tolist(), probabilities.tolist(), strict=True)
    ]
