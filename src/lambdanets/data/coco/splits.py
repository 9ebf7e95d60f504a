"""The training and validation side of a COCO source, from a configuration: checked and ready to load."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lambdanets.utils.progress import MANY, Progress, progress_bar
from lambdanets.utils.text import join_some

from ..check import check_memory
from ..errors import MAX_LISTED, DataError, DataWarning, listing
from ..groups import check_apart, held_out_groups, name_groups
from ..image_source import real_path
from ..sources.folder import existing_folder, stratified_hold_out
from .annotation_file import CocoFile, read_coco
from .check import Checked, check_entries
from .coco_set import CocoSet
from .config import COCO_SOURCES, CocoConfig
from .masks import coco_tool
from .transforms import TrainAugment, eval_transform_coco

SPLITS = {"train": ("train2017", "train"), "val": ("val2017", "val", "valid")}
FILES = ("annotations/instances_{}.json", "annotations/{}.json", "{}/_annotations.coco.json")
ELSEWHERE = "--set data.images=FOLDER names the folder that the file names start from."
Side = Literal["train", "val"]


@dataclass(frozen=True)
class CocoSplits:
    """The training and validation side of a source.

    Attributes:
        train: training images, augmented as configured.
        val: validation images, without augmentation and with crowds.
        classes: names, in the order of the labels, the first of which is 1.
        fingerprint: a hash of the image entries and annotations of both sides.
        skipped: one sentence for each image or annotation that was left out, which begins with the path of
            its json. A warning shows only a few of them.
    """

    train: CocoSet
    val: CocoSet
    classes: tuple[str, ...]
    fingerprint: str
    skipped: tuple[str, ...]


def open_coco(config: CocoConfig, *, seed: int = 0, progress: Progress | None = None) -> CocoSplits:
    """Open a COCO source for training.

    Args:
        config: the source and its options.
        seed: seed of the split, if the source is one file.
        progress: called with (images done, all images) while they are checked; None shows a bar in a terminal
            if there are many.

    Returns:
        Both sides and the names of the classes.

    Raises:
        DataError: there is no such source, a json in it is damaged, its sides have different categories, a
            side has no images, there are broken images or annotations and the configuration refuses them, or
            it names splits of a single file.

    Warns:
        DataWarning: entries were left out, files were found under another spelling of their names, or
            validation images are also training images.
    """
    _check_options(config)
    sides = _checked(config, ("train", "val"), seed, progress)
    train, val = (
        _build_set(config, *found, train=train) for found, train in zip(sides, (True, False), strict=True)
    )
    photos = {real_path(train.path(index)) for index in range(len(train))}
    if both := [name for index in range(len(val)) if real_path(name := val.path(index)) in photos]:
        warnings.warn(
            f"{len(both)} of {len(val)} validation images of {config.source} are training images, too, "
            f"such as {both[0]}: scores on them are too optimistic.",
            DataWarning,
            stacklevel=2,
        )
    fingerprint = blake2b(train.content() + b"\0" + val.content(), digest_size=16).hexdigest()
    # A single file has both sides, and its faults are not listed twice.
    skipped = train.skipped if sides[0][0].path == sides[1][0].path else (*train.skipped, *val.skipped)
    return CocoSplits(train, val, train.classes, fingerprint, skipped)


def check_objects(config: CocoConfig, splits: CocoSplits) -> None:
    """Refuse to train on images without a single object, and warn if most are crowds.

    Raises:
        DataError: there are no objects to train on; the message has the reason.

    Warns:
        DataWarning: most annotations are crowds, or the validation side has no objects.
    """
    train, val, source = splits.train, splits.val, config.source
    marked = "marked as crowds (iscrowd 1), on which a detector is not trained. CVAT marks every mask so: "
    marked += "where each is one object, set its iscrowd to 0."
    if not train.objects:
        reason = "they have no annotations."
        if train.crowds:
            reason = f"all {train.crowds} annotations are {marked}"
        elif train.skipped:
            reason = f"the entries of the json cannot be used:{listing(train.skipped)}"
        raise DataError(f"the {len(train)} training images of {source} have no objects: {reason}")
    if train.crowds > train.objects:
        total = train.crowds + train.objects
        warnings.warn(
            f"{train.crowds} of {total} annotations of the training images of {source} are {marked}",
            DataWarning,
            stacklevel=2,
        )
    if not val.objects:
        warnings.warn(
            f"the {len(val)} validation images of {source} have no objects: average precision cannot be "
            "measured on them, nor the best epoch be chosen.",
            DataWarning,
            stacklevel=2,
        )


def open_coco_split(
    config: CocoConfig,
    split: Side = "val",
    *,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> CocoSet:
    """Open one side of a COCO source for evaluation, without augmentation and with crowds.

    Args:
        config: the source; with `val_fraction=1.0` all of a single file is its "val" side.
        split: "train" or "val".
        seed: seed of the split.
        classes: classes of the run to evaluate, in the order of its labels; the categories of the file must
            have the same names, but may have other ids. None takes those of the file.
        progress: as in `open_coco`.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be 'train' or 'val', got {split!r}.")
    [(file, found)] = _checked(config, (split,), seed, progress)
    if classes is not None:
        file = _in_order(file, classes)
    return _build_set(config, file, found, train=False)


def _check_options(config: CocoConfig) -> None:
    """Refuse or warn about options that do not apply to this source."""
    root = Path(config.source.removeprefix("coco:")).expanduser()
    named = [f"data.{name}" for name in ("train_split", "val_split") if getattr(config, name)]
    if root.is_file() and named:
        raise DataError(
            f"{' and '.join(named)} must be None: {root} is one file, which data.val_fraction splits."
        )
    if root.is_dir() and config.val_fraction != CocoConfig.val_fraction:
        _warn_no_effect(
            f"data.val_fraction={config.val_fraction}", f"{root} has a validation side of its own"
        )
    if config.crop and config.group_by_ratio:
        _warn_no_effect("data.group_by_ratio", "with data.crop all images have one shape")


def _warn_no_effect(option: str, reason: str) -> None:
    warnings.warn(f"{option} has no effect: {reason}.", DataWarning, stacklevel=4)


def _checked(
    config: CocoConfig, sides: Sequence[Side], seed: int, progress: Progress | None
) -> list[tuple[CocoFile, Checked]]:
    """Return the json and the valid entries of each side, after errors or warnings about the others."""
    coco_tool()
    check_memory(config.batch_size, config.image_size, channels=3)
    root = Path(config.source.removeprefix("coco:")).expanduser()
    if root.is_file():
        base = root.parent.parent if root.parent.name == "annotations" else root.parent
        names, paths = [root.stem.removeprefix("instances_")], [root]
    else:
        base = existing_folder(str(root))
        names, paths = zip(*(_split_file(base, side, config) for side in sides), strict=True)
    files = [read_coco(path) for path in paths]
    _check_same_categories(files)
    total = sum(len(file.images) for file in files)
    found = []
    bar = nullcontext(progress) if progress else progress_bar("Checking images", total, least=MANY)
    with bar as report:
        before = 0
        for name, file in zip(names, files, strict=True):
            checked = check_entries(
                file,
                _folders(base, name, file.path, config),
                masks=config.masks,
                decode=config.on_bad_image == "skip",
                max_pixels=config.max_pixels,
                progress=lambda done, before=before: report(before + done, total),
            )
            found.append((file, checked))
            before += len(file.images)
    _report_faults(config, found)
    if root.is_file():
        [(file, checked)] = found
        return [(file, _side_of_file(file, checked, side, config, seed)) for side in sides]
    if config.group is not None and len(found) == 2:
        train, val = (
            name_groups([image["file_name"] for image in checked.images], config.group, base)
            for _, checked in found
        )
        check_apart(train, val, base)
    return found


def _side_of_file(file: CocoFile, checked: Checked, side: Side, config: CocoConfig, seed: int) -> Checked:
    """Return one side of a single file: the side of an image depends on the seed and on names alone.

    A photo that is listed several times is on one side, and so is a group, whose side depends on the
    categories in its images, too.
    """
    val_fraction = config.val_fraction
    names: dict[str, str] = {}  # first file_name of each photo, by its real path
    photos = [real_path(os.path.normpath(image["path"])) for image in checked.images]
    for photo, image in zip(photos, checked.images, strict=True):
        names.setdefault(photo, image["file_name"])
    if len(names) == 1 and val_fraction < 1:
        raise DataError(
            f"{file.path} has one image, which cannot be split into training and validation; "
            "data.val_fraction=1.0 evaluates on it."
        )
    order = list(names)
    chosen = range(len(order))
    if val_fraction < 1 and config.group is not None:
        groups = name_groups(list(names.values()), config.group, file.path)
        targets = _categories(file, checked, photos, order)
        how: Any = {"val_fraction": val_fraction, "seed": seed, "hold_out": "exact"}
        chosen = np.flatnonzero(held_out_groups(groups, targets, file.path, **how))
    elif val_fraction < 1:
        chosen = stratified_hold_out(list(names.values()), val_fraction, seed)
    held_out = {order[index] for index in chosen}
    images = [
        image
        for photo, image in zip(photos, checked.images, strict=True)
        if (photo in held_out) == (side == "val")
    ]
    return replace(checked, images=images)


def _categories(file: CocoFile, checked: Checked, photos: Sequence[str], order: Sequence[str]) -> np.ndarray:
    """Return whether a photo has objects of each category, as 0 and 1, of shape [photos, categories]."""
    rows = {photo: row for row, photo in enumerate(order)}
    columns = {number: column for column, number in enumerate(file.categories)}
    found = np.zeros((len(rows), len(columns)), np.int64)
    for photo, image in zip(photos, checked.images, strict=True):
        for entry in checked.annotations[image["id"]]:
            found[rows[photo], columns[entry["category_id"]]] = 1
    return found


def _report_faults(config: CocoConfig, found: Sequence[tuple[CocoFile, Checked]]) -> None:
    """Refuse broken entries, or warn that they are left out, in one message."""
    refused, skipped = [], []
    for file, checked in found:
        if checked.renamed:
            skipped.append(
                f"{len(checked.renamed)} of {len(file.images)} file names of {file.path} are written for "
                f"another system or folder:{listing(checked.renamed)}"
            )
        own = (
            f" with their annotations ({checked.annotations_of_bad_images})"
            if checked.annotations_of_bad_images
            else ""
        )
        for kind, policy, bad, total, others in (
            ("image", config.on_bad_image, checked.bad_images, len(file.images), own),
            ("annotation", config.on_bad_annotation, checked.bad_annotations, len(file.annotations), ""),
        ):
            text = f"{len(bad)} of {total} {kind}s of {file.path} cannot be used:{listing(bad)}"
            hint = f" {ELSEWHERE}" if kind == "image" and checked.missing else ""
            if len(bad) > MAX_LISTED and policy == "skip":
                hint += " A run's skipped.txt has all of them, and open_coco(...).skipped."
            if bad and policy == "refuse":
                remedy = f"Repair or remove them, or leave them out with --set data.on_bad_{kind}=skip."
                refused.append(f"{text}\n{remedy}{hint}")
            elif bad:
                skipped.append(f"{text}\nThey are left out{others}.{hint}")
    if refused:
        raise DataError("\n".join(refused))
    if skipped:
        warnings.warn("\n".join(skipped), DataWarning, stacklevel=4)


def _build_set(config: CocoConfig, file: CocoFile, checked: Checked, *, train: bool) -> CocoSet:
    """Build the set of one side from its entries without fault."""
    images = checked.images
    if train and config.drop_empty:
        images = [
            image
            for image in images
            if any(not entry.get("iscrowd") for entry in checked.annotations[image["id"]])
        ]
    if not images:
        hint = f" {ELSEWHERE}" if checked.missing else ""
        raise DataError(
            f"{file.path} has no usable images {'to train on' if train else 'to evaluate on'}.{hint}"
        )
    return CocoSet(
        images,
        checked.annotations,
        file.categories,
        TrainAugment(config) if train else eval_transform_coco(config),
        train=train,
        masks=config.masks,
        max_pixels=config.max_pixels,
        skipped=[f"{file.path}: {fault}" for fault in (*checked.bad_images, *checked.bad_annotations)],
    )


def _in_order(file: CocoFile, classes: Sequence[str]) -> CocoFile:
    """Return the file with its categories in the order of the classes of a run."""
    numbers = {name: number for number, name in file.categories.items()}
    if numbers.keys() != set(classes):
        raise DataError(
            f"{file.path} has the categories {join_some(numbers)}; the run was trained on "
            f"{join_some(classes)}."
        )
    return replace(file, categories={numbers[name]: name for name in classes})


def _split_file(base: Path, side: Side, config: CocoConfig) -> tuple[str, Path]:
    """Return the name of a side's split, and the path of its json."""
    chosen = config.train_split if side == "train" else config.val_split
    names = (chosen,) if chosen else SPLITS[side]
    tried = [(name, base / pattern.format(name)) for pattern in FILES for name in names]
    for name, path in tried:
        if path.is_file():
            return name, path
    held = join_some(sorted(str(path.relative_to(base)) for path in base.glob("**/*.json")))
    raise DataError(
        f"{base} has no annotations of the {side} side: looked for "
        f"{', '.join(str(path.relative_to(base)) for _, path in tried)}; json files there: "
        f"{held or 'none'}. data.{side}_split names another, and data.source is {COCO_SOURCES}."
    )


def _folders(base: Path, name: str, path: Path, config: CocoConfig) -> list[Path]:
    """Return the folders in which images are searched, in order."""
    if config.images:
        return [Path(existing_folder(config.images))]
    folders = [base / name, base / "images" / name, base / "images", base, path.parent]
    return list(dict.fromkeys(folders))


def _check_same_categories(files: Sequence[CocoFile]) -> None:
    """Raise DataError if the sides have different categories."""
    for other in files[1:]:
        differing = files[0].categories.items() ^ other.categories.items()
        if differing:
            names = [f"{number} {name}" for number, name in sorted(differing)]
            raise DataError(
                f"{files[0].path} and {other.path} must list the same categories and differ in "
                f"{join_some(names)}."
            )


def describe_coco(splits: CocoSplits) -> dict[str, int | str]:
    """Return numbers of classes, images and objects, to print or to write into a run's folder."""
    summary: dict[str, int | str] = {"classes": len(splits.classes)}
    for name, side in (("train", splits.train), ("val", splits.val)):
        own = [side.entry(index)[1] for index in range(len(side))]
        summary[name] = len(side)
        summary[f"{name} objects"] = sum(not entry.get("iscrowd") for each in own for entry in each)
        summary[f"{name} crowds"] = sum(bool(entry.get("iscrowd")) for each in own for entry in each)
        summary[f"{name} images without objects"] = sum(
            all(entry.get("iscrowd") for entry in each) for each in own
        )
    summary["skipped"] = len(splits.skipped)
    return summary
