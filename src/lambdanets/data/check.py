"""Opening and decoding every image before training starts, and keeping the decoded ones where they fit."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ..ops.hardware import available_memory
from .errors import DataError
from .image_set import ImageSet
from .pictures import FilePictures
from .tar import TarPictures

MEMORY_LIMIT = 2**30
CHUNK = 64


def check_memory(number: int, size: int, channels: int) -> None:
    """Refuse a batch that cannot be in memory, before an image is enlarged to such a size.

    Args:
        number: of images.
        size: their height and width, in pixels.
        channels: of an image, in float32.

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
    """Decode every file of a set and return what is wrong with the bad ones, by index."""
    pictures = image_set.pictures
    if not isinstance(pictures, FilePictures | TarPictures):
        return {}
    return for_all(pictures.check, len(pictures), progress)


def keep_in_memory(image_set: ImageSet, progress: Callable[[int], None]) -> dict[int, str]:
    """Decode a whole set into memory, and return what is wrong with the bad images, by index."""
    pipeline, number = image_set.pipeline, len(image_set)
    if pipeline.uniform:
        shape = (number, pipeline.image_size, pipeline.image_size, pipeline.in_chans)
        kept: Any = np.empty(shape, np.uint8)
    else:
        kept = [None] * number

    def keep(index: int) -> None:
        kept[index] = image_set.prepared(index)

    bad = for_all(keep, number, progress)
    image_set.kept = kept
    return bad


def memory_needed(image_set: ImageSet) -> int:
    """Return the bytes `keep_in_memory` would take, from a sample of the sizes where they differ."""
    pipeline, number = image_set.pipeline, len(image_set)
    if pipeline.uniform:
        return number * pipeline.in_chans * pipeline.image_size**2
    sizes = []
    for index in range(0, number, max(1, number // CHUNK)):
        try:
            sizes.append(image_set.prepared(index).nbytes)
        except DataError:
            continue  # told by the check, which sees every image
    return number * int(np.mean(sizes)) if sizes else 0


def for_all(work: Callable[[int], None], number: int, progress: Callable[[int], None]) -> dict[int, str]:
    """Call `work` with 0 to number - 1 in threads, and return the DataErrors it raised, by index."""

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
