"""Images without labels: all images of a source, with names relative to its root."""

from __future__ import annotations

from collections.abc import Sequence

from .config import MAX_PIXELS
from .errors import DataError
from .image_source import ImageSource
from .sources import SOURCES, find_source
from .sources.folder import TRAIN_NAMES, VAL_NAMES
from .sources.tar_paths import SUFFIX, side_word


def open_unlabelled(source: str, in_chans: int = 3, max_pixels: int = MAX_PIXELS) -> ImageSource:
    """Find all images of a source, without their classes.

    Args:
        source: "folder:PATH", with images in any folders, "csv:FILE.csv" or "tar:PATH".
        in_chans: 3 for RGB, 1 for grey.
        max_pixels: larger images are refused when they are read.

    Returns:
        The images, all with target 0, whose `path` is relative to the root of the source; those of a folder
        are in the order of their names.

    Raises:
        DataError: there is no such source, or it holds no images.
    """
    found = find_source(source)
    if found is None or not found.unlabelled or not found.root:
        *forms, last = (kind.form for kind in SOURCES.values() if kind.unlabelled)
        raise DataError(f"images without labels come from {', '.join(forms)} or {last}, got {source!r}.")
    return found.open_unlabelled(in_chans, max_pixels)


def training_side(names: Sequence[str]) -> list[int] | None:
    """Return the indices of the training images, if the names show that the source is split.

    Args:
        names: names of its images from `open_unlabelled`. The first folder is the side, such as train/ or
            val/; in archives without such a folder, it is a word of the archive's name.

    Returns:
        Indices of the names; None where there are no training images, or no validation images.
    """
    sides = list(map(_side, names))
    if set(sides).isdisjoint(TRAIN_NAMES) or set(sides).isdisjoint(VAL_NAMES):
        return None
    return [index for index, side in enumerate(sides) if side in TRAIN_NAMES]


def _side(name: str) -> str:
    path, archived, _ = name.partition(f"{SUFFIX}#")
    folder, inside, _ = path.lower().partition("/")
    if inside and folder in (*TRAIN_NAMES, *VAL_NAMES):
        return folder
    return side_word(path) if archived else ""
