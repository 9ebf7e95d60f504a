"""The pseudo-labelled images of a configuration: a file of labels, and the source of what it names."""

from __future__ import annotations

import os
import re
import warnings
from hashlib import blake2b
from pathlib import Path

import numpy as np

from lambdanets.utils.files import parse_json

from .config import DataConfig
from .errors import DataError, SourceWarning
from .files import open_regular
from .image_set import ImageSet
from .labels import read_labels
from .pictures import Pictures
from .sources import Source
from .transforms import Pipeline
from .unlabelled import open_pictures


def open_pseudo(config: DataConfig, source: Source) -> ImageSet:
    """Open the images that `config.pseudo_labels` names, varied as the training images.

    Validation images among them are left out, with a warning: a network must not train on what measures it.

    Args:
        config: the labels, and where their images are.
        source: the labelled images; its classes are the ones that the labels may name.

    Raises:
        DataError: the labels cannot be read, name other classes, or name images that are not in the source.
    """
    path = Path(config.pseudo_labels or "").expanduser()
    labels = read_labels(path, source.classes)
    unlabelled = config.unlabelled or _stored_source(path)
    pictures = open_pictures(unlabelled, config.in_chans, config.max_pixels)
    index = {pictures.path(number): number for number in range(len(pictures))}
    missing = [image for image in labels.images if image not in index]
    if missing:
        raise DataError(
            f"{path} labels {len(missing)} images that {unlabelled!r} does not hold, {missing[0]!r} for one; "
            "say with data.unlabelled where its images are."
        )
    found = np.array([index[image] for image in labels.images], np.intp)
    held_out = places(source.val)  # of sources that do not overlap, too: links may lead from one to the other
    rows = [row for row, index in enumerate(found.tolist()) if pictures.place(index) not in held_out]
    kept = np.array(rows, np.intp)
    if len(kept) < len(labels):
        warnings.warn(
            f"{len(labels) - len(kept)} of the {len(labels)} images in {path} are validation images of "
            "this run and are left out.",
            SourceWarning,
            stacklevel=3,
        )
    if not len(kept):
        raise DataError(f"no pseudo-labelled images are left: {path} names validation images alone.")
    chosen = pictures.subset(found[kept])
    chosen.targets = labels.targets[kept]
    return ImageSet(
        chosen, Pipeline(config, train=True), source.classes, skip_bad=config.on_bad_image == "skip"
    )


def labels_digest(pseudo: ImageSet) -> str:
    """Return a hash of the names and labels of the images, in their order."""
    digest = blake2b(digest_size=16)
    for index in range(len(pseudo)):
        line = f"{pseudo.path(index)}\0{pseudo.classes[pseudo.targets[index]]}\n"
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def overlap(one: str, other: str) -> bool:
    """Whether two sources may hold the same images: one's folder is in the other's, or they are the same."""
    roots = [root for source in (one, other) if (root := _root(source)) is not None]
    return os.path.commonpath(roots) in roots if len(roots) == 2 else one == other


def places(pictures: Pictures) -> set[str]:
    """Return where all pictures of a collection are."""
    return {pictures.place(index) for index in range(len(pictures))}


def facts_path(labels: Path) -> Path:
    """Return where the facts about a file of labels are: labels.json beside labels.csv."""
    return labels.with_suffix(".json")


def _root(source: str) -> str | None:
    """The folder that a source of files is in."""
    kind, _, root = source.partition(":")
    if kind not in ("folder", "tar"):
        return None
    path = os.path.realpath(os.path.expanduser(re.split(r"[*?\[{]", root)[0]))
    return path if os.path.isdir(path) else os.path.dirname(path)


def _stored_source(path: Path) -> str:
    try:
        with open_regular(facts_path(path)) as file:
            return parse_json(file.read())["source"]
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(
            f"{facts_path(path)} does not say where the images are: give data.unlabelled=folder:PATH."
        ) from None
