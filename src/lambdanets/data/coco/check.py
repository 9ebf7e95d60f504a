"""Checks of the entries of a COCO json: one sentence for each fault."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import normalize
from urllib.parse import unquote

from ..check import run_in_threads
from ..images import check_image, check_size, reason
from .annotation_file import CocoFile, is_id
from .masks import as_number, clip_polygons, segmentation_fault

BOX_TOLERANCE = 1.0  # pixels that a box may exceed the image: tools round and count edges differently
MAX_AREA = 1e15  # highest accepted area of an object, in pixels
OUTSIDE_PATH = re.compile(r"(file:/*)?([A-Za-z]:)?/|\.\./")  # start of a path to another folder
Entry = dict[str, Any]


@dataclass(frozen=True)
class Checked:
    """The entries without fault, and the faults of the others.

    Args:
        images: entries without fault, each with its `path`.
        annotations: entries without fault of these images, by image id.
        bad_images: one sentence each.
        bad_annotations: one sentence each.
        annotations_of_bad_images: number of annotations of bad images.
        missing: number of images whose file was not found.
        renamed: one sentence each for images whose file was found under another spelling of its name.
    """

    images: list[Entry]
    annotations: dict[int, list[Entry]]
    bad_images: list[str]
    bad_annotations: list[str]
    annotations_of_bad_images: int
    missing: int
    renamed: list[str]


def check_entries(
    file: CocoFile,
    folders: Sequence[Path],
    *,
    masks: bool,
    decode: bool,
    max_pixels: int,
    progress: Callable[[int], None],
) -> Checked:
    """Check the images and annotations of a COCO json.

    Faults are returned, not raised.

    Args:
        file: the result of `read_coco`.
        folders: folders to search for images, in this order.
        masks: whether annotations need a segmentation.
        decode: decode the images; otherwise only their headers are read.
        max_pixels: larger images are refused.
        progress: called with the number of images done.
    """
    listed, bad_images, missing, renamed = _find_images(file.images, folders)
    entries = list(listed.values())

    def check(index: int) -> None:
        path, size = entries[index]["path"], (entries[index]["width"], entries[index]["height"])
        check_size(path, size, max_pixels=max_pixels)
        if decode:
            check_image(path, max_pixels=max_pixels)

    bad = run_in_threads(check, len(entries), progress)
    bad_images += [
        f"image {entries[index]['id']} ({entries[index]['file_name']}): {bad[index]}" for index in sorted(bad)
    ]
    images = {entry["id"]: entry for index, entry in enumerate(entries) if index not in bad}
    ids = {entry["id"] for entry in file.images if isinstance(entry, dict) and is_id(entry.get("id"))}
    left_out = ids - images.keys()
    annotations: dict[int, list[Entry]] = {number: [] for number in images}
    bad_annotations = []
    of_bad_images = 0
    seen: set[int] = set()
    for index, entry in enumerate(file.annotations):
        if not isinstance(entry, dict) or not is_id(entry.get("id")):
            bad_annotations.append(f"annotation at index {index}: {_id_fault(entry)}.")
            continue
        if entry["id"] in seen:
            fault = "its id is taken by another one before it"
        elif is_id(entry.get("image_id")) and entry["image_id"] in left_out:
            of_bad_images += 1
            continue
        else:
            entry = _normalised(entry, images, masks=masks)
            fault = _annotation_fault(entry, images, file.categories, masks=masks)
        seen.add(entry["id"])
        if fault is None:
            annotations[entry["image_id"]].append(entry)
        else:
            image = images.get(entry["image_id"]) if is_id(entry.get("image_id")) else None
            of = f" of {image['file_name']}" if image else ""
            bad_annotations.append(f"annotation {entry['id']}{of}: {fault}.")
    return Checked(
        list(images.values()),
        annotations,
        bad_images,
        bad_annotations,
        of_bad_images,
        missing,
        renamed,
    )


def _find_images(
    entries: Sequence[Any], folders: Sequence[Path]
) -> tuple[dict[int, Entry], list[str], int, list[str]]:
    """Find the files of images.

    Returns:
        The images with a complete entry and a file, the faults of the others, the number of missing files,
        and sentences about files that were found under another spelling of their name.
    """
    found: dict[int, Entry] = {}
    renamed: dict[int, Path] = {}
    bad = []
    missing = 0
    for index, entry in enumerate(entries):
        number = entry.get("id") if isinstance(entry, dict) else None
        if not is_id(number):
            bad.append(f"image at index {index}: {_id_fault(entry)}.")
            continue
        name, width, height = entry.get("file_name"), *(as_number(entry.get(k)) for k in ("width", "height"))
        if not isinstance(name, str) or not name:
            bad.append(f"image {number}: it has no file_name.")
        elif not all(is_id(side) and side > 0 for side in (width, height)):
            bad.append(f"image {number} ({name}): its width and height are {width!r} and {height!r}.")
        elif number in found:
            bad.append(f"image {number} ({name}): its id is taken by {found[number]['file_name']}.")
        else:
            try:
                path = next((p for folder in folders if (p := folder / name).is_file()), None)
                others = [] if path else _find_respelled(name, folders)
            except OSError as error:
                bad.append(f"image {number} ({name}): cannot look for it: {reason(error)}.")
                continue
            if path is None and len(others) == 1:
                path = renamed[number] = others[0]
            if path is None and others:
                bad.append(
                    f"image {number} ({name}): several files match its name, such as "
                    f"{others[0]} and {others[1]}."
                )
            elif path is None:
                looked = ", ".join(str(folder) for folder in folders)
                bad.append(f"image {number} ({name}): there is no such file in {looked}.")
                missing += 1
            else:
                found[number] = {"id": number, "file_name": name, "width": width, "height": height}
                found[number]["path"] = os.fspath(path)
    names = Counter(path for path, _ in {(each["path"], each["file_name"]) for each in found.values()})
    for number, path in list(renamed.items()):
        if names[os.fspath(path)] > 1:
            name = found.pop(number)["file_name"]
            del renamed[number]
            bad.append(f"image {number} ({name}): {path} is listed under this and under another file_name.")
    notes = [f"{found[number]['file_name']} is read from {path}." for number, path in renamed.items()]
    return found, bad, missing, notes


def _find_respelled(name: str, folders: Sequence[Path]) -> list[Path]:
    """Return files that match another spelling of a name: Windows separators, URL escapes, Unicode forms.

    For a path to another folder, the longest sequence of its last parts that exists is used.
    """
    spellings = dict.fromkeys(
        normalize(form, spelling)
        for plain in (name, unquote(name))
        for spelling in (plain, plain.replace("\\", "/"))
        for form in ("NFC", "NFD")
    )
    spellings.pop(name, None)
    if found := _files(folders, spellings):
        return found
    endings = [spelling.split("/") for spelling in (name, *spellings) if OUTSIDE_PATH.match(spelling)]
    for length in range(max(map(len, endings), default=1) - 1, 0, -1):
        if found := _files(folders, ("/".join(parts[-length:]) for parts in endings)):
            return found
    return []


def _files(folders: Sequence[Path], names: Iterable[str]) -> list[Path]:
    """Return the distinct files that have one of the names in one of the folders."""
    paths = [folder / name for name in names if name for folder in folders]
    return list({path.resolve(): path for path in paths if path.is_file()}.values())


def _id_fault(entry: object) -> str:
    number = entry.get("id") if isinstance(entry, dict) else None
    if type(number) is int:
        return f"its id {number} is beyond 64 bits"
    return f"it has no whole number as its id{f' but the text {number!r}' if type(number) is str else ''}"


def _normalised(entry: Entry, images: dict[int, Entry], *, masks: bool) -> Entry:
    """Normalise an annotation.

    Numbers in text become numbers, null values are removed, and polygons are clipped where they reach far
    outside the image.
    """
    plain = {key: value for key, value in entry.items() if value is not None}
    plain |= {key: as_number(plain[key]) for key in ("area", "iscrowd") if key in plain}
    if isinstance(plain.get("bbox"), list):
        plain["bbox"] = [as_number(value) for value in plain["bbox"]]
    image = images.get(plain["image_id"]) if is_id(plain.get("image_id")) else None
    if masks and image and "segmentation" in plain:
        plain["segmentation"] = clip_polygons(plain["segmentation"], image["height"], image["width"])
    return plain


def _annotation_fault(
    entry: Entry, images: dict[int, Entry], categories: dict[int, str], *, masks: bool
) -> str | None:
    """Return the fault of an annotation as a clause, or None."""
    for kind, listed in (("image", images), ("category", categories)):
        number = entry.get(f"{kind}_id")
        if not is_id(number) or number not in listed:
            hint = ": it is text, and ids are whole numbers" if type(number) is str else ""
            return f"it is of {kind} {number!r}, which is not listed{hint}"
    height, width = (images[entry["image_id"]][side] for side in ("height", "width"))
    fault = _box_fault(entry.get("bbox"), height, width)
    if fault is None and entry.get("iscrowd", 0) not in (0, 1):
        fault = f"its iscrowd is {entry['iscrowd']!r}, not 0 or 1"
    if fault is None and "area" in entry and not _is_area(entry["area"]):
        fault = f"its area is {entry['area']!r}"
    if fault is None and masks:
        fault = segmentation_fault(entry.get("segmentation"), height, width, entry["bbox"])
    return fault


def _box_fault(box: object, height: int, width: int) -> str | None:
    """Return the fault of a box [x, y, width, height] in pixels as a clause, or None."""
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return f"its box is not four numbers [x, y, width, height] but {box!r}"
    x, y, w, h = box
    if w <= 0 or h <= 0:
        return f"its box {box} has no area"
    # Checked before the sums: a JSON integer may be too large to be added to a float.
    beyond = max(x, w) > width + 2 * BOX_TOLERANCE or max(y, h) > height + 2 * BOX_TOLERANCE
    beyond = beyond or min(x, y) < -BOX_TOLERANCE
    if beyond or x + w > width + BOX_TOLERANCE or y + h > height + BOX_TOLERANCE:
        return f"its box {box} reaches outside the image, which is {width} pixels wide and {height} high"
    return None


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and value == value


def _is_area(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= MAX_AREA
