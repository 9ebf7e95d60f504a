"""The training and validation side of a source, from a configuration: checked and ready to load."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lambdanets.utils.progress import MANY, Progress, progress_bar
from lambdanets.utils.text import join_some

from .balance import class_counts, warn_dominant_class
from .check import MEMORY_LIMIT, cache_bytes, cache_images, check_memory, check_set
from .config import DataConfig
from .errors import DataError, SourceWarning, listing
from .image_set import ORDER_NEEDS_SHARDS, ImageSet
from .mixed import MixedSet, batch_sizes
from .pseudo import labels_digest, open_pseudo
from .sources import SOURCES, get_source, open_source
from .sources.csv import CsvSource
from .sources.folder import folder_fingerprint, warn_without_validation
from .sources.protocol import Source, StreamedSource
from .streams.stream_set import StreamSet, digest
from .transforms import Pipeline


@dataclass(frozen=True)
class Splits:
    """The training and validation side of a source.

    Attributes:
        train: training images, augmented as configured, with the pseudo-labelled ones if
            `config.pseudo_labels` is set.
        val: validation images, without augmentation.
        classes: names, in the order of the targets.
        fingerprint: for a folder or archives, a hash of the names and classes of the files on each side,
            which changes when a file is added, removed, renamed or moved; for streams, a hash of the names
            and lengths of their files; "" for other sources.
    """

    train: ImageSet | MixedSet | StreamSet
    val: ImageSet | StreamSet
    classes: tuple[str, ...]
    fingerprint: str = ""

    @property
    def skipped(self) -> tuple[str, ...]:
        """One sentence for each image that was left out."""
        return (*self.train.skipped, *self.val.skipped)


def open_splits(config: DataConfig, *, seed: int = 0, progress: Progress | None = None) -> Splits:
    """Open a source for training.

    Args:
        config: the source and its options.
        seed: seed of the split, used if the source is not split already.
        progress: called with (images done, all images) while files are decoded; None shows a bar in a
            terminal if there are many.

    Returns:
        Both sides and the names of the classes.

    Raises:
        DataError: there is no such source, it is empty or of one class, its sides do not agree, or images in
            it are damaged and `on_bad_image` is "refuse".
    """
    source = get_source(config.source)
    if config.order == "shards" and not source.sharded:
        raise DataError(ORDER_NEEDS_SHARDS)
    _check_names(config, source)
    check_memory(config.batch_size, config.image_size, config.in_chans)
    _check_classes_options(config, source)
    if isinstance(source, StreamedSource):
        return _open_streams(config, source)
    if config.pseudo_labels is not None:
        batch_sizes(config)
    elif config.unlabelled is not None or config.pseudo_ratio != 1:
        raise DataError("data.unlabelled and data.pseudo_ratio need data.pseudo_labels.")
    opened = open_source(config, seed=seed)
    _check_classes(config, opened.classes)
    pseudo = [open_pseudo(config, opened)] if config.pseudo_labels is not None else []
    skip = config.on_bad_image == "skip"
    train, val = (
        ImageSet(images, Pipeline(config, train=is_train), opened.classes, skip_bad=skip)
        for images, is_train in ((opened.train, True), (opened.val, False))
    )
    sides = {"training": train, "validation": val}
    for name, side in sides.items():
        if not len(side):
            raise DataError(f"no images are left for {name}: val_fraction is {config.val_fraction}.")
    _check_or_cache(sides | dict(zip(["pseudo-labels"], pseudo, strict=False)), config, progress)
    if not config.multi_label:
        warn_dominant_class(val.targets, opened.classes, "images")
    fingerprint = _fingerprint(source, [train, val])
    if not pseudo:
        return Splits(train, val, opened.classes, fingerprint)
    fingerprint = f"{fingerprint}+{labels_digest(*pseudo)}"
    return Splits(MixedSet(train, *pseudo), val, opened.classes, fingerprint)


def _open_streams(config: DataConfig, source: StreamedSource) -> Splits:
    """Open both sides of a streamed source, after refusing options that streams do not support."""
    if config.train_per_class is not None:
        raise DataError(
            f"data.train_per_class needs to know all names, and {config.source!r} is streamed: unpack it "
            "into folders, or leave train_per_class=None."
        )
    if config.pseudo_labels is not None:
        raise DataError(
            f"data.pseudo_labels are mixed with labelled images in a ratio, and {config.source!r} is "
            "streamed: unpack it into folders."
        )
    train = source.open(config, config.train_split, train=True)
    val = source.open(config, config.val_split, train=False)
    _check_classes(config, train.classes)
    if both := set(train.files.names) & set(val.files.names):
        warnings.warn(
            f"{join_some(sorted(both))} of {config.source!r} are both trained on and validated on.",
            SourceWarning,
            stacklevel=3,
        )
    return Splits(train, val, train.classes, digest([train, val]))


def open_split(
    config: DataConfig,
    split: Literal["train", "val"] = "val",
    *,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> tuple[ImageSet | StreamSet, tuple[str, ...]]:
    """Open one side of a source for evaluation, without augmentation.

    Args:
        config: the source; with `val_fraction=1.0` all of a folder that is not split is its "val" side.
        split: "train" or "val".
        seed: seed of the split.
        classes: classes of the run to evaluate. A folder may have some of them and no others; any other
            source must have the same classes in the same order, source "0", "1" and so on if they have no
            names. None takes those of the source.
        progress: as in `open_splits`.

    Returns:
        The images and the names of the classes.

    Raises:
        DataError: as in `open_splits`, or for other classes.
    """
    if split not in ("train", "val"):
        raise ValueError(f"split must be 'train' or 'val', got {split!r}.")
    check_memory(config.batch_size, config.image_size, config.in_chans)
    source = get_source(config.source)
    _check_labels(config, source)
    if isinstance(source, StreamedSource):
        stream = source.open(
            config, config.train_split if split == "train" else config.val_split, train=False
        )
        _check_known(config, stream.classes, classes)
        return stream, stream.classes
    opened = open_source(config, seed=seed, classes=classes)
    _check_known(config, opened.classes, classes)
    image_set = ImageSet(
        opened.train if split == "train" else opened.val,
        Pipeline(config, train=False),
        opened.classes,
        skip_bad=config.on_bad_image == "skip",
    )
    if not len(image_set):
        raise DataError(f"the {split} side of {config.source!r} holds no images.")
    _check_or_cache({"validation": image_set}, config, progress)
    return image_set, opened.classes


def _check_names(config: DataConfig, source: Source) -> None:
    """Raise DataError where the configuration names splits or columns that the source cannot have."""
    if not source.named_columns and (config.image_column or config.label_column):
        kinds = ", ".join(kind for kind, each in SOURCES.items() if each.named_columns)
        raise DataError(f"data.image_column and data.label_column apply only to {kinds}.")
    streamed = isinstance(source, StreamedSource)
    if not source.named_splits or (
        config.val_split != config.train_split and (config.val_split or not streamed)
    ):
        return
    fault = f"data.train_split and data.val_split are both {config.train_split!r}"
    fault = fault if config.val_split else "data.val_split is empty"
    raise DataError(
        f"{fault}, but validation images must not be training images: {source.one_split_remedy()}."
    )


def _check_classes_options(config: DataConfig, source: Source) -> None:
    """Raise DataError for options of groups, labels and sampling that the source, or another, excludes."""
    if not source.grouped and (config.group, config.group_column) != (None, None):
        *kinds, last = (each.form for each in SOURCES.values() if each.grouped)
        reason = "its training and validation parts are fixed"
        reason = reason if isinstance(source, StreamedSource) else "its images have no paths"
        raise DataError(
            f"data.group and data.group_column apply to {', '.join(kinds)} and {last}, not to "
            f"{config.source!r}: {reason}."
        )
    if config.group_column is not None and not isinstance(source, CsvSource):
        raise DataError(
            f"data.group_column names a column of {CsvSource.form}, and {config.source!r} is no table: "
            "data.group takes the groups from the paths."
        )
    _check_labels(config, source)
    balanced = config.sampling == "balanced"
    if balanced and isinstance(source, StreamedSource):
        raise DataError(
            f"data.sampling=balanced needs to know all labels, and {config.source!r} is streamed: unpack it "
            "into folders, or leave data.sampling=uniform."
        )
    others = {
        "data.multi_label": config.multi_label,
        "data.pseudo_labels": config.pseudo_labels is not None,
        "data.order=shards": config.order == "shards",
    }
    if balanced and (other := [name for name, given in others.items() if given]):
        raise DataError(f"data.sampling=balanced and {other[0]} exclude each other; leave one of them out.")
    others = {
        "data.pseudo_labels": others["data.pseudo_labels"],
        "data.train_per_class": config.train_per_class,
    }
    if config.multi_label and (other := [name for name, given in others.items() if given]):
        raise DataError(f"data.multi_label and {other[0]} exclude each other; leave one of them out.")


def _check_labels(config: DataConfig, source: Source) -> None:
    """Raise DataError if images have several labels, which the source cannot have."""
    if config.multi_label and not source.multi_label:
        raise DataError(
            f"images with several labels (data.multi_label) come from a table, csv:FILE.csv, with rows such "
            f"as 1.jpg,sea;sky; those of {config.source!r} have one each."
        )


def _check_classes(config: DataConfig, classes: Sequence[str]) -> None:
    """Raise DataError unless there are two classes or more."""
    if len(classes) < 2:
        held = f"holds one class ({classes[0]!r})" if classes else "holds no classes"
        raise DataError(f"{config.source!r} {held}; at least two are needed to train on.")


def _check_known(config: DataConfig, found: tuple[str, ...], known: Sequence[str] | None) -> None:
    """Raise DataError where a source has other classes than the run, or the same in another order."""
    if known is None or tuple(known) == found:
        return
    if sorted(known) == sorted(found):
        first = next(index for index, name in enumerate(found) if name != known[index])
        raise DataError(
            f"{config.source!r} has the classes of the run in another order: number {first} is "
            f"{found[first]!r}, and {known[first]!r} in the run."
        )
    raise DataError(
        f"{config.source!r} has {len(found)} classes ({join_some(found)}), "
        f"the run was trained on {len(known)} ({join_some(known)})."
    )


def _fingerprint(source: Source, sides: Sequence[ImageSet]) -> str:
    """Return the hash of the names and classes of both sides; "" for a source without files."""
    root = source.file_root()
    if root is None:
        return ""
    classes: Sequence[str] = sides[0].classes
    labels = [side.targets for side in sides]
    if labels[0].ndim == 2:
        # Each set of labels counts as a class.
        texts = [[";".join(classes[n] for n in np.flatnonzero(row)) for row in each] for each in labels]
        classes = sorted({text for each in texts for text in each})
        labels = [np.array([classes.index(text) for text in each], np.int64) for each in texts]
    files = [
        [(side.path(index), int(targets[index])) for index in range(len(side))]
        for side, targets in zip(sides, labels, strict=True)
    ]
    return folder_fingerprint(root, files, classes)


def _check_or_cache(sides: dict[str, ImageSet], config: DataConfig, progress: Progress | None) -> None:
    """Check or cache the images of all sides, then refuse or leave out the bad ones."""
    cache = config.cache
    if cache == "auto":
        cache = config.check and sum(map(cache_bytes, sides.values())) < MEMORY_LIMIT
    if not cache and not config.check:
        return
    total = sum(map(len, sides.values()))
    bad: list[dict[int, str]] = []
    bar = nullcontext(progress) if progress else progress_bar("Reading images", total, least=MANY)
    with bar as report:
        before = 0
        for side in sides.values():
            read = cache_images if cache else check_set
            bad.append(read(side, lambda done, before=before: report(before + done, total)))
            before += len(side)
    sentences = [found[index] for found in bad for index in sorted(found)]
    if not sentences:
        return
    summary = f"{len(sentences)} of {total} images cannot be read:{listing(sentences)}"
    if config.on_bad_image == "refuse":
        raise DataError(
            f"{summary}\nRepair or remove them, or leave them out with --set data.on_bad_image=skip."
        )
    for (name, side), found in zip(sides.items(), bad, strict=True):
        emptied = side.leave_out(found)
        if emptied and (name == "training" or not len(side)):
            raise DataError(f"without its damaged images, class {emptied[0]!r} is empty.")
        if name == "validation":
            warn_without_validation(
                f"without its damaged images the validation side of {config.source!r}", emptied
            )
    warnings.warn(f"{summary}\nThey are left out.", SourceWarning, stacklevel=3)


def describe(splits: Splits) -> dict[str, int | str]:
    """Return numbers of classes and images of a source, to print or to write into a run's folder."""
    summary: dict[str, int | str] = {"classes": len(splits.classes)}
    sides: list[tuple[str, ImageSet | StreamSet]] = [("val", splits.val)]
    if isinstance(splits.train, MixedSet):
        sides = [("train", splits.train.labelled), ("pseudo-labelled", splits.train.pseudo), *sides]
    else:
        sides = [("train", splits.train), *sides]
    for name, side in sides:
        if isinstance(side, StreamSet):
            summary[name] = f"{len(side)} images, streamed"
            continue
        counts = class_counts(side.targets, len(splits.classes))
        least, most = int(counts.argmin()), int(counts.argmax())
        summary[name] = len(side)
        summary[f"{name} images per class"] = (
            str(counts[least])
            if counts[least] == counts[most]
            else f"{counts[least]} ({splits.classes[least]}) to {counts[most]} ({splits.classes[most]})"
        )
    summary["skipped"] = len(splits.skipped)
    return summary
