"""Checks before training: every image is decoded once, and cached in memory if `data.cache` allows it."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from lambdanets.ops.hardware import available_memory

from .errors import DataError
from .image_set import ImageSet

MEMORY_LIMIT = 2**30  # bytes of decoded images below which `data.cache` "auto" caches them
CHUNK = 64  # images that a thread handles between two updates of the progress


def check_memory(number: int, size: int, channels: int) -> None:
    """Refuse a batch that does not fit into memory, before an image is resized.

    Args:
        number: images in the batch.
        size: height and width of an image, in pixels.
        channels: channels of an image, with elements of float32.

    Raises:
        DataError: the machine has less memory.
    """
    needed, limit = 4 * number * channels * size**2, available_memory("cpu")
    if limit is not None and needed > limit:
        raise DataError(
            f"a batch of {number} images of {size} x {size} takes {needed / 2**30:,.0f} GiB, and there are "
            f"{limit / 2**30:,.0f} GiB of memory; take a smaller data.image_size or data.batch_size."
        )


def check_set(image_set: ImageSet, progress: Callable[[int], None]) -> dict[int, str]:
    """Decode every file of a set, and return the error of each bad one, by index.

    Args:
        image_set: the set; nothing is decoded if its source has no files to check.
        progress: called with the number of images done.
    """
    images = image_set.images
    return for_all(images.check, len(images), progress) if images.checkable else {}


def keep_in_memory(image_set: ImageSet, progress: Callable[[int], None]) -> dict[int, str]:
    """Decode a whole set into `image_set.cached`, and return the error of each bad image, by index.

    Args:
        image_set: the set, whose attribute `cached` is set.
        progress: called with the number of images done.
    """
    pipeline, number = image_set.pipeline, len(image_set)
    if pipeline.uniform:
        shape = (number, pipeline.image_size, pipeline.image_size, pipeline.in_chans)
        cached: Any = np.empty(shape, np.uint8)
    else:
        cached = [None] * number

    def keep(index: int) -> None:
        cached[index] = image_set.prepared(index)

    bad = for_all(keep, number, progress)
    image_set.cached = cached
    return bad


def memory_needed(image_set: ImageSet) -> int:
    """Return the bytes that `keep_in_memory` would take, estimated from some images if sizes differ."""
    pipeline, number = image_set.pipeline, len(image_set)
    if pipeline.uniform:
        return number * pipeline.in_chans * pipeline.image_size**2
    sizes = []
    for index in range(0, number, max(1, number // CHUNK)):
        try:
            sizes.append(image_set.prepared(index).nbytes)
        except DataError:
            continue  # the check reports it
    return number * int(np.mean(sizes)) if sizes else 0


def for_all(work: Callable[[int], None], number: int, progress: Callable[[int], None]) -> dict[int, str]:
    """Call `work` with 0 to number - 1 in threads, and return the messages of its DataErrors, by index.

    `progress` is called with the number of calls done.
    """

    def chunk(start: int) -> dict[int, str]:
        bad = {}
        for index in range(start, min(start + CHUNK, number)):
            try:
                work(index)
            except DataError as error:
                bad[index] = str(error)
        return bad

    bad: dict[int, str] = {}
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        for count, found in enumerate(pool.map(chunk, range(0, number, CHUNK)), start=1):
            bad |= found
            progress(min(count * CHUNK, number))
    return bad
