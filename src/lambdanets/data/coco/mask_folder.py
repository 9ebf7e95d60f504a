"""Conversion of folders of mask images to a COCO json."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lambdanets.utils.files import replacing
from lambdanets.utils.progress import MANY, progress_bar
from lambdanets.utils.text import join_some

from ..errors import DataError, DataWarning, listing
from ..files import is_stray
from ..images import IMAGE_SUFFIXES, check_size, read_image, read_values
from ..sources.folder import existing_folder
from .components import bounding_boxes, even_pixels, label_parts
from .masks import coco_tool, encode_uncompressed, run_lengths

LAYOUTS = (
    "images/NAME.jpg (or another kind) with masks/NAME.png, whose values number the objects and are 0 "
    "elsewhere; or, for each image, a folder with the image in images/ and a PNG for each object in masks/"
)
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif")  # of lossless formats
LOSSY_SUFFIXES = (".jpg", ".jpeg", ".webp")  # of lossy formats, whose masks need a threshold
SHADES = (
    "values of smoothed edges are no objects; with --threshold 128, pixels of this value or more are one "
    "object; with --ignore none, every value is one; resize numbered masks by nearest neighbour"
)
# From this number on, values along edges may count as shades even if each has one connected component.
FEWEST_SHADES = 6
VOID = 255  # the border of objects in Pascal VOC's masks


@dataclass(frozen=True)
class Converted:
    """The result of `masks_to_coco`.

    Args:
        images: number of images.
        objects: number of annotations.
        split: number of values of mask files that became several objects, one for each connected part.
    """

    images: int
    objects: int
    split: int = 0


@dataclass(frozen=True)
class _MaskedImage:
    """An image and its mask files, each with the id of its class."""

    path: Path
    masks: list[tuple[Path, int]]
    numbered: bool  # each value of a mask file is an object; else each file is one object


@dataclass(frozen=True)
class _ValueRules:
    """The interpretation of the values of masks.

    Args:
        ignore: values that are background; None if the user gave no such values.
        threshold: lowest value inside an object, for masks with shades (grey values along smoothed edges);
            None if each value is an object.
    """

    ignore: tuple[int, ...] | None
    threshold: int | None

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Suffixes of files that can be masks."""
        return MASK_SUFFIXES if self.threshold is None else (*MASK_SUFFIXES, *LOSSY_SUFFIXES)

    @property
    def kinds(self) -> str:
        """The suffixes in an error text."""
        return "/".join(suffix.removeprefix(".") for suffix in self.suffixes)


@dataclass(frozen=True)
class _Object:
    """An object, cropped from its mask."""

    path: Path
    value: int  # of its pixels in the file
    category: int
    top: int  # first row of the crop in the image
    left: int  # first column
    mask: np.ndarray  # bool [h, w]

    def parts(self) -> list[_Object]:
        """Return the connected parts, in which pixels touch by edges or corners; itself if there is one."""
        numbers, count = label_parts(self.mask)
        if count == 1:
            return [self]
        return [
            replace(self, top=self.top + box[0].start, left=self.left + box[1].start, mask=numbers[box] == n)
            for n, box in enumerate(bounding_boxes(numbers, count), start=1)
        ]

    def annotation(self, height: int, width: int) -> dict[str, Any]:
        """Return its entry in the json, without the ids of the object and of its image."""
        tool = coco_tool()
        uncompressed = encode_uncompressed(self.mask, self.top, self.left, height, width)
        runs = run_lengths(uncompressed, height, width)
        return {
            "category_id": self.category,
            "iscrowd": 0,
            "area": int(tool.area(runs)),
            "bbox": tool.toBbox(runs).tolist(),
            "segmentation": {"size": [*map(int, runs["size"])], "counts": runs["counts"].decode()},
        }


@dataclass(frozen=True)
class _Annotated:
    """An object as entries of the json: as a whole, and where it has several parts also as these."""

    path: Path
    value: int
    whole: dict[str, Any]
    parts: list[dict[str, Any]]  # empty if it is connected, or if its parts are not counted


def masks_to_coco(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    classes: Sequence[str] = ("object",),
    ignore: Sequence[int] | None = None,
    threshold: int | None = None,
    split: bool | None = None,
) -> Converted:
    """Write the masks of a folder as a COCO json, with compressed run lengths.

    Two layouts are read. *One mask file for each image*: images/NAME.jpg with masks/NAME.png, an image of one
    channel that is 0 in the background and has another value for each object. *One mask file for each
    object*: a folder for each image, with the image in images/ and `masks/*.png`, each 0 outside and one
    other value inside; an image whose masks/ is empty has no objects. With several classes, masks/ holds a
    folder named after each class, with the same content; then an image may lack a file in some of them. Masks
    may be PNG, TIFF, BMP or GIF, with integers of 8, 16 or 32 bits.

    Args:
        folder: folder in one of these layouts. Paths in the json are relative to it: set
            `CocoConfig.images` to it, unless the json is in this folder or in its annotations/.
        out: the file to write; it must not exist.
        classes: names of the classes, which get the ids 1, 2, ...
        ignore: values of the masks that are background, like 0, such as 255, the border of objects in Pascal
            VOC. None refuses masks in which 255 may be a border, and masks with shades (grey values along
            smoothed edges); with an empty sequence, every value is an object.
        threshold: lowest value inside an object, for masks with shades, such as smoothed and JPEG-compressed
            ones: each mask is one object. None takes each value for an object, and refuses shades.
        split: make an object of each connected part of a value, in which pixels touch by edges or corners.
            None does so if the masks are binary: each is one file for an image, there is no threshold, and
            all hold the same single value.

    Returns:
        The numbers of images, objects and values that were split.

    Raises:
        DataError: the folder has neither layout, `out` is there already, or there are images without masks,
            masks without images, other files or folders in masks/, masks of another size than their image,
            files that cannot be read, or, where a file is one object, masks that are empty or hold several
            values, masks with shades, masks that may hold a border: each is named, and nothing is written. A
            numbered mask that is 0 everywhere is an image without objects.
        ValueError: `classes`, `ignore` or `threshold` have invalid values.

    Warns:
        DataWarning: `split` is None, and a value that is not split has several connected components, which
            need different values, or `split`, if each is an object.

    Example:
        >>> masks_to_coco("/data/nuclei", "/data/nuclei/annotations/all.json", classes=("nucleus",))
    """
    root, target = existing_folder(os.fspath(folder)), Path(out).expanduser()
    if not classes or len(set(classes)) < len(classes) or not all(classes):
        raise ValueError(f"classes must be names, all different, got {classes!r}.")
    if threshold is not None and threshold < 1:
        raise ValueError(f"threshold must be 1 or more, got {threshold}.")
    if ignore and (threshold is not None or min(ignore) < 1):
        raise ValueError(f"ignore must be values of 1 or more, and excludes a threshold, got {ignore!r}.")
    rules = _ValueRules(None if ignore is None else tuple(ignore), threshold)
    if target.exists():
        raise DataError(f"{target} is there already.")
    coco_tool()  # reports that pycocotools is missing before the masks are read
    if (root / "images").is_dir() and (root / "masks").is_dir():
        images_with_masks, bad = _one_file_each(root, classes, rules)
    else:
        images_with_masks, bad = _one_folder_each(root, classes, rules)
    images: list[dict[str, Any]] = []
    objects: list[tuple[int, _Annotated]] = []
    with progress_bar("Reading masks", len(images_with_masks), least=MANY) as report:
        for number, image in enumerate(images_with_masks, start=1):
            try:
                (width, height), own = _read_objects(image, rules)
            except DataError as error:
                bad.append(str(error))
                continue
            name = image.path.relative_to(root).as_posix()
            images.append({"id": number, "file_name": name, "width": width, "height": height})
            count_parts = image.numbered or bool(split)
            objects += ((number, _annotated(each, height, width, count_parts=count_parts)) for each in own)
            report(number, len(images_with_masks))
    if bad:
        raise DataError(f"the masks of {root} cannot be converted:{listing(bad)}")
    undecided = split is None
    if split is None:
        split = threshold is None and len({each.value for _, each in objects}) == 1
    disconnected = [each for _, each in objects if each.parts]
    entries = [
        {"image_id": number} | entry
        for number, each in objects
        for entry in (each.parts if split and each.parts else [each.whole])
    ]
    annotations = [{"id": number} | entry for number, entry in enumerate(entries, start=1)]
    if disconnected and undecided and not split:
        warnings.warn(
            f"{len(disconnected)} of {len(annotations)} objects have parts that do not touch:"
            + listing([f"{each.path}: {each.value} has {len(each.parts)} parts." for each in disconnected])
            + "\nIf each part is an object, give each a value of its own, or split them all with --split on.",
            DataWarning,
            stacklevel=2,
        )
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    with replacing(target) as unfinished:
        unfinished.write_text(json.dumps(content), encoding="utf-8")
    return Converted(len(images), len(annotations), len(disconnected) if split else 0)


def _annotated(each: _Object, height: int, width: int, *, count_parts: bool) -> _Annotated:
    parts = each.parts() if count_parts else [each]
    entries = [part.annotation(height, width) for part in parts] if len(parts) > 1 else []
    return _Annotated(each.path, each.value, each.annotation(height, width), entries)


def _files(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Return the visible files of a folder with one of the suffixes, by name; none if there is no folder."""
    names = os.listdir(folder) if folder.is_dir() else []
    return [
        folder / n for n in sorted(names) if n.lower().endswith(tuple(suffixes)) and not n.startswith(".")
    ]


def _mask_folders(masks: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    """Return the folder of the masks of each class, and the id of the class."""
    several = len(classes) > 1
    return [(masks / name if several else masks, number) for number, name in enumerate(classes, start=1)]


def _one_file_each(
    root: Path, classes: Sequence[str], rules: _ValueRules
) -> tuple[list[_MaskedImage], list[str]]:
    """Return the images with one mask file each, and the faults of the others; see `masks_to_coco`."""
    images = {path.stem: path for path in reversed(_files(root / "images"))}
    bad = [
        f"{path} has the same name as {images[path.stem]}."
        for path in _files(root / "images")
        if images[path.stem] != path
    ]
    masks: dict[str, list[tuple[Path, int]]] = {name: [] for name in images}
    for folder, number in _mask_folders(root / "masks", classes):
        own: dict[str, Path] = {}
        for path in _files(folder, rules.suffixes):
            if path.stem not in masks:
                bad.append(f"{path} has no image of its name in {root / 'images'}.")
            elif own.setdefault(path.stem, path) != path:
                bad.append(f"{path} has the same name as {own[path.stem]}.")
            else:
                masks[path.stem].append((path, number))
    bad += _unread(root / "masks", classes, rules)
    bad += [
        f"{images[name]} has no mask of its name in {root / 'masks'} ({rules.kinds})."
        for name in images
        if not masks[name]
    ]
    if not images:
        raise DataError(f"{root / 'images'} holds no images.")
    return [_MaskedImage(images[name], masks[name], True) for name in sorted(images) if masks[name]], bad


def _unread(masks: Path, classes: Sequence[str], rules: _ValueRules) -> list[str]:
    """Return a fault for each file among the masks that is not read, as its objects would be missing."""
    parts = [folder for folder, _ in _mask_folders(masks, classes)]
    held = [path for folder in {masks, *parts} if folder.is_dir() for path in folder.iterdir()]
    read = {*parts, *(path for folder in parts for path in _files(folder, rules.suffixes))}
    return [_why_unread(path, rules) for path in sorted({*held} - read) if not is_stray(path.name)]


def _why_unread(path: Path, rules: _ValueRules) -> str:
    """Return a sentence on why a file or folder among the masks is not read."""
    if path.is_dir():
        return f"{path} is a folder of none of the classes; --classes names them."
    if path.suffix.lower() in LOSSY_SUFFIXES and rules.threshold is None:
        return (
            f"{path} has a lossy format, which changes values along edges: save masks as PNG or TIFF, or "
            "pass --threshold 128, by which pixels of this value or more are one object."
        )
    return f"{path} is no mask ({rules.kinds}), or is not in the folder of a class."


def _one_folder_each(
    root: Path, classes: Sequence[str], rules: _ValueRules
) -> tuple[list[_MaskedImage], list[str]]:
    """Return the images with a folder of masks each, and the faults of the others; see `masks_to_coco`."""
    images_with_masks, bad = [], []
    for folder in sorted(path.parent for path in root.glob("*/images") if path.is_dir()):
        images = _files(folder / "images")
        if len(images) != 1:
            bad.append(f"{folder / 'images'} holds {len(images)} images and should hold one.")
        elif not (folder / "masks").is_dir():
            bad.append(f"{folder} has no masks/.")
        else:
            masks = [
                (path, number)
                for part, number in _mask_folders(folder / "masks", classes)
                for path in _files(part, rules.suffixes)
            ]
            bad += _unread(folder / "masks", classes, rules)
            images_with_masks.append(_MaskedImage(images[0], masks, False))
    if not images_with_masks and not bad:
        held = join_some(sorted(os.listdir(root)))
        raise DataError(f"{root} must hold {LAYOUTS}; it holds {held or 'nothing'}.")
    return images_with_masks, bad


def _read_objects(image: _MaskedImage, rules: _ValueRules) -> tuple[tuple[int, int], list[_Object]]:
    """Return the (width, height) of an image in pixels, and its objects."""
    size: tuple[int, int] | None = None
    objects: list[_Object] = []
    for path, category in image.masks:
        values = read_values(path, as_grey=rules.threshold is not None)
        height, width = values.shape
        if size is None:
            size = width, height
            check_size(image.path, size)
        elif (width, height) != size:
            raise DataError(
                f"{path} is {width} pixels wide and {height} high, its image {size[0]} wide and "
                f"{size[1]} high."
            )
        if values.min(initial=0) < 0:
            raise DataError(f"{path} holds values below 0, or beyond 31 bits.")
        if rules.threshold is not None:
            values = (values >= rules.threshold).astype(np.uint8)
        elif rules.ignore:
            values = np.where(np.isin(values, rules.ignore), 0, values)
        present, numbered = _renumbered(values)
        if not image.numbered and len(present) != 1:
            held = f"{len(present)} values besides 0, and should hold one" if len(present) else "no object"
            shades = f": {SHADES}" if len(present) > 2 else ""
            raise DataError(f"{path} holds {held}{shades}.")
        if image.numbered and (fault := _shades(present, numbered, rules) or _border(present, rules)):
            raise DataError(f"{path} {fault}.")
        extents = bounding_boxes(numbered, len(present))
        for number, (value, extent) in enumerate(zip(present, extents, strict=True), start=1):
            mask = numbered[extent] == number
            top, left = extent[0].start, extent[1].start
            objects.append(_Object(path, int(value), category, top, left, mask))
    return size or read_image(image.path).size, objects


def _renumbered(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the values besides 0, ascending, and the mask with each replaced by its rank: 1, 2, ..."""
    if values.max(initial=0) >= 2**16:
        held, indices = np.unique(values, return_inverse=True)
        present = held[held > 0]
        return present, indices.reshape(values.shape) + (len(present) == len(held))
    values = values.astype(np.uint16)
    held = np.bincount(values.ravel()) > 0  # much faster than sorting
    held[0] = False
    return np.flatnonzero(held), (np.cumsum(held) * held)[values]


def _border(present: np.ndarray, rules: _ValueRules) -> str | None:
    """Return the fault of a mask that may hold the border of Pascal VOC, unless `ignore` decides that."""
    others = present[present != VOID]
    if rules.ignore is not None or len(others) == len(present) or not len(others):
        return None
    if VOID - 1 in others or others.max() > VOID:  # the numbering continues: it is an object
        return None
    return (
        f"holds {VOID} beside {join_some(others.tolist(), form=str)}: in Pascal VOC's masks it is the border "
        f"of objects, which --ignore {VOID} leaves out; with --ignore none it is an object"
    )


def _shades(present: np.ndarray, numbered: np.ndarray, rules: _ValueRules) -> str | None:
    """Return the fault of a mask most of whose values are shades: grey values along the edges of objects.

    Such values are nowhere wider than two pixels. Most have several connected components, or the mask as a
    whole has far fewer components than values.
    """
    if rules.ignore is not None or len(present) < 4:
        return None
    solid = np.bincount(numbered[even_pixels(numbered)], minlength=len(present) + 1)[1:] > 0
    thin = np.flatnonzero(~solid) + 1
    if 2 * len(thin) <= len(present):
        return None
    extents = bounding_boxes(numbered, len(present))
    disconnected = sum(label_parts(numbered[extents[value - 1]] == value)[1] > 1 for value in thin.tolist())
    few_components = len(thin) >= FEWEST_SHADES and 4 * label_parts(numbered > 0)[1] <= len(present)
    if not few_components and (2 * disconnected <= len(thin) or not solid.any()):
        return None
    return f"holds {len(present)} values, {len(thin)} of them only along edges: {SHADES}"
