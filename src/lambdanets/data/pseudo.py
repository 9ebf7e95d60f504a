"""The pseudo-labelled images of a configuration: a file of labels, and the source of its images."""

from __future__ import annotations

import os
import warnings
from hashlib import blake2b
from pathlib import Path

import numpy as np

from lambdanets.utils.files import parse_json

from .config import DataConfig
from .errors import DataError, SourceWarning
from .files import open_regular
from .image_set import ImageSet
from .image_source import ImageSource
from .labels import read_labels
from .sources import find_source
from .sources.protocol import ImageSplits
from .transforms import Pipeline
from .unlabelled import open_unlabelled


def open_pseudo(config: DataConfig, source: ImageSplits) -> ImageSet:
    """Open the images that `config.pseudo_labels` names, augmented like the training images.

    Validation images among them are left out, with a warning, as a model must not be trained on them.

    Args:
        config: the file of labels, and the source of their images.
        source: the labelled images. The file may name only their classes; images that are also in
            `source.val` are left out.

    Raises:
        DataError: the labels cannot be read, name other classes, or name images that are not in the source.
    """
    path = Path(config.pseudo_labels or "").expanduser()
    labels = read_labels(path, source.classes)
    unlabelled = config.unlabelled or _stored_source(path)
    images = open_unlabelled(unlabelled, config.in_chans, config.max_pixels)
    index = {images.path(number): number for number in range(len(images))}
    missing = [image for image in labels.images if image not in index]
    if missing:
        raise DataError(
            f"{path} labels {len(missing)} images that {unlabelled!r} does not hold, such as {missing[0]!r}; "
            "set data.unlabelled to the source of its images."
        )
    found = np.array([index[image] for image in labels.images], np.intp)
    # Even sources that do not overlap may share images: links may lead from one to the other.
    held_out = locations(source.val)
    rows = [row for row, index in enumerate(found.tolist()) if images.location(index) not in held_out]
    usable = np.array(rows, np.intp)
    if len(usable) < len(labels):
        warnings.warn(
            f"{len(labels) - len(usable)} of the {len(labels)} images in {path} are validation images of "
            "this run and are left out.",
            SourceWarning,
            stacklevel=3,
        )
    if not len(usable):
        raise DataError(f"no pseudo-labelled images are left: {path} names only validation images.")
    chosen = images.subset(found[usable])
    chosen.targets = labels.targets[usable]
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
    """Return whether two sources may hold the same images: equal sources, or folders one inside the other."""
    found = [find_source(text) for text in (one, other)]
    folders = [
        folder for source in found if source is not None and (folder := source.directory()) is not None
    ]
    return os.path.commonpath(folders) in folders if len(folders) == 2 else one == other


def locations(images: ImageSource) -> set[str]:
    """Return `ImageSource.location` of all images."""
    return {images.location(index) for index in range(len(images))}


def metadata_path(labels: Path) -> Path:
    """Return the path of the metadata of a file of labels: labels.json beside labels.csv."""
    return labels.with_suffix(".json")


def _stored_source(path: Path) -> str:
    """Return the source of the images of a file of labels, from the metadata beside it."""
    try:
        with open_regular(metadata_path(path)) as file:
            return parse_json(file.read())["source"]
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(
            f"{metadata_path(path)} does not name the source of the images: give data.unlabelled=folder:PATH."
        ) from None
