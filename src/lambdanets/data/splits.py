"""From a configuration to the two sides of a source, checked and ready to load."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from lambdanets.utils.progress import MANY, Progress, progress_bar
from lambdanets.utils.text import join_some

from .check import MEMORY_LIMIT, check_memory, check_set, keep_in_memory, memory_needed
from .config import DataConfig
from .errors import DataError, SourceWarning, listing
from .folder import fingerprint, warn_unmeasured
from .hfids import undivided
from .image_set import ORDER_NEEDS_TAR, ImageSet
from .mixed import MixedSet, shares
from .pseudo import labels_digest, open_pseudo
from .sequential import SequentialSet, digest
from .sources import STREAMED, open_source
from .stream import StreamSet, open_stream
from .transforms import Pipeline


@dataclass(frozen=True)
class Splits:
    """The two sides of a source.

    Attributes:
        train: varied as `config.augment` says; with `config.pseudo_labels` a set of both kinds.
        val: as evaluation sees it.
        classes: names, in the order of the targets.
        fingerprint: of a folder or of archives, a hash of the names and classes of the files on each side: it
            differs when a file was added, removed, renamed or moved. "" of other sources.
    """

    train: ImageSet | MixedSet | StreamSet
    val: ImageSet | StreamSet
    classes: tuple[str, ...]
    fingerprint: str = ""

    @property
    def skipped(self) -> tuple[str, ...]:
        """What was left out, one sentence for each image."""
        return (*self.train.skipped, *self.val.skipped)


def open_splits(config: DataConfig, *, seed: int = 0, progress: Progress | None = None) -> Splits:
    """Open a source for training.

    Args:
        config: the source, and what is made of it.
        seed: of the split, where the source is not split already.
        progress: called with (images done, images in all) while files are decoded; None shows a bar in a
            terminal when there are many.

    Returns:
        Both sides and the names of the classes.

    Raises:
        DataError: there is no such source, it is empty or of one class, its sides do not agree, or images in
            it are damaged and `on_bad_image` is "refuse".
    """
    if config.order == "shards" and not config.source.startswith("tar:"):
        raise DataError(ORDER_NEEDS_TAR)
    _check_names(config)
    check_memory(config.batch_size, config.image_size, config.in_chans)
    if config.source.startswith(STREAMED):
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
        train, val = (
            open_stream(config, side, train=side == "train", seed=seed) for side in ("train", "val")
        )
        _check_classes(config, train.classes)
        shards = [side for side in (train, val) if isinstance(side, SequentialSet)]
        if both := set.intersection(*(set(side.shards.names) for side in shards)) if shards else ():
            warnings.warn(
                f"{join_some(sorted(both))} of {config.source!r} are both trained on and validated on.",
                SourceWarning,
                stacklevel=2,
            )
        return Splits(train, val, train.classes, digest(shards) if shards else "")
    if config.pseudo_labels is not None:
        shares(config)
    elif config.unlabelled is not None or config.pseudo_ratio != 1:
        raise DataError("data.unlabelled and data.pseudo_ratio need data.pseudo_labels.")
    source = open_source(config, seed=seed)
    _check_classes(config, source.classes)
    pseudo = [open_pseudo(config, source)] if config.pseudo_labels is not None else []
    skip = config.on_bad_image == "skip"
    train, val = (
        ImageSet(pictures, Pipeline(config, train=side), source.classes, skip_bad=skip)
        for pictures, side in ((source.train, True), (source.val, False))
    )
    sides = {"training": train, "validation": val}
    for name, side in sides.items():
        if not len(side):
            raise DataError(f"no images are left for {name}: val_fraction is {config.val_fraction}.")
    _read(sides | dict(zip(["pseudo-labels"], pseudo, strict=False)), config, progress)
    mark = _fingerprint(config, [train, val])
    if not pseudo:
        return Splits(train, val, source.classes, mark)
    return Splits(MixedSet(train, *pseudo), val, source.classes, f"{mark}+{labels_digest(*pseudo)}")


def open_split(
    config: DataConfig,
    split: Literal["train", "val"] = "val",
    *,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> tuple[ImageSet | StreamSet, tuple[str, ...]]:
    """Open one side of a source for evaluation: nothing in it is varied.

    Args:
        config: the source; with `val_fraction=1.0` all of a folder that is not split is its "val" side.
        split: "train" or "val".
        seed: of the split.
        classes: those of the run that is evaluated; a folder may hold some of them but no others, another
            source must name the same in the same order; one that only numbers its classes names them "0", "1"
            and so on.
        progress: as in `open_splits`.

    Returns:
        The images and the names of the classes.

    Raises:
        DataError: as in `open_splits`; or the classes are others.
    """
    if split not in ("train", "val"):
        raise ValueError(f"split must be 'train' or 'val', got {split!r}.")
    check_memory(config.batch_size, config.image_size, config.in_chans)
    if config.source.startswith(STREAMED):
        stream = open_stream(config, split, train=False, seed=seed)
        _check_known(config, stream.classes, classes)
        return stream, stream.classes
    source = open_source(config, seed=seed, classes=classes)
    _check_known(config, source.classes, classes)
    image_set = ImageSet(
        source.train if split == "train" else source.val,
        Pipeline(config, train=False),
        source.classes,
        skip_bad=config.on_bad_image == "skip",
    )
    if not len(image_set):
        raise DataError(f"the {split} side of {config.source!r} holds no images.")
    _read({"validation": image_set}, config, progress)
    return image_set, source.classes


def _check_names(config: DataConfig) -> None:
    """Raise DataError where names of splits or columns are given that this source cannot follow."""
    hugging_face = config.source.startswith(("hfds/", "hfids/"))
    if not hugging_face and (config.image_column or config.label_column):
        raise DataError("data.image_column and data.label_column are those of hfds/ and hfids/ alone.")
    streamed = config.source.startswith(STREAMED)
    if not streamed and not config.source.startswith(("torch/", "hfds/")):
        return
    if config.val_split != config.train_split and (config.val_split or not streamed):
        return
    what = f"data.train_split and data.val_split are both {config.train_split!r}"
    what = what if config.val_split else "data.val_split is empty"
    how = "leave data.val_split empty, which holds out data.val_fraction of them."
    if streamed:
        how = "name another split, as streams cannot be divided."
    if config.source.startswith("hfids/"):
        how = f"{how[:-1]}; {undivided(config)}."
    raise DataError(f"{what}, and a run is validated on images that it is not trained on: {how}")


def _check_classes(config: DataConfig, classes: Sequence[str]) -> None:
    if len(classes) < 2:
        held = f"holds one class ({classes[0]!r})" if classes else "holds no classes"
        raise DataError(f"{config.source!r} {held}; at least two are needed to train on.")


def _check_known(config: DataConfig, found: tuple[str, ...], known: Sequence[str] | None) -> None:
    """Raise DataError where a source has other classes than the run, or the same in another order."""
    if known is None or tuple(known) == found:
        return
    if sorted(known) == sorted(found):
        place = next(index for index, name in enumerate(found) if name != known[index])
        raise DataError(
            f"{config.source!r} has the classes of the run in another order: number {place} is "
            f"{found[place]!r}, and {known[place]!r} in the run."
        )
    raise DataError(
        f"{config.source!r} has {len(found)} classes ({join_some(found)}), "
        f"the run was trained on {len(known)} ({join_some(known)})."
    )


def _fingerprint(config: DataConfig, sides: Sequence[ImageSet]) -> str:
    kind, _, root = config.source.partition(":")
    if kind not in ("folder", "tar"):
        return ""
    top = Path(root).expanduser() if kind == "folder" else Path()  # archives are named from their folder
    files = [[(side.path(index), int(side.targets[index])) for index in range(len(side))] for side in sides]
    return fingerprint(top, files, sides[0].classes)


def _read(sides: dict[str, ImageSet], config: DataConfig, progress: Progress | None) -> None:
    """Check or keep the images of all sides, then refuse or leave out the bad ones."""
    keep = config.cache
    if keep == "auto":
        keep = config.check and sum(map(memory_needed, sides.values())) < MEMORY_LIMIT
    if not keep and not config.check:
        return
    total = sum(map(len, sides.values()))
    bad: list[dict[int, str]] = []
    bar = nullcontext(progress) if progress else progress_bar("Reading images", total, least=MANY)
    with bar as report:
        before = 0
        for side in sides.values():
            read = keep_in_memory if keep else check_set
            bad.append(read(side, lambda done, before=before: report(before + done, total)))
            before += len(side)
    sentences = [found[index] for found in bad for index in sorted(found)]
    if not sentences:
        return
    what = f"{len(sentences)} of {total} images cannot be read:{listing(sentences)}"
    if config.on_bad_image == "refuse":
        raise DataError(
            f"{what}\nRepair or remove them, or leave them out with --set data.on_bad_image=skip."
        )
    for (name, side), found in zip(sides.items(), bad, strict=True):
        emptied = side.leave_out(found)
        if emptied and (name == "training" or not len(side)):
            raise DataError(f"without its damaged images, class {emptied[0]!r} is empty.")
        if name == "validation":
            warn_unmeasured(f"without its damaged images the validation side of {config.source!r}", emptied)
    warnings.warn(f"{what}\nThey are left out.", SourceWarning, stacklevel=3)


def describe(splits: Splits) -> dict[str, int | str]:
    """Return short facts about a source, to print or to write into a run's folder."""
    facts: dict[str, int | str] = {"classes": len(splits.classes)}
    sides: list[tuple[str, ImageSet | StreamSet]] = [("val", splits.val)]
    if isinstance(splits.train, MixedSet):
        sides = [("train", splits.train.labelled), ("pseudo-labelled", splits.train.pseudo), *sides]
    else:
        sides = [("train", splits.train), *sides]
    for name, side in sides:
        if isinstance(side, StreamSet):
            facts[name] = f"{len(side)} images, streamed"
            continue
        counts = np.bincount(side.targets, minlength=len(splits.classes))
        least, most = int(counts.argmin()), int(counts.argmax())
        facts[name] = len(side)
        facts[f"{name} images per class"] = (
            str(counts[least])
            if counts[least] == counts[most]
            else f"{counts[least]} ({splits.classes[least]}) to {counts[most]} ({splits.classes[most]})"
        )
    facts["skipped"] = len(splits.skipped)
    return facts
