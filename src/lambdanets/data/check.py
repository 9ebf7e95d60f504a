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
CHUNK = 64  # images that a thread decodes between two updates of the progress bar
SIZE_SAMPLES = 64  # images, about, whose size is measured to estimate the memory of all


def check_memory(batch_size: int, image_size: int, channels: int) -> None:
    """Refuse a batch that does not fit into memory, before an image is resized.

    Args:
        batch_size: images in the batch.
        image_size: height and width of an image, in pixels.
        channels: channels of an image, whose elements are float32.

    Raises:
        DataError: the batch needs more bytes than the machine has available.
    """
    needed, limit = 4 * batch_size * channels * image_size**2, available_memory("cpu")
    if limit is not None and needed > limit:
        raise DataError(
            f"a batch of {batch_size} images of {image_size} x {image_size} takes {needed / 2**30:,.0f} GiB, "
            f"and there are {limit / 2**30:,.0f} GiB of memory; take a smaller data.image_size or "
            "data.batch_size."
        )


def check_set(image_set: ImageSet, progress: Callable[[int], None]) -> dict[int, str]:
    """Decode every file of a set, and return the error of each bad one, by index.

    Args:
        image_set: the set; nothing is decoded if its source has no files to check.
        progress: called with the number of images done.
    """
    images = image_set.images
    return run_in_threads(images.check, len(images), progress) if images.checkable else {}


def cache_images(image_set: ImageSet, progress: Callable[[int], None]) -> dict[int, str]:
    """Decode a whole set into `image_set.cached`, and return the error of each bad image, by index.

    Args:
        image_set: the set, whose attribute `cached` is set.
        progress: called with the number of images done.
    """
    pipeline, count = image_set.pipeline, len(image_set)
    if pipeline.uniform:
        shape = (count, pipeline.image_size, pipeline.image_size, pipeline.in_chans)
        cached: Any = np.empty(shape, np.uint8)
    else:
        cached = [None] * count

    def cache(index: int) -> None:
        cached[index] = image_set.prepared(index)

    bad = run_in_threads(cache, count, progress)
    image_set.cached = cached
    return bad


def cache_bytes(image_set: ImageSet) -> int:
    """Return the bytes that `cache_images` needs, estimated from a sample of the images if sizes differ."""
    pipeline, count = image_set.pipeline, len(image_set)
    if pipeline.uniform:
        return count * pipeline.in_chans * pipeline.image_size**2
    sizes = []
    for index in range(0, count, max(1, count // SIZE_SAMPLES)):
        try:
            sizes.append(image_set.prepared(index).nbytes)
        except DataError:
            continue  # `cache_images` reports the same error
    return count * int(np.mean(sizes)) if sizes else 0


def run_in_threads(
    work: Callable[[int], None], count: int, progress: Callable[[int], None]
) -> dict[int, str]:
    """Call a function with each index in a pool of threads, and collect the DataErrors that it raises.

    Args:
        work: called with the indices from 0 to `count` - 1; other errors are raised.
        count: number of calls.
        progress: called with the number of calls done.

    Returns:
        The messages of the DataErrors, by index.
    """

    def run_chunk(start: int) -> dict[int, str]:
        bad = {}
        for index in range(start, min(start + CHUNK, count)):
            try:
                work(index)
            except DataError as error:
                bad[index] = str(error)
        return bad

    bad: dict[int, str] = {}
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        for chunks, found in enumerate(pool.map(run_chunk, range(0, count, CHUNK)), start=1):
            bad |= found
            progress(min(chunks * CHUNK, count))
    return bad
